"""What runs amplify in the pretrained weights (LoRA, section 7.3, Table 7, Figure 8, section H.4).

    U' W V',    U and V the top r singular directions of dW, of W, or of a random matrix

||U' W V'||_F is how much W has of those directions, ||dW||_F / ||U' W V'||_F with those of dW the factor by which the
run amplifies them. (Ours is (d_in, d_out) for x W, so that U holds directions of the input.)

A delta that is not linear has no dW: the mean of its Jacobian over test inputs takes its place, and how far from linear
it is stands beside (`nonlinearity.py`).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lodarepro.analysis import settings
from lodarepro.analysis.blocks import chosen
from lodarepro.analysis.changes import Where, check_same_base, described, of_run
from lodarepro.analysis.nonlinearity import JACOBIANS, TOKENS, Nonlinearity, nonlinearities
from lodarepro.analysis.subspace import Frames, directions, panel, similarity
from lodarepro.errors import BadInput
from lodarepro.findings import (
    Column,
    Curves,
    Findings,
    Grid,
    HeatMap,
    Line,
    Panel,
    Value,
    labels,
    named,
    provenance,
    readable,
)
from lodarepro.reopen import Reopened

logger = logging.getLogger(__name__)

SOURCE = "LoRA (arXiv 2106.09685), section 7.3, Table 7 and Figure 8, section H.4"
DIRECTIONS = 4  # r where a run has no rank: the paper's smaller one
NULL = 1e-12  # of a norm: what rounding leaves of none
GRID = 48  # of W's directions drawn


@dataclass(frozen=True)
class Printed:
    """A half of the paper's Table 7."""

    rank: int
    W: float
    dW: float  # noqa: N815 (its letter)
    from_dW: float  # noqa: N815
    from_W: float  # noqa: N815
    from_random: float


@dataclass(frozen=True)
class Settings:
    """`configs/analysis/amplification.yaml`."""

    print: list[Printed]


@dataclass(frozen=True)
class Amplification:
    """||U' W V'||_F for the top r directions of three matrices.

    Attributes:
        r: how many directions.
        W, dW: Frobenius norms.
        from_dW, from_W, from_random: ||U' W V'||_F.
    """

    r: int
    W: float
    dW: float  # noqa: N815
    from_dW: float  # noqa: N815
    from_W: float  # noqa: N815
    from_random: float

    @property
    def factor(self) -> float | None:
        """||dW||_F / ||U' W V'||_F with the directions of dW; None: W has nothing of them."""
        return self.dW / self.from_dW if self.from_dW > NULL * self.W else None

    @classmethod
    def of(cls, W: Frames, dW: Frames, r: int, generator: torch.Generator) -> Amplification:
        """Of a weight and its change (d_in, d_out)."""
        # The singular directions of a Gaussian matrix: r orthonormal ones drawn uniformly on either side.
        drawn = (torch.empty(n, r, dtype=torch.float64).normal_(generator=generator) for n in dW.matrix.shape)
        random = [torch.linalg.qr(matrix)[0] for matrix in drawn]
        parts = [W.within(*sides) for sides in (dW.top(r), W.top(r), random)]
        return cls(r, float(torch.linalg.matrix_norm(W.matrix)), float(torch.linalg.matrix_norm(dW.matrix)), *parts)


@dataclass(frozen=True)
class _Row:
    """What a run did in one place.

    Attributes:
        label: of the run.
        block, target: the place.
        W: the weight there.
        directions: (d_in, m) the top m <= r directions of dW.
        found: the amplification.
        nonlinear: of a delta that is not linear.
    """

    label: str
    block: int
    target: str
    W: Frames
    directions: Tensor
    found: Amplification
    nonlinear: Nonlinearity | None


