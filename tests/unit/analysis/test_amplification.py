"""What is amplified, by hand; how far from linear a delta is, of maps whose answer is known."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from lodarepro.analysis import amplification as subject
from lodarepro.analysis.amplification import Amplification, amplification
from lodarepro.analysis.subspace import Frames
from lodarepro.errors import BadInput
from lodarepro.findings import Curves, Findings, Grid, HeatMap
from lodarepro.methods.lora import DoraDelta, LoraDelta
from lodarepro.model import GPT2, weights
from lodarepro.reopen import reopen
from tests.planted import DECODED, D, generator, randn

Fabricate = Callable[..., Path]


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix))


# one matrix -------------------------------------------------------------------------------------

SIGMAS = torch.tensor([9.0, 7.0, 5.0, 3.0, 1.0], dtype=torch.float64)
UNITS = torch.linalg.qr(randn(6, 6, seed=1)).Q, torch.linalg.qr(randn(5, 5, seed=2)).Q
W = UNITS[0][:, :5] @ torch.diag(SIGMAS) @ UNITS[1].T  # (6, 5)


def along(*places: int, sizes: tuple[float, ...] = (2.0, 1.0, 0.5)) -> Tensor:
    """A change along singular directions of W, the first the greatest."""
    return sum((s * torch.outer(UNITS[0][:, i], UNITS[1][:, i]) for s, i in zip(sizes, places, strict=False)),
               start=torch.zeros(6, 5, dtype=torch.float64))  # fmt: skip


@pytest.mark.parametrize("place", range(5))
def test_a_change_along_one_direction_amplifies_by_its_share(place: int):
    found = Amplification.of(Frames(W), Frames(along(place)), 1, generator())
    assert (found.dW, found.W) == (pytest.approx(2.0), pytest.approx(165**0.5))
    assert found.from_dW == pytest.approx(float(SIGMAS[place]))
    assert found.from_W == pytest.approx(9.0)
    assert found.factor == pytest.approx(2.0 / float(SIGMAS[place]))


@pytest.mark.parametrize(("r", "from_dW", "from_W"), [(1, 3.0, 9.0), (2, 34**0.5, 130**0.5), (3, 35**0.5, 155**0.5)])
def test_of_several_directions_the_top_ones_count(r: int, from_dW: float, from_W: float):
    found = Amplification.of(Frames(W), Frames(along(3, 2, 4)), r, generator())
    assert (found.from_dW, found.from_W) == (pytest.approx(from_dW), pytest.approx(from_W))
    assert found.dW == pytest.approx((4 + 1 + 0.25) ** 0.5)  # the whole change, not its top


def test_the_random_directions_are_as_a_random_matrix_has_them():
    """U and V uniform: the mean of ||U' W V'||^2 is r^2 ||W||^2 / (d_in d_out)."""
    of_W, of_dW = Frames(W), Frames(along(0))
    squares = [Amplification.of(of_W, of_dW, 2, generator(seed)).from_random ** 2 for seed in range(400)]
    assert sum(squares) / 400 == pytest.approx(4 * 165 / 30, rel=0.15)
    one, again = (Amplification.of(of_W, of_dW, 2, generator(3)).from_random for _ in range(2))
    assert one == again


def test_all_directions_hold_all_of_the_weight():
    found = Amplification.of(Frames(W), Frames(randn(6, 5)), 5, generator())
    assert found.from_W == pytest.approx(found.W)


# runs -------------------------------------------------------------------------------------------


def grid(found: Findings, key: str) -> Grid:
    return next(one for one in found.grids if one.key == key)


def rows(found: Findings) -> list[dict[str, object]]:
    of = grid(found, "amplification-blocks")
    return [dict(zip((column.key for column in of.columns), row, strict=True)) for row in of.rows]


def frozen(folder: Path) -> GPT2:
    opened = reopen(folder)
    return weights.load(opened.base, opened.run.model)


def slice_of(model: GPT2, target: str, block: int) -> Tensor:
    (dense) = list(model.denses(target))[block - 1]
    return dense.weight[:, dense.slices[target]].detach().double()


def check(row: dict[str, object], weight: Tensor, dW: Tensor, r: int, rel: float = 1e-4) -> None:
    """The figures of a row, by SVDs of our own."""
    U, _, Vh = torch.linalg.svd(dW)
    WU, _, WVh = torch.linalg.svd(weight)
    from_dW, from_W = norm(U[:, :r].T @ weight @ Vh[:r].T), norm(WU[:, :r].T @ weight @ WVh[:r].T)
    assert row["r"] == r
    assert [row[key] for key in ("W", "dW", "from_dW", "from_W", "factor")] == pytest.approx(
        [norm(weight), norm(dW), from_dW, from_W, norm(dW) / from_dW], rel=rel
    )


def with_outputs(model: GPT2) -> None:
    """Numbers in place of the zeros that B starts from."""
    for i, (name, p) in enumerate(model.named_parameters()):
        if name.endswith(".B"):
            p.copy_(0.05 * randn(*p.shape, seed=i))


def test_a_lora_runs_change_is_its_product(fabricate: Fabricate):
    folder = fabricate("method=lora", "method.rank=3", "method.alpha=6", "method.targets=[q,down]", plant=with_outputs)
    found = amplification([reopen(folder)])
    model = reopen(folder).model()
    assert [(row["target"], row["block"]) for row in rows(found)] == [
        ("q", "1"),
        ("down", "1"),
        ("q", "2"),
        ("down", "2"),
    ]
    for row in rows(found):
        target, block = str(row["target"]), int(str(row["block"]))
        delta = list(model.denses(target))[block - 1].deltas[target]
        assert isinstance(delta, LoraDelta)
        dW = 2.0 * (delta.A @ delta.B).detach().double()  # alpha / rank
        check(row, slice_of(frozen(folder), target, block), dW, 3)
        assert (row["not_linear_per_cent"], row["spread_per_cent"]) == (0.0, 0.0)


def test_planted_directions_of_a_weight_give_the_factor_exactly(fabricate: Fabricate):
    """dW = c u v' along the i-th singular directions of W: c / sigma_i."""
    c, place = 3.0, 4
    sigmas: list[float] = []

    def plant(model: GPT2) -> None:
        for dense in model.denses("v"):
            U, S, Vh = torch.linalg.svd(dense.weight[:, dense.slices["v"]])
            dense.deltas["v"].A.copy_(U[:, place : place + 1])  # type: ignore[operator]
            dense.deltas["v"].B.copy_(c * Vh[place : place + 1])  # type: ignore[operator]
            sigmas.append(float(S[place]))

    folder = fabricate("method=lora", "method.rank=1", "method.alpha=1", "method.targets=[v]", plant=plant)
    found = amplification([reopen(folder)])
    assert [row["factor"] for row in rows(found)] == pytest.approx([c / sigma for sigma in sigmas], rel=1e-4)
    assert [row["from_dW"] for row in rows(found)] == pytest.approx(sigmas, rel=1e-4)
    (line,) = next(plot for plot in found.plots if isinstance(plot, Curves)).lines
    assert (line.label, line.x) == ("lora r=1, v", (1.0, 2.0))
    assert line.y == pytest.approx([c / sigma for sigma in sigmas], rel=1e-4)
    (means,) = grid(found, "amplification").rows
    assert means[:3] == ("lora r=1", "v", 1)
    assert means[8] == pytest.approx(2 * c / sum(sigmas), rel=1e-4)  # of the means
    (drawn,) = (plot for plot in found.plots if isinstance(plot, HeatMap))
    (panel, random) = drawn.panels[0]
    # dW's only direction is the fifth of W's: from i = 5 on it is among them.
    assert [value for (value,) in panel.values] == pytest.approx([0.0] * place + [1.0] * (D - place), abs=1e-3)
    assert (panel.title, random.title) == ("lora r=1", "random")


