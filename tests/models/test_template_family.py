"""A shape is one function in core and one section in the spec; whatever reads templates takes it from there."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from ipcnn_ray.core.templates import LEARNED, SHAPES, part_templates
from ipcnn_ray.models.build import assemble, template_banks
from ipcnn_ray.models.model_card import model_card_markdown
from ipcnn_ray.report.filter_figures import save_template_figure
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.section import sections
from ipcnn_ray.spec.template import COMMON, MaskTemplate, PartTemplate, TailoredTemplate, Template

COMPACT = Model(network="compact")
SECTIONS = {
    shape: kind
    for shape, kind in sections(Template).items()
    if issubclass(kind, PartTemplate) and kind is not TailoredTemplate
}


def of_shape(name: str) -> PartTemplate:
    """The template of a shape with its defaults."""
    more = {"values": ((-1.0, 0.5, -1.0), (0.5, 1.0, 0.5), (-1.0, 0.5, -1.0))} if name == "mask" else {}
    return SECTIONS[name](shape=name, **more)


def unit_of(name: str, n: int) -> torch.Tensor:
    return part_templates(n, **of_shape(name).arguments(), tau=1.0)


def test_every_function_has_its_section_with_the_same_parameters():
    assert SECTIONS.keys() == SHAPES.keys()
    for name, kind in SECTIONS.items():
        assert of_shape(name).arguments()["shape"] == name
        parameters = list(inspect.signature(SHAPES[name]).parameters)[1:]
        assert set(kind.model_fields) - {"shape", *COMMON} == set(parameters), name
        assert kind.__doc__ and SHAPES[name].__doc__ and "Source" in SHAPES[name].__doc__


@pytest.mark.parametrize("name", SECTIONS)
def test_every_shape_is_built(name):
    for n in (1, 6, 13):
        unit = unit_of(name, n)
        assert unit.shape == (n * n, n, n) and unit.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "n"),
    [("gradient", 6), *(pytest.param(name, 6, marks=pytest.mark.slow) for name in SECTIONS if name != "gradient"),
     *(pytest.param("gradient", n, marks=pytest.mark.slow) for n in (1, 13))],
)  # fmt: skip
def test_every_shape_is_drawn(name, n, tmp_path):
    save_template_figure(unit_of(name, n).numpy(), of_shape(name).label(), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize("name", SECTIONS)
def test_every_shape_masks_and_enters_the_loss_with_its_tau(name):
    section = of_shape(name).model_copy(update={"tau": 3.0})
    banks, net = template_banks(COMPACT, section), assemble(COMPACT, section)
    assert torch.allclose(banks["conv5"][:-1], 3 * net.mask("conv5").unit_Pnn)
    assert banks["conv5"][-1].unique().tolist() == [-3]
    assert model_card_markdown(COMPACT, section).startswith(f"# compact: {section.describe()}")


def test_the_layer_of_ones_own_network_learns_what_a_spec_may_learn():
    assert {shape: kind.learned for shape, kind in SECTIONS.items() if kind.learned and kind.form == "exact"} == LEARNED


def test_no_other_file_names_a_shape():
    """But for `none` and `tailored`, which are no functions, and the fit, which ends in two shapes."""
    from pathlib import Path

    import ipcnn_ray

    root = Path(ipcnn_ray.__file__).parent
    own = {"core/templates.py", "spec/template.py", "spec/extensions.py", "train/final_model.py"}
    # Names that mean other things, too: the form and the recipe of the authors' code, a mask.
    new = [name for name in SHAPES if name not in ("gradient", "uniform", "mask", "released")]
    found = [
        f"{file.relative_to(root)}: {name}"
        for file in root.rglob("*.py")
        if file.relative_to(root).as_posix() not in own
        for name in (*(f'"{new_one}"' for new_one in new), *(kind.__name__ for kind in SECTIONS.values()))
        if name in file.read_text()
    ]
    assert found == []
    assert MaskTemplate.__name__ in (root / "spec/template.py").read_text()
