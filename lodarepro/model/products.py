"""Products with large frozen matrices, kept as the machine multiplies by them fastest.

On CPUs PyTorch gives fp32 products to MKL, which on AMD's processors leaves half of their vector units idle, and lays
out a bf16 matrix anew for every product. oneDNN, which PyTorch carries for its compiler's use, takes a matrix that it
has laid out once: measured on 2 cores of an EPYC (Zen 5), 2.0 to 4.5 times faster in fp32 and 1.2 to 2.5 times in bf16
than `F.linear`, between 10 and 480 rows. Sums in fp32 are fp32, in another order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

WORTH = 2**17  # entries from which a call of oneDNN's costs less than it saves
ROWS = 16  # oneDNN chooses a layout for this many rows; it is as good a layout for 10 and for 500


class Product:
    """x -> x W + b for a frozen W (d_in, d_out), in one precision, with the gradient of x and b."""

    def __init__(self, W: Tensor, dtype: torch.dtype, *, gradient: bool, lay_out: bool = True) -> None:
        """Lay W out.

        Args:
            W: (d_in, d_out), on its device.
            dtype: of the product.
            gradient: the gradient of x will be asked for.
            lay_out: False: keep W as it is, as for a few products with a matrix that then changes.
        """
        W = W.detach().to(dtype)
        self.dtype = dtype
        self.packed = lay_out and _onednn(W)
        self.W = None if self.packed else W
        if self.packed:
            self.forth = torch.ops.mkldnn._reorder_linear_weight(W.t().contiguous(), ROWS)
            self.back = torch.ops.mkldnn._reorder_linear_weight(W.contiguous(), ROWS) if gradient else None

    @staticmethod
    def pays(W: Tensor, dtype: torch.dtype) -> bool:
        """Whether W is better kept so: on a CPU where it is large, elsewhere where it would be cast at every use."""
        return _onednn(W) or W.dtype != dtype

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map x (..., d_in) to (..., d_out), known to autograd."""
        if self.packed:
            product: Tensor = _Packed.apply(x, bias, self) if torch.is_grad_enabled() else self.times(x, bias)
            return product
        assert self.W is not None
        return F.linear(x.to(self.dtype), self.W.t(), bias if bias is None else bias.to(self.dtype))

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map x (..., d_in) to (..., d_out), unknown to autograd."""
        if self.packed:
            bias = bias if bias is None else bias.detach().to(self.dtype)
            return _linear(x.to(self.dtype), self.forth, bias)
        return self(x, bias)

    def times_transposed(self, g: Tensor) -> Tensor:
        """The gradient g (..., d_out) of the product to that of x (..., d_in), in the product's precision."""
        g = g.to(self.dtype)
        return _linear(g, self.back, None) if self.packed else F.linear(g, self.W)  # type: ignore[arg-type]


class _Packed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, product: Product) -> Tensor:
        ctx.product, ctx.dtype = product, x.dtype
        return product.times(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (g,) = grads
        grad_x = ctx.product.times_transposed(g).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = g.flatten(0, -2).float().sum(0) if ctx.needs_input_grad[1] else None
        return grad_x, grad_bias, None


def _onednn(W: Tensor) -> bool:
    return (
        W.device.type == "cpu"
        and W.numel() >= WORTH
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    rows = len(flat)
    # oneDNN compiles and keeps a kernel for each number of rows, which differs from batch to batch: rows of zeros make
    # few of many. (In bf16 that is faster too: of 473 rows a product takes a tenth longer than of 480.)
    surplus = -rows % ROWS if rows > ROWS else 0
    if surplus:
        flat = F.pad(flat, (0, 0, 0, surplus))
    product: Tensor = torch.ops.mkldnn._linear_pointwise(flat.contiguous(), packed, bias, "none", [], "")
    return product[:rows].view(*x.shape[:-1], product.shape[1])
