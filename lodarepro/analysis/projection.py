"""The q/k/v projection alone, in all forms that a device has: what approximations gain in time, not in counts.

LoDA (MERL TR2025-130), Table 2, has their multiply-accumulates. Here each form is timed, dense, low-rank and sparse,
with and without a delta beside it: as PyTorch multiplies, as this project lays matrices out on a CPU, and as kernels
for sparse matrices do it where there are any: CSR in fp32, 2:4 on a GPU in bf16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lodarepro import config, tables
from lodarepro.analysis.timing import Timer, Times
from lodarepro.analysis.variants import Compose, random, with_base, with_method
from lodarepro.bar import counter
from lodarepro.errors import RunFailed
from lodarepro.findings import Column, Curves, Grid, Line, Value
from lodarepro.methods.approx import LowRank, Sparse
from lodarepro.model.gpt2 import Dense
from lodarepro.model.products import Product

LODA_TABLE = "loda-2"  # whose printed MACs stand beside ours
STEEP = 400  # per cent of the dense time from which the figure's axis is logarithmic


@dataclass(frozen=True)
class Projection:
    """What stands for W_proj: ranks belong to a width, others are in proportion."""

    delta: str
    width: int
    ranks: list[int]
    keeps: list[float]


class Csr(nn.Module):
    """A sparse matrix in compressed rows: x (..., d_in) -> x W (..., d_out), by the entries that are there alone."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.transposed = weight.t().to_sparse_csr()  # (d_out, d_in), as the kernel multiplies from the left
        self.entries = int(self.transposed.values().numel())

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        flat = x.reshape(-1, x.shape[-1])
        return (self.transposed @ flat.t()).t().reshape(*x.shape[:-1], -1)

    def macs(self) -> int:
        """Multiply-accumulate operations a token: one for each entry."""
        return self.entries


class TwoOfFour(nn.Module):
    """A 2:4 matrix by a GPU's units for such: x (..., d_in) -> x W (..., d_out) in bf16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.transposed = torch.sparse.to_sparse_semi_structured(weight.t().contiguous().bfloat16())
        self.entries = weight.numel() // 2

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return F.linear(x.bfloat16(), self.transposed)

    def macs(self) -> int:
        """Multiply-accumulate operations a token: one for each entry."""
        return self.entries


class LaidOut(nn.Module):
    """Frozen matrices one after another, each laid out for this CPU: x (..., d_in) -> x W_1 ... W_k (..., d_out)."""

    def __init__(self, matrices: Sequence[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.products = [Product(matrix, dtype, gradient=False) for matrix in matrices]
        self.entries = sum(matrix.numel() for matrix in matrices)

    def forward(self, x: Tensor) -> Tensor:
        """The products."""
        for product in self.products:
            x = product(x)
        return x

    def macs(self) -> int:
        """Multiply-accumulate operations a token."""
        return self.entries


@dataclass(frozen=True, eq=False)
class Kernel:
    """A projection to time.

    Attributes:
        family: what kinds of points of one figure have in common.
        label: with rank or share.
        delta: the method beside it; None: nothing.
        method: its configuration; None: nothing.
        special: whether it is multiplied otherwise than by PyTorch's product of dense matrices.
        dense: the layer.
    """

    family: str
    label: str
    delta: str | None
    method: Any
    special: bool
    dense: Dense


@dataclass(frozen=True)
class Timed:
    """Times of kernels at numbers of tokens; the first kernel is the dense one.

    Attributes:
        kernels: all of them.
        times: tokens to kernel to times.
        blocks: of the model, L.
        printed: a method's key to the multiply-accumulates that LoDA's Table 2 prints; empty: of another model.
    """

    kernels: list[Kernel]
    times: dict[int, dict[Kernel, Times]]
    blocks: int
    printed: dict[str, str]

    def macs(self, kernel: Kernel) -> float:
        """In per cent of the dense projection's."""
        return 100 * kernel.dense.macs() / self.kernels[0].dense.macs()

    def time(self, tokens: int, kernel: Kernel) -> tuple[float, float]:
        """In per cent of the dense projection's, with its standard error."""
        slower, error = self.times[tokens][kernel].slower_than(self.times[tokens][self.kernels[0]])
        return 100 + slower, error


