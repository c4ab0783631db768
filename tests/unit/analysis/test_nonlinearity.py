"""How far from linear a delta is, of maps whose answer is known."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from lodarepro.analysis import nonlinearity as subject
from lodarepro.analysis.changes import Change, deltas
from lodarepro.analysis.nonlinearity import AT_ONCE, Affine, jacobian, nonlinearities
from lodarepro.reopen import reopen
from tests.planted import DECODED, D, randn

Fabricate = Callable[..., Path]


# Jacobians --------------------------------------------------------------------------------------


def test_a_linear_maps_jacobian_is_its_matrix_and_does_not_spread():
    M = randn(7, 4)
    mean, spread = jacobian(lambda x: x @ M + 3.0, randn(50, 7, seed=1))
    torch.testing.assert_close(mean, M, atol=1e-12, rtol=0)
    assert spread == pytest.approx(0.0, abs=1e-9)


def test_squares_have_twice_the_inputs():
    """The share by hand, without bias: n / (n - 1) (mean ||J||^2 - ||mean J||^2) / mean ||J||^2."""
    X = torch.tensor([[1.0, 2.0], [3.0, 0.0], [-1.0, 4.0]], dtype=torch.float64)
    mean, spread = jacobian(lambda x: x**2, X)
    torch.testing.assert_close(mean, torch.diag(torch.tensor([2.0, 4.0], dtype=torch.float64)))
    energy = 4 * (5 + 9 + 17) / 3  # of J = diag(2 x)
    assert spread == pytest.approx((energy - (4 + 16)) * 3 / 2 / energy)


def test_of_an_absolute_value_nothing_is_left_in_the_mean():
    X = randn(4000, 3)
    mean, spread = jacobian(torch.abs, X)
    torch.testing.assert_close(mean, torch.diag(X.sign().mean(0)))
    assert spread == pytest.approx(1.0, abs=0.01)


def test_the_share_is_without_bias():
    """J = diag(1 + e), e of unit variance: half of the energy is spread, however few the inputs."""

    def share(n: int, seed: int) -> float:
        X = randn(n, 40, seed=seed)
        found = jacobian(lambda x: x + x**2 / 2, X)[1]
        assert found is not None
        return found

    for n in (2, 3, 20):
        mean = sum(share(n, seed) for seed in range(40)) / 40
        assert mean == pytest.approx(0.5, abs=0.03)


def test_inputs_beyond_those_at_once_count_too():
    X = randn(AT_ONCE * 2 + 3, 2)
    torch.testing.assert_close(jacobian(lambda x: x**2, X)[0], torch.diag(2 * X.mean(0)))


@pytest.mark.parametrize("rows", [1, 5])
def test_no_spread_of_no_jacobian_or_of_one(rows: int):
    assert jacobian(lambda x: 0 * x, randn(rows, 3))[1] is None
    assert (jacobian(lambda x: x**2, randn(rows, 3))[1] is None) == (rows == 1)


def test_orientation_is_input_by_output():
    mean, _ = jacobian(lambda x: torch.stack([x[0] * x[1], x[0], x[2]]), torch.tensor([[2.0, 3.0, 5.0]] * 2).double())
    assert mean.tolist() == [[3.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


# the best affine map ----------------------------------------------------------------------------


def left(
    f: Callable[[Tensor], Tensor], n: int = 400, d: int = 6, *, seed: int = 0, X: Tensor | None = None
) -> float | None:
    """What the map fitted to one half of inputs leaves of the other."""
    X = randn(n, d, seed=seed) if X is None else X
    affine = Affine(X.shape[1], f(X[:2]).shape[1])
    affine.fit(X[::2], f(X[::2]))
    affine.test(X[1::2], f(X[1::2]))
    return affine.left()


def test_of_an_affine_map_nothing_is_left():
    M = randn(6, 4, seed=5)
    assert left(lambda x: x @ M + randn(4, seed=6)) == pytest.approx(0.0, abs=1e-18)


def test_of_an_absolute_value_of_symmetric_inputs_all_is_left():
    a = randn(6, 1, seed=7)
    assert left(lambda x: (x @ a).abs(), n=8000) == pytest.approx(1.0, abs=0.03)


def test_of_a_sum_its_shares_are_left():
    """y = x_1 + sqrt(1/2) (x_2^2 - 1): of the variances 1 and 1, the second."""
    assert left(lambda x: x[:, :1] + (x[:, 1:2] ** 2 - 1) / math.sqrt(2), n=20000) == pytest.approx(0.5, abs=0.04)


def fitted(X: Tensor, Y: Tensor, *, pieces: int = 1) -> Affine:
    affine = Affine(X.shape[1], Y.shape[1])
    for x, y in zip(X.chunk(pieces), Y.chunk(pieces), strict=True):
        affine.fit(x, y)
    return affine


def test_noise_is_left_and_more_where_it_was_learned_by_heart():
    X, Y = randn(400, 6), randn(400, 3, seed=8)
    affine = fitted(X[::2], Y[::2])
    affine.test(X[1::2], Y[1::2])
    assert affine.left() == pytest.approx(1.0, abs=0.1)


def test_what_was_learned_by_heart_is_not_credited():
    """On the half that it was fitted to it leaves less than of the noise there is, on the other more."""
    X, Y = randn(1300, 64), randn(1300, 5, seed=1)
    own, other = (fitted(X[::2], Y[::2]) for _ in range(2))
    own.test(X[::2], Y[::2])
    other.test(X[1::2], Y[1::2])
    assert own.left() == pytest.approx(1 - 64 / 650, abs=0.02)
    assert other.left() == pytest.approx(1 + 64 / 650, abs=0.05)


def test_sums_do_not_depend_on_the_pieces():
    X, Y = randn(400, 6) + 3.0, randn(400, 3, seed=8) - 2.0
    found = []
    for pieces in (1, 7):
        affine = fitted(X[::2], Y[::2], pieces=pieces)
        for x, y in zip(X[1::2].chunk(pieces), Y[1::2].chunk(pieces), strict=True):
            affine.test(x, y)
        found.append(affine.left())
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize("constant", [1.0, 0.1, -7.3])
def test_outputs_that_do_not_vary_have_no_share(constant: float):
    assert left(lambda x: torch.full((len(x), 3), constant, dtype=torch.float64), n=2000) is None


def test_inputs_of_lower_rank_are_no_hindrance():
    """As a LayerNorm's: their sum is 0 and their squares' sum is fixed, but for rounding."""
    X = torch.nn.functional.layer_norm(randn(600, 12).float(), (12,)).double()
    M = randn(12, 4, seed=5)
    assert left(lambda x: x @ M, X=X) == pytest.approx(0.0, abs=1e-9)
    assert cast(float, left(lambda x: (x @ M).abs(), X=X)) > 0.5


@pytest.mark.parametrize(("n", "told"), [(10 * 6 - 1, False), (10 * 6, True)])
def test_of_few_inputs_nothing_is_said(n: int, told: bool):
    affine = fitted(randn(n, 6), randn(n, 2, seed=1))
    affine.test(randn(50, 6, seed=2), randn(50, 2, seed=3))
    assert (affine.left() is not None) == told


# a run's texts ----------------------------------------------------------------------------------


class Half(torch.nn.Module):
    """A delta that looks at what its input holds: no vectorised derivative goes through it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return 2 * x
        return x


