"""Receptive field of a torch module, measured: the pixels at which the cells of its output have a gradient.

For modules whose torch.fx graph has unknown operations (`fx_receptive_field`). All weights are replaced by positive
random ones, the statistics of batch normalisation by 0 and 1, and maxima over windows by means, so that no ReLU is
closed, no sum cancels, and no pixel is hidden by a larger one. The gradient is in float64, and that of a whole row (or
column) of cells with all channels. A pixel without a gradient is then one that the cells do not depend on.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ipcnn_ray.core import receptive_field as core
from ipcnn_ray.core.receptive_field import Field, Window
from ipcnn_ray.models.fx_receptive_field import NoReceptiveField, module_window

Shape = tuple[int, int, int]
"""Channels, rows and columns of a module's input."""
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError, AttributeError)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
STRONGER = 3.0
"""A cell that depends on the whole input lies where it depends on it this many times as much as some other cell."""


def receptive_field(module: nn.Module, input_shape: Shape = (3, 224, 224)) -> Field:
    """Return the receptive fields of the cells of a module that puts out a map, in pixels of its input, 0-based.

    The centre of cell (row, col) is at (first_center + stride * row, first_center + stride * col). The fields are
    computed from the torch.fx graph where that has known operations alone, and otherwise measured by gradients, on the
    CPU, with an input of `input_shape`. The module and torch's random numbers stay as they are.

    Where a cell depends on the whole input (squeeze-and-excitation, attention, group normalisation), `whole` is true;
    size, stride and centre are then those of the square that it depends on more than three times as much as some other
    cell does. If there is none, the centres are a grid that is centred on the input.

    module: from an image to a map, such as ``nn.Sequential(*list(resnet18().children())[:-2])``. input_shape: channels,
    rows and columns of its input, of which a measurement depends on the size.
    Raises ValueError if the output is no map of at least two by two cells, if they do not lie on a grid with one stride
    and square fields, or if the module cannot be run.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        return core.receptive_field([find_window(module, input_shape)])
    finally:
        for part, training in modes:  # tracing sets evaluation mode
            part.training = training


def find_window(module: nn.Module, shape: Shape) -> Window:
    """Return the window of a module's input that an output cell depends on, from its graph, or else measured with an
    input of `shape`. Raises NoReceptiveField if there is no such window."""
    try:
        return module_window(module)
    except NoReceptiveField as unknown:
        try:
            return measured_window(module, shape)
        except NoReceptiveField as error:
            raise NoReceptiveField(f"{unknown}, and {error}") from error


def measured_window(module: nn.Module, shape: Shape) -> Window:
    """As `find_window`, always measured. The module may be on the meta device."""
    with torch.inference_mode(False):
        positive = _positive(module)
        rows, cols = (_axis_window(positive, shape, axis) for axis in (2, 3))
    if rows != cols:
        raise NoReceptiveField("its cells do not see squares")
    return rows


@torch.no_grad()
def _positive(module: nn.Module) -> nn.Module:
    """Return a copy with positive weights, on the CPU, in evaluation mode and float64."""
    on_meta = any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    constants = [name for name, _ in module.named_buffers() if not name.endswith(STATISTICS)]
    if on_meta and constants:
        raise NoReceptiveField(f"its constants have no values ({', '.join(constants)})")
    positive = copy.deepcopy(module)
    positive = (positive.to_empty(device="cpu") if on_meta else positive.cpu()).double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, buffer in positive.named_buffers():
        if name.endswith(STATISTICS):
            buffer.fill_(1 if name.endswith("running_var") else 0)
    for name, parameter in positive.named_parameters():
        parameter.requires_grad_(False)
        inputs = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64).add_(0.5).div_(inputs))
        if name.endswith("bias"):
            parameter.zero_()
    return positive


class _MeansForMaxima(TorchFunctionMode):
    """Computes max pooling as average pooling, whose gradient reaches all that a maximum can be of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        pooled = _mean_pool(*args, **(kwargs or {})) if func in (F.max_pool2d, torch.max_pool2d) else None
        return func(*args, **(kwargs or {})) if pooled is None else pooled


