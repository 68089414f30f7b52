"""The page of a report in a real browser: it is sorted, enlarged and hovered over, and asks for nothing outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.browser import PATIENCE_MS, chromium
from fakes.gallery import small_gallery
from fakes.tracker import half_failed_search

from ipcnn_ray.cli.report import build_page
from ipcnn_ray.report.experiment_record import read_experiments

pytestmark = pytest.mark.slow
FIGURES = 6


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(build_page(read_experiments(half_failed_search(60), ["sweep"]), [small_gallery()]).html)
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as found:
        yield found


class Opened:
    """An open page, with what went wrong in it and what it asked for."""

    def __init__(self, browser, file: Path, *, javascript: bool = True, width: int = 1200) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(java_script_enabled=javascript, viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.problems.append(line.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        if javascript:
            self.page.wait_for_function(f"document.querySelectorAll('figure.answers').length === {FIGURES}")

    def visible(self, selector: str) -> int:
        return sum(each.is_visible() for each in self.page.locator(selector).all())

    def order(self) -> list[str]:
        """Numbers of the filters of the first run, in the order of their cards."""
        cards = self.page.locator("details.gallery").first.locator(".card").all()
        return [card.locator("p b").first.inner_text() for card in cards]


@pytest.fixture(scope="module")
def opened(browser, file) -> Iterator[Opened]:
    """The page, which takes seconds to open. Tests leave it as they find it."""
    found = Opened(browser, file)
    yield found
    assert found.problems == []
    assert [url for url in found.requests if not url.startswith("data:")] == [file.as_uri()]
    found.page.close()


def test_the_cards_are_sorted(opened):
    assert opened.order() == ["1", "2", "0"]
    # The last order is that of the beginning.
    for by, wanted in {"instability": "102", "fires": "012", "filter": "012", "tracking": "120"}.items():
        opened.page.locator(".sort select").first.select_option(by)
        assert opened.order() == list(wanted), by  # filter 2 has no instability: it comes last


def test_one_run_is_open_at_a_time(opened):
    first, second = opened.page.locator("details.gallery").all()
    assert (first.get_attribute("open"), second.get_attribute("open")) == ("", None)
    second.locator("summary").click()
    assert (first.get_attribute("open"), second.get_attribute("open")) == (None, "")
    assert second.locator(".note").inner_text() == "No pictures: model.safetensors is missing <here>"
    assert [card.inner_text().splitlines()[0] for card in second.locator(".card").all()] == [
        "1 follows head",
        "0 follows nothing",
    ]
    first.locator("summary").click()
    assert (first.get_attribute("open"), second.get_attribute("open")) == ("", None)


def test_a_click_enlarges_and_escape_closes(opened):
    button = opened.page.locator(".enlarge").first
    small = button.locator(".tile").first.bounding_box()["width"]
    assert sum(tile.is_visible() for tile in button.locator(".tile").all()) == 4
    dialog = opened.page.locator("dialog")
    assert not dialog.is_visible()
    button.click()
    assert dialog.is_visible()
    assert dialog.locator("h3").inner_text().startswith("filter 1 follows head, tracking 0.90")
    large = [tile.bounding_box()["width"] for tile in dialog.locator(".tile").all()]
    assert len(large) == 5 and min(large) > 1.5 * small
    captions = dialog.locator("figcaption").all_inner_texts()
    assert captions[0] == "cow_0.jpg: activation 5, head 0.125, tail 0.250"
    opened.page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("button => button === document.activeElement")


def test_the_keyboard_does_the_same(opened):
    opened.page.locator(".enlarge").nth(1).focus()
    opened.page.keyboard.press("Enter")
    dialog = opened.page.locator("dialog")
    assert dialog.locator("h3").inner_text().startswith("filter 2 follows tail")
    opened.page.keyboard.press("Enter")  # the focus is on Close
    assert not dialog.is_visible()


def test_the_mouse_on_a_point_shows_its_run(opened):
    """The run `plain` has an error of 10 % and an instability of .14."""
    page = opened.page
    page.locator("#tradeoff-0").scroll_into_view_if_needed()
    assert opened.visible("img") == 0  # the pictures made room
    place = page.evaluate(
        """() => {
          const view = Bokeh.index.roots.find(view => view.el.closest("#tradeoff-0"));
          const frame = view.frame_view, area = view.canvas_view.el.getBoundingClientRect();
          return [area.x + frame.x_scale.compute(10), area.y + frame.y_scale.compute(0.14)];
        }"""
    )
    page.mouse.move(place[0] - 30, place[1] - 30)
    page.mouse.move(*place, steps=5)
    tooltip = page.locator(".bk-tooltip-content").filter(has_text="plain")
    tooltip.first.wait_for()
    assert tooltip.first.inner_text() == "plain\nerror 10.00 %, instability 0.1400"


def test_on_a_phone_nothing_is_cut_off(browser, file):
    opened = Opened(browser, file, width=390)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    cards = opened.page.locator("details.gallery").first.locator(".card").all()
    assert len({card.bounding_box()["x"] for card in cards}) == 2
    assert opened.problems == []
    opened.page.close()


def test_without_a_script_and_in_print_there_are_pictures(browser, file):
    plain = Opened(browser, file, javascript=False)
    assert plain.visible("figure img") == FIGURES and plain.visible(".sort") == 0
    assert plain.visible(".tile") == 12  # of the open run, four of each filter
    assert plain.page.locator("figure img").first.bounding_box()["height"] > 100
    plain.page.close()
    printed = Opened(browser, file)
    assert printed.visible("figure img") == 0
    printed.page.emulate_media(media="print")
    assert printed.visible("figure img") == FIGURES and printed.visible(".live") == 0
    printed.page.close()
