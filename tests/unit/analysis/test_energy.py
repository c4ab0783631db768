"""The energy that approximations keep: planted spectra and entries, and the best choice against all choices."""

import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor

from lodarepro import compose, config
from lodarepro.analysis.energy import Spectrum, energy, suggest
from lodarepro.config import Base
from lodarepro.errors import BadInput
from lodarepro.findings import Findings, Grid
from lodarepro.methods import approx
from lodarepro.model import GPT2, weights

Composed = Callable[..., config.Run]


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q


def of_singular_values(values: Sequence[float], seed: int = 0) -> Tensor:
    """W (d, 3 d) = U diag(s) V'."""
    d = len(values)
    U, V = orthonormal(d, d, seed), orthonormal(3 * d, d, seed + 1)
    return U @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ V.T


def of_entries(values: Sequence[float], d: int) -> Tensor:
    """W (d, 3 d) with these entries at scattered places, and zeros."""
    flat = torch.zeros(3 * d * d, dtype=torch.float64)
    places = torch.randperm(len(flat), generator=torch.Generator().manual_seed(1))[: len(values)]
    flat[places] = torch.tensor(values, dtype=torch.float64)
    return flat.view(d, 3 * d)


def grid(found: Findings, key: str) -> Grid:
    return next(one for one in found.grids if one.key == key)


# one matrix -------------------------------------------------------------------------------------


def test_by_rank_is_the_share_of_the_squared_singular_values():
    spectrum = Spectrum.of(of_singular_values([1.0, 4.0, 2.0, 0.0, 2.0]))  # squares 16, 4, 4, 1, 0
    np.testing.assert_allclose(spectrum.by_rank, [16 / 25, 20 / 25, 24 / 25, 1.0, 1.0], atol=1e-12)


def test_by_entry_is_the_share_of_the_squared_entries_whatever_their_sign():
    spectrum = Spectrum.of(of_entries([-3.0, 1.0, 2.0, -1.0, 1.0], d=2))  # squares 9, 4, 1, 1, 1
    np.testing.assert_allclose(
        spectrum.by_entry, [9 / 16, 13 / 16, 14 / 16, 15 / 16, 1, 1, 1, 1, 1, 1, 1, 1], atol=1e-12
    )


@pytest.mark.parametrize(
    ("share", "rank", "entries"),
    [(0.01, 1, 1), (0.5, 1, 2), (0.64, 1, 2), (0.6400001, 2, 2), (0.8, 2, 2), (0.8 + 1e-6, 3, 2), (0.96, 3, 3),
     (0.99, 4, 3), (1.0, 4, 3)],
)  # fmt: skip
def test_the_least_that_keeps_a_share(share: float, rank: int, entries: int):
    """At a threshold, below and above it."""
    assert Spectrum.of(of_singular_values([4.0, 2.0, 2.0, 1.0, 0.0])).rank_for(share) == rank
    of = Spectrum.of(of_entries([3.0, 3.5, 1.0], d=3))  # squares 12.25, 9, 1
    assert of.entries_for(share) == {0.01: 1, 0.5: 1}.get(share, entries)
    assert of.fraction_for(share) == of.entries_for(share) / 27


@pytest.mark.parametrize(("kind", "at", "kept"), [
    ("low-rank", 1, 0.64), ("low-rank", 3, 0.96), ("low-rank", 5, 1.0),
    ("sparse", 1 / 75, 9 / 16), ("sparse", 3 / 75, 14 / 16), ("sparse", 0.4, 1.0), ("sparse", 1e-6, 0.0),
])  # fmt: skip
def test_kept_by_a_rank_or_a_fraction(kind: str, at: float, kept: float):
    planted = {
        "low-rank": of_singular_values([4.0, 2.0, 2.0, 1.0, 0.0]),
        "sparse": of_entries([3.0, 2.0, 1.0, 1.0, 1.0], d=5),
    }
    assert Spectrum.of(planted[kind]).kept(kind, at) == pytest.approx(kept, abs=1e-12)


