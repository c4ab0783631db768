"""Shared directions: planted spaces have the similarity that they must have."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from lodarepro.analysis.subspace import directions, similarity, subspace
from lodarepro.errors import BadInput
from lodarepro.findings import Findings, Grid, HeatMap
from lodarepro.model import GPT2
from lodarepro.reopen import Reopened, reopen

Fabricate = Callable[..., Path]
Where = tuple[int, str]
D = 32  # width of the tiny model


def rotation(d: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q


BASIS = rotation(D)
FALLING = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125)


def with_directions(columns: Sequence[int], seed: int = 5) -> Tensor:
    """A matrix (d, r) whose left singular directions are these columns of the basis, in this order."""
    r = len(columns)
    return BASIS[:, list(columns)] * torch.tensor(FALLING[:r], dtype=torch.float64) @ rotation(r, seed).T


def grid(found: Findings, key: str) -> Grid:
    return next(one for one in found.grids if one.key == key)


def column(of: Grid, key: str) -> list[object]:
    place = [one.key for one in of.columns].index(key)
    return [row[place] for row in of.rows]


def phi_of(found: Findings, block: int, target: str) -> list[list[float]]:
    rows: dict[object, list[float]] = {}
    for of_target, of_block, i, _, phi in grid(found, "phi").rows:
        if (of_target, of_block) == (target, block):
            rows.setdefault(i, []).append(cast(float, phi))
    return list(rows.values())


# the similarity ---------------------------------------------------------------------------------


def overlaps(ours: Sequence[int], theirs: Sequence[int]) -> list[list[float]]:
    """phi of two spaces that are spanned by basis vectors: how many they share."""
    return [
        [len(set(ours[:i]) & set(theirs[:j])) / min(i, j) for j in range(1, len(theirs) + 1)]
        for i in range(1, len(ours) + 1)
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((0, 1, 2, 3), (0, 1, 2, 3)),  # identical
        ((0, 1, 2), (3, 4, 5, 6)),  # orthogonal
        ((0, 1, 2, 3), (9, 8, 0, 7, 2)),  # two directions at places of their own
        ((0,), (5, 6, 0)),
        ((0, 1, 2), (2, 1, 0)),  # the same space, the other way round
        ((4, 5, 6, 7), (4,)),
    ],
)
def test_planted_directions_are_counted(ours: tuple[int, ...], theirs: tuple[int, ...]):
    found = similarity(BASIS[:, list(ours)], BASIS[:, list(theirs)])
    torch.testing.assert_close(found, torch.tensor(overlaps(ours, theirs), dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_space_that_is_turned_within_itself_is_the_same_as_a_whole_only():
    c, s = math.cos(0.5), math.sin(0.5)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    found = similarity(BASIS[:, :2], BASIS[:, :2] @ turn)
    torch.testing.assert_close(found, torch.tensor([[c * c, 1.0], [1.0, 1.0]], dtype=torch.float64))
    whole = similarity(BASIS[:, :6], BASIS[:, :6] @ rotation(6))
    assert whole[-1, -1] == pytest.approx(1.0)
    assert (whole.diagonal()[:-1] < 0.999).all()


def test_signs_mean_nothing_and_sides_may_change():
    U, V = BASIS[:, :5], rotation(D, 3)[:, :7]
    torch.testing.assert_close(similarity(-U, V), similarity(U, V))
    torch.testing.assert_close(similarity(V, U), similarity(U, V).T)
    assert similarity(U, V).shape == (5, 7)


def test_random_spaces_share_max_i_j_of_d_on_average():
    found = torch.stack(
        [similarity(rotation(D, 2 * seed)[:, :4], rotation(D, 2 * seed + 1)[:, :9]) for seed in range(300)]
    )
    i, j = torch.arange(1, 5.0)[:, None], torch.arange(1, 10.0)
    torch.testing.assert_close(found.mean(0), (torch.maximum(i, j) / D).double(), atol=0.02, rtol=0)


# directions -------------------------------------------------------------------------------------


def test_directions_are_those_of_the_columns_space_the_most_important_first():
    found = directions(with_directions((3, 1, 4, 2)), 3)
    assert found.shape == (D, 3)
    torch.testing.assert_close((found.T @ BASIS[:, [3, 1, 4]]).abs(), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("columns", [(0, 1, 2), (7,)])
def test_directions_of_no_singular_value_are_left_out(columns: tuple[int, ...]):
    lower = with_directions(columns) @ torch.randn(
        len(columns), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    assert directions(lower, 64).shape == (D, len(columns))
    twice = torch.cat([with_directions(columns), with_directions(columns)], dim=1)
    assert directions(twice.float(), 64).shape[1] >= len(columns)  # whatever fp32's rounding makes of it
    assert directions(twice, 64).shape == (D, len(columns))


# runs -------------------------------------------------------------------------------------------

PLANTED: dict[str, dict[Where, tuple[int, ...]]] = {
    "few": {(1, "q"): (0, 1), (2, "q"): (2, 3), (1, "v"): (4, 5), (2, "v"): (6, 7)},
    "many": {
        (1, "q"): (0, 1, 9, 8),  # both on top
        (2, "q"): (10, 11, 12, 13),  # nothing
        (1, "v"): (5, 10, 4, 11),  # the second first, the first third
        (2, "v"): (10, 11, 12, 7),  # the second last
    },
}


def put(model: GPT2, factor: str, matrices: dict[Where, Tensor]) -> None:
    for target in {target for _, target in matrices}:
        for block, dense in enumerate(model.denses(target), 1):
            getattr(dense.deltas[target], factor).copy_(matrices[block, target])


def with_inputs(name: str) -> Callable[[GPT2], None]:
    return lambda model: put(model, "A", {where: with_directions(c) for where, c in PLANTED[name].items()})


def opened(*folders: Path) -> tuple[Reopened, Reopened]:
    a, b = (reopen(folder) for folder in folders)
    return a, b


@pytest.fixture
def two(fabricate: Fabricate) -> tuple[Path, Path]:
    return (
        fabricate("method=lora", "method.rank=2", plant=with_inputs("few")),
        fabricate("method=lora", "method.rank=4", plant=with_inputs("many")),
    )


@pytest.mark.parametrize("turned", [False, True])
def test_planted_inputs_of_two_runs(turned: bool, two: tuple[Path, Path]):
    """Whichever is given first, the one of fewer directions is along the rows."""
    found = subspace(opened(*(reversed(two) if turned else two)))
    for (block, target), ours in PLANTED["few"].items():
        expected = overlaps(ours, PLANTED["many"][block, target])
        for row, wanted in zip(phi_of(found, block, target), expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-5)
    summary = grid(found, "similarity")
    assert list(zip(column(summary, "target"), column(summary, "block"), strict=True)) == [
        ("q", "1"), ("q", "2"), ("v", "1"), ("v", "2")
    ]  # fmt: skip
    assert column(summary, "first") == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-5)
    assert column(summary, "all") == pytest.approx([1.0, 0.0, 1.0, 0.5], abs=1e-5)
    assert column(summary, "shared") == [2, 0, 0, 0]  # of phi(i, i) above 0.5: 1, 1; 0, 0; 0, 0.5; 0, 0
    assert found.title == "Directions of A shared by lora r=2 and lora r=4"


def test_the_maps_have_the_values_of_the_table(two: tuple[Path, Path]):
    found = subspace(opened(*two))
    maps = [plot for plot in found.plots if isinstance(plot, HeatMap)]
    assert [one.key for one in maps] == ["phi-q", "phi-v"]
    for one, target in zip(maps, "qv", strict=True):
        whole, corner, random = one.panels
        assert [panel.title for panel in whole] == ["block 1", "block 2"]
        for block, panel in enumerate(whole, 1):
            assert [list(row) for row in panel.values] == [
                pytest.approx(row, abs=1e-4) for row in phi_of(found, block, target)
            ]
            assert (panel.x, panel.y) == (("1", "2", "3", "4"), ("1", "2"))
        for panel, left in zip(whole, corner, strict=True):
            assert left.values == tuple(row[:2] for row in panel.values)
        assert [panel.title for panel in random] == ["random"]
        assert (one.low, one.high) == (0.0, 1.0)


def test_fewer_directions_may_be_looked_at(two: tuple[Path, Path]):
    found = subspace(opened(*two), most=1)
    assert phi_of(found, 1, "q") == [[pytest.approx(1.0, abs=1e-5)]]
    assert len(grid(found, "phi").rows) == 4


def test_random_matrices_follow_from_the_seed(two: tuple[Path, Path]):
    both = opened(*two)
    one, again, other = (grid(subspace(both, seed=seed), "similarity") for seed in (1, 1, 2))
    assert column(one, "chance_first") == column(again, "chance_first")
    assert column(one, "chance_first") != column(other, "chance_first")
    assert all(0 < cast(float, value) < 1 for value in column(one, "chance_all"))
    assert subspace(both, seed=1).name == subspace(both, seed=1).name != subspace(both, seed=2).name


def test_outputs_are_compared_by_their_rows(fabricate: Fabricate):
    """The directions of B (r, d_out) are those of its rows."""

    def with_outputs(name: str) -> Callable[[GPT2], None]:
        return lambda model: put(model, "B", {where: with_directions(c).T for where, c in PLANTED[name].items()})

    two = (
        fabricate("method=lora", "method.rank=2", plant=with_outputs("few")),
        fabricate("method=loda", plant=with_outputs("many")),
    )
    found = subspace(opened(*two), matrix="B")
    for where, ours in PLANTED["few"].items():
        for row, wanted in zip(phi_of(found, *where), overlaps(ours, PLANTED["many"][where]), strict=True):
            assert row == pytest.approx(wanted, abs=1e-5)
    assert "start_first" not in [one.key for one in grid(found, "similarity").columns]


def test_changes_are_compared_in_the_inputs_whatever_made_them(fabricate: Fabricate):
    """A product's and a fine-tuned weight's."""

    def factors(model: GPT2) -> None:
        """dW = s A B with orthonormal B: its directions are A's."""
        put(model, "A", {where: with_directions(c) for where, c in PLANTED["few"].items()})
        put(model, "B", dict.fromkeys(PLANTED["few"], rotation(D, 8)[:2]))

    def weights(model: GPT2) -> None:
        for block, dense in enumerate(model.denses("q"), 1):
            for target in "qv":
                added = with_directions(PLANTED["many"][block, target]) @ rotation(D, 9)[:4]
                dense.base.get_parameter(target).add_(0.01 * added)  # type: ignore[union-attr]

    two = fabricate("method=lora", "method.rank=2", plant=factors), fabricate("method=ft-qv", plant=weights)
    found = subspace(opened(*two), matrix="dW", most=4)
    for where, ours in PLANTED["few"].items():
        phi = phi_of(found, *where)
        for row, wanted in zip(phi, overlaps(ours, PLANTED["many"][where]), strict=False):
            assert row[:4] == pytest.approx(wanted, abs=1e-3)


