"""What runs amplify in the pretrained weights (LoRA, section 7.3, Table 7, Figure 8, section H.4).

    U' W V',    U and V the top r singular directions of dW, of W, or of a random matrix

||U' W V'||_F is how much W has of those directions, ||dW||_F / ||U' W V'||_F with those of dW the factor by which the
run amplifies them. (Ours is (d_in, d_out) for x W, so that U holds directions of the input.)

A delta that is not linear has no dW. At an input x it has a Jacobian J(x) (d_in, d_out), and the mean of that over test
inputs takes dW's place. Two figures say how much that leaves out:

- not linear: the share of the delta's variance over test inputs that the best affine map of x leaves. It is fitted to
  every other text and measured on the rest, so that a map with a million coefficients can't learn them by heart;
- Jacobian's spread: 1 - ||mean J||_F^2 / mean ||J||_F^2, the share of its energy that is not in its mean.

Of a linear delta both are 0.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lodarepro.analysis import settings
from lodarepro.analysis.blocks import chosen
from lodarepro.analysis.changes import Change, check_same_base, described, of_run
from lodarepro.analysis.subspace import Where, directions, panel, similarity
from lodarepro.data.tokenise import encode
from lodarepro.data.types import Example
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
from lodarepro.methods import layout
from lodarepro.model import GPT2, weights
from lodarepro.records import read_decoded
from lodarepro.reopen import Reopened

logger = logging.getLogger(__name__)

SOURCE = "LoRA (arXiv 2106.09685), section 7.3, Table 7 and Figure 8, section H.4"
DIRECTIONS = 4  # r where a run has no rank: the paper's smaller one
TOKENS = 16384  # test inputs of which a map is fitted to half
JACOBIANS = 256  # test inputs whose Jacobians are taken
AT_ONCE = 8  # Jacobians in memory
FEWEST = 2  # texts: one to fit a map to, one to measure on
ENOUGH = 4  # inputs a coefficient from which a fit is told without a warning
NULL = 1e-12  # of a sum of squares or a norm: what rounding leaves of none
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
class Nonlinearity:
    """How a delta behaves at test inputs.

    Attributes:
        mean: (d_in, d_out) fp64, of its Jacobians.
        spread: share of the Jacobians' energy that is not in their mean; None: they are all zero.
        left: share of its variance that the best affine map leaves; None: it has no variance.
    """

    mean: Tensor
    spread: float | None
    left: float | None


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
    def of(cls, W: Tensor, dW: Tensor, r: int, generator: torch.Generator) -> Amplification:
        """Of a weight and its change, (d_in, d_out) fp64 each."""
        drawn = torch.empty(W.shape, dtype=W.dtype).normal_(generator=generator)
        parts = []
        for matrix in (dW, W, drawn):
            U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
            parts.append(float(torch.linalg.matrix_norm(U[:, :r].T @ W @ Vh[:r].T)))
        return cls(r, float(torch.linalg.matrix_norm(W)), float(torch.linalg.matrix_norm(dW)), *parts)


@dataclass(frozen=True)
class _Row:
    label: str
    change: Change
    dW: Tensor  # noqa: N815
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
    for label, one in zip(names, opened, strict=True):
        model, found = of_run(one)
        generator = torch.Generator().manual_seed(seed)  # for each run the same
        curved = [change for change in found if change.added is None]
        at_inputs = nonlinearities(one, model, curved, tokens, jacobians, generator) if curved else {}
        for change in found:
            nonlinear = at_inputs.get(change.where)
            dW = nonlinear.mean if nonlinear is not None else cast(Tensor, change.added)
            if not dW.abs().max() > 0:
                continue  # a last layer that no loss reaches
            wanted = min(r or change.rank or DIRECTIONS, *change.W.shape)
            rows.append(_Row(label, change, dW, Amplification.of(change.W, dW, wanted, generator), nonlinear))
    if not rows:
        raise BadInput(f"{', '.join(one.record.id for one in opened)}: no weight changed; give runs that were trained")
    of_all = {"r": r, "tokens": tokens, "jacobians": jacobians, "seed": seed, "runs": described(opened)}
    printed = settings.read("amplification", Settings).print
    notes = [
        "‖U'WV'‖: of W in the top r directions of dW, of W itself, of a random matrix; factor: ‖dW‖ / ‖U'WV'‖ of dW",
        f"random: a Gaussian matrix (seed {seed})",
    ]
    if any(row.nonlinear is not None for row in rows):
        notes.append(
            "not linear: share of the delta's variance over test inputs that the best affine map leaves, fitted to "
            f"every other text and measured on the rest (up to {tokens:,} tokens); in place of dW stands the mean of "
            f"the Jacobian at {jacobians} of them, and its spread is the share of its energy that is not in the mean"
        )
    return Findings(
        analysis="amplification",
        name=named("amplification", readable([one.record for one in opened]), of_all),
        title=f"What {', '.join(names)} amplify",
        source=SOURCE,
        settings=of_all,
        provenance=provenance(),
        grids=(_means(rows), _print(printed), _each(rows)),
        plots=(*_factors(rows), *_maps(rows, seed)),
        notes=tuple(notes),
    )


# deltas that are not linear ---------------------------------------------------------------------


def nonlinearities(
    opened: Reopened,
    model: GPT2,
    found: Sequence[Change],
    tokens: int,
    jacobians: int,
    generator: torch.Generator,
) -> dict[Where, Nonlinearity]:
    """How the deltas of a run behave at its test inputs: the contexts of its evaluation with their first references.

    Args:
        opened: the run.
        model: with the deltas of `found`.
        found: changes that no matrix can stand for.
        tokens: at most so many inputs.
        jacobians: inputs at which Jacobians are taken.
        generator: of their choice.
    """
    inputs = _inputs(opened, model, found, tokens)
    solved: dict[int, _Affine] = {}  # by the inputs, which the deltas of one fused layer share
    result = {}
    for change in found:
        delta = copy.deepcopy(cast(nn.Module, change.delta)).double()
        fitted, held_out = inputs[change.where]
        if id(fitted) not in solved:
            solved[id(fitted)] = _Affine(fitted)
        with torch.no_grad():
            left = solved[id(fitted)].left(delta(fitted.double()), held_out, delta(held_out.double()))
        places = torch.randperm(len(held_out), generator=generator)[:jacobians]
        mean, spread = jacobian(delta, held_out[places].double())
        result[change.where] = Nonlinearity(mean, spread, left)
    return result


def _inputs(opened: Reopened, model: GPT2, found: Sequence[Change], tokens: int) -> dict[Where, tuple[Tensor, Tensor]]:
    """What the deltas see of every other text, (n, d_in), and of the rest."""
    file = opened.adapter.parent / opened.record.evaluations[0].hypotheses
    texts = read_decoded(file)
    if len(texts) < FEWEST:
        raise BadInput(
            f"{file} has one text: a map is fitted to every other and measured on the rest; test on more "
            "(dataset.limit.test)"
        )
    tokenizer = weights.load_tokenizer(opened.base)
    examples = [Example(text.context, text.references[0]) for text in texts]
    run = opened.run
    encoded = encode(examples, tokenizer, run.protocol, cache=None, layout=layout(run.method, tokenizer))
    seen: dict[Where, list[Tensor]] = {change.where: [] for change in found}
    hooks = []
    for change in found:
        of_change = seen[change.where]
        hooks.append(
            cast(nn.Module, change.delta).register_forward_pre_hook(
                lambda _, arguments, of_change=of_change: of_change.append(arguments[0].flatten(0, -2).detach())
            )
        )
    number = 0
    halves: dict[Where, tuple[list[Tensor], list[Tensor]]] = {where: ([], []) for where in seen}
    with torch.no_grad():
        for row in range(len(encoded)):
            if number >= tokens and row % 2 == 0:
                break
            sequence = torch.from_numpy(encoded.sequence(row)[: run.protocol.max_length])
            model(sequence[None])
            number += len(sequence)
            for where, of_change in seen.items():
                halves[where][row % 2].append(of_change.pop())
    for hook in hooks:
        hook.remove()
    return _joined(halves)


def _joined(halves: dict[Where, tuple[list[Tensor], list[Tensor]]]) -> dict[Where, tuple[Tensor, Tensor]]:
    """The pieces of each delta's inputs together; deltas of one layer, which see the same, share one tensor."""
    made: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    result = {}
    for where, (even, odd) in halves.items():
        key = tuple(piece.data_ptr() for piece in even)
        if key not in made:
            made[key] = (torch.cat(even), torch.cat(odd))
        result[where] = made[key]
    return result