def zero_hidden(model: GPT2) -> None:
    """LoDA without its hidden layers is LoRA: f1 = 0."""
    with_outputs(model)
    for name, p in model.named_parameters():
        if ".matrices." in name:
            p.zero_()


def test_loda_without_hidden_layers_is_linear(fabricate: Fabricate):
    folder = fabricate("method=loda", "method.rank=3", "method.alpha=6", plant=zero_hidden, decoded=DECODED)
    found = amplification([reopen(folder)], tokens=2000, jacobians=16)
    model = reopen(folder).model()
    assert len(rows(found)) == 4
    for row in rows(found):
        target, block = str(row["target"]), int(str(row["block"]))
        delta = list(model.denses(target))[block - 1].deltas[target]
        dW = 2.0 * (delta.A @ delta.B).detach().double()  # type: ignore[operator]
        check(row, slice_of(frozen(folder), target, block), dW, 3)
        assert row["spread_per_cent"] == pytest.approx(0.0, abs=1e-7)
        assert row["not_linear_per_cent"] == pytest.approx(0.0, abs=1e-7)


def test_loda_is_not(fabricate: Fabricate):
    folder = fabricate("method=loda", plant=with_outputs, decoded=DECODED)
    found = amplification([reopen(folder)], tokens=2000, jacobians=16)
    for row in rows(found):
        assert cast(float, row["spread_per_cent"]) > 1.0
        assert cast(float, row["not_linear_per_cent"]) > 1.0
    assert any("at 16 test inputs" in note for note in found.notes)
    again = amplification([reopen(folder)], tokens=2000, jacobians=16)
    assert again.grids == found.grids  # its choices follow from the seed


