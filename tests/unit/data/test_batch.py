"""What a batch says of its tokens: which places hold some, and which of those carry loss."""

from typing import Any

import numpy as np
import pytest
import torch

from lodarepro.data.batch import PAD, collate
from lodarepro.data.tokenise import Encoded

R = np.random.default_rng(0)
PAIRS = [
    (R.integers(1, 50, R.integers(1, 12)).tolist(), R.integers(1, 50, R.integers(1, 12)).tolist()) for _ in range(20)
]
PAIRS += [([-1, -2, 5, 6, -3], [7, 8]), ([9] * 30, [1, 2]), ([3], [4] * 40)]  # a method's tokens; pairs that are cut
DATA = Encoded.of(PAIRS)
ROWS = [3, 22, 0, 20, 21, 3]


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize("layout", [{}, {"width": 40}, {"multiple": 8}, {"multiple": 32}])
@pytest.mark.parametrize("rows", [ROWS, [5], [21]])
def test_places_of_tokens_and_of_those_that_count(loss_on: str, layout: dict[str, Any], rows: list[int]):
    batch = collate(DATA, rows, max_length=16, loss_on=loss_on, **layout)
    places, counted = [], []
    for row, i in enumerate(rows):
        context, completion = PAIRS[i]
        whole = [*context, *completion]
        kept = whole[:16]
        assert batch.inputs[row].tolist() == [*kept, *[PAD] * (batch.width - len(kept))]
        for column in range(len(kept)):
            places.append(row * batch.width + column)
            inside = column + 1 < len(kept)
            if inside:
                assert batch.targets[row, column] == whole[column + 1]
            if inside and (column + 1 >= len(context) if loss_on == "completion" else whole[column + 1] >= 0):
                counted.append(len(places) - 1)
    assert batch.slots.tolist() == places
    assert batch.counted.tolist() == counted
    assert (batch.rows, batch.width) == tuple(batch.inputs.shape)
    # The mask says the same.
    assert torch.equal(batch.mask.flatten().nonzero()[:, 0], batch.slots[batch.counted])


@pytest.mark.parametrize(("multiple", "width"), [(1, 11), (4, 12), (8, 16), (11, 11), (32, 32)])
def test_a_width_is_rounded_up(multiple: int, width: int):
    data = Encoded.of([([1] * 5, [2] * 6), ([1], [2])])
    assert collate(data, [0, 1], max_length=64, multiple=multiple).width == width


def test_a_batch_on_a_device_has_all_of_it():
    batch = collate(DATA, ROWS, max_length=16)
    other = batch.to(torch.device("cpu"))
    for name in ("inputs", "targets", "mask", "slots", "counted"):
        assert torch.equal(getattr(other, name), getattr(batch, name))
