"""What methods cost in time, beside what they cost in multiply-accumulates (LoRA Table 1, Figure 5; LoDA Table 2).

Three parts, all by one interleaved timer (`timing.py`) and beside the counted MACs, so that it shows where fewer MACs
do not mean less time:

- forward: a whole forward pass, logits of every token included, of the model with each method against the bare model;
  what can be merged, merged too;
- projection: the q/k/v projection alone (`projection.py`);
- decoding: tokens a second of the project's own beam search.

Weights are random (`variants.py`), and nothing is downloaded. Forward passes and projections are PyTorch's own products
unless a row says otherwise, in bf16 with weights in bf16; the search casts weights, and lays frozen matrices out, as it
does in runs (`model/products.py`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lodarepro import compose, config, devices
from lodarepro.analysis import projection, settings
from lodarepro.analysis.projection import Projection
from lodarepro.analysis.timing import Timer, Times
from lodarepro.analysis.variants import Variant, ahead, own_tokens, pack, random, sized, variants
from lodarepro.bar import counter
from lodarepro.decode.beam import search
from lodarepro.decode.generate import BATCH
from lodarepro.errors import BadInput, RunFailed
from lodarepro.findings import Column, Curves, Findings, Grid, HeatMap, Line, Panel, Value, named, provenance
from lodarepro.model import GPT2
from lodarepro.precision import Arithmetic
from lodarepro.provenance import canonical_json

logger = logging.getLogger(__name__)

SOURCE = "LoRA (arXiv 2106.09685), Table 1 and Figure 5; LoDA (MERL TR2025-130), Table 2"
PARTS = ("forward", "projection", "decoding")
TRIALS, WARMUP = 100, 10  # LoRA's Table 1 is the mean of 100 trials
DECODING_SHARE = 10  # trials of forward passes for one of a search, which is some dozens of them
FEWEST = 2  # trials that have a deviation
SHOWN_POINTS = 6  # columns of a printed table
IN_A_ROW = 4  # panels of a heat map
LONG = 600  # seconds of forward passes from which what they will take is told first


# what is measured -------------------------------------------------------------------------------

Point = tuple[int, int]
"""rows of a batch, tokens of each"""


@dataclass(frozen=True)
class Points:
    """Where forward passes are measured, and at which sizes of a method."""

    batch_sizes: list[int]
    lengths: list[int]
    sizes: list[int] | None = None


@dataclass(frozen=True)
class Decoding:
    """Tokens of a prompt and of what is generated for it."""

    prompt: int
    new_tokens: int
    beams: list[int]


@dataclass(frozen=True)
class Printed:
    """A figure of LoRA's Table 1."""

    model: str
    batch_size: int
    length: int
    params: str
    bare_ms: float
    method: str
    size: int
    ms: float

    @property
    def point(self) -> Point:
        """Rows and tokens."""
        return self.batch_size, self.length


@dataclass(frozen=True)
class Settings:
    """`configs/analysis/latency.yaml`."""

    quick: Points
    paper: Points
    methods: list[str]
    paper_methods: list[str]
    figure_5: str
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