def test_equal_entries_keep_in_proportion():
    spectrum = Spectrum.of(torch.ones(4, 12, dtype=torch.float64))
    np.testing.assert_allclose(spectrum.by_entry, np.arange(1, 49) / 48, atol=1e-12)
    np.testing.assert_allclose(spectrum.by_rank, np.ones(4), atol=1e-12)  # of rank 1
    assert spectrum.entries_for(0.5) == 24
    assert spectrum.rank_for(1.0) == 1


def test_of_nothing_nothing_is_lost():
    spectrum = Spectrum.of(torch.zeros(4, 12))
    assert spectrum.by_rank.tolist() == [1.0] * 4
    assert spectrum.by_entry.tolist() == [1.0] * 48
    assert (spectrum.rank_for(1.0), spectrum.entries_for(1.0), spectrum.kept("low-rank", 1)) == (1, 1, 1.0)


def test_both_curves_end_at_all():
    drawn = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    spectrum = Spectrum.of(drawn)
    for curve in (spectrum.by_rank, spectrum.by_entry):
        assert curve[-1] == 1.0
        assert (np.diff(curve) >= 0).all()
    squares = np.linalg.svd(drawn.double().numpy(), compute_uv=False) ** 2
    np.testing.assert_allclose(spectrum.by_rank, np.cumsum(squares) / squares.sum(), atol=1e-12)


# the best choice --------------------------------------------------------------------------------