def projection(run: config.Run, compose: Compose, timer: Timer, wanted: Projection, tokens: Sequence[int]) -> Timed:
    """Time all forms of a model's projection.

    Args:
        run: a cell of the model.
        compose: makes a method's configuration.
        timer: on a device.
        wanted: ranks and shares.
        tokens: numbers of them.

    Raises:
        RunFailed: there is no memory for any.
    """
    kernels = list(_kernels(run, compose, timer, wanted))
    times: dict[int, dict[Kernel, Times]] = {}
    generator = torch.Generator().manual_seed(1)
    with counter("projection", len(tokens) * len(kernels) * (timer.trials + timer.warmup)) as done:
        for count in tokens:
            x = torch.empty(count, run.model.n_embd).normal_(generator=generator)
            x = x.to(timer.device, timer.arithmetic.dtype)
            calls = {kernel: partial(kernel.dense.parts, x) for kernel in kernels}
            if (found := timer(calls, f"projection of {count} tokens", autocast=False, done=done)) is not None:
                times[count] = found
    if not times:
        raise RunFailed("there is no memory for the projection at any point; give smaller --batch-sizes and --lengths")
    return Timed(kernels, times, run.model.n_layer, _printed_macs(run.model))


def _kernels(run: config.Run, compose: Compose, timer: Timer, wanted: Projection) -> Iterator[Kernel]:
    """The projection of a model of one block; the dense one first."""
    d, dtype = run.model.n_embd, timer.arithmetic.dtype
    bare = random(replace(run.model, n_layer=1), timer.device, dtype)
    gpu, bf16 = timer.device.type == "cuda", dtype == torch.bfloat16
    laid_out = not gpu and Product.pays(next(bare.denses("q")).weight, dtype)
    ranks = list(dict.fromkeys(max(1, round(rank * d / wanted.width)) for rank in wanted.ranks))
    bases = [("dense", config.Base())]
    bases += [(f"rank {rank}", config.Base(kind="low-rank", rank=rank)) for rank in ranks]
    bases += [(f"keep {100 * keep:g} %", config.Base(kind="sparse", keep=keep)) for keep in wanted.keeps]
    if d % 4 == 0:
        bases.append(("2:4", config.Base(kind="sparse", pattern="2:4")))
    for delta in (None, wanted.delta):
        composed = None if delta is None else compose(delta)
        for label, base in bases:
            method = None if composed is None else replace(composed, base=base)
            layer = partial(_layer, bare, base, method)
            plain = {"dense": "dense", "low-rank": "low-rank", "sparse": "sparse, as dense"}[base.kind]
            yield Kernel(plain, label, delta, method, False, layer())
            special: dict[str, Callable[[Dense], nn.Module]] = {}
            if laid_out and base.kind == "dense":
                special["laid out"] = lambda dense: LaidOut([dense.weight], dtype)
            if laid_out and base.kind == "low-rank":
                special["laid out"] = lambda dense: LaidOut([_low_rank(dense).W_A, _low_rank(dense).W_B], dtype)
            if base.kind == "sparse" and not bf16:
                special["CSR"] = lambda dense: Csr(_sparse(dense).weight)
            if base.pattern == "2:4" and gpu and bf16:
                special["2:4 units"] = lambda dense: TwoOfFour(_sparse(dense).weight)
            for name, make in special.items():
                dense = layer()
                dense.base = make(dense)
                yield Kernel(f"{base.kind}, {name}", f"{label}, {name}", delta, method, True, dense)


def _layer(bare: Any, base: config.Base, method: Any) -> Dense:
    return next((with_base(bare, base) if method is None else with_method(bare, method)).denses("q"))


def _low_rank(dense: Dense) -> LowRank:
    return cast(LowRank, dense.base)


def _sparse(dense: Dense) -> Sparse:
    return cast(Sparse, dense.base)


def _printed_macs(model: config.Model) -> dict[str, str]:
    table = tables.read(LODA_TABLE)
    rows = [row for group in table.groups for row in group.rows]
    if rows[0].run.model.name != model.name:
        return {}
    return {_key(row.run.method): row.macs for row in rows if row.macs is not None}


