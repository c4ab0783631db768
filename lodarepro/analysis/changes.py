"""What a finished run changed in each dense layer: the matrix dW, or a delta that no matrix can stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lodarepro.errors import BadInput
from lodarepro.model import weights
from lodarepro.model.gpt2 import GPT2, Block, Dense
from lodarepro.reopen import Reopened

Where = tuple[int, str]
"""block, counted from 1, and target"""


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
    def where(self) -> Where:
        """Block and target."""
        return self.block, self.target

    def factor(self, name: Literal["A", "B"]) -> Tensor | None:
        """A (d_in, r) or B (r, d_out) of a delta x -> ... x A ... B; None: it has no matrix of that name and shape."""
        found = getattr(self.delta, name, None)
        if not isinstance(found, Tensor) or found.ndim != 2:
            return None
        fits = found.shape[0] == self.W.shape[0] if name == "A" else found.shape[1] == self.W.shape[1]
        return found.detach() if fits else None

    @property
    def rank(self) -> int | None:
        """The rank r of a delta that has factors."""
        A = self.factor("A")
        return None if A is None else int(A.shape[1])


def deltas(model: GPT2) -> Iterator[tuple[Where, nn.Module]]:
    """Where each delta is, and itself."""
    for block, of_block in enumerate(_blocks(model), start=1):
        for dense in of_block.denses():
            for target, delta in dense.deltas.items():
                yield (block, target), delta


@torch.no_grad()
def changes(model: GPT2, plain: GPT2) -> list[Change]:
    """What is different in a model's dense layers, block after block.

    Args:
        model: with what was trained, on the CPU.
        plain: the same base model without.

    Raises:
        BadInput: a delta of a user's own can't be merged as it says.
    """
    found = []
    for block, (ours, pretrained) in enumerate(zip(_blocks(model), _blocks(plain), strict=True), start=1):
        for dense, before in zip(ours.denses(), pretrained.denses(), strict=True):
            weight = _effective(dense)
            trained = any(
                p.requires_grad for name, p in dense.named_parameters() if name == "weight" or name.startswith("base.")
            )
            for target, columns in dense.slices.items():
                now, W0 = weight[:, columns].double(), before.weight[:, columns].double()
                W = W0 if trained else now
                if target in dense.deltas:
                    delta = dense.deltas[target]
                    merged = _merged(delta, now, f"the delta of {target} in block {block}")
                    found.append(Change(block, target, W, None if merged is None else merged - W, delta))
                elif trained and not torch.equal(now, W0):
                    found.append(Change(block, target, W, now - W, None))
    return found


def _merged(delta: nn.Module, weight: Tensor, what: str) -> Tensor | None:
    """A weight with a delta folded in; None: that can't be.

    In fp64, as what rounding a sum to fp32 leaves would pass for directions.
    """
    merge = cast(Callable[[Tensor], Tensor] | None, getattr(delta, "merged", None))
    if merge is None:
        return None
    try:
        merged = cast(Any, copy.deepcopy(delta).double()).merged(weight)
    except RuntimeError as e:
        raise BadInput(f"{what} can't be merged ({str(e).splitlines()[0]})") from None
    if merged.shape != weight.shape:
        raise BadInput(
            f"{what} merges a weight {tuple(weight.shape)} to {tuple(merged.shape)}; their shapes must agree"
        )
    return cast(Tensor, merged)


def _blocks(model: GPT2) -> Sequence[Block]:
    return cast(Sequence[Block], model.h)


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
    for change in found:
        of_delta = () if change.delta is None else change.delta.parameters()
        of_matrices = () if change.added is None else (change.added,)
        if not all(bool(tensor.isfinite().all()) for tensor in (*of_delta, *of_matrices)):
            raise BadInput(
                f"{opened.record.id}: what it trained for {change.target} in block {change.block} is no number: its "
                "training diverged"
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