def test_the_change_of_a_product_has_as_many_directions_as_its_rank(fabricate: Fabricate):
    """The weight and the sum are fp32, and what rounding leaves of them is no direction."""

    def factors(model: GPT2) -> None:
        put(model, "A", {where: with_directions(c) for where, c in PLANTED["few"].items()})
        put(model, "B", dict.fromkeys(PLANTED["few"], rotation(D, 8)[:2]))

    folder = fabricate("method=lora", "method.rank=2", plant=factors)
    found = subspace(opened(folder, folder), matrix="dW")
    assert {len(phi_of(found, *where)) for where in PLANTED["few"]} == {2}


def test_runs_of_one_seed_and_rank_began_alike(fabricate: Fabricate):
    one = fabricate("method=lora", plant=with_inputs("many"))
    other = fabricate("method=lora", "train.epochs=7", "method.dropout=0")
    summary = grid(subspace(opened(one, other)), "similarity")
    assert column(summary, "start_first") == pytest.approx([1.0] * 4, abs=1e-9)
    assert column(summary, "start_all") == pytest.approx([1.0] * 4, abs=1e-9)
    assert all(cast(float, value) < 0.9 for value in column(summary, "all"))  # as they ended


def test_runs_of_other_seeds_began_apart_and_one_that_was_not_trained_is_where_it_began(fabricate: Fabricate):
    one, other = fabricate("method=lora"), fabricate("method=lora", "seed=2")
    summary = grid(subspace(opened(one, other)), "similarity")
    assert column(summary, "start_first") == column(summary, "first")
    assert column(summary, "start_all") == column(summary, "all")
    assert all(cast(float, value) < 0.9 for value in column(summary, "start_all"))


