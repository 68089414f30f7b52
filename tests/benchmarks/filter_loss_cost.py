"""What an interpretable layer costs, relative to a 3x3 convolution of the same map, forward and backward.

    python tests/benchmarks/filter_loss_cost.py [--device cuda] [--threads 1] [--rounds 15]

Medians over alternating rounds. Candidates: the convolution (gradients of weight, bias and input); the mask and
the exact filter loss with its closed-form backward, and both together, which is what an interpretable layer adds; the
same loss written plainly and differentiated by autograd; the released layer (centroids, mask, its gradient and that of
the widths); the two diversity losses.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from bench_tools import alternate, arguments, device_of, machine
from torch import Tensor, nn

from ipcnn_ray.core.diversity import largest_overlap, overlap
from ipcnn_ray.core.filter_loss import filter_loss
from ipcnn_ray.core.mask import mask_maps
from ipcnn_ray.core.released import centroids, groups, linear_mask, masked, released_gradient, strengths, width_gradient
from ipcnn_ray.core.templates import log_prior, part_templates, template_bank


def plain_loss(x_NCHW: Tensor, bank_Tnn: Tensor, log_prior_T: Tensor) -> Tensor:
    """The filter loss as the paper writes it, for autograd."""
    score_NCT = x_NCHW.flatten(2) @ bank_Tnn.flatten(1).T
    lq_NCT = score_NCT - score_NCT.logsumexp(0)
    r_NCT = lq_NCT - (lq_NCT + log_prior_T).logsumexp(2, keepdim=True)
    return -(log_prior_T.exp() * lq_NCT.exp() * r_NCT).sum((0, 2))


def candidates(images: int, channels: int, n: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Name -> one forward and backward."""
    torch.manual_seed(0)
    x_NCHW = torch.randn(images, channels, n, n, device=device).relu().requires_grad_()
    up_NCHW = torch.randn(images, channels, n, n, device=device)
    conv = nn.Conv2d(channels, channels, 3, padding=1).to(device)
    unit_Pnn = part_templates(n, shape="gradient", norm="l1", beta=2.0, tau=1.0, device=device)
    bank_Tnn = template_bank(n, shape="gradient", norm="l1", beta=2.0, device=device)
    log_prior_T = log_prior(n, device=device)

    def clear() -> None:
        x_NCHW.grad = conv.weight.grad = conv.bias.grad = None

    def convolution() -> None:
        clear()
        conv(x_NCHW).backward(up_NCHW)

    def mask() -> None:
        clear()
        mask_maps(x_NCHW, unit_Pnn).backward(up_NCHW)

    def closed_form() -> None:
        clear()
        filter_loss(x_NCHW, bank_Tnn, log_prior_T).sum().backward()

    def autograd() -> None:
        clear()
        plain_loss(x_NCHW, bank_Tnn, log_prior_T).sum().backward()

    def layer() -> None:
        clear()
        loss = filter_loss(x_NCHW, bank_Tnn, log_prior_T).sum()
        torch.autograd.backward([mask_maps(x_NCHW, unit_Pnn), loss], [up_NCHW, torch.ones_like(loss)])

    width_C = torch.full((channels,), 2.0, device=device)
    class_N = (torch.arange(images, device=device) % 4 == 0).long() - 1
    density_L = torch.full((1,), 0.25, device=device)

    def released() -> None:
        clear()
        mu = centroids(x_NCHW.detach())
        mask_NCHW = linear_mask(mu, width_C, n)
        found = strengths(x_NCHW, mask_NCHW, mask_NCHW)
        group = groups(class_N, channels, None, density_L)
        added_NCHW = released_gradient(mask_NCHW, found, group, 0.1)
        width_gradient(width_C, mu.sigma_NC, found, group)
        torch.autograd.backward([masked(x_NCHW, mask_NCHW), x_NCHW], [up_NCHW, added_NCHW])

    def diversity(form: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def one() -> None:
            clear()
            form(x_NCHW).sum().backward()

        return one

    return {
        f"3x3 convolution {channels} to {channels}": convolution,
        "mask": mask,
        "filter loss, closed form": closed_form,
        "filter loss, autograd": autograd,
        "layer, exact": layer,
        "layer, released": released,
        "diversity, overlap": diversity(overlap),
        "diversity, largest": diversity(partial(largest_overlap, margin=0.02)),
    }


def main() -> None:
    parser = arguments(__doc__, rounds=15)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--side", type=int, default=13, help="side of the map, cells")
    args = parser.parse_args()
    device = device_of(parser, args)
    times = alternate(candidates(args.images, args.channels, args.side, device), args.rounds, device, warm_up=2)
    medians = {name: statistics.median(values) for name, values in times.items()}
    unit = next(iter(medians.values()))
    print(f"[{args.images}, {args.channels}, {args.side}, {args.side}] float32, {machine(device)},")
    print(f"forward and backward, median of {args.rounds} alternating rounds")
    for label, median in medians.items():
        print(f"  {label:<28}{median * 1e3:>10.2f} ms{median / unit:>8.3f} x")


if __name__ == "__main__":
    main()