TRAINING = ("name", "alpha", "dropout", "same_init", "same_mask")  # settings that decide no MACs


def _key(method: Any) -> str:
    """What decides the MACs of a projection with a method; a method that adds nothing there leaves it dense."""
    if method is None or not hasattr(method, "base"):
        return "dense"
    return repr({key: value for key, value in asdict(method).items() if key not in TRAINING})


# tables and figures -----------------------------------------------------------------------------


def table(timed: Timed) -> Grid:
    """Time beside multiply-accumulates, a row a form."""
    rows: list[tuple[Value, ...]] = []
    for kernel in timed.kernels:
        cells = ("{:.1f} ± {:.1f}".format(*timed.time(count, kernel)) for count in timed.times)
        row: list[Value] = [kernel.label, kernel.delta, timed.blocks * kernel.dense.macs()]
        if timed.printed:
            known = not kernel.special and (kernel.delta is not None or kernel.family == "dense")
            row.append(timed.printed.get(_key(kernel.method)) if known else None)
        rows.append((*row, timed.macs(kernel), *cells))
    return Grid(
        "projection",
        "q/k/v projection: time in per cent of the dense one's ± standard error, at so many tokens",
        (
            *(Column("base", "W_proj"), Column("delta", "delta")),
            Column("macs_per_token_all_blocks", "MACs a token, all blocks"),
            *([Column("print_macs", "print (LoDA Table 2)")] if timed.printed else []),
            Column("macs_per_cent", "MACs, % of dense", 1),
            *(Column(f"time_{count}", f"{count:,} tokens") for count in timed.times),
        ),
        tuple(rows),
    )


def whole(timed: Timed) -> Grid:
    """All that was measured, a row a form and number of tokens."""
    rows: list[tuple[Value, ...]] = []
    for count, times in timed.times.items():
        for kernel in timed.kernels:
            share, error = timed.time(count, kernel)
            rows.append(
                (
                    *(kernel.label, kernel.delta, count, times[kernel].mean, times[kernel].std, times[kernel].median),
                    *(share, error, kernel.dense.macs(), timed.macs(kernel)),
                )
            )
    return Grid(
        "projection-all",
        "q/k/v projection of one block",
        (
            *(Column("base", "W_proj"), Column("delta", "delta"), Column("tokens", "tokens"), Column("ms", "ms")),
            *(Column("ms_std", "±"), Column("ms_median", "median"), Column("time_per_cent", "time (%)")),
            *(Column("time_error", "± error"), Column("macs_per_token", "MACs a token")),
            Column("macs_per_cent", "MACs (%)"),
        ),
        tuple(rows),
        shown=False,
    )


def figure(timed: Timed) -> Curves:
    """Time against multiply-accumulates, at most tokens."""
    count = max(timed.times)
    lines = []
    for family in dict.fromkeys(kernel.family for kernel in timed.kernels):
        ones = [kernel for kernel in timed.kernels if kernel.family == family]
        shares = [timed.time(count, kernel) for kernel in ones]
        lines.append(
            Line(
                family,
                tuple(timed.macs(kernel) for kernel in ones),
                tuple(share for share, _ in shares),
                tuple(error for _, error in shares),
                joined=False,
                notes=tuple(
                    f"{kernel.label}{f' + {kernel.delta}' if kernel.delta else ''}: {timed.macs(kernel):.1f} % of the "
                    f"MACs, {share:.1f} % of the time"
                    for kernel, (share, _) in zip(ones, shares, strict=True)
                ),
            )
        )
    return Curves(
        key="projection",
        title=f"MACs against time, q/k/v projection of {count:,} tokens",
        caption="Per cent of the dense projection's; with and without a delta. On the dashed line time follows the "
        "count; above it, it does not.",
        x_title="MACs (% of dense)",
        y_title="time (% of dense)",
        lines=(*lines, diagonal([x for line in lines for x in line.x])),
        log_y=max(y for line in lines for y in line.y) > STEEP,
    )


def diagonal(xs: Sequence[float]) -> Line:
    """Where time is as the count is."""
    ends = (min([*xs, 100.0]), max([*xs, 100.0]))
    return Line("time follows the count", ends, ends, role="baseline")
