from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ipcnn_ray.data.batches import batches, crops_reader, epoch_order, shares, to_input


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), np.uint8)


def test_the_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(50, 7, 3)
    assert sorted(order.tolist()) == list(range(50))
    assert np.array_equal(order, epoch_order(50, 7, 3))
    assert not np.array_equal(order, epoch_order(50, 7, 4))
    assert not np.array_equal(order, epoch_order(50, 8, 3))


def test_the_order_leaves_torch_alone():
    before = torch.get_rng_state()
    epoch_order(50, 7, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_shares_by_hand():
    order = np.arange(11)
    assert [part.tolist() for part in shares(order, 4, 0, 1)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [part.tolist() for part in shares(order, 4, 0, 2)] == [[0, 1], [4, 5]]
    assert [part.tolist() for part in shares(order, 4, 1, 2)] == [[2, 3], [6, 7]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_together_see_what_one_would(world):
    order = epoch_order(50, 0, 1)
    steps = zip(*(shares(order, 12, rank, world) for rank in range(world)), strict=True)
    together = [np.concatenate(step).tolist() for step in steps]
    assert together == [part.tolist() for part in shares(order, 12, 0, 1)]


def test_an_uneven_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size = 10: expected a multiple of the 4 workers"):
        shares(np.arange(20), 10, 0, 4)


def test_batches_carry_rows_flips_and_labels_in_order(images):
    labels = np.array([0, 0, 1, 1, -1, -1, -1, -1, -1, -1])
    parts = [np.array([[3, 1], [9, 0]]), np.array([[0, 0], [1, 1]]), np.array([[5, 0]])]
    found = list(batches(parts, labels, crops_reader(images)))
    assert [batch.labels.tolist() for batch in found] == [[1, -1], [0, 0], [-1]]
    assert [batch.mirrored.tolist() for batch in found] == [[True, False], [False, True], [False]]
    for part, batch in zip(parts, found, strict=True):
        assert np.array_equal(batch.rows.numpy(), images[part[:, 0]])


def test_rows_that_a_device_keeps_are_the_rows_of_the_file(images, tmp_path, monkeypatch):
    monkeypatch.setattr("ipcnn_ray.data.batches.CHUNK_BYTES", 3 * images[0].nbytes)  # ten rows in four copies
    np.save(tmp_path / "images.npy", images)
    mapped = crops_reader(np.load(tmp_path / "images.npy", mmap_mode="r"))
    kept = crops_reader(np.load(tmp_path / "images.npy", mmap_mode="r"))
    kept.keep(torch.device("cpu"))
    (tmp_path / "images.npy").write_bytes(b"")  # no longer read
    part = np.array([[9, 0], [3, 1], [3, 0]])
    assert torch.equal(kept(part), torch.from_numpy(images[part[:, 0]])) and kept(part).dtype == torch.uint8
    assert kept.kept and not mapped.kept
    with pytest.raises(OSError, match="ends before its row"):
        mapped(part)


def test_no_batches():
    assert list(batches([], np.zeros(1, np.int64), crops_reader(np.zeros((1, 3, 2, 2), np.uint8)))) == []


def test_one_batch_is_read_ahead_and_no_thread_is_left(images):
    asked: list[int] = []
    done = threading.Event()

    def read(part):
        asked.append(int(part[0, 0]))
        if asked[-1] == 1:
            done.set()
        return torch.zeros(1)

    stream = batches([np.array([[i, 0]]) for i in range(6)], np.zeros(10, np.int64), read)
    next(stream)
    assert done.wait(5)
    assert asked == [0, 1]  # the second while the first is in use, the third not yet
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_an_error_of_the_reader_comes_out(images):
    def read(part):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(batches([np.array([[0, 0]])], np.zeros(1, np.int64), read))


def test_input_by_hand():
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2).repeat(2, 1, 1, 1)
    mean = torch.full((3, 2, 2), 2.0)
    mean[:, :, 0] = 1.0
    x = to_input(image, torch.tensor([False, True]), mean, 0.5, torch.device("cpu"))
    assert x.dtype == torch.float32
    assert x[0, 0].tolist() == [[-0.5, -0.5], [0.5, 0.5]]
    assert x[1, 0].tolist() == [[0.0, -1.0], [1.0, 0.0]]  # mirrored first, then the mean is taken off