def test_targets_of_one_run_alone_are_left_out(fabricate: Fabricate):
    one = fabricate("method=lora", "method.targets=[q,v]")
    other = fabricate("method=lora", "method.targets=[v,o]")
    assert column(grid(subspace(opened(one, other)), "similarity"), "target") == ["v", "v"]


def test_the_same_run_twice_is_told_apart(fabricate: Fabricate):
    folder = fabricate("method=lora", plant=with_inputs("many"))
    found = subspace(opened(folder, folder))
    assert found.title == "Directions of A shared by lora r=4 1 and lora r=4 2"
    assert column(grid(found, "similarity"), "all") == pytest.approx([1.0] * 4)


# refusals ---------------------------------------------------------------------------------------


def fault(*folders: Path, **options: object) -> str:
    with pytest.raises(BadInput) as e:
        subspace(opened(*folders), **options)  # type: ignore[arg-type]
    (line,) = e.value.faults
    assert "\n" not in line
    return line


def test_runs_without_a_common_target(fabricate: Fabricate):
    one = fabricate("method=lora", "method.targets=[q]")
    other = fabricate("method=lora", "method.targets=[v,o]")
    assert fault(one, other) == (
        f"{one.name} has A in q, {other.name} in v, o: nothing to compare; give runs with the same targets"
    )


