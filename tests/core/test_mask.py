"""The mask against numbers by hand and a loop over images and filters."""

from __future__ import annotations

import pytest
import torch

from ipcnn_ray.core.mask import mask_maps, peak_NC
from ipcnn_ray.core.templates import part_templates


def unit(n: int) -> torch.Tensor:
    return part_templates(n, shape="gradient", norm="l1", beta=2.0, tau=1.0)


def test_peak_is_the_row_major_index_and_the_first_of_equals():
    x_NCHW = torch.zeros(2, 2, 3, 3)
    x_NCHW[0, 0, 1, 2] = 1.0
    x_NCHW[0, 1, 2, 0] = x_NCHW[0, 1, 0, 2] = 5.0  # row-major first: (0, 2); column-major first would be (2, 0)
    x_NCHW[1, 0] = -torch.arange(9.0).reshape(3, 3)
    assert peak_NC(x_NCHW).tolist() == [[5, 2], [0, 0]]
    assert peak_NC(x_NCHW).dtype == torch.int64


def test_masked_map_by_hand():
    # n = 3, peak 4 at (0, 0): template 1, 1/3, -1/3 along the first row; negative products become 0.
    x_NCHW = torch.tensor([[4.0, 3, 3], [3, 3, 3], [0, 3, 3]]).reshape(1, 1, 3, 3)
    expected = torch.tensor([[4.0, 1, 0], [1, 0, 0], [0, 0, 0]]).reshape(1, 1, 3, 3)
    torch.testing.assert_close(mask_maps(x_NCHW, unit(3)), expected)


def test_equals_a_loop():
    x_NCHW, templates = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(1)).relu(), unit(6)
    fast = mask_maps(x_NCHW, templates)
    for b in range(4):
        for c in range(5):
            row, col = divmod(int(x_NCHW[b, c].argmax()), 6)
            assert torch.equal(fast[b, c], (x_NCHW[b, c] * templates[row * 6 + col]).clamp(min=0))


def test_gradient_flows_through_the_map_only():
    # d max(x T, 0) / dx = T where x T > 0, else 0.
    x_NCHW = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    templates = unit(4).requires_grad_()
    masked = mask_maps(x_NCHW, templates.detach())
    masked.sum().backward()
    template_NCHW = templates.detach()[peak_NC(x_NCHW)]
    torch.testing.assert_close(x_NCHW.grad, template_NCHW.clamp(min=0))


def test_dead_maps_stay_zero_and_one_cell_passes():
    assert torch.equal(mask_maps(torch.zeros(1, 2, 4, 4), unit(4)), torch.zeros(1, 2, 4, 4))
    assert mask_maps(torch.full((1, 1, 1, 1), 7.0), unit(1)).item() == 7.0


def test_can_be_exported_for_any_batch():
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("unit_Pnn", unit(4))

        def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
            return mask_maps(x_NCHW, self.unit_Pnn)

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Masked(), (torch.rand(2, 3, 4, 4),), dynamic_shapes={"x_NCHW": {0: batch}})
    x_NCHW = torch.rand(7, 3, 4, 4)
    assert torch.equal(program.module()(x_NCHW), mask_maps(x_NCHW, unit(4)))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 5, 5), (3, 4, 4)])
def test_maps_of_another_size_are_named(shape):
    text = rf"x_NCHW has shape \({', '.join(map(str, shape))}\): expected \[N, C, 4, 4\]"
    with pytest.raises(ValueError, match=text):
        mask_maps(torch.zeros(shape), unit(4))
