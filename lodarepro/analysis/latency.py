"""What methods cost in time, beside what they cost in multiply-accumulates (LoRA Table 1, Figure 5; LoDA Table 2).

Three parts, all by one interleaved timer (`timing.py`) and beside the counted MACs, so that it shows where fewer MACs
do not mean less time:

- forward: a whole forward pass, logits of every token included, of the model with each method against the bare model;
  what can be merged, merged too;
- projection: the q/k/v projection alone, dense, low-rank and sparse, each with and without a delta, and as kernels for
  sparse matrices do it where there are any: CSR in fp32, 2:4 on a GPU in bf16;
- decoding: tokens a second of the project's own beam search.

Time hardly depends on the weights, so they are random, and nothing is downloaded. What a method adds and starts from
zero is filled with random numbers: products with zeros take a GPU less power, and so less time. Forward passes and
projections are PyTorch's own products unless a row says otherwise, in bf16 with weights in bf16; the search casts
weights, and lays frozen matrices out, as it does in runs (`model/products.py`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lodarepro import compose, config, devices, tables
from lodarepro.analysis import settings
from lodarepro.analysis.timing import Times, interleaved
from lodarepro.bar import bar
from lodarepro.decode.beam import search
from lodarepro.decode.generate import BATCH
from lodarepro.errors import BadInput, RunFailed
from lodarepro.findings import Column, Curves, Findings, Grid, HeatMap, Line, Panel, Value, named, provenance
from lodarepro.methods import approx, attach, finalize, merge, mergeable, trained
from lodarepro.model import GPT2
from lodarepro.model.gpt2 import Dense
from lodarepro.model.products import Product
from lodarepro.model.weights import sizes_of
from lodarepro.precision import Arithmetic

logger = logging.getLogger(__name__)

SOURCE = "LoRA (arXiv 2106.09685), Table 1 and Figure 5; LoDA (MERL TR2025-130), Table 2"
PARTS = ("forward", "projection", "decoding")
TRIALS, WARMUP = 100, 10  # LoRA's Table 1 is the mean of 100 trials
DECODING_SHARE = 10  # trials of forward passes for one of a search, which is some dozens of them
FEWEST = 2  # trials that have a deviation
SIZES = ("rank", "bottleneck", "length")  # the setting that is a method's size, whichever it has
FILL_STD = 0.02
SHOWN_POINTS = 6  # columns of a printed table
IN_A_ROW = 4  # panels of a heat map
LODA_TABLE = "loda-2"  # whose printed MACs stand beside ours


# what is measured -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """Where forward passes are measured, and at which sizes of a method."""

    batch_sizes: list[int]
    lengths: list[int]
    sizes: list[int] | None = None


@dataclass(frozen=True)
class Projection:
    """What stands for W_proj: ranks belong to a width, others are in proportion."""

    delta: str
    width: int
    ranks: list[int]
    keeps: list[float]


@dataclass(frozen=True)
class Decoding:
    """Tokens of a prompt and of what is generated for it."""

    prompt: int
    new_tokens: int
    beams: list[int]


@dataclass(frozen=True)
class Printed:
    """A figure of LoRA's Table 1."""

    batch_size: int
    length: int
    params: str
    bare_ms: float
    method: str
    size: int
    ms: float


@dataclass(frozen=True)
class Settings:
    """`configs/analysis/latency.yaml`."""

    quick: Points
    paper: Points
    methods: list[str]
    paper_methods: list[str]
    projection: Projection
    decoding: Decoding
    print: list[Printed]


