"""Approximations of the frozen q/k/v projection (LoDA, MERL TR2025-130, its R- and S- variants).

    h = x W' + b,    W' in place of W_proj = [Wq, Wk, Wv] (d, 3 d)

W_proj is approximated as one matrix, block by block (R and s may differ between blocks), before deltas are put beside
it; biases stay. What stands for it is frozen and no part of an adapter file: it is computed from the base weights again
when an adapter is loaded, to the same bits on the same machine.

- low-rank: the truncated SVD W' = W_A W_B of rank R, executed as two products: R (d + 3 d) multiply-accumulates a
  token instead of 3 d^2;
- sparse: the entries of largest magnitude, a fraction s of the whole matrix, or by the pattern 2:4 two of each four
  consecutive inputs of a column. The count is of the entries kept. It is executed as a dense product, which multiplies
  by the zeros too and takes a dense matrix's time and memory: only hardware and kernels for sparsity gain from it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor, nn

from lodarepro.config import Base
from lodarepro.model import GPT2

logger = logging.getLogger(__name__)


class LowRank(nn.Module):
    """Two products for one: x (..., d_in) -> (x W_A) W_B (..., d_out), W_A (d_in, R), W_B (R, d_out)."""

    def __init__(self, W_A: Tensor, W_B: Tensor) -> None:
        super().__init__()
        self.W_A = nn.Parameter(W_A, requires_grad=False)
        self.W_B = nn.Parameter(W_B, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The product by way of R numbers."""
        return x @ self.W_A @ self.W_B

    def macs(self) -> int:
        """Multiply-accumulate operations a token: R (d_in + d_out)."""
        return self.W_A.numel() + self.W_B.numel()


class Sparse(nn.Module):
    """A matrix most of which may be zeros: x (..., d_in) -> x W' (..., d_out), as a dense product.

    Attributes:
        entries: how many of the matrix were kept.
    """

    def __init__(self, weight: Tensor, entries: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.entries = entries

    def forward(self, x: Tensor) -> Tensor:
        """The product, by the zeros too."""
        return x @ self.weight

    def macs(self) -> int:
        """Multiply-accumulate operations a token: one for each entry kept."""
        return self.entries


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, however many threads the rest has: an adapter is loaded beside the bits it was trained on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def attach(model: GPT2, base: Base) -> None:
    """Put what `base` says in place of every block's W_proj; kind=dense leaves the model as it is.

    A line of the log says how much of the energy is kept: of the squared singular values, whose sum is that of the
    squared entries. (In block 1 of GPT-2 Medium the paper keeps over 93 % by R = 300, over 96 % by s = 40 %.) On the
    meta device nothing is computed; shapes and counts are the same.

    Args:
        model: edited in place, on any device (the computation is the CPU's).
        base: one that fits the model (`Base.faults` is empty).
    """
    if base.kind == "dense":
        return
    energies = []
    for block, dense in enumerate(model.denses("q")):
        own = base.of_block(block)
        stand_in, energy = _low_rank(dense.weight, own) if own.kind == "low-rank" else _sparse(dense.weight, own)
        dense.replace(stand_in)
        energies.append(energy)
    if not model.wte.weight.is_meta:
        logger.info(
            "%s W_proj keeps %.2f %% of the energy in block 1; over the blocks least %.2f, mean %.2f, greatest %.2f %%",
            base.kind,
            *(100 * share for share in (energies[0], min(energies), fmean(energies), max(energies))),
        )


def _low_rank(weight: Tensor, base: Base) -> tuple[LowRank, float]:
    """The best approximation of rank R in the Frobenius norm (Eckart & Young), and its share of the energy."""
    assert isinstance(base.rank, int)  # of one block, as `Base` sees to it
    if weight.is_meta:
        return LowRank(weight.new_empty(weight.shape[0], base.rank), weight.new_empty(base.rank, weight.shape[1])), 0.0
    W = weight.cpu().double()
    # W W^T = U S^2 U^T: of a (d, 3 d) matrix several times faster than its SVD, and as exact where it matters: what
    # rounding does to the small singular vectors is cut off or changes little. W' = U_R U_R^T W.
    with _one_thread():
        squares, U = torch.linalg.eigh(W @ W.T)  # ascending
        U = U[:, -base.rank :].flip(1)
        energy = _share(squares[-base.rank :].sum(), squares.sum())
        return LowRank(U.to(weight).contiguous(), (U.T @ W).to(weight)), energy


def _sparse(weight: Tensor, base: Base) -> tuple[Sparse, float]:
    """The matrix with the pattern's entries of largest magnitude, and their share of the energy."""
    assert not isinstance(base.keep, tuple)  # of one block
    entries = round((0.5 if base.keep is None else base.keep) * weight.numel())  # 2:4 keeps half
    if weight.is_meta:
        return Sparse(torch.empty_like(weight), entries), 0.0
    W = weight.cpu()
    kept = W * (_two_of_four(W.abs()) if base.pattern == "2:4" else _largest(W.abs(), entries))
    return Sparse(kept.to(weight), entries), _share(kept.double().square().sum(), W.double().square().sum())


def _largest(magnitudes: Tensor, entries: int) -> Tensor:
    """A mask of the largest; of equal ones at the margin those that come first, row by row."""
    flat = magnitudes.flatten()
    margin = flat.kthvalue(flat.numel() - entries + 1).values
    mask = flat > margin
    mask[(flat == margin).nonzero()[: entries - int(mask.sum()), 0]] = True
    return mask.view_as(magnitudes)


def _two_of_four(magnitudes: Tensor) -> Tensor:
    """A mask of two in each four consecutive rows of a column; of equal ones those that come first."""
    groups = magnitudes.unflatten(0, (-1, 4))  # (d_in / 4, 4, d_out)
    order = groups.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :2], True).flatten(0, 1)


def _share(kept: Tensor, all_: Tensor) -> float:
    return float(kept / all_) if all_ > 0 else 1.0  # nothing of nothing is lost
