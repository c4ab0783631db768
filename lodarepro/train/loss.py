"""The loss over the vocabulary, without its logits ever being held for all positions, nor passed over twice.

Letters: M positions that count, d width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from lodarepro.model import GPT2
from lodarepro.model.products import Product

CHUNK = 2**24  # logits held at once: 64 MiB in fp32, the 221 positions of a mean batch of E2E in one piece


class _VocabularyLoss(Function):
    """Sum of weighted, smoothed token losses; the gradient is made beside the loss, chunk after chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, smoothing: float, output: Product
    ) -> Tensor:
        vocabulary = weight.shape[0]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        rows = max(1, CHUNK // vocabulary)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            h, t, s = hidden[part], targets[part, None], scale[part, None]
            log_p = output.times(h).float().log_softmax(dim=-1)  # (rows, V)
            loss = loss + (_smoothed(log_p, t, smoothing) * s).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad = log_p.exp_()  # softmax; of the smoothed loss it is softmax - e / V, less 1 - e at t
            if smoothing:
                grad.sub_(smoothing / vocabulary)
            grad.scatter_(1, t, grad.gather(1, t) - (1 - smoothing))
            if grad_hidden is not None:
                grad_hidden[part] = output.times_transposed(grad) * s  # fewer numbers to scale than the logits'
            if grad_weight is not None:
                grad_weight += grad.to(output.dtype).t() @ (h * s).to(output.dtype)
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
            None,
        )


def _smoothed(log_p: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """(1 - e) nll + e mean over the vocabulary of -log p; log_p (rows, V), targets and result (rows, 1)."""
    nll = -log_p.gather(1, targets)
    return (1 - smoothing) * nll - smoothing * log_p.mean(dim=-1, keepdim=True) if smoothing else nll


def _output(model: GPT2) -> Product:
    """The product with the output layer, as it is packed or in the arithmetic that is set."""
    if model.output is not None:
        return model.output
    device = model.wte.weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    return Product(model.wte.weight.t(), dtype, gradient=True, lay_out=False)


def vocabulary_loss(model: GPT2, hidden: Tensor, targets: Tensor, *, scale: Tensor, label_smoothing: float) -> Tensor:
    """Sum over positions of scale * ((1 - e) nll + e mean over the vocabulary of -log p), a scalar in fp32.

    What `cross_entropy(label_smoothing=e)` computes of the logits, in less memory.

    Args:
        model: whose output layer it is.
        hidden: (M, d) final hidden states.
        targets: (M,) ids.
        scale: (M,) what each position's loss is multiplied by, fp32.
        label_smoothing: e, the mass spread over the whole vocabulary.
    """
    loss: Tensor = _VocabularyLoss.apply(hidden, model.wte.weight, targets, scale, label_smoothing, _output(model))
    return loss


@torch.no_grad()
def token_losses(model: GPT2, hidden: Tensor, targets: Tensor) -> Tensor:
    """The loss of each position, without smoothing, (M,) in fp32; arguments as `vocabulary_loss`."""
    output = _output(model)
    found = []
    for h, t in zip(*(x.split(max(1, CHUNK // model.sizes.vocab_size)) for x in (hidden, targets)), strict=True):
        found.append(_smoothed(output.times(h).float().log_softmax(dim=-1), t[:, None], 0.0)[:, 0])
    return torch.cat(found)