@dataclass(frozen=True)
class Asked:
    """What to measure; None: as the settings have it.

    Attributes:
        parts: of `PARTS`.
        methods: names.
        sizes: of methods that have one; None: their own, with `paper` the paper's.
        batch_sizes, lengths: of forward passes; rows, and tokens of each.
        beams: of searches.
        trials, warmup: of forward passes and projections.
        paper: the grid of LoRA's Figure 5, and the points of its Table 1.
    """

    parts: tuple[str, ...] = PARTS
    methods: tuple[str, ...] | None = None
    sizes: tuple[int, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    beams: tuple[int, ...] | None = None
    trials: int = TRIALS
    warmup: int = WARMUP
    paper: bool = False


@dataclass(frozen=True, eq=False)
class Variant:
    """A model to time.

    Attributes:
        method: its name; None: the bare model.
        size: of the method; None: it has none.
        form: `merged`, `unmerged`, or nothing where there is nothing to merge.
        model: on its device; what the method left alone is the bare model's own.
        trainable: parameters.
    """

    method: str | None
    size: int | None
    form: str
    model: GPT2
    trainable: int

    @property
    def label(self) -> str:
        """As tables name it."""
        if self.method is None:
            return "bare"
        size = "" if self.size is None or self.form == "merged" else f" {self.size}"
        return f"{self.method}{size}" + (f" ({self.form})" if self.form else "")


Point = tuple[int, int]
"""rows of a batch, tokens of each"""
_K = TypeVar("_K", bound=Hashable)
_P = TypeVar("_P", bound=Hashable)


def latency(overrides: Sequence[str], asked: Asked, *, own: compose.OwnMethod | None = None) -> Findings:
    """Measure on this machine's device.

    Args:
        overrides: of a cell: its model, `decode.precision`, `runtime.*`.
        asked: what to measure.
        own: a method of the user's.

    Raises:
        BadInput: a method or a point does not fit the model.
        RunFailed: there is no memory for any point.
    """
    read = settings.read("latency", Settings)
    (cell,) = compose.cells(overrides, own=own)
    run = cell.run
    devices.set_threads(run)
    chosen = read.paper if asked.paper else read.quick
    points = [
        (rows, width) for width in asked.lengths or chosen.lengths for rows in asked.batch_sizes or chosen.batch_sizes
    ]
    printed = [p for p in read.print if asked.paper and p.method in (asked.methods or read.paper_methods)]
    with devices.taken(run.runtime.device) as device, _quiet():
        arithmetic = Arithmetic(run.decode.precision, device)
        what = _What(run, overrides, own, device, arithmetic, asked)
        grids: list[Grid] = []
        plots: list[HeatMap | Curves] = []
        notes = [
            f"{asked.trials} trials of each, in turn, after {asked.warmup} that don't count; of the bare model mean ± "
            "standard deviation; all means, deviations and medians are in the CSV files"
        ]
        methods = asked.methods or tuple(read.paper_methods if asked.paper else read.methods)
        sized = _sized(what, methods, asked.sizes or chosen.sizes, printed)
        if "forward" in asked.parts:
            variants = _variants(what, sized, arithmetic.dtype)
            _check(run.model, variants, points)
            forward = _forward(what, variants, sorted({*points, *((p.batch_size, p.length) for p in printed)}))
            grids += [_pivot(forward, printed), _beside_print(forward, printed), _whole(forward)]
            plots += [_slowdowns(forward), _macs_and_time(forward)]
            notes.append(
                "forward: logits of every token included, by PyTorch's own products; slower (%): than the bare"
            )
        if "projection" in asked.parts:
            tokens = sorted({rows * width for rows, width in points})
            timed = _projection(what, read.projection, sorted({tokens[0], tokens[len(tokens) // 2], tokens[-1]}))
            grids += [_projections(what, timed), _projections_whole(timed)]
            plots.append(_projection_plot(timed))
            notes.append(
                "projection: time of one block, MACs of all; a sparse matrix that no kernel is named for is multiplied "
                "as a dense one, zeros and all"
            )
        if "decoding" in asked.parts:
            grids.append(_decoding(what, _variants(what, sized, torch.float32), read.decoding))
            notes.append(
                f"decoding: prompts of {read.decoding.prompt} tokens, {read.decoding.new_tokens} generated for each, "
                f"none ends early; {what.searches} trials; frozen matrices laid out as in runs"
            )
        found = {
            "model": {key: value for key, value in asdict(run.model).items() if key not in ("hub", "revision", "path")},
            "precision": run.decode.precision,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "asked": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(asked).items()},
        }
        described = provenance(device=found["device"], threads=found["threads"])
    if found["device"] == "cpu":
        notes.append(f"on {described['machine']['processor']}, threads: {found['threads']}; a GPU's figures are others")
    return Findings(
        analysis="latency",
        name=named(
            "latency", f"{run.model.name}-{device.type}", {**found, "processor": described["machine"]["processor"]}
        ),
        title=f"Latency of {run.model.name} on {'a CPU' if device.type == 'cpu' else found['device']}, "
        f"{run.decode.precision}",
        source=SOURCE,
        settings=found,
        provenance=described,
        grids=tuple(grid for grid in grids if grid.rows),
        plots=tuple(plots),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _What:
    """What all parts need."""

    run: config.Run
    overrides: Sequence[str]
    own: compose.OwnMethod | None
    device: torch.device
    arithmetic: Arithmetic
    asked: Asked

    @property
    def searches(self) -> int:
        """Trials of a search."""
        return max(FEWEST, self.asked.trials // DECODING_SHARE)

    def method(self, name: str, *more: str) -> Any:
        """The configuration of a method, checked against the model."""
        (cell,) = compose.cells([*self.overrides, f"method={name}", *more], own=self.own)
        return cell.run.method


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what approximating says of weights that are random here."""
    noisy = logging.getLogger(approx.__name__)
    before = noisy.level
    noisy.setLevel(logging.WARNING)
    try:
        yield
    finally:
        noisy.setLevel(before)


# models -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sized:
    """A method at one size; None: it has none."""

    name: str
    size: int | None
    method: Any


def _sized(
    what: _What, methods: Sequence[str], sizes: Sequence[int] | None, printed: Sequence[Printed]
) -> list[_Sized]:
    """Each method at each size, all checked against the model."""
    found = []
    for name in methods:
        default = what.method(name)
        key = next((key for key in SIZES if hasattr(default, key)), None)
        if key is None:
            found.append(_Sized(name, None, default))
            continue
        own = {getattr(default, key)} if sizes is None else {*sizes}
        own |= {p.size for p in printed if p.method == name}
        found += [_Sized(name, size, what.method(name, f"method.{key}={size}")) for size in sorted(own)]
    return found


def _variants(what: _What, sized: Sequence[_Sized], dtype: torch.dtype) -> list[Variant]:
    """The bare model, and the model with each method at each size; weights in `dtype`."""
    bare = _random(what.run.model, what.device, dtype)
    found = [Variant(None, None, "", bare, 0)]
    for one in sized:
        model = _with(bare, one.method)
        trainable = sum(p.numel() for p in trained(model).values())
        merges = any(len(dense.deltas) for dense in _denses(model)) and mergeable(model) is None
        if merges and one.name not in {variant.method for variant in found}:  # merged, all sizes are one
            found.append(Variant(one.name, one.size, "merged", _merged(bare, one.method), trainable))
        found.append(Variant(one.name, one.size, "unmerged" if merges else "", model, trainable))
    return found


def _random(model: config.Model, device: torch.device, dtype: torch.dtype) -> GPT2:
    net = GPT2(sizes_of(model))
    net.initialise(torch.Generator().manual_seed(1))
    return net.to(device, dtype).requires_grad_(False).eval()


def _twin(bare: GPT2) -> GPT2:
    """A model of its own whose parameters are the bare model's."""
    with torch.device("meta"):
        net = GPT2(bare.sizes)
    net.load_state_dict(bare.state_dict(), assign=True)
    return net.requires_grad_(False).eval()


def _with(bare: GPT2, method: Any) -> GPT2:
    """A twin of the bare model with a method."""
    net = _twin(bare)
    generator = torch.Generator().manual_seed(1)
    attach(net, method, generator)
    finalize(net, method)
    shared = {p.data_ptr() for p in bare.parameters()}
    with torch.no_grad():
        for p in trained(net).values():
            if p.data_ptr() not in shared and not p.any():
                p.copy_(torch.empty(p.shape).normal_(0.0, FILL_STD, generator=generator))
    return net.to(bare.wte.weight.dtype).eval()


def _merged(bare: GPT2, method: Any) -> GPT2:
    """The same with its deltas folded into weights of its own."""
    net = _with(bare, method)
    for dense in _denses(net):
        if dense.deltas and dense.base is None:
            dense.weight = nn.Parameter(dense.weight.clone(), requires_grad=False)
    merge(net)
    return net


def _denses(model: GPT2) -> Iterator[Dense]:
    for block in model.h:
        yield from block.denses()  # type: ignore[operator]


def _virtual(model: GPT2) -> int:
    """Tokens of a method's own before the others."""
    return 0 if model.virtual is None else int(model.virtual().shape[1])


def _check(model: config.Model, variants: Sequence[Variant], points: Sequence[Point]) -> None:
    longest = max(width for _, width in points)
    for variant in variants:
        ahead = _virtual(variant.model) + variant.model.offset
        if longest + ahead > model.n_positions:
            of_method = f" beside the {ahead} of {variant.label}" if ahead else ""
            raise BadInput(
                f"{longest} tokens{of_method} are more than the {model.n_positions} positions of {model.name}; give "
                f"--lengths up to {model.n_positions - ahead}"
            )


# forward passes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Timed:
    """Times of variants at points; without those that there was no memory for."""

    variants: list[Variant]
    times: dict[Point, dict[Variant, Times]]

    @property
    def bare(self) -> Variant:
        """The bare model."""
        return self.variants[0]

    def slower(self, point: Point, variant: Variant) -> tuple[float, float]:
        """Than the bare model, in per cent, with its standard error."""
        return self.times[point][variant].slower_than(self.times[point][self.bare])

    def macs(self, variant: Variant) -> float:
        """MACs a token in per cent of the bare model's."""
        return 100 * variant.model.macs() / self.bare.model.macs()


def _forward(what: _What, variants: list[Variant], points: Sequence[Point]) -> _Timed:
    times: dict[Point, dict[Variant, Times]] = {}
    generator = torch.Generator().manual_seed(1)
    asked = what.asked
    with bar("forward", len(points) * len(variants) * (asked.trials + asked.warmup), shown=True) as tick:
        ticker = _Ticker(tick)
        for rows, width in points:
            tokens = torch.randint(what.run.model.vocab_size, (rows, width), generator=generator).to(what.device)
            calls = {variant: partial(_pass, variant.model, _own_tokens(variant.model, tokens)) for variant in variants}
            if (found := _taken_in_turn(what, calls, ticker, f"batch {rows} x {width} tokens")) is not None:
                times[rows, width] = found
                logger.info("batch %d x %d tokens: bare %.2f ms", rows, width, found[variants[0]].mean)
    return _Timed(variants, _some(times))


def _taken_in_turn(
    what: _What, calls: Mapping[_K, Callable[[], object]], ticker: _Ticker, where: str, *, searches: int | None = None
) -> dict[_K, Times] | None:
    """Times of calls; None, with a warning that says where, if there is no memory for them."""
    trials, warmup = (what.asked.trials, what.asked.warmup) if searches is None else (searches, 1)
    try:
        with torch.inference_mode(), what.arithmetic():
            return interleaved(calls, trials=trials, warmup=warmup, device=what.device, done=ticker)
    except torch.OutOfMemoryError:
        logger.warning("%s: no memory for it; left out", where)
        torch.cuda.empty_cache()
        return None


def _some(times: dict[_P, dict[_K, Times]]) -> dict[_P, dict[_K, Times]]:
    if not times:
        raise RunFailed(
            "there is no memory for any point; give smaller --batch-sizes and --lengths, or fewer --methods"
        )
    return times


class _Ticker:
    """Counts calls for a bar."""

    def __init__(self, tick: Callable[[int, str], None] | None) -> None:
        self.tick, self.count = tick, 0

    def __call__(self) -> None:
        self.count += 1
        if self.tick is not None:
            self.tick(self.count, "")


def _own_tokens(model: GPT2, tokens: Tensor) -> Tensor:
    """Tokens (B, T) with those of the method before them."""
    ahead = _virtual(model)
    own = -1 - torch.arange(ahead, device=tokens.device)
    return torch.cat([own.expand(len(tokens), ahead), tokens], dim=1)


def _pass(model: GPT2, tokens: Tensor) -> Tensor:
    return model.logits(model(tokens))


def _point(point: Point) -> str:
    return f"{point[0]} x {point[1]}"


def _pivot(timed: _Timed, printed: Sequence[Printed]) -> Grid:
    """Slow-downs, a column a point: those of the paper's table, and the corners of the grid."""
    points = list(timed.times)
    wanted = list(dict.fromkeys([*((p.batch_size, p.length) for p in printed), points[0], points[-1], *points]))
    shown = [point for point in points if point in wanted[:SHOWN_POINTS]]
    rows: list[tuple[Value, ...]] = []
    for variant in timed.variants:
        cells = []
        for point in shown:
            if variant is timed.bare:
                bare = timed.times[point][variant]
                cells.append(f"{bare.mean:.2f} ± {bare.std:.2f} ms")
            else:
                slower, error = timed.slower(point, variant)
                cells.append(f"{slower:+.1f} ± {error:.1f}")
        rows.append((variant.label, variant.trainable, timed.macs(variant), *cells))
    return Grid(
        "forward",
        "Forward pass: slower than the bare model (%) ± standard error, at batch size x tokens",
        (
            Column("method", "method and size"),
            Column("trainable", "trainable"),
            Column("macs_per_cent", "MACs, % of bare"),
            *(Column(f"slower_{rows_}x{width}", _point((rows_, width))) for rows_, width in shown),
        ),
        tuple(rows),
    )


def _whole(timed: _Timed) -> Grid:
    rows: list[tuple[Value, ...]] = []
    for point, times in timed.times.items():
        for variant in timed.variants:
            slower, error = timed.slower(point, variant)
            rows.append(
                (
                    *(variant.method or "bare", variant.size, variant.form, *point, variant.trainable),
                    *(times[variant].mean, times[variant].std, times[variant].median, slower, error),
                    *(variant.model.macs(), timed.macs(variant)),
                )
            )
    return Grid(
        "forward-all",
        "Forward pass",
        (
            *(Column("method", "method"), Column("size", "size"), Column("form", "form")),
            *(Column("batch_size", "batch size"), Column("tokens", "tokens"), Column("trainable", "trainable")),
            *(Column("ms", "ms"), Column("ms_std", "±"), Column("ms_median", "median")),
            Column("slower_per_cent", "slower (%)"),
            *(
                Column("slower_error", "± error"),
                Column("macs_per_token", "MACs a token"),
                Column("macs_per_cent", "%"),
            ),
        ),
        tuple(rows),
        shown=False,
    )


def _beside_print(timed: _Timed, printed: Sequence[Printed]) -> Grid:
    """Ours at the points of LoRA's Table 1."""
    rows: list[tuple[Value, ...]] = []
    for p in printed:
        point = (p.batch_size, p.length)
        ours = next((v for v in timed.variants if (v.method, v.size) == (p.method, p.size)), None)
        if ours is None or point not in timed.times:
            continue
        times = timed.times[point]
        theirs = 100 * (p.ms / p.bare_ms - 1)
        rows.append(
            (
                *(_point(point), f"{p.method} {p.size}", p.params),
                *(times[timed.bare].mean, times[ours].mean, timed.slower(point, ours)[0], p.bare_ms, p.ms, theirs),
            )
        )
    return Grid(
        "print",
        "Beside LoRA Table 1 (GPT-2 Medium on an NVIDIA Quadro RTX8000)",
        (
            *(Column("point", "batch x tokens"), Column("method", "method"), Column("params", "params (print)")),
            *(Column("bare_ms", "bare (ms)", 1), Column("ms", "with it (ms)", 1), Column("slower", "slower (%)", 1)),
            *(Column("print_bare_ms", "print: bare", 1), Column("print_ms", "print: with it", 1)),
            Column("print_slower", "print: slower (%)", 1),
        ),
        tuple(rows),
    )


def _slowdowns(timed: _Timed) -> HeatMap:
    """As LoRA's Figure 5 where methods have several sizes, else a map for each method."""
    points = list(timed.times)
    batch_sizes = sorted({rows for rows, _ in points})
    lengths = sorted({width for _, width in points})

    def value(point: Point, variant: Variant) -> float | None:
        return round(timed.slower(point, variant)[0], 2) if point in timed.times else None

    by_method: dict[tuple[str, str], list[Variant]] = {}
    for variant in timed.variants[1:]:
        by_method.setdefault((variant.method or "", variant.form), []).append(variant)
    several = any(len(ones) > 1 for ones in by_method.values())
    y = tuple(str(rows) for rows in batch_sizes)
    if several:
        panels = [
            [
                Panel(
                    f"{method}{f' ({form})' if form else ''}, {width} tokens",
                    tuple("any" if form == "merged" else str(v.size or "-") for v in ones),
                    y,
                    tuple(tuple(value((rows, width), v) for v in ones) for rows in batch_sizes),
                )
                for width in lengths
            ]
            for (method, form), ones in by_method.items()
        ]
    else:
        each = [
            Panel(
                ones[0].label,
                tuple(str(width) for width in lengths),
                y,
                tuple(tuple(value((rows, width), ones[0]) for width in lengths) for rows in batch_sizes),
            )
            for ones in by_method.values()
        ]
        panels = [each[i : i + IN_A_ROW] for i in range(0, len(each), IN_A_ROW)]
    return HeatMap(
        key="slow-down",
        title="Slower than the bare model",
        caption="Forward passes, per cent of the bare model's time.",
        x_title="size of the method" if several else "tokens",
        y_title="batch size",
        value_title="slower (%)",
        panels=tuple(tuple(row) for row in panels),
        decimals=1,
    )


def _macs_and_time(timed: _Timed) -> Curves:
    point = list(timed.times)[-1]
    lines = []
    for variant in timed.variants[1:]:
        macs, (slower, error) = timed.macs(variant), timed.slower(point, variant)
        note = f"{variant.label}: {macs:.1f} % of the MACs, {100 + slower:.1f} % of the time"
        lines.append(Line(variant.label, (macs,), (100 + slower,), (error,), joined=False, notes=(note,)))
    return Curves(
        key="macs-and-time",
        title=f"MACs against time, forward pass at batch {_point(point)}",
        caption="Per cent of the bare model's. On the dashed line time follows the count; above it, it does not.",
        x_title="MACs a token (% of bare)",
        y_title="time (% of bare)",
        lines=(*lines, _diagonal([x for line in lines for x in line.x])),
    )


def _diagonal(xs: Sequence[float]) -> Line:
    ends = (min([*xs, 100.0]), max([*xs, 100.0]))
    return Line("time follows the count", ends, ends, role="baseline")


# the projection alone ---------------------------------------------------------------------------


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
class _Kernel:
    """A projection to time.

    Attributes:
        family: what kinds of points of one figure have in common.
        label: with rank or share.
        delta: the method beside it; None: nothing.
        method: the method's configuration, whose printed MACs may be known.
        dense: the layer.
    """

    family: str
    label: str
    delta: str | None
    method: Any
    dense: Dense


@dataclass(frozen=True)
class _TimedKernels:
    kernels: list[_Kernel]
    times: dict[int, dict[_Kernel, Times]]

    def macs(self, kernel: _Kernel) -> float:
        """In per cent of the dense projection's."""
        return 100 * kernel.dense.macs() / self.kernels[0].dense.macs()

    def time(self, tokens: int, kernel: _Kernel) -> tuple[float, float]:
        """In per cent of the dense projection's, with its standard error."""
        slower, error = self.times[tokens][kernel].slower_than(self.times[tokens][self.kernels[0]])
        return 100 + slower, error


def _projection(what: _What, wanted: Projection, tokens: Sequence[int]) -> _TimedKernels:
    kernels = list(_kernels(what, wanted))
    asked, d = what.asked, what.run.model.n_embd
    times: dict[int, dict[_Kernel, Times]] = {}
    generator = torch.Generator().manual_seed(1)
    with bar("projection", len(tokens) * len(kernels) * (asked.trials + asked.warmup), shown=True) as tick:
        ticker = _Ticker(tick)
        for count in tokens:
            x = torch.empty(count, d).normal_(generator=generator).to(what.device, what.arithmetic.dtype)
            calls = {kernel: partial(kernel.dense.parts, x) for kernel in kernels}
            if (found := _taken_in_turn(what, calls, ticker, f"projection of {count} tokens")) is not None:
                times[count] = found
    return _TimedKernels(kernels, _some(times))


def _kernels(what: _What, wanted: Projection) -> Iterator[_Kernel]:
    """The projection of a model of one block, in all forms that this device has; the dense one first."""
    d = what.run.model.n_embd
    bare = _random(replace(what.run.model, n_layer=1), what.device, what.arithmetic.dtype)
    gpu, bf16 = what.device.type == "cuda", what.arithmetic.dtype == torch.bfloat16
    laid_out = Product.pays(next(bare.denses("q")).weight, what.arithmetic.dtype) and not gpu
    ranks = list(dict.fromkeys(max(1, round(rank * d / wanted.width)) for rank in wanted.ranks))
    bases = [("dense", config.Base())]
    bases += [(f"rank {rank}", config.Base(kind="low-rank", rank=rank)) for rank in ranks]
    bases += [(f"keep {100 * keep:g} %", config.Base(kind="sparse", keep=keep)) for keep in wanted.keeps]
    if d % 4 == 0:
        bases.append(("2:4", config.Base(kind="sparse", pattern="2:4")))
    for delta in (None, wanted.delta):
        for label, base in bases:
            method = None if delta is None else replace(what.method(delta), base=base)

            def layer(base: config.Base = base, method: Any = method) -> Dense:
                if method is not None:
                    return next(_with(bare, method).denses("q"))
                net = _twin(bare)
                approx.attach(net, base)
                return next(net.denses("q"))

            family = {"dense": "dense", "low-rank": "low-rank", "sparse": "sparse, as dense"}[base.kind]
            yield _Kernel(family, label, delta, method, layer())
            special: list[tuple[str, Callable[[Dense], nn.Module]]] = []
            if laid_out and base.kind == "dense":
                special.append(("laid out", lambda dense: LaidOut([dense.weight], what.arithmetic.dtype)))
            if laid_out and base.kind == "low-rank":
                special.append(
                    ("laid out", lambda dense: LaidOut([dense.base.W_A, dense.base.W_B], what.arithmetic.dtype))  # type: ignore[union-attr,list-item]
                )
            if base.kind == "sparse" and not bf16:
                special.append(("CSR", lambda dense: Csr(dense.base.weight)))  # type: ignore[union-attr,arg-type]
            if base.pattern == "2:4" and gpu and bf16:
                special.append(("2:4 units", lambda dense: TwoOfFour(dense.base.weight)))  # type: ignore[union-attr,arg-type]
            for name, make in special:
                dense = layer()
                dense.base = make(dense)
                yield _Kernel(f"{base.kind}, {name}", f"{label}, {name}", delta, None, dense)


def _projections(what: _What, timed: _TimedKernels) -> Grid:
    printed = _printed_macs(what)
    blocks = what.run.model.n_layer
    rows: list[tuple[Value, ...]] = []
    for kernel in timed.kernels:
        cells = ("{:.1f} ± {:.1f}".format(*timed.time(count, kernel)) for count in timed.times)
        row: list[Value] = [kernel.label, kernel.delta, blocks * kernel.dense.macs()]
        if printed:
            row.append(printed.get(_key(kernel.method)))
        rows.append((*row, timed.macs(kernel), *cells))
    return Grid(
        "projection",
        "q/k/v projection: time in per cent of the dense one's ± standard error, at so many tokens",
        (
            *(Column("base", "W_proj"), Column("delta", "delta"), Column("macs_per_token", "MACs a token")),
            *([Column("print_macs", "print (LoDA Table 2)")] if printed else []),
            Column("macs_per_cent", "MACs, % of dense", 1),
            *(Column(f"time_{count}", f"{count:,} tokens") for count in timed.times),
        ),
        tuple(rows),
    )


def _key(method: Any) -> str:
    """What decides a method's MACs, whatever it is called."""
    return "" if method is None else repr({key: value for key, value in asdict(method).items() if key != "name"})


def _printed_macs(what: _What) -> dict[str, str]:
    """The printed MACs of LoDA's Table 2, where the model is the paper's."""
    table = tables.read(LODA_TABLE)
    rows = [row for group in table.groups for row in group.rows]
    if rows[0].run.model.name != what.run.model.name:
        return {}
    return {_key(row.run.method): row.macs for row in rows if row.macs is not None}


def _projections_whole(timed: _TimedKernels) -> Grid:
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
            Column("time_error", "± error"),
            *(Column("macs_per_token", "MACs a token"), Column("macs_per_cent", "%")),
        ),
        tuple(rows),
        shown=False,
    )


def _projection_plot(timed: _TimedKernels) -> Curves:
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
        lines=(*lines, _diagonal([x for line in lines for x in line.x])),
        log_y=max(y for line in lines for y in line.y) > 4 * 100,
    )


# decoding ---------------------------------------------------------------------------------------


def _decoding(what: _What, variants: Sequence[Variant], wanted: Decoding) -> Grid:
    run = what.run
    batch = run.runtime.decode_batch or BATCH[what.device.type]
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(run.model.vocab_size, (batch, wanted.prompt), generator=generator)
    own = {variant: _own_tokens(variant.model, prompts.to(what.device)).tolist() for variant in variants}
    beams = what.asked.beams or tuple(wanted.beams)
    _pack(variants, what.arithmetic.dtype)
    times: dict[int, dict[Variant, Times]] = {}
    with bar("decoding", len(beams) * len(variants) * (what.searches + 1), shown=True) as tick:
        ticker = _Ticker(tick)
        for beam in beams:
            search_settings = replace(run.decode, beam=beam, max_new_tokens=wanted.new_tokens, min_length=0)
            calls = {
                variant: partial(search, variant.model, own[variant], search_settings, end_ids=())
                for variant in variants
            }
            where = f"decoding with beam {beam}"
            if (found := _taken_in_turn(what, calls, ticker, where, searches=what.searches)) is not None:
                times[beam] = found
    beams = tuple(_some(times))
    generated = batch * wanted.new_tokens
    rows: list[tuple[Value, ...]] = []
    for variant in variants:
        row: list[Value] = [variant.label]
        for beam in beams:
            slower, error = times[beam][variant].slower_than(times[beam][variants[0]])
            row += [1e3 * generated / times[beam][variant].mean, f"{slower:+.1f} ± {error:.1f}"]
        rows.append(tuple(row))
    return Grid(
        "decoding",
        f"Decoding {batch} prompts at once: tokens generated a second, and slower than the bare model (%)",
        (
            Column("method", "method and size"),
            *(
                column
                for beam in beams
                for column in (
                    Column(f"tokens_per_second_{beam}", f"beam {beam}: tokens/s", 0),
                    Column(f"slower_{beam}", "slower (%)"),
                )
            ),
        ),
        tuple(rows),
    )


def _pack(variants: Sequence[Variant], dtype: torch.dtype) -> None:
    """Lay out as a search does, each matrix once for all models that have it."""
    bare = variants[0].model
    bare.pack(dtype, training=False)
    for variant in variants[1:]:
        for ours, theirs in zip(_denses(variant.model), _denses(bare), strict=True):
            if ours.base is not None:
                continue
            if ours.weight.data_ptr() == theirs.weight.data_ptr():
                ours.product = theirs.product
            elif theirs.product is not None:
                ours.product = Product(ours.weight, dtype, gradient=False)
        variant.model.output = bare.output