def _mean_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Return the means over the windows of a max pooling; None if they cannot be computed."""
    if return_indices or dilation not in (1, (1, 1), [1, 1]):
        return None
    return F.avg_pool2d(input, kernel_size, stride or None, padding, ceil_mode)


def _axis_window(positive: nn.Module, shape: Shape, axis: int) -> Window:
    """Return the window along one axis: 2 for rows, 3 for columns."""
    channels, height, width = shape
    cells, seen = _dependence(positive, shape, axis)
    window = _strongest(cells, seen) if _is_whole(seen) else _fitted(cells, *_ends(seen))
    if window is not None:
        return window
    try:  # fields that are cut off at both edges: a larger input shows them
        larger_cells, larger = _dependence(positive, (channels, 2 * height, 2 * width), axis)
    except NoReceptiveField:
        return _strongest(cells, seen) or _grid(cells, seen)
    window = _grid(cells, seen) if _is_whole(larger) else _fitted(larger_cells, *_ends(larger))
    if window is None:
        raise NoReceptiveField("its cells do not lie on a grid with one stride and one size of field")
    return window


def _dependence(positive: nn.Module, shape: Shape, axis: int) -> tuple[list[int], Tensor]:
    """Return some rows (or columns) of cells and how much each depends on those of the input, [cells, size] float64.
    The cells are two at each end, three in the middle, and two between."""
    generator = torch.Generator().manual_seed(1)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of modules that draw random numbers; not that of a GPU
        x = torch.rand((1, *shape), generator=generator, dtype=torch.float64).requires_grad_()
        try:
            with _MeansForMaxima():
                y = positive(x * 1)  # a copy, since the first operation may be in place
        except FAILURES as error:
            told = " ".join(str(error).split())
            raise NoReceptiveField(f"it cannot be run on an input of shape {shape}: {told}") from error
        if not isinstance(y, Tensor) or y.ndim != 4:
            raise NoReceptiveField("its output is not a map, [N, C, rows, columns]")
        count = y.shape[axis]
        if count < 2:
            raise NoReceptiveField("its output is a map of one cell")
        middle = count // 2
        chosen = {0, 1, count // 4, middle - 1, middle, middle + 1, 3 * count // 4, count - 2, count - 1}
        cells = sorted(cell for cell in chosen if 0 <= cell < count)
        weight = torch.rand(y.shape, generator=generator, dtype=torch.float64) + 0.5
        seen = []
        for cell in cells:
            chosen_cells = weight * 0
            chosen_cells.select(axis, cell).copy_(weight.select(axis, cell))
            (gradient,) = torch.autograd.grad(y, x, chosen_cells.to(y.dtype), retain_graph=True, allow_unused=True)
            if gradient is None or not gradient.count_nonzero():
                raise NoReceptiveField("its output does not depend on its input")
            seen.append(gradient.abs().sum((0, 1, 5 - axis)))
    return cells, torch.stack(seen).detach()


def _ends(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last input row that each cell depends on, [cells]."""
    reached = seen != 0
    size = seen.shape[1]
    return reached.int().argmax(1), size - 1 - reached.flip(1).int().argmax(1)


def _fitted(cells: list[int], first: Tensor, last: Tensor) -> Window | None:
    """Return the window that explains which rows each cell depends on; None if there is no such window, or an edge cuts
    off the fields of all but one cell.

    The last two cells are not cut off at the near edge, and the first two not at the far edge. Fields that are cut off
    may end before the edge: a stride can skip the last rows, and dilated kernels have holes.
    """
    cell = torch.tensor(cells)
    near, far = ((ends.diff() / cell.diff()).tolist() for ends in (first, last))
    stride = int(near[-1])
    if not near[-1] == far[0] == stride >= 1:
        return None
    low, high = int(first[-1]) - stride * cells[-1], int(last[0]) - stride * cells[0]
    cut_near, cut_far = first - (stride * cell + low), stride * cell + high - last
    inside = bool((cut_near >= 0).all() and (cut_far >= 0).all())
    ordered = bool((cut_near.sign().diff() <= 0).all() and (cut_far.sign().diff() >= 0).all())
    return Window(high - low + 1, stride, -low) if inside and ordered else None


def _is_whole(seen: Tensor) -> bool:
    """Return whether all cells depend on the same rows."""
    first, last = _ends(seen)
    return bool((first == first[0]).all() and (last == last[0]).all())


def _strongest(cells: list[int], seen: Tensor) -> Window | None:
    """Return the window of the rows that a cell depends on most; None if there is no such window."""
    share = seen / seen.sum(1, keepdim=True)
    strong = torch.where(share > STRONGER * share.amin(0), share, 0)
    center = (cells[-1] + 1) // 2
    middle = [index for index, cell in enumerate(cells) if abs(cell - center) <= 1]
    if len(middle) < 3 or not bool((strong[middle] > 0).any(1).all()):
        return None
    window = _fitted([cells[index] for index in middle], *_ends(strong[middle]))
    return replace(window, whole=True) if window else None


def _grid(cells: list[int], seen: Tensor) -> Window:
    """Return the window of cells that depend on all rows alike: their centres are a grid, centred on the input."""
    size, steps = seen.shape[1], cells[-1]
    stride = max(1, round(size / (steps + 1)))
    kernel = size + stride * steps % 2  # so that the padding is a whole number
    return Window(kernel, stride, (kernel - size + stride * steps) // 2, whole=True)