def amplification(
    opened: Sequence[Reopened],
    *,
    r: int | None = None,
    tokens: int = TOKENS,
    jacobians: int = JACOBIANS,
    seed: int = 1,
) -> Findings:
    """Compare what finished runs of one base model changed with what was there.

    Args:
        opened: the runs.
        r: directions; None: the rank of each delta.
        tokens: test inputs of deltas that are not linear, half of which a map is fitted to.
        jacobians: test inputs at which their Jacobians are taken.
        seed: of the random matrices, and of the choice of inputs.

    Raises:
        BadInput: the runs are of different base models, or one changed no matrix.
    """
    check_same_base(opened)
    names = labels([one.record for one in opened])
    rows: list[_Row] = []
    frames: dict[Where, Frames] = {}  # most runs stand on the same weights
    for label, one in zip(names, opened, strict=True):
        model, found = of_run(one)
        curved = [change for change in found if change.added is None]
        at_inputs = nonlinearities(one, model, curved, tokens=tokens, jacobians=jacobians, seed=seed) if curved else {}
        generator = torch.Generator().manual_seed(seed)  # for each run the same
        for change in found:
            nonlinear = at_inputs.get(change.where)
            dW = nonlinear.mean if nonlinear is not None else cast(Tensor, change.added)
            if not dW.any():
                continue  # a layer that no loss reaches
            if (known := frames.get(change.where)) is None or not torch.equal(known.matrix, change.W):
                frames[change.where] = Frames(change.W)
            W, of_dW = frames[change.where], Frames(dW)
            wanted = min(r or change.rank or DIRECTIONS, *change.W.shape)
            measured = Amplification.of(W, of_dW, wanted, generator)
            top = of_dW.directions(wanted).clone()  # of the rest, nothing is kept
            rows.append(_Row(label, *change.where, W, top, measured, nonlinear))
    if not rows:
        raise BadInput(f"{', '.join(one.record.id for one in opened)}: no weight changed; give runs that were trained")
    of_all = {"r": r, "tokens": tokens, "jacobians": jacobians, "seed": seed, "runs": described(opened)}
    printed = settings.read("amplification", Settings).print
    notes = [
        "‖U'WV'‖: of W in the top r directions of dW, of W itself, of a random matrix; factor: ‖dW‖ / ‖U'WV'‖ of dW",
        f"random: directions of a Gaussian matrix (seed {seed})",
    ]
    curved_rows = [row for row in rows if row.nonlinear is not None]
    if curved_rows:
        fewest = min(cast(Nonlinearity, row.nonlinear).tokens for row in curved_rows)
        taken = min(cast(Nonlinearity, row.nonlinear).jacobians for row in curved_rows)
        notes += [
            "not linear: share of the delta's variance over test inputs that the best affine map leaves, fitted to "
            f"every other text ({fewest:,} tokens) and measured on the rest; –: too few for so many coefficients. Of a "
            "dW it is 0 by its nature, as is the spread",
            f"in place of dW stands the mean of the Jacobian at {taken} test inputs, whose ‖ ‖² has 1/{taken} of the "
            "variance in it; spread: the share of the Jacobian's energy that is not in the mean",
        ]
    return Findings(
        analysis="amplification",
        name=named("amplification", readable([one.record for one in opened]), of_all),
        title=f"What {', '.join(names)} amplify",
        source=SOURCE,
        settings=of_all,
        provenance=provenance(),
        grids=(_means(rows, curved=bool(curved_rows)), _print(printed), _each(rows)),
        plots=(*_factors(rows), *_maps(rows, seed)),
        notes=tuple(notes),
    )


# tables and figures -----------------------------------------------------------------------------


FIGURES = (
    Column("W", "‖W‖"),
    Column("dW", "‖dW‖"),
    Column("from_dW", "‖U'WV'‖ of dW", 3),
    Column("from_W", "‖U'WV'‖ of W", 3),
    Column("from_random", "‖U'WV'‖ of random", 3),
    Column("factor", "factor"),
)
NONLINEAR = (
    Column("not_linear_per_cent", "not linear (%)"),
    Column("spread_per_cent", "Jacobian's spread (%)"),
)


def _norms(found: Amplification) -> tuple[float, ...]:
    return found.W, found.dW, found.from_dW, found.from_W, found.from_random


def _figures(found: Amplification) -> tuple[Value, ...]:
    return (*_norms(found), found.factor)


def _nonlinear(row: _Row) -> tuple[Value, ...]:
    if row.nonlinear is None:
        return 0.0, 0.0
    return tuple(None if share is None else 100 * share for share in (row.nonlinear.left, row.nonlinear.spread))


