"""Seeds are functions of what they are for, and of nothing else."""

from __future__ import annotations

import hashlib

import torch

from ipcnn_ray.core.seeds import generator, mix


def test_a_seed_is_the_head_of_the_hash_of_its_parts():
    assert mix(7, "order", 3) == int(hashlib.sha256(b"7/order/3").hexdigest()[:14], 16)
    assert 0 <= mix(0) < 2**56


def test_parts_are_kept_apart():
    seeds = {mix(1, 23), mix(12, 3), mix(123), mix(1, 2, 3), mix("1", "2", "3", "")}
    assert len(seeds) == 5


def test_generators_repeat_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    draws = [torch.rand(4, generator=generator(5, "dropout", 1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(4, generator=generator(5, "dropout", 2)))
    assert torch.equal(before, torch.get_rng_state())