@pytest.mark.parametrize("texts", [1, 2])
def test_few_texts_will_do_or_are_refused(texts: int, fabricate: Fabricate):
    folder = fabricate("method=loda", plant=with_outputs, decoded=DECODED[:texts])
    if texts == 2:
        assert len(rows(amplification([reopen(folder)], jacobians=4))) == 4
        return
    with pytest.raises(BadInput) as e:
        amplification([reopen(folder)], jacobians=4)
    assert len(e.value.faults) == 1


@pytest.mark.parametrize("method", ["ft-qv", "ft"])
def test_of_weights_that_trained_the_difference_is_the_change(method: str, fabricate: Fabricate):
    added = 0.02 * randn(D, D, seed=3)

    def plant(model: GPT2) -> None:
        dense = list(model.denses("v"))[1]
        if method == "ft":
            dense.weight[:, dense.slices["v"]] += added
        else:
            dense.base.get_parameter("v").add_(added)  # type: ignore[union-attr]

    folder = fabricate(f"method={method}", plant=plant)
    found = amplification([reopen(folder)])
    (row,) = rows(found)  # what did not change is left out
    assert (row["target"], row["block"]) == ("v", "2")
    check(row, slice_of(frozen(folder), "v", 2), added, subject.DIRECTIONS, rel=1e-3)
    (row,) = rows(amplification([reopen(folder)], r=7))
    check(row, slice_of(frozen(folder), "v", 2), added, 7, rel=1e-3)


def test_beside_an_approximation_the_weight_is_what_stands_there(fabricate: Fabricate):
    folder = fabricate("method=r-lora", "method.base.rank=5", plant=with_outputs)
    found = amplification([reopen(folder)])
    for row in rows(found):
        target, block = str(row["target"]), int(str(row["block"]))
        whole = list(frozen(folder).denses("q"))[block - 1]
        U, S, Vh = torch.linalg.svd(whole.weight.detach().double(), full_matrices=False)
        approximated = (U[:, :5] * S[:5] @ Vh[:5])[:, whole.slices[target]]
        delta = list(reopen(folder).model().denses(target))[block - 1].deltas[target]
        dW = 8.0 * (delta.A @ delta.B).detach().double()  # type: ignore[operator]
        check(row, approximated, dW, 4, rel=1e-3)


def test_doras_change_is_of_magnitude_and_direction(fabricate: Fabricate):
    def plant(model: GPT2) -> None:
        with_outputs(model)
        for name, p in model.named_parameters():
            if name.endswith(".magnitude"):
                p.mul_(1.5)

    folder = fabricate("method=lora", "method.dora=true", "method.targets=[q]", plant=plant)
    found = amplification([reopen(folder)])
    for row in rows(found):
        block = int(str(row["block"]))
        weight = slice_of(frozen(folder), "q", block)
        delta = list(reopen(folder).model().denses("q"))[block - 1].deltas["q"]
        assert isinstance(delta, DoraDelta)
        direction = weight + 8.0 * (delta.A @ delta.B).detach().double()
        magnitude = delta.magnitude.detach().double()
        check(row, weight, direction * (magnitude / direction.norm(dim=0)) - weight, 4, rel=1e-3)


