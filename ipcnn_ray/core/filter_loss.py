"""The filter loss: minus the mutual information between a filter's maps and the part templates.

Symbols (Zhang et al., CVPR 2018, section 3.2)
    N images of this worker, C filters, P = n^2 positions, T = P + 1 templates, W workers with N images each
    s     score: sum over cells of map times template
    q     p(x | T) = exp(s) / Z_T, with Z_T the sum over all images of all workers
    r     log p(x | T) - log p(x)
    KL_T  sum over images of q * r
    Loss of a filter = -sum_T p(T) * KL_T = -MI(X; T), in nats; 0 <= MI <= min(log(W * N), H(T))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Gather = Callable[[Tensor], Tensor]
"""All workers' tensors (same shape everywhere) stacked to [W, ...], on every worker."""


def _alone(x: Tensor) -> Tensor:
    return x.unsqueeze(0)


class _ExactLoss(torch.autograd.Function):
    """-MI per filter with the closed-form gradient  dLoss/ds = -p_T * q * (r - KL_T)."""

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, bank_Tnn: Tensor, log_prior_T: Tensor, gather: Gather) -> Tensor:
        # At most three N x C x T arrays live at once: lq, r and a temporary; q is exp(lq).
        bank_TP = bank_Tnn.flatten(1)
        lq_NCT = x_NCHW.flatten(2) @ bank_TP.T
        log_z_CT = torch.logsumexp(gather(torch.logsumexp(lq_NCT, 0)), 0)
        lq_NCT -= log_z_CT
        r_NCT = lq_NCT - torch.logsumexp(lq_NCT + log_prior_T, 2, keepdim=True)
        q_NCT = lq_NCT.exp_()
        kl_CT = gather((q_NCT * r_NCT).sum(0)).sum(0)
        prior_T = log_prior_T.exp()
        if ctx.needs_input_grad[0]:
            r_NCT -= kl_CT
            r_NCT *= q_NCT
            r_NCT *= -prior_T
            ctx.save_for_backward(r_NCT, bank_TP)
            ctx.shape = x_NCHW.shape
        return -(kl_CT @ prior_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        slope_NCT, bank_TP = ctx.saved_tensors
        grad = (slope_NCT @ bank_TP) * grads[0][None, :, None]
        return grad.reshape(ctx.shape), None, None, None


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
    loss: Tensor = _ExactLoss.apply(x_NCHW, bank_Tnn, log_prior_T, gather or _alone)  # type: ignore[no-untyped-call]
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
