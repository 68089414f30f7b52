"""The filter loss: minus the mutual information between a filter's maps and the part templates.

Symbols (Zhang et al., CVPR 2018, section 3.2)
    N images of this worker, C filters, P = n^2 positions, T = P + 1 templates, W workers with N images each
    s     score: sum over cells of map times template
    q     W * N * p(x | T) = exp(s) / mean exp(s), the mean over all images of all workers
    r     log p(x | T) - log p(x)
    KL_T  mean over images of q * r
    Loss of a filter = -sum_T p(T) * KL_T = -MI(X; T), in nats; 0 <= MI <= min(log(W * N), H(T))

Means replace the paper's sums. For maps that say little about the template, q is near 1 and every logarithm near 0,
where floating point is most precise; with sums they are near -log(W * N) and -log T, and the information is rounded
away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ipcnn_ray.core.mask import peak_NC

Form = Literal["exact", "zconst", "single"]
"""The gradient of the loss; its value is the same for all forms."""
Gather = Callable[[Tensor], Tensor]
"""An all-gather: from a tensor of the same shape on every worker to [W, ...], on every worker."""


def gather_single(x: Tensor) -> Tensor:
    """The all-gather of a single worker."""
    return x.unsqueeze(0)


def _log_average(minus_one: Tensor, plain: Tensor) -> Tensor:
    """log of an average, from the average minus 1 (precise near 1) and the average itself (precise near 0)."""
    return torch.where(minus_one > -0.5, minus_one.log1p(), plain.log())


def _log_dot(q_NCT: Tensor, lq_NCT: Tensor, prior_T: Tensor, spare_NCT: Tensor) -> Tensor:
    """log of q . prior as [N, C], where lq = log q. Computed from q unless q underflows."""
    dot_NC = q_NCT @ prior_T
    precise = (dot_NC > 1e-30).all()
    if not precise.is_cuda and bool(precise):  # a GPU computes both, since the CPU would have to wait for the answer
        return dot_NC.log()
    top_NC1 = lq_NCT.amax(2, keepdim=True)
    log_NC = (torch.sub(lq_NCT, top_NC1, out=spare_NCT).exp_() @ prior_T).log() + top_NC1[:, :, 0]
    return torch.where(precise, dot_NC.log(), log_NC)


class _Loss(torch.autograd.Function):
    """-MI per filter, with the closed-form gradient of the chosen form."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        bank_Tnn: Tensor,
        log_prior_T: Tensor,
        form: Form,
        template_NC: Tensor | None,
        gather: Gather,
    ) -> Tensor:
        # At most three N x C x T arrays exist at the same time. The gradient needs only arrays of the forward pass, so
        # it is computed here and only its N x C x P numbers are kept.
        with torch.autocast(x_NCHW.device.type, enabled=False):
            N, C = x_NCHW.shape[:2]
            prior_T = log_prior_T.exp()
            lq_NCT = _scores(x_NCHW, bank_Tnn)
            top_CT = lq_NCT.amax(0)
            lq_NCT -= top_CT

            # expm1(d) = tanh(d / 2) * (exp(d) + 1): on CPUs torch vectorises tanh and exp, but not expm1.
            exp_NCT = lq_NCT.exp()
            expm1_NCT = (lq_NCT / 2).tanh_()
            expm1_NCT.addcmul_(expm1_NCT, exp_NCT)
            rest_CT = _log_average(expm1_NCT.mean(0), exp_NCT.mean(0))

            # Maximum and remainder are sent separately: added to a large maximum the remainder would be rounded away.
            all_W2CT = gather(torch.stack([top_CT, rest_CT]))
            tops_WCT, rests_WCT = all_W2CT.unbind(1)
            high_CT = tops_WCT.amax(0)
            logs_WCT = tops_WCT - high_CT + rests_WCT
            log_z_CT = _log_average(logs_WCT.expm1().mean(0), logs_WCT.exp().mean(0))
            move_CT = top_CT - high_CT - log_z_CT
            lq_NCT += move_CT

            # log p(x): near 0 from q - 1 = expm1(d) * exp(move) + expm1(move), elsewhere from q.
            shift_CT = move_CT.exp()
            near_NC = expm1_NCT.mul_(prior_T * shift_CT).sum(2) + move_CT.expm1() @ prior_T
            q_NCT = exp_NCT.mul_(shift_CT)
            far_NC = _log_dot(q_NCT, lq_NCT, prior_T, expm1_NCT)
            lp_NC = torch.where(near_NC > -0.5, near_NC.log1p(), far_NC)

            r_NCT = lq_NCT.sub_(lp_NC[:, :, None])
            kl_CT = gather(torch.mul(q_NCT, r_NCT, out=expm1_NCT).mean(0)).mean(0)
            if ctx.needs_input_grad[0]:
                if form == "exact":
                    r_NCT.sub_(kl_CT)
                slope_NCT = r_NCT.mul_(q_NCT).mul_(prior_T / (-len(all_W2CT) * N))
                if template_NC is not None:
                    kept_NC1 = slope_NCT.gather(2, template_NC[:, :, None])
                    slope_NCT.zero_().scatter_(2, template_NC[:, :, None], kept_NC1)
                slope_CTnn = None
                if bank_Tnn.ndim == 4:  # a template bank per filter
                    if ctx.needs_input_grad[1]:
                        slope_CTnn = torch.einsum("nct,nchw->cthw", slope_NCT, x_NCHW)
                    slope_NCP = torch.einsum("nct,ctp->ncp", slope_NCT, bank_Tnn.flatten(2))
                else:
                    slope_NCP = slope_NCT.view(N * C, -1) @ bank_Tnn.flatten(1)
                ctx.save_for_backward(slope_NCP.view(x_NCHW.shape), slope_CTnn)
            return -(kl_CT @ prior_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_C: Tensor) -> tuple[Tensor | None, ...]:
        slope_NCHW, slope_CTnn = ctx.saved_tensors
        bank_slope = None if slope_CTnn is None else slope_CTnn * grad_C[:, None, None, None]
        return slope_NCHW * grad_C[:, None, None], bank_slope, None, None, None, None


