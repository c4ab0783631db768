"""LoDA (MERL TR2025-130): low-dimensional adaptation, a delta that is not linear beside frozen dense layers.

    h = x W + b + s (x' A B + f1(x' A) B)            LoDA, Eq. 1
    h = x W + b + s (x' A B + f2(f1(x' A) B))        LoDA+, Eq. 2

x' = dropout(x), s = alpha / r, A (d_in, r), B (r, d_out) = 0; f1 maps r numbers to r, f2 d_out to d_out without
parameters. There is one B, so that with f1 = 0 both are LoRA. On q and v they train 2 L (2 d r + 2 r^2) parameters:
394,752 at r = 4 on GPT-2 Medium.

The paper names what f1 and f2 are made of, not in which order, nor what scales the delta. Our defaults, each an option,
and what speaks for them:

- f1 is twice [linear r x r, LeakyReLU with slope 0.8, LayerNorm without parameters]. The text has two linear layers
  and counts 4 r element-wise operations a module, which two LeakyReLU and two LayerNorm on r numbers make. LoDA and
  LoDA+ fall well behind LoRA at r = 2 (Table 3: 67.7 and 66.9 BLEU, LoRA 69.4), which a LayerNorm inside f1 explains:
  of two numbers it leaves a sign.
- f2 is LeakyReLU, which the caption of Figure 1 has after B. A LayerNorm there would make a vector of unit variance of
  the nearly nothing that B's first updates give; it can be had, but is not the default.
- s scales the whole delta and equals LoRA's alpha / r, as the paper takes LoRA's settings over untuned.
- the r x r matrices start as PyTorch's linear layers do, A and B as in LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lodarepro.config import Loda
from lodarepro.methods import approx
from lodarepro.methods.base import Method
from lodarepro.model import GPT2


class LodaDelta(nn.Module):
    """The delta of one dense slice: x (..., d_in) -> s (x A B + f1(x A) B), or s (x A B + f2(f1(x A) B)).

    Attributes:
        A: (d_in, r).
        B: (r, d_out), zero at the start.
        matrices: of f1's linear steps in their order, (r, r) each.
        unmergeable: why no weight can take the delta up.
    """

    unmergeable = "its delta is not a linear map of x, so that no matrix added to a weight computes it"

    def __init__(
        self, A: Tensor, matrices: Sequence[Tensor], d_out: int, *, config: Loda, dropout: nn.Dropout | None
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(A.new_zeros(A.shape[1], d_out))
        self.matrices = nn.ParameterList(matrices)
        self.f1_config, self.f2_steps = config.f1, config.f2
        self.scale = config.alpha / config.rank
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to the delta (..., d_out)."""
        if self.dropout is not None:
            x = self.dropout(x)
        z = x @ self.A  # (..., r)
        if not self.f1_config.depth:
            return (z @ self.B) * self.scale
        if not self.f2_steps:
            return ((z + self.f1(z)) @ self.B) * self.scale  # x A B + f1(x A) B, multiplied by B once
        return (z @ self.B + self.f2(self.f1(z) @ self.B)) * self.scale

    def f1(self, z: Tensor) -> Tensor:
        """Map z (..., r) to (..., r): `depth` times the steps of `order`."""
        matrices = iter(self.matrices)
        for step in self.f1_config.order * self.f1_config.depth:
            z = z @ next(matrices) if step == "linear" else self._elementwise(step, z)
        return z

    def f2(self, h: Tensor) -> Tensor:
        """Map h (..., d_out) to (..., d_out)."""
        for step in self.f2_steps:
            h = self._elementwise(step, h)
        return h

    def _elementwise(self, step: str, x: Tensor) -> Tensor:
        if step == "norm":
            return F.layer_norm(x, x.shape[-1:])
        match self.f1_config.activation:
            case "leaky-relu":
                return F.leaky_relu(x, self.f1_config.slope)
            case "relu":
                return F.relu(x)
            case "gelu":
                return F.gelu(x)
            case "tanh":
                return torch.tanh(x)

    def macs(self) -> int:
        """Multiply-accumulate operations a token, those of element-wise steps not counted.

        With f1's two linear steps d_in r + r d_out + 2 r^2; a second r d_out with f2, when B is applied to x A and to
        f1(x A) apart. LoDA Table 2 is counted so (its text has B once for LoDA+ too, which gives other figures).
        """
        through_B = 2 if self.f1_config.depth and self.f2_steps else 1
        return self.A.numel() + sum(M.numel() for M in self.matrices) + through_B * self.B.numel()


def attach(model: GPT2, config: Loda, generator: torch.Generator) -> None:
    """Approximate the frozen projection if asked to, and put a delta at each target of each block.

    Only the deltas train. Every A is drawn before the matrices of f1 and in LoRA's order, so that from one seed both
    methods start from the same A.
    """
    approx.attach(model, config.base)

    def drawn(rows: int, columns: int) -> list[Tensor]:
        """A matrix for each block as PyTorch's linear layers start, Kaiming-uniform with a = sqrt(5)."""
        bound = 1.0 / math.sqrt(rows)
        # On the CPU, so that every device starts from the same bits.
        new = (torch.empty(rows, columns, device="cpu") for _ in model.h)
        each = [matrix.uniform_(-bound, bound, generator=generator) for matrix in new]
        return each[:1] * len(each) if config.same_init else each

    rank, linear = config.rank, config.f1.depth * config.f1.order.count("linear")
    A = {target: drawn(next(model.denses(target)).d_in, rank) for target in config.targets}
    for target in config.targets:
        matrices = [drawn(rank, rank) for _ in range(linear)]
        for i, dense in enumerate(model.denses(target)):
            if config.same_mask and dense.branch_dropout is None:
                dense.branch_dropout = nn.Dropout(config.dropout)
            columns, device = dense.slices[target], dense.bias.device
            dense.deltas[target] = LodaDelta(
                A[target][i].clone().to(device),
                [of_blocks[i].clone().to(device) for of_blocks in matrices],
                columns.stop - columns.start,
                config=config,
                dropout=None if config.same_mask else nn.Dropout(config.dropout),
            )


LODA = Method(attach=attach)
