"""LoRA (Hu et al. 2021, section 4.1): a low-rank delta beside frozen dense layers.

    h = x W + b + (alpha / r) dropout(x) A B,    A (d_in, r), B (r, d_out) = 0

q and v have an A of their own each. (Adapting GPT-2's fused projection through one A, as `peft`
does, has the same parameter count and is another method.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lodarepro.config import Lora
from lodarepro.methods.base import Method
from lodarepro.model import GPT2


class LoraDelta(nn.Module):
    """The delta of one dense slice: x (..., d_in) -> (alpha / r) x A B (..., d_out)."""

    def __init__(self, A: Tensor, d_out: int, *, scale: float, dropout: nn.Dropout | None) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(A.new_zeros(A.shape[1], d_out))
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """The low-rank product."""
        if self.dropout is not None:
            x = self.dropout(x)
        return (x @ self.A @ self.B) * self.scale

    def macs(self) -> int:
        """Multiply-accumulate operations a token, unmerged: r (d_in + d_out)."""
        return self.A.numel() + self.B.numel()


def attach(model: GPT2, config: Lora, generator: torch.Generator) -> None:
    """Put a delta at each target of each block; only the deltas train.

    2 L (2 d r) parameters on q and v: 393,216 at r = 4 on GPT-2 Medium.
    """
    for target in config.targets:
        first: Tensor | None = None
        for dense in model.denses(target):
            d_in = dense.weight.shape[0]
            # Kaiming-uniform with a = sqrt(5), the original code's choice (the paper's text says
            # Gaussian), drawn on the CPU so that every device starts from the same bits.
            bound = 1.0 / math.sqrt(d_in)
            drawn = torch.empty(d_in, config.rank, device="cpu")
            drawn.uniform_(-bound, bound, generator=generator)
            if first is None or not config.same_init:
                first = drawn
            if config.same_mask and dense.branch_dropout is None:
                dense.branch_dropout = nn.Dropout(config.dropout)
            columns = dense.slices[target]
            dense.deltas[target] = LoraDelta(
                first.clone().to(dense.weight.device),
                columns.stop - columns.start,
                scale=config.alpha / config.rank,
                dropout=None if config.same_mask else nn.Dropout(config.dropout),
            )


LORA = Method(attach=attach)