class _Affine:
    """Least squares on some inputs X (n, d_in), whatever the outputs."""

    def __init__(self, X: Tensor) -> None:
        self.center = X.double().mean(0)
        # Directions without variance, as a LayerNorm's output has, are no help: the pseudoinverse leaves them out.
        self.inverse = torch.linalg.pinv(X.double() - self.center, rtol=1e-6)  # (d_in, n)
        if len(X) < ENOUGH * X.shape[1]:
            logger.warning(
                "a map of %d inputs is fitted to %d tokens: what it leaves is an upper bound; test on more texts",
                X.shape[1],
                len(X),
            )

    def left(self, Y: Tensor, X: Tensor, wanted: Tensor) -> float | None:
        """Share of the variance of `wanted` (m, d_out) at X (m, d_in) that the map fitted to Y (n, d_out) leaves.

        None: there is no variance.
        """
        mean = Y.mean(0)
        M = self.inverse @ (Y - mean)  # (d_in, d_out)
        missed = (wanted - mean - (X.double() - self.center) @ M).square().sum()
        variance = (wanted - wanted.mean(0)).square().sum()
        return float(missed / variance) if variance > NULL * wanted.square().sum() else None


def jacobian(delta: Callable[[Tensor], Tensor], X: Tensor) -> tuple[Tensor, float | None]:
    """The mean Jacobian (d_in, d_out) of a map of rows over inputs X (n, d_in), and the share of the energy beside it.

    The share is that of all inputs that X is a sample of, without bias. None: all Jacobians are zero, or X is one row.
    """
    of_rows = torch.func.vmap(torch.func.jacrev(lambda x: delta(x)))
    total, energy = torch.zeros((), dtype=X.dtype), torch.zeros((), dtype=X.dtype)
    for some_of_them in X.split(AT_ONCE):
        J = of_rows(some_of_them).detach().transpose(1, 2)  # (n, d_in, d_out)
        total = total + J.sum(0)
        energy = energy + J.square().sum()
    n = len(X)
    mean, energy = total / n, energy / n
    if not energy > 0 or n == 1:
        return mean, None
    return mean, float((energy - mean.square().sum()) * n / (n - 1) / energy)


