"""Tokens to batches: what is input, what is target, in which order (protocol sections 1 and 2)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lodarepro.data.tokenise import Encoded
from lodarepro.seeds import derived_seed

PAD = 0  # the original pads with id 0; no position that counts ever sees it
FILLER_SEED = 911  # the original draws its filler rows from random.Random(911)


@dataclass(frozen=True)
class Batch:
    """B sequences, padded on the right to T tokens; N of the B T places hold tokens, M of them carry loss.

    Attributes:
        inputs: (B, T) int64.
        targets: (B, T) int64, the inputs shifted left by one.
        mask: (B, T) bool, True where the target counts in the loss.
        slots: (N,) int64, the places that hold tokens, row after row: row * T + column.
        counted: (M,) int64, the places of the N whose target counts.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    slots: Tensor
    counted: Tensor

    @property
    def rows(self) -> int:
        """B."""
        return self.inputs.shape[0]

    @property
    def width(self) -> int:
        """T."""
        return self.inputs.shape[1]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; to a GPU in one copy from pinned memory, which runs beside the work there."""
        if device.type == "cpu":
            return self
        tensors = (self.inputs, self.targets, self.mask.long(), self.slots, self.counted)
        flat = torch.cat([t.flatten() for t in tensors]).pin_memory().to(device, non_blocking=True)
        parts = zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)
        inputs, targets, mask, slots, counted = (part.view(t.shape) for part, t in parts)
        return Batch(inputs, targets, mask.bool(), slots, counted)


def collate(
    data: Encoded,
    rows: Sequence[int],
    *,
    max_length: int,
    loss_on: str = "completion",
    width: int | None = None,
    multiple: int = 1,
) -> Batch:
    """Lay out some pairs as one batch.

    A sequence keeps its first `max_length` tokens; a target counts if it is a token of the
    completion (`loss_on="all"`: any token but a method's own, whose ids are below 0) among those.

    Args:
        data: the tokenised split.
        rows: which pairs, in which order.
        max_length: tokens.
        loss_on: `completion` or `all`.
        width: T; None: the longest of these sequences. (The original pads to `max_length`; causal
            attention makes the result the same.)
        multiple: T is rounded up to a multiple of this, for kernels that are made for one shape.
    """
    sequences = [data.sequence(row)[:max_length] for row in rows]
    lengths = np.array([len(s) for s in sequences])
    if width is None:
        width = -(-int(lengths.max()) // multiple) * multiple
    columns = np.arange(width)
    real = columns < lengths[:, None]
    inputs = np.full(real.shape, PAD, dtype=np.int64)
    targets = np.full(real.shape, PAD, dtype=np.int64)
    inputs[real] = np.concatenate(sequences)
    # Of a cut sequence the token after the last is known: a target, though one that does not count.
    shifted = [data.sequence(row)[1 : max_length + 1] for row in rows]
    targets[columns < np.array([len(s) for s in shifted])[:, None]] = np.concatenate(shifted)
    firsts = data.contexts[list(rows)][:, None] - 1 if loss_on == "completion" else 0
    mask = (columns >= firsts) & (columns < lengths[:, None] - 1) & (targets >= 0)
    slots = np.flatnonzero(real)
    counted = np.flatnonzero(mask.ravel()[slots])
    return Batch(*(torch.from_numpy(array) for array in (inputs, targets, mask, slots, counted)))


def prompt(context: Sequence[int], *, max_length: int, max_new_tokens: int) -> list[int]:
    """What of a context is given to the search: its last `max_length - max_new_tokens` tokens.

    A method's own tokens before it, whose ids are below 0, stay: they count, but what is cut stands after them.
    """
    own = next(i for i, token in enumerate(context) if token >= 0)  # a context has its separator at least
    surplus = max(0, len(context) - (max_length - max_new_tokens))
    return [*context[:own], *context[own + surplus :]]


def steps_an_epoch(n: int, batch_size: int) -> int:
    """Batches of one pass over n pairs."""
    return -(-n // batch_size)


def epoch_order(n: int, epoch: int, *, batch_size: int, seed: int, shuffle: bool, fill: bool) -> npt.NDArray[np.int64]:
    """The rows of one epoch, batch after batch.

    With `fill`, the split's length is rounded up to whole batches and each surplus index is replaced
    by a row drawn at random when its turn comes, as the original does.

    Args:
        n: pairs in the split.
        epoch: counted from 0.
        batch_size: pairs a batch.
        seed: of the run; each epoch has a generator of its own, so that a resumed run needs no state.
        shuffle: False keeps the order of the file.
        fill: round up; else the last batch is smaller.
    """
    length = steps_an_epoch(n, batch_size) * batch_size if fill else n
    if shuffle:
        generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
        order = torch.randperm(length, generator=generator).numpy()
    else:
        order = np.arange(length)
    filler = random.Random(FILLER_SEED)
    surplus = length - n
    drawn = [filler.randint(0, n - 1) for _ in range((epoch + 1) * surplus)][epoch * surplus :]
    order[order >= n] = drawn
    return order
