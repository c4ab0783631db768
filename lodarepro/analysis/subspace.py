"""Which directions two runs share (LoRA, section 7.2 and Figures 3, 4, 6, 7).

    phi(A, B, i, j) = ||U_A^i' U_B^j||_F^2 / min(i, j),    Eq. 4

U_A^i are the top i singular directions of one run's matrix, U_B^j the top j of the other's: 1 where the smaller space
lies in the larger, 0 where they are orthogonal. Of two random spaces of d dimensions it is max(i, j) / d on average.

The directions of A (d_in, r) and of dW are those of the layer's input, those of B (r, d_out) of its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from lodarepro.analysis import settings
from lodarepro.analysis.blocks import chosen
from lodarepro.analysis.changes import (
    Change,
    Where,
    check_same_base,
    deltas,
    described,
    of_run,
)
from lodarepro.errors import BadInput
from lodarepro.findings import Column, Findings, Grid, HeatMap, Panel, Value, labels, named, provenance, readable
from lodarepro.methods import attach
from lodarepro.model import weights
from lodarepro.reopen import Reopened
from lodarepro.seeds import derived_seed

SOURCE = "LoRA (arXiv 2106.09685), section 7.2 and Figures 3, 4, 6, 7"
MOST = 64  # directions, as in the paper
ZOOM = 2  # times more directions on one side than on the other, from which the corner is shown by itself
NULL = 1e-10  # of the greatest singular value: what rounding leaves of none
Matrix = Literal["A", "B", "dW"]
MATRICES: tuple[Matrix, ...] = get_args(Matrix)


@dataclass(frozen=True)
class Printed:
    """What the paper says of one pair."""

    model: str
    block: int
    ranks: list[int]
    shared: int
    above: float


@dataclass(frozen=True)
class Settings:
    """`configs/analysis/subspace.yaml`."""

    print: Printed


def similarity(U: Tensor, V: Tensor) -> Tensor:
    """The similarity phi for all i and j.

    Args:
        U: (d, m) orthonormal columns, the most important first.
        V: (d, n) likewise.

    Returns:
        (m, n), phi(i, j) at [i - 1, j - 1].
    """
    overlap = (U.T @ V).square().cumsum(0).cumsum(1)
    i = torch.arange(1, U.shape[1] + 1, dtype=overlap.dtype)
    j = torch.arange(1, V.shape[1] + 1, dtype=overlap.dtype)
    return overlap / torch.minimum(i[:, None], j)


class Frames:
    """A matrix (d_in, d_out) with its singular directions, found once, in fp64."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix.double()
        self._U, self._S, self._Vh = torch.linalg.svd(self.matrix, full_matrices=False)

    def directions(self, most: int) -> Tensor:
        """The left ones (d_in, m), the most important first, m <= most.

        Those of no singular value are left out: where a matrix is of lower rank, rounding alone would choose them.
        """
        kept = int((self._S.max() * NULL < self._S).sum())
        return self._U[:, : min(most, kept)]

    def top(self, r: int) -> tuple[Tensor, Tensor]:
        """The top r on either side, (d_in, r) and (d_out, r)."""
        return self._U[:, :r], self._Vh[:r].T

    def within(self, U: Tensor, V: Tensor) -> float:
        """||U' W V'||_F: how much of the matrix is in the directions U (d_in, r) and V (d_out, r)."""
        return float(torch.linalg.matrix_norm(U.T @ self.matrix @ V))


def directions(matrix: Tensor, most: int) -> Tensor:
    """The left singular directions (d, m) of a matrix (d, n), as of `Frames`."""
    return Frames(matrix).directions(most)


