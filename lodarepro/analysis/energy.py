"""How much of the q/k/v projection an approximation keeps (LoDA, MERL TR2025-130, Figure 2), and where to spend it.

The energy of W_proj = [Wq, Wk, Wv] (d, 3 d) is the sum of its squared entries, which is that of its squared singular
values. Rank R keeps the R largest singular values, sparsity s the largest fraction s of the entries.

The paper gives every block the same R or s and leaves choosing them to future work. For a budget of
multiply-accumulates over all blocks, the choice that keeps most energy on average over the blocks is known exactly:
what a block gains by one rank or entry more falls with each, so that taking the greatest gains of all blocks is best.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lodarepro import config
from lodarepro.analysis import settings
from lodarepro.analysis.blocks import chosen
from lodarepro.errors import BadInput
from lodarepro.findings import Column, Curves, Findings, Grid, Line, named, provenance
from lodarepro.model import weights

logger = logging.getLogger(__name__)

SOURCE = "LoDA (MERL TR2025-130), Figure 2; the choice for each block is what its section 4 leaves to future work"
KINDS = ("low-rank", "sparse")
STEPS = 100  # fractions of entries at which the curve is kept
POINTS = 160  # of a drawn curve
HALVINGS = 100  # of the search for a threshold, after which no entry is between its bounds
KEEP_DIGITS = 4  # of a suggested fraction

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Printed:
    """A figure of the paper's text."""

    model: str
    block: int
    kind: Literal["low-rank", "sparse"]
    at: float
    energy: float
    words: str


@dataclass(frozen=True)
class Settings:
    """`configs/analysis/energy.yaml`."""

    levels: list[float]
    print: list[Printed]