def latency(cell: compose.Cell, asked: Asked, *, own: compose.OwnMethod | None = None) -> Findings:
    """Measure on this machine's device.

    Args:
        cell: its model, `decode.*`, `runtime.*`, and settings of the methods; its own method plays no part.
        asked: what to measure.
        own: a method of the user's.

    Raises:
        BadInput: a method, a point or a beam does not fit the model.
        RunFailed: there is no memory for any point.
    """
    read = settings.read("latency", Settings)
    run = cell.run

    def method(name: str, *more: str) -> Any:
        try:
            (of_method,) = compose.cells([*cell.overrides, f"method={name}", *more], own=own)
        except BadInput as e:
            own_name = f"method={name}: "
            raise BadInput(own_name + fault.removeprefix(own_name) for fault in e.faults) from None
        return of_method.run.method

    chosen = read.paper if asked.paper else read.quick
    lengths, batch_sizes = asked.lengths or tuple(chosen.lengths), asked.batch_sizes or tuple(chosen.batch_sizes)
    names = asked.methods or tuple(read.paper_methods if asked.paper else read.methods)
    printed = _printed(read, run.model, asked) if asked.paper else []
    points = sorted({(n, width) for width in lengths for n in batch_sizes} | {p.point for p in printed})
    wanted = sized(method, names, asked.sizes or chosen.sizes, [(p.method, p.size) for p in printed])
    beams = asked.beams or tuple(read.decoding.beams)
    if "decoding" in asked.parts and (odd := [beam for beam in beams if 2 * beam > run.model.vocab_size]):
        raise BadInput(
            f"--beams {odd[0]}: a search takes twice as many candidates from the {run.model.vocab_size} entries of the "
            f"vocabulary; give up to {run.model.vocab_size // 2}"
        )

    devices.set_threads(run)
    with devices.taken(run.runtime.device) as device:
        arithmetic = Arithmetic(run.decode.precision, device)
        timer = Timer(device, arithmetic, asked.trials, asked.warmup)
        grids: list[Grid] = []
        plots: list[HeatMap | Curves] = []
        notes = [
            f"{asked.trials} trials of each, in turn, after {asked.warmup} that don't count; of the bare model mean ± "
            "standard deviation; all means, deviations and medians are in the CSV files"
        ]
        if "forward" in asked.parts:
            found = variants(random(run.model, device, arithmetic.dtype), wanted)
            _check(run.model, found, max(width for _, width in points), "give smaller --lengths")
            forward = _forward(run.model, timer, found, points)
            grids += [_pivot(forward, printed), _beside_print(forward, printed), _whole(forward)]
            plots += [_slowdowns(forward), _macs_and_time(forward)]
            notes += ["forward: logits of every token included, by PyTorch's own products", f"print: {read.figure_5}"]
            del found, forward
        if "projection" in asked.parts:
            tokens = sorted({rows * width for rows, width in points})
            tokens = sorted({tokens[0], tokens[len(tokens) // 2], tokens[-1]})
            timed = projection.projection(run, method, timer, read.projection, tokens)
            grids += [projection.table(timed), projection.whole(timed)]
            plots.append(projection.figure(timed))
            notes.append(
                "projection: the time is of one block; a sparse matrix that no kernel is named for is multiplied as a "
                "dense one, zeros and all"
            )
        batch = run.runtime.decode_batch or BATCH[device.type]
        if "decoding" in asked.parts:
            found = variants(random(run.model, device, torch.float32), wanted)
            _check(run.model, found, read.decoding.prompt + read.decoding.new_tokens, "leave decoding out (--parts)")
            searches = replace(timer, trials=max(FEWEST, asked.trials // DECODING_SHARE), warmup=1)
            grids.append(_decoding(run.decode, searches, found, read.decoding, beams, batch))
            notes.append(
                f"decoding: prompts of {read.decoding.prompt} tokens, {read.decoding.new_tokens} generated for each, "
                f"none ends early; {searches.trials} trials; frozen matrices laid out as in runs"
            )
        used: dict[str, Any] = {
            "model": {key: value for key, value in asdict(run.model).items() if key not in ("hub", "revision", "path")},
            "decode": asdict(run.decode),
            "decode_batch": batch,
            "methods": [asdict(one.method) for one in wanted],
            "method_file": None if own is None else own.file.sha256,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "asked": asdict(asked),
        }
        described = provenance(device=used["device"], threads=used["threads"])
        used = json.loads(canonical_json(used))  # as it will be read
    processor = described["machine"]["processor"]
    if device.type == "cpu":
        notes.append(f"on {processor}, threads: {used['threads']}; a GPU's figures are others")
    return Findings(
        analysis="latency",
        name=named("latency", f"{run.model.name}-{device.type}", {**used, "processor": processor}),
        title=f"Latency of {run.model.name} on {'a CPU' if device.type == 'cpu' else used['device']}, "
        f"{run.decode.precision}",
        source=SOURCE,
        settings=used,
        provenance=described,
        grids=tuple(grid for grid in grids if grid.rows),
        plots=tuple(plots),
        notes=tuple(notes),
    )


def _printed(read: Settings, model: config.Model, asked: Asked) -> list[Printed]:
    """The figures of LoRA's Table 1 that what was asked leaves: of its model, its methods, its points."""
    return [
        p
        for p in read.print
        if p.model == model.name
        and p.method in (asked.methods or read.paper_methods)
        and p.length in (asked.lengths or read.paper.lengths)
        and p.batch_size in (asked.batch_sizes or read.paper.batch_sizes)
        and (asked.sizes is None or p.size in asked.sizes)
    ]


def _check(model: config.Model, found: Sequence[Variant], longest: int, way_out: str) -> None:
    for variant in found:
        before = ahead(variant.model)
        if longest + before > model.n_positions:
            of_method = f" beside the {before} of {variant.label}" if before else ""
            too_many = f"{longest} tokens{of_method} are more than the {model.n_positions} positions of {model.name}"
            raise BadInput(f"{too_many}; {way_out}")


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


def _forward(model: config.Model, timer: Timer, found: list[Variant], points: Sequence[Point]) -> _Timed:
    times: dict[Point, dict[Variant, Times]] = {}
    generator = torch.Generator().manual_seed(1)
    calls_a_point = len(found) * (timer.trials + timer.warmup)
    with counter("forward", len(points) * calls_a_point) as done:
        for rows, width in points:
            tokens = torch.randint(model.vocab_size, (rows, width), generator=generator).to(timer.device)
            calls = {variant: partial(_pass, variant.model, own_tokens(variant.model, tokens)) for variant in found}
            if not times:
                _estimate(timer, calls[found[0]], rows * width, calls_a_point, points)
            if (at_point := timer(calls, f"batch {rows} x {width} tokens", autocast=False, done=done)) is not None:
                times[rows, width] = at_point
                logger.info("batch %d x %d tokens: bare %.2f ms", rows, width, at_point[found[0]].mean)
    if not times:
        raise RunFailed(
            "there is no memory for any point; give smaller --batch-sizes and --lengths, or fewer --methods"
        )
    return _Timed(found, times)


def _estimate(timer: Timer, bare: partial[Tensor], tokens: int, calls_a_point: int, points: Sequence[Point]) -> None:
    """Warn where all will take long, going by a few passes at the first point."""
    tried = replace(timer, trials=FEWEST, warmup=1)({0: bare}, "the first point", autocast=False, done=lambda: None)
    if tried is None:
        return
    seconds = tried[0].mean / 1e3 / tokens * calls_a_point * sum(rows * width for rows, width in points)
    if seconds > LONG:
        logger.warning(
            "forward passes at %d points will take up to %.0f minutes; fewer --trials, --lengths, --batch-sizes or "
            "--methods are quicker",
            len(points),
            seconds / 60,
        )


def _pass(model: GPT2, tokens: Tensor) -> Tensor:
    return model.logits(model(tokens))


def _point(point: Point) -> str:
    return f"{point[0]} x {point[1]}"


def _pivot(timed: _Timed, printed: Sequence[Printed]) -> Grid:
    """Slow-downs, a column a point: those of the paper's table, and the corners of the grid."""
    points = list(timed.times)
    wanted = list(dict.fromkeys([*(p.point for p in printed), points[0], points[-1], *points]))
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
        ours = next((v for v in timed.variants if (v.method, v.size) == (p.method, p.size)), None)
        if ours is None or p.point not in timed.times:
            continue
        times = timed.times[p.point]
        theirs = 100 * (p.ms / p.bare_ms - 1)
        rows.append(
            (
                *(_point(p.point), f"{p.method} {p.size}", p.params),
                *(times[timed.bare].mean, times[ours].mean, timed.slower(p.point, ours)[0], p.bare_ms, p.ms, theirs),
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
        lines=(*lines, projection.diagonal([x for line in lines for x in line.x])),
    )


# decoding ---------------------------------------------------------------------------------------


def _decoding(
    search_settings: config.Decode,
    timer: Timer,
    found: list[Variant],
    wanted: Decoding,
    beams: Sequence[int],
    batch: int,
) -> Grid:
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(found[0].model.sizes.vocab_size, (batch, wanted.prompt), generator=generator)
    of_variants = {variant: own_tokens(variant.model, prompts.to(timer.device)).tolist() for variant in found}
    pack(found, timer.arithmetic.dtype)
    times: dict[int, dict[Variant, Times]] = {}
    with counter("decoding", len(beams) * len(found) * (timer.trials + timer.warmup)) as done:
        for beam in beams:
            searched = replace(search_settings, beam=beam, max_new_tokens=wanted.new_tokens, min_length=0)
            calls = {
                variant: partial(search, variant.model, of_variants[variant], searched, end_ids=()) for variant in found
            }
            if (of_beam := timer(calls, f"decoding with beam {beam}", autocast=True, done=done)) is not None:
                times[beam] = of_beam
    if not times:
        raise RunFailed("there is no memory for any search; give smaller --beams, or runtime.decode_batch=N")
    generated = batch * wanted.new_tokens
    rows: list[tuple[Value, ...]] = []
    for variant in found:
        row: list[Value] = [variant.label]
        for of_beam in times.values():
            slower, error = of_beam[variant].slower_than(of_beam[found[0]])
            row += [1e3 * generated / of_beam[variant].mean, f"{slower:+.1f} ± {error:.1f}"]
        rows.append(tuple(row))
    return Grid(
        "decoding",
        f"Decoding {batch} prompts at once: tokens generated a second, and slower than the bare model (%)",
        (
            Column("method", "method and size"),
            *(
                column
                for beam in times
                for column in (
                    Column(f"tokens_per_second_{beam}", f"beam {beam}: tokens/s", 0),
                    Column(f"slower_{beam}", f"beam {beam}: slower (%)"),
                )
            ),
        ),
        tuple(rows),
    )
