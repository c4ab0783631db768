"""What a finished run changed in each dense layer: the matrix dW, or a delta that no matrix can stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lodarepro.errors import BadInput
from lodarepro.model import weights
from lodarepro.model.gpt2 import GPT2, Block, Dense
from lodarepro.reopen import Reopened


@dataclass(frozen=True)
class Change:
    """What a run did to one slice of a dense layer.

    Attributes:
        block: counted from 1, the lowest.
        target: the slice: q, k, v, o, up or down.
        W: (d_in, d_out) fp64, the frozen weight or what stands for it; of a weight that trained, the pretrained one.
        added: dW (d_in, d_out) fp64; None: no matrix can say what `delta` does.
        delta: the module beside it; None: the weight itself trained.
    """

    block: int
    target: str
    W: Tensor
    added: Tensor | None
    delta: nn.Module | None

    @property
    def where(self) -> tuple[int, str]:
        """Block and target."""
        return self.block, self.target

    @property
    def rank(self) -> int | None:
        """The rank r of a delta that has factors."""
        A = getattr(self.delta, "A", None)
        return int(A.shape[1]) if isinstance(A, Tensor) else None


@torch.no_grad()
def changes(model: GPT2, plain: GPT2) -> list[Change]:
    """What is different in a model's dense layers, block after block.

    Args:
        model: with what was trained, on the CPU.
        plain: the same base model without.
    """
    found = []
    for block, (ours, pretrained) in enumerate(zip(_blocks(model), _blocks(plain), strict=True), start=1):
        for dense, before in zip(ours.denses(), pretrained.denses(), strict=True):
            weight = _effective(dense)
            trained = any(
                p.requires_grad for name, p in dense.named_parameters() if name == "weight" or name.startswith("base.")
            )
            for target, columns in dense.slices.items():
                W, W0 = weight[:, columns].double(), before.weight[:, columns].double()
                if target in dense.deltas:
                    delta = dense.deltas[target]
                    # In fp64, as what rounding a sum to fp32 leaves would pass for directions.
                    merged = cast(Callable[[Tensor], Tensor] | None, getattr(_fp64(delta), "merged", None))
                    added = None if merged is None else merged(W) - W
                    found.append(Change(block, target, W, added, delta))
                elif trained and not torch.equal(W, W0):
                    found.append(Change(block, target, W0, W - W0, None))
    return found


def _blocks(model: GPT2) -> Sequence[Block]:
    return cast(Sequence[Block], model.h)


def _fp64(delta: nn.Module) -> nn.Module:
    return copy.deepcopy(delta).double()


def _effective(dense: Dense) -> Tensor:
    """The matrix (d_in, d_out) that a layer multiplies by, deltas aside."""
    return dense.weight if dense.base is None else cast(Tensor, dense.base(torch.eye(dense.d_in)))


def of_run(opened: Reopened) -> tuple[GPT2, list[Change]]:
    """A finished run's model, and what the run changed in it.

    Raises:
        BadInput: nothing in a dense layer, or the adapter or base model is not readable.
    """
    model = opened.model()
    found = changes(model, weights.load(opened.base, opened.run.model))
    if not found:
        raise BadInput(
            f"{opened.record.id}: {opened.run.method.name} changed no weight matrix and stands beside none, so there "
            "is nothing to analyse; give runs of methods that do"
        )
    return model, found


def check_same_base(opened: Sequence[Reopened]) -> None:
    """Refuse runs whose matrices have nothing to do with each other.

    Raises:
        BadInput: they are of different base models.
    """
    first = opened[0]
    for other in opened[1:]:
        if other.base.sha256 != first.base.sha256:
            raise BadInput(
                f"{first.record.id} is of {first.run.model.name} (weights sha256 {first.base.sha256[:12]}), "
                f"{other.record.id} of {other.run.model.name} ({other.base.sha256[:12]}); give runs of one base model"
            )


def described(opened: Sequence[Reopened]) -> list[dict[str, str]]:
    """Runs as the settings of an analysis name them."""
    return [
        {"run": one.record.id, "adapter": one.adapter.name, "adapter_sha256": weights.sha256_of(one.adapter)}
        for one in opened
    ]