SPECTRA = {
    "different": [[5.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [9.0, 8.0, 1.0, 0.5]],
    "equal": [[4.0, 3.0, 2.0, 1.0]] * 3,
    "one flat": [[1.0, 1.0, 1.0, 1.0], [8.0, 1e-3, 1e-4, 0.0], [7.0, 1.0, 0.0, 0.0]],
    "one of zeros": [[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [3.0, 2.0, 1.0, 1.0]],
}


def spectra_of(name: str) -> list[Spectrum]:
    return [Spectrum.of(of_singular_values(values, seed=10 * i)) for i, values in enumerate(SPECTRA[name])]


MOST = 3  # of rank 4: from 3 d / 4 on, two products cost more than the dense one


def cost(ranks: Sequence[float], d: int) -> float:
    """Per cent of the dense products' multiply-accumulates."""
    return 100 * sum(4 * d * rank for rank in ranks) / (3 * d * d * len(ranks))


@pytest.mark.parametrize("budget", [33.4, 45.0, 60.0, 75.0, 99.0, 100.0])
@pytest.mark.parametrize("name", SPECTRA)
def test_ranks_are_the_best_of_all_choices(name: str, budget: float):
    spectra, d = spectra_of(name), 4
    found = suggest(spectra, "low-rank", budget)
    assert cost(found.values, d) <= budget
    assert all(isinstance(rank, int) and 1 <= rank <= MOST for rank in found.values)

    def mean(ranks: Sequence[float]) -> float:
        return fmean(one.kept("low-rank", rank) for one, rank in zip(spectra, ranks, strict=True))

    choices = [ranks for ranks in itertools.product(range(1, MOST + 1), repeat=3) if cost(ranks, d) <= budget]
    assert found.mean == pytest.approx(max(map(mean, choices)), abs=1e-12)
    assert found.mean == pytest.approx(mean(found.values), abs=1e-12)
    assert found.least == min(one.kept("low-rank", r) for one, r in zip(spectra, found.values, strict=True))
    alike = [ranks for ranks in choices if len(set(ranks)) == 1]
    assert found.uniform == max(ranks[0] for ranks in alike)
    assert found.uniform_mean == pytest.approx(mean([found.uniform] * 3), abs=1e-12)
    assert found.uniform_least == min(one.kept("low-rank", found.uniform) for one in spectra)


def test_a_budget_is_spent_where_it_gains():
    found = suggest(spectra_of("different"), "low-rank", 60.0)  # of 5 ranks
    assert sum(found.values) == 5
    assert found.values == [1, 2, 2]
    assert found.mean > found.uniform_mean


MATRICES = {"concentrated and not": (3.0, 0.5, 1.0), "alike": (1.0, 1.0, 1.0)}
"""powers of normal numbers"""


def drawn(power: float, d: int, seed: int) -> Tensor:
    """Entries of heavy tails, the heavier the greater the power."""
    values = torch.randn(d, 3 * d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.sign() * values.abs() ** power


@pytest.mark.parametrize("budget", [1.0, 7.3, 20.0, 50.0, 99.9, 100.0])
@pytest.mark.parametrize("name", MATRICES)
def test_fractions_are_no_worse_than_one_for_all_and_near_the_best(name: str, budget: float):
    d = 24
    spectra = [Spectrum.of(drawn(power, d, seed)) for seed, power in enumerate(MATRICES[name])]
    found = suggest(spectra, "sparse", budget)
    size = 3 * d * d
    assert 100 * sum(found.values) / 3 <= budget + 1e-9
    assert found.uniform == pytest.approx(budget / 100)
    assert found.mean == pytest.approx(
        fmean(one.kept("sparse", s) for one, s in zip(spectra, found.values, strict=True))
    )
    # What as many entries of each block keep; of a fraction their number may be rounded up, beyond the budget.
    assert found.mean >= fmean(one.by_entry[int(budget / 100 * size) - 1] for one in spectra) - 1e-9
    # The best: the greatest entries of all blocks, each as a share of its own block's energy.
    gains = np.sort(np.concatenate([np.diff(one.by_entry, prepend=0.0) for one in spectra]))[::-1]
    best = gains[: int(budget / 100 * 3 * size)].sum() / 3
    assert found.mean == pytest.approx(best, abs=3 * 1e-4 * gains[0] * size / 3 + 1e-3)
    assert found.mean <= best + gains[0]  # a fraction's entries are rounded, also up


@pytest.mark.parametrize("kind", ["low-rank", "sparse"])
def test_what_a_budget_buys_grows_with_it(kind: str):
    spectra = [Spectrum.of(drawn(power, 16, seed)) for seed, power in enumerate((1.0, 3.0))]
    means = [suggest(spectra, kind, budget).mean for budget in range(10, 101, 10)]
    assert means == sorted(means)
    assert means[0] < means[-1]


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0, 2.0]], ids=["of one size", "of two sizes"])
def test_equal_entries_are_bought_too(values: list[float]):
    """As those of weights that were rounded: entries at the margin are as good as each other."""
    d = 16
    spectra = [Spectrum.of(of_entries([*values * 60, *[1.0] * 600], d)) for _ in range(2)]
    found = suggest(spectra, "sparse", 50.0)
    assert 100 * fmean(found.values) <= 50.0 + 1e-9
    assert found.mean >= found.uniform_mean - 1e-3  # less what rounding to four digits takes


@pytest.mark.parametrize("d", [32, 64])
def test_no_block_is_left_without_an_entry(d: int):
    """A share of which nothing is left is refused by `Base`."""
    spectra = [Spectrum.of(torch.ones(d, 3 * d)), Spectrum.of(of_entries([9.0] * 40, d))]
    found = suggest(spectra, "sparse", 1.0)
    assert all(round(share * 3 * d * d) >= 1 for share in found.values)
    assert 100 * fmean(found.values) <= 1.0 + 1e-9


# the whole analysis -----------------------------------------------------------------------------


@pytest.fixture
def whole(composed: Composed) -> config.Run:
    return composed()


def base_model(run: config.Run) -> GPT2:
    base = weights.find(run.model)
    assert base is not None
    return weights.load(base, run.model)


