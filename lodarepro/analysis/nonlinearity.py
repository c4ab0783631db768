"""How far from linear a delta is at a run's test inputs, and the matrix that comes nearest to a dW.

A delta x -> dh that is not linear has at each input x a Jacobian J(x) (d_in, d_out). Over test inputs:

- the mean of J, which takes the place of dW;
- its spread, 1 - ||mean J||_F^2 / mean ||J||_F^2: the share of the Jacobian's energy that is not in its mean;
- what no linear map explains: the share of the variance of dh that the best affine map of x leaves. It is fitted to
  every other text and measured on the rest, so that a map of a million coefficients can't learn them by heart.

Of a linear delta the last two are 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lodarepro.analysis.changes import Change, Where
from lodarepro.data.tokenise import encode
from lodarepro.data.types import Example
from lodarepro.errors import BadInput
from lodarepro.methods import layout
from lodarepro.model import GPT2, weights
from lodarepro.records import read_decoded
from lodarepro.reopen import Reopened

TOKENS = 32768  # test inputs, of which a map is fitted to about half
JACOBIANS = 256  # test inputs whose Jacobians are taken
AT_ONCE = 8  # Jacobians in memory
FEWEST = 2  # texts: one to fit a map to, one to measure on
ENOUGH = 10  # inputs a coefficient from which what a map leaves is told: of fewer, overfitting adds over a tenth to it
NULL = 1e-12  # of a sum of squares: what rounding leaves of none
NO_DIRECTION = 1e-10  # of the greatest variance of the inputs: what rounding leaves where there is none


@dataclass(frozen=True)
class Nonlinearity:
    """How a delta behaves at test inputs.

    Attributes:
        mean: (d_in, d_out) fp64, of its Jacobians.
        spread: share of the Jacobians' energy that is not in their mean; None: they are all zero.
        left: share of its variance that the best affine map leaves; None: it has no variance, or there are too few
            inputs to say.
        tokens: inputs that the map was fitted to.
        jacobians: inputs whose Jacobians were taken.
    """

    mean: Tensor
    spread: float | None
    left: float | None
    tokens: int
    jacobians: int


def nonlinearities(
    opened: Reopened, model: GPT2, found: Sequence[Change], *, tokens: int, jacobians: int, seed: int
) -> dict[Where, Nonlinearity]:
    """Of a run's deltas at its test inputs: the contexts of its evaluation with their first references.

    Args:
        opened: the run.
        model: with the deltas of `found`.
        found: changes that no matrix can stand for.
        tokens: at most about so many inputs.
        jacobians: inputs at which Jacobians are taken.
        seed: of their choice.

    Raises:
        BadInput: there is one text only, or a user's own delta has no derivative.
    """
    sequences = _sequences(opened, tokens)
    fitted, held_out = sequences[::2], sequences[1::2]
    # In fp64: whatever is left of a linear delta is not rounding's.
    deltas = {change.where: copy.deepcopy(cast(nn.Module, change.delta)).double() for change in found}
    maps = {change.where: Affine(*change.W.shape) for change in found}
    with torch.no_grad():
        for where, X in _seen(model, found, fitted):
            maps[where].fit(X, deltas[where](X))
    number = sum(map(len, held_out))
    generator = torch.Generator().manual_seed(seed)
    picked = torch.zeros(number, dtype=torch.bool)
    picked[torch.randperm(number, generator=generator)[:jacobians]] = True
    starts = dict.fromkeys(deltas, 0)
    at: dict[Where, list[Tensor]] = {where: [] for where in deltas}
    with torch.no_grad():
        for where, X in _seen(model, found, held_out):
            maps[where].test(X, deltas[where](X))
            at[where].append(X[picked[starts[where] : starts[where] + len(X)]])
            starts[where] += len(X)
    result = {}
    for change in found:
        where, affine = change.where, maps[change.where]
        X = torch.cat(at[where])
        try:
            mean, spread = jacobian(deltas[where], X)
        except RuntimeError as e:
            raise BadInput(
                f"{opened.record.id}: the delta of {change.target} in block {change.block} has no derivative "
                f"({str(e).splitlines()[0]})"
            ) from None
        result[where] = Nonlinearity(mean, spread, affine.left(), affine.fitted, len(X))
    return result


def _sequences(opened: Reopened, tokens: int) -> list[Tensor]:
    """The token ids of a run's test texts, (T,) each, up to a number of tokens."""
    file = opened.adapter.parent / opened.record.evaluations[0].hypotheses
    texts = read_decoded(file)
    if len(texts) < FEWEST:
        raise BadInput(
            f"{file} has one text: a map is fitted to every other and measured on the rest; test on more "
            "(dataset.limit.test)"
        )
    tokenizer, run = weights.load_tokenizer(opened.base), opened.run
    examples = [Example(text.context, text.references[0]) for text in texts]
    encoded = encode(examples, tokenizer, run.protocol, cache=None, layout=layout(run.method, tokenizer))
    found: list[Tensor] = []
    while len(found) < len(encoded) and (len(found) < FEWEST or sum(map(len, found)) < tokens):
        found.append(torch.from_numpy(encoded.sequence(len(found))[: run.protocol.max_length]))
    return found


