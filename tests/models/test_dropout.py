from __future__ import annotations

import pytest
import torch

from ipcnn_ray.models.layers import SampleDropout


def drop(rows: slice, step: int = 1, name: str = "fc6", seed: int = 0, epoch: int = 1) -> torch.Tensor:
    layer = SampleDropout(0.25, name)
    layer.set_step(seed, epoch, step, rows.start, 8)
    return layer(torch.ones(8, 500)[rows])


def test_workers_together_draw_what_one_worker_draws():
    assert torch.equal(torch.cat([drop(slice(0, 4)), drop(slice(4, 8))]), drop(slice(0, 8)))


def test_a_quarter_is_dropped_and_the_rest_grows_by_a_third():
    values, counts = drop(slice(0, 8)).unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0, 4 / 3]))
    assert counts[0] / 4000 == pytest.approx(0.25, abs=0.03)


def test_seed_epoch_step_and_layer_each_change_the_mask():
    state = torch.get_rng_state()
    base = drop(slice(0, 8))
    assert torch.equal(base, drop(slice(0, 8)))
    assert torch.equal(state, torch.get_rng_state())
    for other in ({"step": 2}, {"name": "fc7"}, {"seed": 1}, {"epoch": 2}):
        assert not torch.equal(base, drop(slice(0, 8), **other)), other


def test_evaluation_and_p_0_change_nothing_and_need_no_step():
    x = torch.rand(2, 5)
    assert torch.equal(SampleDropout(0.5, "fc6").eval()(x), x)
    assert torch.equal(SampleDropout(0, "fc6")(x), x)


def test_misuse_is_told():
    with pytest.raises(RuntimeError, match="dropout of fc6: call set_step before every training step"):
        SampleDropout(0.5, "fc6")(torch.ones(1, 1))
    layer = SampleDropout(0.5, "fc6")
    layer.set_step(0, 1, 1, first_row=6, rows_total=8)
    with pytest.raises(ValueError, match="rows 6 to 10 are outside a global batch of 8 images"):
        layer(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"p = 1: expected 0 <= p < 1"):
        SampleDropout(1, "fc6")
