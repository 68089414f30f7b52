"""The filter loss: minus the mutual information between a filter's maps and the part templates.

Symbols (Zhang et al., CVPR 2018, section 3.2)
    N images of this worker, C filters, P = n^2 positions, T = P + 1 templates, W workers with N images each
    s     score: sum over cells of map times template
    q     W * N * p(x | T) = exp(s) / mean exp(s), the mean over all images of all workers
    r     log p(x | T) - log p(x)
    KL_T  mean over images of q * r
    Loss of a filter = -sum_T p(T) * KL_T = -MI(X; T), in nats; 0 <= MI <= min(log(W * N), H(T))

Means take the place of the paper's sums: for maps that tell little about the template, q is near 1 and every logarithm
near 0, where floating point is densest, instead of near -log(W * N) and -log T, where the information would drown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gather = Callable[[Tensor], Tensor]
"""All workers' tensors (same shape everywhere) stacked to [W, ...], on every worker."""


def _alone(x: Tensor) -> Tensor:
    return x.unsqueeze(0)


def _log_average_exp(shifted: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    """log(average(exp(shifted))) for values at most 0 with a 0 among those averaged; overwrites them.

    Near 0 by way of expm1 and log1p, which keep its digits; elsewhere plainly, which keeps those of small averages.
    """
    below = average(shifted.expm1_())
    return torch.where(below > -0.5, below.log1p(), average(shifted.add_(1)).log())


class _ExactLoss(torch.autograd.Function):
    """-MI per filter with the closed-form gradient  dLoss/ds = -p_T * q * (r - KL_T) / (W * N)."""

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, bank_Tnn: Tensor, log_prior_T: Tensor, gather: Gather) -> Tensor:
        # At most three N x C x T arrays live at once. The gradient needs nothing but the forward's arrays, so it is
        # finished here and only its N x C x P numbers are kept.
        with torch.autocast(x_NCHW.device.type, enabled=False):
            bank_TP, prior_T = bank_Tnn.flatten(1), log_prior_T.exp()
            lq_NCT = x_NCHW.flatten(2) @ bank_TP.T

            top_CT = lq_NCT.amax(0)
            local_CT = top_CT + _log_average_exp(lq_NCT - top_CT, lambda e: e.mean(0))
            all_WCT = gather(local_CT)
            top_CT = all_WCT.amax(0)
            lq_NCT -= top_CT + _log_average_exp(all_WCT - top_CT, lambda e: e.mean(0))

            top_NC1 = lq_NCT.amax(2, keepdim=True)
            lp_NC1 = top_NC1 + _log_average_exp(lq_NCT - top_NC1, lambda e: (e @ prior_T)[:, :, None])

            # mean q = mean p = 1, so  mean(q r) = mean(q r - (q - 1)) + mean(p - 1),  in which rounding of r cancels.
            q_NCT = torch.expm1(lq_NCT)
            kl_CT = lp_NC1.expm1().mean(0) - q_NCT.mean(0)
            torch.exp(lq_NCT, out=q_NCT)
            r_NCT = lq_NCT.sub_(lp_NC1)
            kl_CT += (q_NCT * r_NCT).mean(0)
            all_WCT = gather(kl_CT)
            kl_CT = all_WCT.mean(0)

            if ctx.needs_input_grad[0]:
                slope_NCT = r_NCT.sub_(kl_CT).mul_(q_NCT).mul_(prior_T / (-len(all_WCT) * len(x_NCHW)))
                ctx.save_for_backward((slope_NCT @ bank_TP).reshape(x_NCHW.shape))
            return -(kl_CT @ prior_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_C: Tensor) -> tuple[Tensor, None, None, None]:
        (slope_NCHW,) = ctx.saved_tensors
        return slope_NCHW * grad_C[:, None, None], None, None, None


def exact_filter_loss(
    x_NCHW: Tensor, bank_Tnn: Tensor, log_prior_T: Tensor, *, gather: Gather | None = None
) -> Tensor:
    """The filter loss of each filter over the global batch, in nats, as [C].

    x_NCHW: maps after ReLU, before the mask. bank_Tnn: all templates, the negative one last. log_prior_T: log p(T).
    gather: with several workers, their collective; two arrays of C x T numbers cross the network. The value is the
    loss of the global batch on every worker; the gradient is that of the global loss with respect to this worker's
    images, not divided by anything.

    Accuracy: float32 and float64; everything is in the log domain, so large scores do not overflow. The float32 value
    loses digits to cancellation when the information is small (2e-4 relative at 2e-3 nats); its gradient does not.

    Source: Zhang et al., CVPR 2018, equations 1 to 3, with Z_T differentiated (their equation 4 keeps it constant).
    Raises ValueError when the shapes do not fit.
    """
    n = bank_Tnn.shape[-1]
    if x_NCHW.ndim != 4 or x_NCHW.shape[-2:] != (n, n):
        raise ValueError(f"x_NCHW has shape {tuple(x_NCHW.shape)}: expected [N, C, {n}, {n}], as the templates")
    if bank_Tnn.shape != (n * n + 1, n, n):
        raise ValueError(f"bank_Tnn has shape {tuple(bank_Tnn.shape)}: expected [{n * n + 1}, {n}, {n}]")
    if log_prior_T.shape != (n * n + 1,):
        raise ValueError(f"log_prior_T has shape {tuple(log_prior_T.shape)}: expected [{n * n + 1}]")
    loss: Tensor = _ExactLoss.apply(x_NCHW, bank_Tnn, log_prior_T, gather or _alone)
    return loss


def filter_weight(
    x_NCHW: Tensor,
    weight: float,
    epoch: int,
    schedule: Literal["paper", "constant"],
    *,
    gather: Gather | None = None,
) -> Tensor:
    """lambda of each filter as [C], without a gradient.

    `constant`: `weight`. `paper`: weight / epoch * mean over the global batch of the map's maximum (`epoch` from 1).
    Source: Zhang et al., CVPR 2018, section 3.3, lambda proportional to (1/t) mean_x max_ij x.
    """
    if epoch < 1:
        raise ValueError(f"epoch = {epoch}: epochs count from 1")
    peak_C = x_NCHW.detach().amax((2, 3)).mean(0)
    if schedule == "constant":
        return torch.full_like(peak_C, weight)
    if schedule != "paper":
        raise ValueError(f"schedule = {schedule!r}: expected 'paper' or 'constant'")
    return (gather or _alone)(peak_C).mean(0) * (weight / epoch)