def subspace(opened: tuple[Reopened, Reopened], *, matrix: Matrix = "A", most: int = MOST, seed: int = 1) -> Findings:
    """Compare two finished runs.

    Args:
        opened: the runs; the one of fewer directions is drawn along the rows.
        matrix: `A`, `B` or `dW`.
        most: directions of each matrix that are looked at.
        seed: of the random matrices.

    Raises:
        BadInput: the runs are of different base models, have no such matrix, or none in the same place.
    """
    check_same_base(opened)
    spaces = [_spaces(one, of_run(one)[1], matrix, most) for one in opened]
    common = [where for where in spaces[0] if where in spaces[1]]
    if not common:
        raise BadInput(
            f"{opened[0].record.id} has {matrix} in {_targets(spaces[0])}, {opened[1].record.id} in "
            f"{_targets(spaces[1])}: nothing to compare; give runs with the same targets"
        )
    widest = [max(space.shape[1] for space in one.values()) for one in spaces]
    if widest[0] > widest[1]:
        opened, spaces = (opened[1], opened[0]), spaces[::-1]
    names = labels([one.record for one in opened])
    generator = torch.Generator().manual_seed(seed)
    phi = {where: similarity(spaces[0][where], spaces[1][where]) for where in common}
    chance = {where: _by_chance(spaces[0][where], spaces[1][where], generator) for where in common}
    start = _at_start(opened, common, most) if matrix == "A" else {}
    printed = settings.read("subspace", Settings).print
    of_both = {"matrix": matrix, "directions": most, "seed": seed, "runs": described(opened)}
    notes = [
        f"rows i: directions of {names[0]}, columns j: of {names[1]}; phi = 1 where the smaller space lies in the "
        "larger",
        f"random: Gaussian matrices of the same shapes (seed {seed}); on average phi = max(i, j) / d",
        f"print ({printed.model}, block {printed.block}, A of ranks {printed.ranks[0]} and {printed.ranks[1]}): "
        f"{printed.shared} direction shared, with phi above {printed.above:g}, for q and v",
    ]
    if start:
        notes.append(
            "at the start: of the matrices that the runs began with; where that is not what random ones have, the runs "
            "were alike before they were trained"
        )
    return Findings(
        analysis="subspace",
        name=named("subspace", readable([one.record for one in opened]), of_both),
        title=f"Directions of {matrix} shared by {names[0]} and {names[1]}",
        source=SOURCE,
        settings=of_both,
        provenance=provenance(),
        grids=(_summary(phi, chance, start, printed.above), _whole(phi)),
        plots=_maps(phi, chance, names, matrix),
        notes=tuple(notes),
    )


def _spaces(one: Reopened, found: Sequence[Change], matrix: Matrix, most: int) -> dict[Where, Tensor]:
    spaces = {}
    for change in found:
        if (of_change := _matrix(change, matrix)) is not None:
            spaces[change.where] = directions(of_change, most)
    if not spaces:
        others = ", ".join(name for name in MATRICES if any(_matrix(change, name) is not None for change in found))
        raise BadInput(
            f"{one.record.id}: {one.run.method.name} has no {matrix} that is not zero"
            + (f"; it has {others} (--matrix)" if others else "; give runs of a method that has")
        )
    return spaces


def _matrix(change: Change, matrix: Matrix) -> Tensor | None:
    """One that is not zero, oriented so that its columns are in the directions' space."""
    found = change.added if matrix == "dW" else change.factor(matrix)
    if found is None or not found.any():
        return None
    return found.T if matrix == "B" else found


def _targets(spaces: dict[Where, Tensor]) -> str:
    return ", ".join(dict.fromkeys(target for _, target in spaces))


def _by_chance(U: Tensor, V: Tensor, generator: torch.Generator) -> Tensor:
    d = U.shape[0]
    drawn = (torch.empty(d, n, dtype=torch.float64).normal_(generator=generator) for n in (U.shape[1], V.shape[1]))
    return similarity(*(directions(matrix, d) for matrix in drawn))


def _at_start(opened: Sequence[Reopened], common: Sequence[Where], most: int) -> dict[Where, Tensor]:
    """The similarity of the A that the runs began with, drawn again from their seeds."""
    spaces = []
    for one in opened:
        model = weights.load(one.base, one.run.model)
        attach(model, one.run.method, torch.Generator().manual_seed(derived_seed(one.run.seed, "init")))
        begun = {where: cast(Tensor, delta.A).detach() for where, delta in deltas(model) if where in common}
        spaces.append({where: directions(A, most) for where, A in begun.items()})
    return {where: similarity(spaces[0][where], spaces[1][where]) for where in common}


