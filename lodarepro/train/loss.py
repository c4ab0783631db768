"""The loss over the vocabulary, without its logits ever being held for all positions, nor passed over twice.

Letters: M positions that count, d width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

CHUNK = 2**24  # logits held at once: 64 MiB in fp32, the 221 positions of a mean batch of E2E in one piece


class _VocabularyLoss(Function):
    """Sum of weighted, smoothed token losses; the gradient is made beside the loss, chunk after chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, smoothing: float) -> Tensor:
        vocabulary = weight.shape[0]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        rows = max(1, CHUNK // vocabulary)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            h, t, s = hidden[part], targets[part, None], scale[part, None]
            logits = (h @ weight.t()).float()  # (rows, V)
            log_sum = logits.logsumexp(dim=-1, keepdim=True)  # (rows, 1)
            loss = loss + (_smoothed(logits, log_sum, t, smoothing) * s).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad = logits.sub_(log_sum).exp_()  # softmax; of the smoothed loss it is softmax - e / V, less 1 - e at t
            if smoothing:
                grad.sub_(smoothing / vocabulary)
            grad.scatter_add_(1, t, torch.full_like(log_sum, smoothing - 1))
            grad = grad.mul_(s).to(h.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grad.t() @ h
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight = cast(Any, ctx).saved_tensors
        return (
            None if hidden is None else hidden * grad.to(hidden.dtype),
            None if weight is None else weight.mul_(grad),
            None,
            None,
            None,
        )


def _smoothed(logits: Tensor, log_sum: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """(1 - e) nll + e mean over the vocabulary of -log p; logits (rows, V), all else (rows, 1)."""
    loss = log_sum - (1 - smoothing) * logits.gather(1, targets)
    return loss - smoothing * logits.mean(dim=-1, keepdim=True) if smoothing else loss


def vocabulary_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, scale: Tensor, label_smoothing: float
) -> Tensor:
    """Sum over positions of scale * ((1 - e) nll + e mean over the vocabulary of -log p), a scalar in fp32.

    What `cross_entropy(label_smoothing=e)` computes of `hidden @ weight.T`, in less memory.

    Args:
        hidden: (M, d) final hidden states.
        weight: (V, d) output layer.
        targets: (M,) ids.
        scale: (M,) what each position's loss is multiplied by, fp32.
        label_smoothing: e, the mass spread over the whole vocabulary.
    """
    loss: Tensor = _VocabularyLoss.apply(*_cast(hidden, weight), targets, scale, label_smoothing)
    return loss


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss of each position, without smoothing, (M,) in fp32; arguments as `vocabulary_loss`."""
    hidden, weight = _cast(hidden, weight)
    found = []
    for h, t in zip(*(x.split(max(1, CHUNK // weight.shape[0])) for x in (hidden, targets)), strict=True):
        logits = (h @ weight.t()).float()  # (rows, V)
        found.append(_smoothed(logits, logits.logsumexp(dim=-1, keepdim=True), t[:, None], 0.0)[:, 0])
    return torch.cat(found)


def _cast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both as autocast would have them; a product in a function of autograd's own is none that it knows."""
    if not torch.is_autocast_enabled(hidden.device.type):
        return hidden, weight
    dtype = torch.get_autocast_dtype(hidden.device.type)
    return hidden.to(dtype), weight.to(dtype)