def test_a_method_that_stands_beside_no_weight(fabricate: Fabricate):
    lora, bitfit = fabricate("method=lora"), fabricate("method=bitfit")
    assert fault(lora, bitfit) == (
        f"{bitfit.name}: bitfit changed no weight matrix and stands beside none, so there is nothing to analyse; give "
        "runs of methods that do"
    )


def test_a_method_without_factors(fabricate: Fabricate):
    def change(model: GPT2) -> None:
        next(model.denses("q")).weight.add_(1.0)

    lora, ft = fabricate("method=lora"), fabricate("method=ft", plant=change)
    assert fault(lora, ft) == f"{ft.name}: ft has no A that is not zero; it has dW (--matrix)"


def test_factors_that_were_not_trained(fabricate: Fabricate):
    one, other = fabricate("method=lora"), fabricate("method=lora", "seed=2")
    assert fault(one, other, matrix="B").startswith(f"{one.name}: lora has no B that is not zero; it has A")


def test_what_is_named_instead_can_be_had(fabricate: Fabricate):
    """A matrix that is zero everywhere is no way out."""
    one, other = fabricate("method=lora"), fabricate("method=lora", "seed=2")
    for matrix in ("B", "dW"):
        named = fault(one, other, matrix=matrix).partition("it has ")[2].removesuffix(" (--matrix)")
        assert named == "A"


def test_runs_of_other_base_models(fabricate: Fabricate, tiny_model: Path, tmp_path: Path):
    import shutil

    from lodarepro.model import weights
    from lodarepro.reopen import reopen

    lora = fabricate("method=lora")
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    (cell,) = [reopen(lora).run]
    base = weights.find(cell.model)
    assert base is not None
    net = weights.load(base, cell.model)
    with torch.no_grad():
        net.ln_f.bias.add_(1.0)
    weights.save(net, weights.load_tokenizer(base), other)
    moved = fabricate("method=lora", f"model.path={other}")
    said = fault(lora, moved)
    assert said.startswith(
        f"{lora.name} is of gpt2-nano (weights sha256 {base.sha256[:12]}), {moved.name} of gpt2-nano ("
    )
    assert said.endswith("); give runs of one base model")