@dataclass(frozen=True)
class Spectrum:
    """The energy of one matrix, largest parts first.

    Attributes:
        by_rank: (d,) share that ranks 1, 2, ..., d keep.
        by_entry: (n,) share that 1, 2, ..., n entries keep.
        entries: (n,) share of each entry in fp32, ascending: of many millions, and only compared.
    """

    by_rank: Floats
    by_entry: Floats
    entries: Floats

    @classmethod
    def of(cls, W: torch.Tensor) -> Spectrum:
        """The spectrum of a matrix W (d_in, d_out), d_in <= d_out."""
        W = W.detach().double()
        squares = torch.linalg.eigvalsh(W @ W.T).flip(0).clamp(min=0).numpy()
        entries = np.sort(np.square(W.float().numpy().ravel()))
        by_entry = _shares(entries[::-1])
        entries /= np.float32(entries.sum(dtype=np.float64) or 1.0)
        return cls(_shares(squares), by_entry, entries)

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps a share."""
        return _first(self.by_rank, share)

    def entries_for(self, share: float) -> int:
        """The fewest entries that keep a share."""
        return _first(self.by_entry, share)

    def fraction_for(self, share: float) -> float:
        """The smallest fraction of the entries that keeps a share."""
        return self.entries_for(share) / len(self.by_entry)

    def kept(self, kind: str, at: float) -> float:
        """The share that a rank, or a fraction of the entries, keeps."""
        if kind == "low-rank":
            return float(self.by_rank[round(at) - 1])
        entries = round(at * len(self.by_entry))
        return float(self.by_entry[entries - 1]) if entries else 0.0


def _shares(parts: Floats) -> Floats:
    """Running sums of parts in falling order, as shares of their sum; of nothing, nothing is lost."""
    shares: Floats = np.cumsum(parts, dtype=np.float64)
    if shares[-1] <= 0:
        return np.ones(len(parts))
    shares /= shares[-1]
    return shares


def _first(shares: Floats, share: float) -> int:
    return min(int(np.searchsorted(shares, share * (1 - 1e-12))) + 1, len(shares))


def energy(run: config.Run, *, budget: float | None = None) -> Findings:
    """Analyse the projections of a base model.

    Args:
        run: a cell of the model; its method plays no part.
        budget: multiply-accumulates of all blocks' projections, in per cent of the dense ones', for which ranks and
            fractions are suggested; None: none are.

    Raises:
        BadInput: the model is not here, or the budget leaves less than one rank a block.
    """
    base = weights.find(run.model)
    assert base is not None  # with download, `find` raises rather than give None
    d, blocks = run.model.n_embd, run.model.n_layer
    if budget is not None and not (0 < budget <= 100 and _ranks_of(budget, d, blocks) >= blocks):
        least = math.ceil(1e4 * 4 / (3 * d)) / 100
        raise BadInput(
            f"--budget {budget:g}: give per cent of the dense projection's multiply-accumulates, from {least:g} (one "
            "rank a block) to 100"
        )
    with torch.no_grad():
        model = weights.load(base, run.model)
        spectra = [Spectrum.of(dense.weight) for dense in model.denses("q")]
        drawn = torch.empty(d, 3 * d).normal_(generator=torch.Generator().manual_seed(run.seed))
        gaussian = Spectrum.of(drawn)
    read = settings.read("energy", Settings)
    of_model = {
        "model": run.model.name,
        "weights_sha256": base.sha256,
        "budget_per_cent": budget,
        "seed": run.seed,
    }
    grids = [_levels(spectra, gaussian, read.levels)]
    if printed := [one for one in read.print if one.model == run.model.name]:
        grids.append(_beside_print(spectra, printed))
    notes = [
        "energy: of the squared singular values, whose sum is that of the squared entries",
        f"Gaussian: a random matrix of the same shape (seed {run.seed}), which has no structure to exploit",
    ]
    files: dict[str, str] = {}
    if budget is not None:
        for kind in KINDS:
            suggested = suggest(spectra, kind, budget)
            grids.append(_suggestion(spectra, kind, suggested))
            key, values = ("rank", suggested.values) if kind == "low-rank" else ("keep", suggested.values)
            override = f"method.base.{key}={json.dumps(values, separators=(',', ':'))}"
            notes.append(
                f"{kind}, {budget:g} % of the multiply-accumulates: keeps {100 * suggested.mean:.2f} % of the energy "
                f"on average (block by block at least {100 * suggested.least:.2f} %); the same for all blocks, "
                f"{100 * suggested.uniform_mean:.2f} % (at least {100 * suggested.uniform_least:.2f} %)"
            )
            notes.append(f"to run it: a method on a {kind} base with '{override}', or -m and the sweep of this folder")
            files[f"sweep/suggested-{kind}.yaml"] = (
                "# @package _global_\n"
                f"# lodarepro analyze energy: {budget:g} % of the multiply-accumulates of {run.model.name}'s W_proj\n"
                f"# lodarepro run -m --config-dir FOLDER sweep=suggested-{kind} method=NAME, where FOLDER holds "
                "sweep/\n"
                f"hydra:\n  sweeper:\n    params:\n      method.base.{key}: '{json.dumps(values)}'\n"
            )
    grids += [_curve(spectra, gaussian, kind) for kind in KINDS]
    return Findings(
        analysis="energy",
        name=named("energy", run.model.name, of_model),
        title=f"Energy of the q/k/v projections of {run.model.name}",
        source=SOURCE,
        settings=of_model,
        provenance=provenance(),
        grids=tuple(grids),
        plots=_plots(spectra, gaussian, printed),
        notes=tuple(notes),
        files=files,
    )


@dataclass(frozen=True)
class Suggested:
    """Ranks or fractions for each block.

    Attributes:
        values: ranks R, or fractions s, lowest block first.
        uniform: the one value for all blocks of no greater cost.
        mean, least: share of the energy kept, over the blocks.
        uniform_mean, uniform_least: by the one value.
    """

    values: list[float]
    uniform: float
    mean: float
    least: float
    uniform_mean: float
    uniform_least: float


def suggest(spectra: Sequence[Spectrum], kind: str, budget: float) -> Suggested:
    """The ranks or fractions of no more than a budget that keep the greatest share of the energy, averaged over blocks.

    A product of rank R takes R 4 d multiply-accumulates where the dense one takes 3 d^2; a sparse one as many as it has
    entries (LoDA, section 3.2).

    Args:
        spectra: of each block's matrix.
        kind: `low-rank` or `sparse`.
        budget: of all blocks together, in per cent of the dense products' multiply-accumulates.
    """
    values: list[float]
    if kind == "low-rank":
        d = len(spectra[0].by_rank)
        total = _ranks_of(budget, d, len(spectra))
        gains = np.stack([np.diff(spectrum.by_rank, prepend=0.0) for spectrum in spectra])  # (L, d), each row falling
        gains[:, 0] = np.inf  # no block goes without
        gains[:, 3 * d // 4 :] = -1.0  # from R = 3 d / 4 on two products cost more than the dense one
        best = np.argsort(-gains, axis=None, kind="stable")[:total] // d
        values = [int(count) for count in np.bincount(best, minlength=len(spectra))]
        uniform: float = total // len(spectra)
    else:
        size = len(spectra[0].by_entry)
        uniform = _floor(budget / 100)
        total = int(budget / 100 * size * len(spectra))
        # No block goes without: the entries of the smallest fraction of so many digits that keeps one.
        fewest = math.ceil(math.ceil(10**KEEP_DIGITS / size) * size / 10**KEEP_DIGITS)

        def above(cut: float) -> list[int]:
            return [max(fewest, size - int(np.searchsorted(one.entries, np.float32(cut)))) for one in spectra]

        # Many millions of entries are not sorted together, but cut where what is above is paid for.
        low, high = 0.0, 2 * max(float(one.entries[-1]) for one in spectra)
        for _ in range(HALVINGS):
            cut = (low + high) / 2
            low, high = (cut, high) if sum(above(cut)) > total else (low, cut)
        taken = above(high)
        # What is left goes to the entries at the cut, which are worth the same in all blocks.
        equal = [more - fewer for more, fewer in zip(above(low), taken, strict=True)]
        left = total - sum(taken)
        if sum(equal) > left > 0:
            equal = [count * left // sum(equal) for count in equal]
            taken = [fewer + count for fewer, count in zip(taken, equal, strict=True)]
        values = [_floor(count / size) for count in taken]
    kept = [spectrum.kept(kind, value) for spectrum, value in zip(spectra, values, strict=True)]
    alike = [spectrum.kept(kind, uniform) for spectrum in spectra]
    if fmean(alike) > fmean(kept):  # by what rounding fractions down leaves unspent
        values, kept = [uniform] * len(spectra), alike
    return Suggested(values, uniform, fmean(kept), min(kept), fmean(alike), min(alike))


def _ranks_of(budget: float, d: int, blocks: int) -> int:
    """Ranks of all blocks together that a budget pays for: R 4 d in place of 3 d^2."""
    return int(budget / 100 * 3 * d / 4 * blocks + 1e-9)


def _floor(fraction: float) -> float:
    return int(fraction * 10**KEEP_DIGITS + 1e-9) / 10**KEEP_DIGITS


# tables -----------------------------------------------------------------------------------------


def _named_rows(spectra: Sequence[Spectrum], gaussian: Spectrum) -> list[tuple[str, Spectrum]]:
    return [*((f"{i}", spectrum) for i, spectrum in enumerate(spectra, 1)), ("Gaussian", gaussian)]


def _levels(spectra: Sequence[Spectrum], gaussian: Spectrum, levels: Sequence[float]) -> Grid:
    return Grid(
        key="levels",
        title="Smallest rank R, and smallest fraction s of the entries, that keep so much of the energy",
        columns=(
            Column("block", "block"),
            *(Column(f"rank_{level:g}", f"R for {level:g} %") for level in levels),
            *(Column(f"keep_{level:g}", f"s for {level:g} %", 3) for level in levels),
        ),
        rows=tuple(
            (
                name,
                *(one.rank_for(level / 100) for level in levels),
                *(one.fraction_for(level / 100) for level in levels),
            )
            for name, one in _named_rows(spectra, gaussian)
        ),
    )


def _beside_print(spectra: Sequence[Spectrum], printed: Sequence[Printed]) -> Grid:
    return Grid(
        key="print",
        title="Beside print",
        columns=(
            Column("block", "block"),
            Column("kind", "approximation"),
            Column("at", "R or s"),
            Column("energy_per_cent", "energy kept (%)"),
            Column("print_per_cent", "print (%)"),
        ),
        rows=tuple(
            (str(p.block), p.kind, f"{p.at:g}", 100 * spectra[p.block - 1].kept(p.kind, p.at), p.words) for p in printed
        ),
    )


def _suggestion(spectra: Sequence[Spectrum], kind: str, suggested: Suggested) -> Grid:
    letter, decimals = ("R", 0) if kind == "low-rank" else ("s", KEEP_DIGITS)
    return Grid(
        key=f"suggested-{kind}",
        title=f"Suggested {letter} of each block, {kind}, beside one {letter} for all",
        columns=(
            Column("block", "block"),
            Column("suggested", f"suggested {letter}", decimals),
            Column("energy_per_cent", "energy kept (%)"),
            Column("uniform", f"{letter} for all", decimals),
            Column("uniform_energy_per_cent", "energy kept (%)"),
        ),
        rows=tuple(
            (
                str(i),
                value,
                100 * spectrum.kept(kind, value),
                suggested.uniform,
                100 * spectrum.kept(kind, suggested.uniform),
            )
            for i, (spectrum, value) in enumerate(zip(spectra, suggested.values, strict=True), 1)
        ),
    )


def _points(kind: str, d: int) -> list[float]:
    """Ranks, or fractions of the entries, at which a curve is kept."""
    return list(range(1, d + 1)) if kind == "low-rank" else [step / STEPS for step in range(1, STEPS + 1)]


def _curve(spectra: Sequence[Spectrum], gaussian: Spectrum, kind: str) -> Grid:
    name, letter, of = ("rank", "R", "rank") if kind == "low-rank" else ("fraction", "s", "fraction of the entries")
    rows = _named_rows(spectra, gaussian)
    return Grid(
        key=f"energy-by-{name}",
        title=f"Energy kept by {of} (%)",
        columns=(Column(name, letter), *(Column(label, label) for label, _ in rows)),
        rows=tuple(
            (x, *(round(100 * one.kept(kind, x), 6) for _, one in rows)) for x in _points(kind, len(gaussian.by_rank))
        ),
        shown=False,
    )


def _plots(spectra: Sequence[Spectrum], gaussian: Spectrum, printed: Sequence[Printed]) -> tuple[Curves, ...]:
    shown = [*((f"block {i + 1}", spectra[i]) for i in chosen(len(spectra))), ("Gaussian", gaussian)]
    d = len(gaussian.by_rank)
    ranks = sorted({max(1, round(d * i / POINTS)) for i in range(1, POINTS + 1)})
    drawn = []
    for kind, title, x_title, xs in (
        ("low-rank", "Energy kept by rank", "rank R", [float(rank) for rank in ranks]),
        ("sparse", "Energy kept by sparsity", "fraction of the entries kept, s", _points("sparse", d)),
    ):
        lines = [
            Line(
                name,
                tuple(xs),
                tuple(round(100 * one.kept(kind, x), 4) for x in xs),
                role="baseline" if one is gaussian else "ours",
            )
            for name, one in shown
        ]
        lines += [
            Line(f"print: {p.words} %", (p.at,), (p.energy,), joined=False, role="print")
            for p in printed
            if p.kind == kind
        ]
        drawn.append(
            Curves(
                key=f"energy-{kind}",
                title=f"{title} of W_proj",
                caption="Per cent of the squared singular values' sum. Dashed: a random Gaussian matrix of the same "
                "shape." + (" Hollow: as printed." if any(line.role == "print" for line in lines) else ""),
                x_title=x_title,
                y_title="energy kept (%)",
                lines=tuple(lines),
            )
        )
    return tuple(drawn)