def test_a_delta_that_looks_at_its_input_has_a_derivative_all_the_same():
    X = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    mean, spread = jacobian(Half(), X)
    assert mean.tolist() == [[1.5, 0.0], [0.0, 1.5]]
    assert spread == pytest.approx((2.5 - 2.25) * 2 / 2.5)  # |J|^2: 8 and 2, mean 5; |mean|^2 4.5; n / (n - 1) = 2


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_the_fit_and_the_measure_are_of_different_texts(tokens: int, fabricate: Fabricate):
    folder = fabricate("method=loda", "method.targets=[q]", decoded=DECODED)
    opened = reopen(folder)
    model, found = opened.model(), []
    for (block, target), delta in deltas(model):
        found.append(Change(block, target, torch.zeros(D, D, dtype=torch.float64), None, delta))
    sequences = subject._sequences(opened, tokens)
    total = sum(map(len, sequences))
    assert len(sequences) == (12 if tokens == 10**6 else 2)
    assert tokens == 10**6 or total - len(sequences[-1]) < tokens or len(sequences) == 2
    at = nonlinearities(opened, model, found, tokens=tokens, jacobians=5, seed=1)
    assert {one.tokens for one in at.values()} == {sum(map(len, sequences[::2]))}
    assert {one.jacobians for one in at.values()} == {5}
    first = at[1, "q"]
    again = nonlinearities(opened, model, found, tokens=tokens, jacobians=5, seed=1)[1, "q"]
    assert torch.equal(first.mean, again.mean)
    assert not model.h[0].attn.c_attn.deltas["q"]._forward_pre_hooks  # type: ignore[union-attr,index]