def _means(rows: Sequence[_Row], *, curved: bool) -> Grid:
    """Means over blocks; the factor is that of the means' norms, as a mean of quotients would be the largest one's."""
    together: dict[tuple[str, str, int], list[_Row]] = defaultdict(list)
    for row in rows:
        together[row.label, row.target, row.found.r].append(row)
    lines: list[tuple[Value, ...]] = []
    for (label, target, r), ones in together.items():
        norms = [sum(column) / len(ones) for column in zip(*(_norms(row.found) for row in ones), strict=True)]
        mean = Amplification(r, *norms)
        shares = [
            None if not (known := [value for value in column if isinstance(value, float)]) else sum(known) / len(known)
            for column in zip(*map(_nonlinear, ones), strict=True)
        ]
        lines.append((label, target, r, *_figures(mean), *(shares if curved else ())))
    return Grid(
        "amplification",
        "Amplification, means over the blocks",
        (
            *(Column("run", "run"), Column("target", "target"), Column("r", "r")),
            *(*FIGURES, *(NONLINEAR if curved else ())),
        ),
        tuple(lines),
    )


def _each(rows: Sequence[_Row]) -> Grid:
    return Grid(
        "amplification-blocks",
        "Amplification, block by block",
        (
            *(Column("run", "run"), Column("target", "target"), Column("block", "block"), Column("r", "r")),
            *(*FIGURES, *NONLINEAR),
        ),
        tuple(
            (row.label, row.target, str(row.block), row.found.r, *_figures(row.found), *_nonlinear(row)) for row in rows
        ),
        shown=False,
    )


def _print(printed: Sequence[Printed]) -> Grid:
    return Grid(
        "print",
        "As printed: W_q of block 48 of GPT-3 175B (LoRA Table 7)",
        (Column("r", "r"), *FIGURES),
        tuple((p.rank, p.W, p.dW, p.from_dW, p.from_W, p.from_random, p.dW / p.from_dW) for p in printed),
    )


def _factors(rows: Sequence[_Row]) -> tuple[Curves, ...]:
    lines: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row.found.factor is not None:
            lines[row.label, row.target].append((float(row.block), row.found.factor))
    return (
        Curves(
            key="factor",
            title="Amplification factor of each block",
            caption="‖dW‖ / ‖U'WV'‖, U and V the top r directions of dW; of deltas that are not linear, of the mean "
            "Jacobian.",
            x_title="block",
            y_title="factor",
            lines=tuple(
                Line(f"{label}, {target}", tuple(x for x, _ in points), tuple(y for _, y in points))
                for (label, target), points in lines.items()
            ),
            log_y=True,
        ),
    )


def _maps(rows: Sequence[_Row], seed: int) -> tuple[HeatMap, ...]:
    """The directions of W against those of each dW, in the middle block of those shown (LoRA, Figure 8)."""
    drawn = []
    for target in dict.fromkeys(row.target for row in rows):
        of_target = [row for row in rows if row.target == target]
        blocks = sorted({row.block for row in of_target})
        places = chosen(len(blocks))
        block = blocks[places[len(places) // 2]]
        shown = [row for row in of_target if row.block == block]
        panels = [_map(row.label, row.W, row.directions) for row in shown]
        W, most = shown[0].W, max(row.found.r for row in shown)
        random = torch.empty(len(W.matrix), most, dtype=torch.float64)
        random.normal_(generator=torch.Generator().manual_seed(seed))
        panels.append(_map("random", W, directions(random, most)))
        drawn.append(
            HeatMap(
                key=f"directions-{target}",
                title=f"Directions of W and of dW, {target}, block {block}",
                caption="phi(i, j) of the top i directions of W (rows) and the top j of dW (columns); the last: of a "
                "random matrix.",
                x_title="j",
                y_title="i",
                value_title="phi",
                panels=(tuple(panels),),
                low=0.0,
                high=1.0,
            )
        )
    return tuple(drawn)


def _map(label: str, W: Frames, space: Tensor) -> Panel:
    """The similarity of W's directions to a space's, for some of W's many from the first to the last."""
    phi = similarity(W.directions(len(W.matrix)), space)
    rows = len(phi)
    places = sorted({round(i * (rows - 1) / (GRID - 1)) for i in range(GRID)}) if rows > GRID else list(range(rows))
    whole = panel(label, phi[places])
    return Panel(whole.title, whole.x, tuple(str(place + 1) for place in places), whole.values)