def _scores(x_NCHW: Tensor, bank_Tnn: Tensor) -> Tensor:
    """Return s of every image, filter and template, [N, C, T]."""
    N, C = x_NCHW.shape[:2]
    if bank_Tnn.ndim == 4:
        return torch.einsum("ncp,ctp->nct", x_NCHW.flatten(2), bank_Tnn.flatten(2)).contiguous()
    return (x_NCHW.reshape(N * C, -1) @ bank_Tnn.flatten(1).T).view(N, C, -1)


def filter_loss(
    x_NCHW: Tensor,
    bank_Tnn: Tensor,
    log_prior_T: Tensor,
    *,
    form: Form = "exact",
    positive_NC: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Return the filter loss of each filter over the global batch, in nats, [C].

    x_NCHW: maps after ReLU, before the mask. bank_Tnn: all templates, the negative one last; or [C, T, n, n], one bank
    per filter. log_prior_T: log p(T). All three float32, or all float64.
    form: of the gradient dLoss/ds; the value does not depend on it:
        `exact`   -p_T * q * (r - KL_T) / (W * N): the derivative of the loss
        `zconst`  -p_T * q * r / (W * N): Z_T held constant, the first line of the paper's equation 4 with the minus of
                  Loss = -MI, which is missing in print
        `single`  the same for one template per image and filter, 0 for the others, its second line: the one centred
                  on the map's peak for an image of the filter's category, else the negative template
    positive_NC: only for `single`: whether the image is of the filter's category ([N, 1] for all filters alike).
    gather: the all-gather of several workers with the same number of images each; it sends three arrays of C x T
    numbers (maximum and remainder of a log-sum, KL). The value is the loss of the global batch on every worker. The
    gradient is that of the global loss with respect to this worker's images, without any division. With a bank per
    filter, `exact` is differentiated with respect to the bank, too.

    Accuracy of float32 against float64 (n = 13, 32 images): the error of the gradient is 1e-5 of its maximum for scores
    up to 200, however small the information, and grows with the rounding of the scores beyond (5e-5 at 2,000); that of
    the value is 1e-4 relative at 2e-3 nats, 5e-4 at 2e-5 nats. Large scores do not overflow. A batch of one image,
    equal images and maps that are zero give 0.

    Cost: about a quarter of a 3x3 convolution of as many channels on a CPU (tests/benchmarks/filter_loss_cost.py).

    Source: Zhang et al., CVPR 2018, equations 1 to 4.
    Raises ValueError when shapes, dtypes or options do not fit.
    """
    n = bank_Tnn.shape[-1]
    if x_NCHW.ndim != 4 or x_NCHW.shape[-2:] != (n, n) or not len(x_NCHW):
        raise ValueError(f"x_NCHW has shape {tuple(x_NCHW.shape)}: expected [N >= 1, C, {n}, {n}], as the templates")
    C = x_NCHW.shape[1]
    if bank_Tnn.shape not in ((n * n + 1, n, n), (C, n * n + 1, n, n)):
        shapes = f"[{n * n + 1}, {n}, {n}] or [{C}, {n * n + 1}, {n}, {n}]"
        raise ValueError(f"bank_Tnn has shape {tuple(bank_Tnn.shape)}: expected {shapes}")
    if log_prior_T.shape != (n * n + 1,):
        raise ValueError(f"log_prior_T has shape {tuple(log_prior_T.shape)}: expected [{n * n + 1}]")
    dtypes = (x_NCHW.dtype, bank_Tnn.dtype, log_prior_T.dtype)
    if len(set(dtypes)) > 1 or x_NCHW.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x_NCHW, bank_Tnn, log_prior_T have dtypes {dtypes}: expected float32 or float64 in all")
    if form not in ("exact", "zconst", "single"):
        raise ValueError(f"form = {form!r}: expected 'exact', 'zconst' or 'single'")
    if (form == "single") != (positive_NC is not None):
        raise ValueError(f"form = {form!r}: positive_NC is for 'single', and needed there")
    if form != "exact" and bank_Tnn.requires_grad:
        raise ValueError(f"form = {form!r}: only 'exact' has a gradient with respect to the templates")
    template_NC = None if positive_NC is None else matching_template(x_NCHW, positive_NC)
    loss: Tensor = _Loss.apply(x_NCHW, bank_Tnn, log_prior_T, form, template_NC, gather or gather_single)
    return loss


def matching_template(x_NCHW: Tensor, positive_NC: Tensor) -> Tensor:
    """Return the index of T-hat, [N, C]: the template centred on the peak for a positive image, else the negative one.

    positive_NC: bool, [N, C] or [N, 1]. Among equal maxima the first in row-major order.
    Source: Zhang et al., CVPR 2018, section 3.2, below equation 4.
    """
    N, C, n, _ = x_NCHW.shape
    if positive_NC.dtype != torch.bool or positive_NC.shape not in ((N, C), (N, 1)):
        shape = tuple(positive_NC.shape)
        raise ValueError(f"positive_NC is {positive_NC.dtype} {shape}: expected bool [{N}, {C}] or [{N}, 1]")
    return torch.where(positive_NC, peak_NC(x_NCHW.detach()), n * n)


def mean_sums(sums_BC: Tensor, class_B: Tensor, categories: int) -> Tensor:
    """Return the mean activation sum of each filter on the images of each category, [C, L] float64; NaN without images.

    sums_BC: sum over the cells of each map. class_B: category of each image, -1 for none.
    A filter's category is the argmax over categories. Source: Zhang et al., CVPR 2018, section 3.2.
    """
    select = not sums_BC.is_cuda
    columns = [mean_over(sums_BC, class_B == category, select=select) for category in range(categories)]
    return torch.stack(columns, 1)


def mean_over(x_BC: Tensor, of_B: Tensor, *, select: bool) -> Tensor:
    """Return the mean over the images `of_B`, [C] float64; NaN without any.

    select: Leave out the others, rather than weigh them with 0; for their number, the CPU would have to wait for a GPU.
    """
    if select:
        return x_BC[of_B].double().mean(0)
    return torch.where(of_B[:, None], x_BC.double(), 0).sum(0) / of_B.sum()


def filter_weight(
    x_NCHW: Tensor,
    weight: float,
    epoch: int,
    schedule: Literal["paper", "constant", "epoch"],
    *,
    gather: Gather | None = None,
) -> Tensor:
    """Return lambda of each filter, [C], without a gradient.

    `constant`: `weight`. `epoch`: weight / epoch, as in the released code (`epoch` from 1). `paper`: weight / epoch *
    mean over the global batch of the map's maximum.
    Source: Zhang et al., CVPR 2018, section 3.3, lambda proportional to (1/t) mean_x max_ij x.
    """
    if epoch < 1:
        raise ValueError(f"epoch = {epoch}: epochs count from 1")
    peak_C = x_NCHW.detach().amax((2, 3)).mean(0)
    if schedule in ("constant", "epoch"):
        return torch.full_like(peak_C, weight if schedule == "constant" else weight / epoch)
    if schedule != "paper":
        raise ValueError(f"schedule = {schedule!r}: expected 'paper', 'constant' or 'epoch'")
    return (gather or gather_single)(peak_C).mean(0) * (weight / epoch)