def kept_by(model: GPT2, base: Base) -> list[float]:
    """The energies through the weights themselves."""
    before = [dense.weight.double().square().sum() for dense in model.denses("q")]
    approx.attach(model, base)
    found = []
    for dense, of_all in zip(model.denses("q"), before, strict=True):
        assert dense.base is not None
        with torch.no_grad():
            found.append(100 * float(dense.base(torch.eye(dense.d_in)).double().square().sum() / of_all))
    return found


@pytest.mark.parametrize("kind", ["low-rank", "sparse"])
def test_what_is_suggested_keeps_what_is_said(kind: str, whole: config.Run):
    found = energy(whole, budget=40.0)
    rows = grid(found, f"suggested-{kind}").rows
    assert [row[0] for row in rows] == ["1", "2"]
    values = tuple(row[1] for row in rows)
    lists = {"rank": values} if kind == "low-rank" else {"keep": values}
    base = Base(kind, **lists)  # type: ignore[arg-type]
    assert base.faults(whole.model) == []
    model = base_model(whole)
    dense = sum(d.macs() for d in model.denses("q"))
    assert kept_by(model, base) == pytest.approx([row[2] for row in rows], abs=1e-3)
    assert sum(d.macs() for d in model.denses("q")) <= 0.4 * dense + 1  # `Base` rounds a share to whole entries
    uniform = rows[0][3]
    alike = Base("low-rank", rank=uniform) if kind == "low-rank" else Base("sparse", keep=uniform)  # type: ignore[arg-type]
    assert kept_by(base_model(whole), alike) == pytest.approx([row[4] for row in rows], abs=1e-3)
    assert any(f"keeps {fmean(float(str(row[2])) for row in rows):.2f} % of the energy" in note for note in found.notes)


def test_levels_are_of_each_block_and_of_a_random_matrix(whole: config.Run):
    found = energy(whole)
    levels = grid(found, "levels")
    assert [row[0] for row in levels.rows] == ["1", "2", "Gaussian"]
    for row, dense in zip(levels.rows, base_model(whole).denses("q"), strict=False):
        shares = np.cumsum(np.linalg.svd(dense.weight.detach().double().numpy(), compute_uv=False) ** 2)
        of = dict(zip((column.key for column in levels.columns), row, strict=True))
        for level in (90, 93, 95, 96, 99):
            assert of[f"rank_{level}"] == int((shares < level / 100 * shares[-1]).sum()) + 1
    assert found.files == {}
    assert not [one for one in found.grids if one.key.startswith("suggested")]


def test_curves_have_what_the_tables_have(whole: config.Run):
    found = energy(whole)
    by_rank = grid(found, "energy-by-rank")
    assert [row[0] for row in by_rank.rows] == list(range(1, 33))
    assert by_rank.rows[-1][1:] == (100.0, 100.0, 100.0)
    by_fraction = grid(found, "energy-by-fraction")
    assert [row[0] for row in by_fraction.rows][::33] == [0.01, 0.34, 0.67, 1.0]
    (low_rank, sparse) = found.plots
    assert [line.label for line in low_rank.lines] == ["block 1", "block 2", "Gaussian"]  # type: ignore[union-attr]
    assert [line.role for line in sparse.lines] == ["ours", "ours", "baseline"]  # type: ignore[union-attr]
    assert low_rank.lines[0].y[7] == pytest.approx(float(str(by_rank.rows[7][1])), abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "rows"), [("gpt2-medium", 2), ("gpt2-nano", 0)])
