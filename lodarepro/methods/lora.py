"""LoRA (Hu et al. 2021, section 4.1) and its kin: a low-rank delta beside frozen dense layers.

    h = x W + b + s dropout(x) A B,    A (d_in, r), B (r, d_out) = 0,    s = alpha / r

q and v have an A of their own each. (Adapting GPT-2's fused projection through one A, as `peft`
does, has the same parameter count and is another method.)

Options: rsLoRA scales by s = alpha / sqrt(r) (Kalajdzievski 2023); DoRA trains each column's
magnitude apart from its direction (Liu et al. 2024); LoRA+ gives B a larger learning rate than A
(Hayou et al. 2024).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lodarepro.config import Lora
from lodarepro.methods import approx
from lodarepro.methods.base import Method, one_group, trained
from lodarepro.model import GPT2
from lodarepro.model.gpt2 import Dense


class LoraDelta(nn.Module):
    """The delta of one dense slice: x (..., d_in) -> s x A B (..., d_out)."""

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

    def merged(self, weight: Tensor) -> Tensor:
        """The slice (d_in, d_out) that makes the same of an input as the frozen one and this delta together."""
        return weight + self.scale * (self.A @ self.B)


class DoraDelta(LoraDelta):
    """DoRA's delta of one dense slice (Liu et al. 2024, equations 5 and 11).

        W' = m (W + s A B) / n,    n = ||W + s A B||, the norm of each column

    beside the frozen product it is dh = (m / n - 1) x W + (m / n) s x A B. No gradient goes through n
    (section 4.3), and all of dh sees the branch's dropout, both as in the authors' code and in `peft`.

    Attributes:
        magnitude: m (d_out,), at first the norms of W's columns, so that W' = W.
    """

    def __init__(self, A: Tensor, *, dense: Dense, columns: slice, scale: float, dropout: nn.Dropout | None) -> None:
        super().__init__(A, columns.stop - columns.start, scale=scale, dropout=dropout)
        self._site = (dense, columns)  # in a tuple, as a module's module would be its child
        # By the sum that `forward` takes, so that the start is a no-op to the bit.
        self.magnitude = nn.Parameter(self._norms(self._weight()))

    def _weight(self) -> Tensor:
        dense, columns = self._site
        return dense.weight[:, columns]

    @torch.no_grad()
    def _norms(self, weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(super().merged(weight), dim=0)  # (d_out,)

    def forward(self, x: Tensor) -> Tensor:
        """What W' makes of x more than W does."""
        if self.dropout is not None:
            x = self.dropout(x)
        weight = self._weight()
        ratio = self.magnitude / self._norms(weight)
        return (x @ weight) * (ratio - 1) + (x @ self.A @ self.B) * self.scale * ratio

    def macs(self) -> int:
        """Multiply-accumulate operations a token, unmerged: the slice's product once more, and r (d_in + d_out).

        The norms take r d_in d_out a call, whatever the number of tokens, and are not counted.
        """
        return self.A.shape[0] * self.B.shape[1] + super().macs()

    def merged(self, weight: Tensor) -> Tensor:
        """W' (d_in, d_out)."""
        return super().merged(weight) * (self.magnitude / self._norms(weight))


def attach(model: GPT2, config: Lora, generator: torch.Generator) -> None:
    """Put a delta at each target of each block; only the deltas train.

    2 L (2 d r) parameters on q and v: 393,216 at r = 4 on GPT-2 Medium. DoRA trains one more for each
    adapted column: 2 L d on q and v, 49,152.
    """
    approx.attach(model, config.base)
    for target in config.targets:
        rank = config.ranks.get(target) or config.rank
        scale = config.alpha / (math.sqrt(rank) if config.rslora else rank)
        first: Tensor | None = None
        for dense in model.denses(target):
            # Kaiming-uniform with a = sqrt(5), the original code's choice (the paper's text says
            # Gaussian), drawn on the CPU so that every device starts from the same bits.
            bound = 1.0 / math.sqrt(dense.d_in)
            drawn = torch.empty(dense.d_in, rank, device="cpu")
            drawn.uniform_(-bound, bound, generator=generator)
            if first is None or not config.same_init:
                first = drawn
            if config.same_mask and dense.branch_dropout is None:
                dense.branch_dropout = nn.Dropout(config.dropout)
            dropout = None if config.same_mask else nn.Dropout(config.dropout)
            columns = dense.slices[target]
            A = first.clone().to(dense.bias.device)
            if config.dora:
                dense.deltas[target] = DoraDelta(A, dense=dense, columns=columns, scale=scale, dropout=dropout)
            else:
                width = columns.stop - columns.start
                dense.deltas[target] = LoraDelta(A, width, scale=scale, dropout=dropout)


def param_groups(model: GPT2, config: Lora) -> list[dict[str, Any]]:
    """LoRA+ (Hayou et al. 2024): B at `lr_ratio` times the schedule's rate, all else at the rate itself."""
    if config.lr_ratio == 1.0:
        return one_group(model)
    second = {name: p for name, p in trained(model).items() if name.endswith(".B")}
    others = [p for name, p in trained(model).items() if name not in second]
    return [{"params": others, "lr_scale": 1.0}, {"params": list(second.values()), "lr_scale": config.lr_ratio}]


LORA = Method(attach=attach, param_groups=param_groups)