def test_more_directions_than_there_are(fabricate: Fabricate):
    folder = fabricate("method=lora", plant=with_outputs)
    found = amplification([reopen(folder)], r=1000)
    assert {row["r"] for row in rows(found)} == {D}


def test_a_delta_that_nothing_trained_is_left_out(fabricate: Fabricate):
    def plant(model: GPT2) -> None:
        next(model.denses("q")).deltas["q"].B.fill_(0.1)  # type: ignore[operator]

    found = amplification([reopen(fabricate("method=lora", plant=plant))])
    assert [(row["target"], row["block"]) for row in rows(found)] == [("q", "1")]


def test_several_runs_stand_side_by_side(fabricate: Fabricate):
    folders = [
        fabricate("method=lora", "method.rank=2", plant=with_outputs),
        fabricate("method=lora", plant=with_outputs),
        fabricate("method=loda", "method.targets=[v]", plant=with_outputs, decoded=DECODED),
    ]
    found = amplification([reopen(folder) for folder in folders], tokens=300, jacobians=4)
    assert [row[:3] for row in grid(found, "amplification").rows] == [
        ("lora r=2", "q", 2), ("lora r=2", "v", 2), ("lora r=4", "q", 4), ("lora r=4", "v", 4), ("loda r=4", "v", 4)
    ]  # fmt: skip
    of_q, of_v = (plot for plot in found.plots if isinstance(plot, HeatMap))
    assert [panel.title for panel in of_q.panels[0]] == ["lora r=2", "lora r=4", "random"]
    assert [panel.title for panel in of_v.panels[0]] == ["lora r=2", "lora r=4", "loda r=4", "random"]


def test_means_are_over_the_blocks(fabricate: Fabricate):
    found = amplification([reopen(fabricate("method=lora", "method.targets=[q]", plant=with_outputs))])
    (means,) = grid(found, "amplification").rows
    keys = [column.key for column in grid(found, "amplification").columns]
    for key in ("W", "dW", "from_dW", "from_W", "from_random"):
        assert means[keys.index(key)] == pytest.approx(sum(cast(float, row[key]) for row in rows(found)) / 2)


def test_the_papers_table_stands_below(fabricate: Fabricate):
    found = amplification([reopen(fabricate("method=lora", plant=with_outputs))])
    assert grid(found, "print").rows == (
        (4, 61.95, 6.91, 0.32, 21.67, 0.02, pytest.approx(21.59375)),  # the paper: 21.5
        (64, 61.95, 3.57, 1.90, 37.71, 0.33, pytest.approx(1.878947)),
    )


# refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bitfit", "prefix-layer", "adapter-l"])
def test_methods_that_stand_beside_no_weight(method: str, fabricate: Fabricate):
    folder = fabricate(f"method={method}")
    with pytest.raises(BadInput) as e:
        amplification([reopen(folder)])
    assert e.value.faults == (
        f"{folder.name}: {method} changed no weight matrix and stands beside none, so there is nothing to analyse; "
        "give runs of methods that do",
    )


def test_a_run_that_changed_nothing(fabricate: Fabricate):
    """Its deltas are there, and all zero."""
    folder = fabricate("method=lora")
    with pytest.raises(BadInput) as e:
        amplification([reopen(folder)])
    (fault,) = e.value.faults
    assert fault.startswith(f"{folder.name}: ")


def test_a_change_where_the_weight_has_nothing():
    """||U'WV'|| = 0: there is no factor, and no ZeroDivisionError."""
    found = Amplification.of(
        Frames(torch.diag(SIGMAS)), Frames(torch.outer(torch.eye(5)[0], torch.eye(5)[1]).double()), 1, generator()
    )
    assert found.from_dW == 0.0
    assert found.factor in (None, math.inf)