# tables and figures -----------------------------------------------------------------------------


FIGURES = (
    Column("W", "‖W‖"),
    Column("dW", "‖dW‖"),
    Column("from_dW", "‖U'WV'‖ of dW", 3),
    Column("from_W", "of W", 3),
    Column("from_random", "of random", 3),
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


def _means(rows: Sequence[_Row]) -> Grid:
    """Means over blocks; the factor is that of the means' norms, as a mean of quotients would be the largest one's."""
    together: dict[tuple[str, str, int], list[_Row]] = defaultdict(list)
    for row in rows:
        together[row.label, row.change.target, row.found.r].append(row)
    lines: list[tuple[Value, ...]] = []
    for (label, target, r), ones in together.items():
        norms = [sum(column) / len(ones) for column in zip(*(_norms(row.found) for row in ones), strict=True)]
        mean = Amplification(r, *norms)
        shares = [
            None if not (known := [value for value in column if isinstance(value, float)]) else sum(known) / len(known)
            for column in zip(*map(_nonlinear, ones), strict=True)
        ]
        lines.append((label, target, r, *_figures(mean), *shares))
    return Grid(
        "amplification",
        "Amplification, means over the blocks",
        (Column("run", "run"), Column("target", "target"), Column("r", "r"), *FIGURES, *NONLINEAR),
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
            (row.label, row.change.target, str(row.change.block), row.found.r, *_figures(row.found), *_nonlinear(row))
            for row in rows
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
            lines[row.label, row.change.target].append((float(row.change.block), row.found.factor))
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
    for target in dict.fromkeys(row.change.target for row in rows):
        of_target = [row for row in rows if row.change.target == target]
        blocks = sorted({row.change.block for row in of_target})
        block = blocks[chosen(len(blocks))[len(chosen(len(blocks))) // 2]]
        shown = [row for row in of_target if row.change.block == block]
        panels = [_map(row.label, row.change.W, directions(row.dW, row.found.r)) for row in shown]
        W, most = shown[0].change.W, max(row.found.r for row in shown)
        random = torch.empty(W.shape[0], most, dtype=W.dtype).normal_(generator=torch.Generator().manual_seed(seed))
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


def _map(label: str, W: Tensor, space: Tensor) -> Panel:
    """The similarity of W's directions to a space's, for some of W's many from the first to the last."""
    phi = similarity(directions(W, W.shape[0]), space)
    rows = len(phi)
    places = sorted({round(i * (rows - 1) / (GRID - 1)) for i in range(GRID)}) if rows > GRID else list(range(rows))
    whole = panel(label, phi[places])
    return Panel(whole.title, whole.x, tuple(str(place + 1) for place in places), whole.values)