def _shared(phi: Tensor, above: float) -> int:
    """The most directions of which the top ones of both are the same space, nearly."""
    diagonal = phi.diagonal()
    return max((i + 1 for i in range(len(diagonal)) if diagonal[i] > above), default=0)


def _summary(phi: dict[Where, Tensor], chance: dict[Where, Tensor], start: dict[Where, Tensor], above: float) -> Grid:
    columns = [
        Column("target", "target"),
        Column("block", "block"),
        Column("first", "phi(1, 1)", 3),
        Column("all", "phi of all", 3),
        Column("shared", f"shared: most i with phi(i, i) > {above:g}"),
        Column("chance_first", "phi(1, 1), random", 3),
        Column("chance_all", "phi of all, random", 3),
    ]
    if start:
        columns += [Column("start_first", "phi(1, 1), at the start", 3), Column("start_all", "phi of all, start", 3)]
    ordered = sorted(phi, key=lambda where: (list(dict.fromkeys(t for _, t in phi)).index(where[1]), where[0]))
    rows: list[tuple[Value, ...]] = []
    for where in ordered:
        block, target = where
        row: list[Value] = [
            target,
            str(block),
            float(phi[where][0, 0]),
            float(phi[where][-1, -1]),
            _shared(phi[where], above),
        ]
        for other in (chance, start) if start else (chance,):
            row += [float(other[where][0, 0]), float(other[where][-1, -1])]
        rows.append(tuple(row))
    return Grid("similarity", "Similarity phi of the top directions", tuple(columns), tuple(rows))


def _whole(phi: dict[Where, Tensor]) -> Grid:
    return Grid(
        key="phi",
        title="phi(i, j)",
        columns=(
            Column("target", "target"),
            Column("block", "block"),
            Column("i", "i"),
            Column("j", "j"),
            Column("phi", "phi", 4),
        ),
        rows=tuple(
            (target, block, i, j, round(value, 5))
            for (block, target), matrix in phi.items()
            for i, row in enumerate(matrix.tolist(), 1)
            for j, value in enumerate(row, 1)
        ),
        shown=False,
    )


def panel(title: str, phi: Tensor) -> Panel:
    """A heat map of phi (m, n)."""
    rows, columns = phi.shape
    return Panel(
        title,
        tuple(str(j) for j in range(1, columns + 1)),
        tuple(str(i) for i in range(1, rows + 1)),
        tuple(tuple(round(value, 4) for value in row) for row in phi.tolist()),
    )


def _maps(
    phi: dict[Where, Tensor], chance: dict[Where, Tensor], names: Sequence[str], matrix: Matrix
) -> tuple[HeatMap, ...]:
    drawn = []
    blocks = sorted({block for block, _ in phi})
    for target in dict.fromkeys(target for _, target in phi):
        of_target = {block: phi[block, target] for block in blocks if (block, target) in phi}
        shown = [list(of_target)[place] for place in chosen(len(of_target))]
        rows = [[panel(f"block {block}", of_target[block]) for block in shown]]
        fewest = min(len(of_target[block]) for block in shown)
        if min(of_target[block].shape[1] for block in shown) >= ZOOM * fewest:
            rows.append([panel(f"block {block}, j <= {fewest}", of_target[block][:, :fewest]) for block in shown])
        rows.append([panel("random", chance[shown[0], target])])
        drawn.append(
            HeatMap(
                key=f"phi-{target}",
                title=f"Shared directions of {matrix}, {target}",
                caption=f"phi(i, j) of {names[0]} (rows i) and {names[1]} (columns j); below, two random Gaussian "
                "matrices.",
                x_title="j",
                y_title="i",
                value_title="phi",
                panels=tuple(tuple(row) for row in rows),
                low=0.0,
                high=1.0,
            )
        )
    return tuple(drawn)