def _seen(model: GPT2, found: Sequence[Change], sequences: Sequence[Tensor]) -> Iterator[tuple[Where, Tensor]]:
    """What each delta sees of each text: where, and (T, d_in) fp64."""
    seen: dict[Where, Tensor] = {}

    def keep(where: Where) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[where] = arguments[0].flatten(0, -2).double()

        return hook

    hooks = [cast(nn.Module, change.delta).register_forward_pre_hook(keep(change.where)) for change in found]
    for sequence in sequences:
        model(sequence[None])
        yield from seen.items()
    for hook in hooks:
        hook.remove()


class Affine:
    """The least-squares affine map of inputs (n, d_in) to outputs (n, d_out), from sums over them.

    Attributes:
        fitted: inputs that it was fitted to.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        self.fitted = 0
        self._x, self._y = torch.zeros(d_in, dtype=torch.float64), torch.zeros(d_out, dtype=torch.float64)
        self._xx = torch.zeros(d_in, d_in, dtype=torch.float64)
        self._xy = torch.zeros(d_in, d_out, dtype=torch.float64)
        self._solved: tuple[Tensor, Tensor, Tensor, int] | None = None
        self._tested = 0
        self._missed, self._squares = (torch.zeros((), dtype=torch.float64) for _ in range(2))
        self._sum = torch.zeros(d_out, dtype=torch.float64)

    def fit(self, X: Tensor, Y: Tensor) -> None:
        """Add inputs (n, d_in) and outputs (n, d_out) that the map is fitted to; before `test`."""
        self.fitted += len(X)
        self._x += X.sum(0)
        self._y += Y.sum(0)
        self._xx.addmm_(X.T, X)
        self._xy.addmm_(X.T, Y)

    def test(self, X: Tensor, Y: Tensor) -> None:
        """Add inputs and outputs that the map is measured on."""
        x, y, M, _ = self._map()
        self._tested += len(X)
        self._missed += (Y - y - (X - x) @ M).square().sum()
        self._squares += Y.square().sum()
        self._sum += Y.sum(0)

    def left(self) -> float | None:
        """Share of the variance of what was tested that the map leaves.

        None: there is no variance, or too few inputs were fitted.
        """
        rank = self._map()[3]
        if not self._tested or self.fitted < ENOUGH * rank:
            return None
        variance = self._squares - self._sum.square().sum() / self._tested
        return float(self._missed / variance) if variance > NULL * self._squares else None

    def _map(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """Means of inputs and outputs, the matrix (d_in, d_out), and in how many directions the inputs vary."""
        if self._solved is None:
            x, y = self._x / self.fitted, self._y / self.fitted
            variances, V = torch.linalg.eigh(self._xx / self.fitted - x[:, None] * x)
            # A LayerNorm's output has directions without variance, which are no help.
            V = V[:, variances > NO_DIRECTION * variances.max()]
            variances = variances[-V.shape[1] :]
            M = V @ ((V.T @ (self._xy / self.fitted - x[:, None] * y)) / variances[:, None])
            self._solved = (x, y, M, V.shape[1])
        return self._solved


def jacobian(delta: Callable[[Tensor], Tensor], X: Tensor) -> tuple[Tensor, float | None]:
    """The mean Jacobian (d_in, d_out) of a map of rows over inputs X (n, d_in), and the share of the energy beside it.

    The share is that of all inputs that X is a sample of, without bias. None: all Jacobians are zero, or X is one row.

    Raises:
        RuntimeError: the map has no derivative.
    """
    total, energy = torch.zeros((), dtype=X.dtype), torch.zeros((), dtype=X.dtype)
    for rows in X.split(AT_ONCE):
        J = _jacobians(delta, rows)  # (n, d_in, d_out)
        total = total + J.sum(0)
        energy = energy + J.square().sum()
    n = len(X)
    mean, energy = total / n, energy / n
    if not energy > 0 or n == 1:
        return mean, None
    return mean, float((energy - mean.square().sum()) * n / (n - 1) / energy)


def _jacobians(delta: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    try:
        J = torch.func.vmap(torch.func.jacrev(lambda x: delta(x)))(X)
    except RuntimeError:  # of a user's own delta, which looks at what its input holds
        J = torch.stack([cast(Tensor, torch.autograd.functional.jacobian(delta, x)) for x in X])
    return J.detach().transpose(1, 2)