def test_print_stands_beside_the_printed_model_alone(name: str, rows: int, tiny: list[str], tmp_path: Path):
    """A GPT-2 Medium by name, of one block of width 400."""
    from lodarepro.model import Sizes
    from lodarepro.model.weights import load_tokenizer, save

    (cell,) = compose.cells(tiny)
    run = cell.run
    base = weights.find(run.model)
    assert base is not None
    net = GPT2(Sizes(n_layer=1, n_head=2, n_embd=400, vocab_size=run.model.vocab_size, n_positions=32))
    net.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        next(net.denses("q")).weight.copy_(of_singular_values([2.0] + [1.0] * 399))
    save(net, load_tokenizer(base), tmp_path / "model")
    described = replace(run.model, name=name, path=str(tmp_path / "model"), n_layer=1, n_embd=400, n_positions=32)
    found = energy(replace(run, model=described))
    printed = [one for one in found.grids if one.key == "print"]
    assert len(printed) == (rows > 0)
    low_rank = found.plots[0]
    assert [line.role for line in low_rank.lines].count("print") == (rows > 0)  # type: ignore[union-attr]
    if rows:
        ((block, kind, at, kept, words), (*_, sparse_words)) = printed[0].rows
        assert (block, kind, at, words, sparse_words) == ("1", "low-rank", "300", "over 93", "over 96")
        assert kept == pytest.approx(100 * (4 + 299) / (4 + 399), abs=1e-3)


@pytest.mark.parametrize("budget", [0.0, -3.0, 4.1, 101.0, float("nan"), float("inf")])
def test_budgets_that_buy_nothing_or_too_much(budget: float, whole: config.Run):
    with pytest.raises(BadInput) as e:
        energy(whole, budget=budget)
    (fault,) = e.value.faults
    assert fault.startswith(f"--budget {budget:g}: give per cent of the dense projection's multiply-accumulates, from ")
    assert fault.endswith(" (one rank a block) to 100")


@pytest.mark.parametrize("width", [32, 128, 768, 1024, 1280])
def test_the_least_budget_that_is_named_will_do(width: int, whole: config.Run):
    wide = replace(whole, model=replace(whole.model, n_embd=width))
    with pytest.raises(BadInput) as e:
        energy(wide, budget=1e-3)
    least = float(e.value.faults[0].partition("from ")[2].partition(" ")[0])
    # With one rank a block, R 4 d of 3 d^2 multiply-accumulates.
    assert least >= 100 * 4 / (3 * width)


@pytest.mark.parametrize("kind", ["low-rank", "sparse"])
def test_the_suggested_sweep_is_a_cell(kind: str, tiny: list[str], whole: config.Run, tmp_path: Path):
    found = energy(whole, budget=40.0)
    assert set(found.files) == {"sweep/suggested-low-rank.yaml", "sweep/suggested-sparse.yaml"}
    for name, text in found.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    values = tuple(row[1] for row in grid(found, f"suggested-{kind}").rows)
    method = "method=r-loda" if kind == "low-rank" else "method=s-loda"
    chosen = [*tiny, "dataset=mini", method, f"sweep=suggested-{kind}"]
    (cell,) = compose.cells(chosen, multirun=True, extra_folder=tmp_path)
    base = cell.run.method.base
    assert (base.rank if kind == "low-rank" else base.keep) == values
    # The override of the note says the same.
    (override,) = [note.split("'")[1] for note in found.notes if f"{kind} base with" in note]
    (again,) = compose.cells([*tiny, "dataset=mini", method, override])
    assert again.run.method == cell.run.method


def test_the_same_model_has_the_same_name_and_a_budget_another(whole: config.Run):
    assert energy(whole).name == energy(whole).name
    assert len({energy(whole).name, energy(whole, budget=40.0).name, energy(whole, budget=41.0).name}) == 3
    assert json.dumps(energy(whole, budget=40.0).settings)


def test_an_approximation_says_the_energy_that_is_found_here(whole: config.Run, log: pytest.LogCaptureFixture):
    spectra = [Spectrum.of(dense.weight) for dense in base_model(whole).denses("q")]
    approx.attach(base_model(whole), Base("low-rank", rank=(3, 9)))
    kept = [100 * spectra[0].kept("low-rank", 3), 100 * spectra[1].kept("low-rank", 9)]
    (said,) = [r.getMessage() for r in log.records if r.levelno == logging.INFO]
    assert f"keeps {kept[0]:.2f} % of the energy in block 1; over the blocks least {min(kept):.2f}" in said
