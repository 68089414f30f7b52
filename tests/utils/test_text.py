"""Parts of messages."""

from __future__ import annotations

import pytest

from ipcnn_ray.utils.text import csv_cell, did_you_mean, printable, shortened, without_passwords


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [("conv5_4", " Did you mean 'conv5_3'?"), ("CONV5_3", " Did you mean 'conv5_3'?"), ("pool", ""), (7, "")],
)
def test_a_suggestion_is_close(word, suggestion):
    assert did_you_mean(word, ["conv1_1", "conv5_3", "head"]) == suggestion


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("got 'ftp://bob:se@cret@h/x' and http://tok-en@h:1/a@b", "got 'ftp://h/x' and http://h:1/a@b"),
        (
            "mail a@b.c about s3://bucket/x@y and http://h/?a=b@c",
            "mail a@b.c about s3://bucket/x@y and http://h/?a=b@c",
        ),
    ],
)
def test_passwords_in_urls_are_left_out(text, shown):
    assert without_passwords(text) == shown


@pytest.mark.parametrize(
    ("text", "short"), [("abc", "abc"), ("x" * 40, "x" * 40), ("x" * 50, "x" * 13 + " ... (50 characters in all)")]
)
def test_a_shortened_text_has_at_most_the_length_and_names_its_own(text, short):
    assert shortened(text, 40) == short
    assert len(short) <= 40


def test_names_that_a_terminal_or_a_spreadsheet_would_obey():
    assert printable("a\x1b[2J\x9b1m\u202eb\ud800") == "a\\u001b[2J\\u009b1m\\u202eb\\ud800"
    assert printable("naïve 🐄\n\tx") == "naïve 🐄\n\tx"
    assert [csv_cell(text) for text in ("=1+1", "@x", "-HYPERLINK(1)", "+a|b!c")] == [
        "'=1+1", "'@x", "'-HYPERLINK(1)", "'+a|b!c"
    ]  # fmt: skip
    plain = ["", "-", "-.53", "-1.2e-05 (p .03)", "+2 %", "cow"]
    assert [csv_cell(text) for text in plain] == plain
