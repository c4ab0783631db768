"""Loss and gradient of one step: which tokens go where, in which arithmetic, in how many pieces.

Letters: B pairs a step, N tokens, M tokens that carry loss, d width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lodarepro import config
from lodarepro.data.batch import Batch, collate
from lodarepro.data.tokenise import Encoded
from lodarepro.distributed import ALONE, Processes
from lodarepro.errors import RunFailed
from lodarepro.methods import trained
from lodarepro.model import GPT2
from lodarepro.model.gpt2 import Packing, take
from lodarepro.precision import Arithmetic
from lodarepro.train.loss import vocabulary_loss

logger = logging.getLogger(__name__)

DENOMINATOR_EPS = 1e-4  # the original divides by the token count plus this
WIDTH_MULTIPLE = 32  # tokens; compiled kernels are made for one width each
WIDTHS = 32  # as many as 1,024 tokens have


Forward = Callable[[Tensor], Tensor]
"""a compiled model: padded tokens (B, T) to hidden states (B, T, d)"""


def counted_states(model: GPT2, batch: Batch, forward: Forward | None = None) -> tuple[Tensor, Tensor]:
    """Final hidden states (M, d) of the tokens whose targets (M,) count, and these.

    Padding goes through attention alone, and the last block's MLP runs on the tokens that count; a compiled model takes
    the padded batch.
    """
    counted = batch.slots[batch.counted]
    targets = batch.targets.flatten()[counted]
    if forward is not None:
        return take(forward(batch.inputs).flatten(0, 1), counted), targets
    packing = Packing(batch.slots, batch.rows, batch.width)
    return model(batch.inputs.flatten()[batch.slots], packing=packing, keep=batch.counted), targets


def batch_loss(
    model: GPT2,
    batch: Batch,
    *,
    label_smoothing: float,
    scale: float | None = None,
    forward: Forward | None = None,
) -> Tensor:
    """Sum of the token losses over (number of completion tokens + 1e-4).

    Smoothing spreads its mass over the whole vocabulary, whose projection runs on the tokens that count only.

    Args:
        model: with its method attached.
        batch: on the model's device.
        label_smoothing: e.
        scale: of the sum, in place of 1 / (M + 1e-4).
        forward: the model, compiled.
    """
    hidden, targets = counted_states(model, batch, forward)
    if scale is None:
        scale = 1 / (len(targets) + DENOMINATOR_EPS)
    scales = torch.full_like(targets, scale, dtype=torch.float32)
    return vocabulary_loss(model, hidden, targets, scale=scales, label_smoothing=label_smoothing)


class Step:
    """Loss and gradient of one step of a training.

    Attributes:
        tokens: that went through the model so far, padding not counted.
        micro_batch: pairs that go through it at once.
    """

    def __init__(
        self,
        model: GPT2,
        data: Encoded,
        settings: config.Train,
        *,
        protocol: config.Protocol,
        arithmetic: Arithmetic,
        micro_batch: int | None = None,
        compiled: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        """Prepare.

        Args:
            model: with its method attached, on its device.
            data: the training split.
            settings: the optimisation.
            protocol: the layout of a pair.
            arithmetic: of the passes.
            micro_batch: pairs that go through the model at once; None: all of a step's.
            compiled: compile the model.
            processes: that share each batch.
        """
        self.model, self.data, self.settings, self.protocol = model, data, settings, protocol
        self.arithmetic, self.processes = arithmetic, processes
        self.micro_batch = micro_batch or settings.batch_size
        self.tokens = 0
        self.parameters = list(trained(model).values())
        self.forward = self._compiled() if compiled else None

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Add a step's gradient to the parameters'; give its loss, a scalar on the device.

        The loss is that of all pairs together, however they are split over processes and micro-batches. Where memory
        ends, they are split further, which the log says.

        Raises:
            RunFailed: there is not even memory for one pair.
        """
        while True:
            try:
                loss, gradients = self._passes(rows)
                break
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise RunFailed(
                        "not even one pair fits into the device's memory; give a smaller model or protocol.max_length"
                    ) from None
            except Exception as e:  # whatever a compiler makes of a machine
                if self.forward is None:
                    raise
                said = (str(e).strip().splitlines() or [""])[0]
                logger.warning("torch.compile failed (%s: %s): going on without it", type(e).__name__, said)
                self.forward = None
                continue
            self.micro_batch = -(-min(self.micro_batch, len(self.processes.share(rows))) // 2)
            logger.warning("out of memory: going on with %d pairs at once, to the same update", self.micro_batch)
            if self.arithmetic.device.type == "cuda":
                torch.cuda.empty_cache()
        taken: set[int] = set()
        for p, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if p.grad is not None:
                p.grad.add_(gradient)
                continue
            # As a parameter's own: the optimizer's kernel reads both as they lie in memory, and what adds to one
            # must not add to another.
            memory = gradient.untyped_storage().data_ptr()
            if gradient.stride() != p.stride() or memory in taken:
                gradient = torch.empty_like(p).copy_(gradient)
            taken.add(memory)
            p.grad = gradient
        return loss

    def _passes(self, rows: Sequence[int]) -> tuple[Tensor, list[Tensor | None]]:
        """Forward and backward passes over this process's pairs; nothing is kept if memory ends on the way."""
        own = self.processes.share(rows)
        batches = [self._collated(own[i : i + self.micro_batch]) for i in range(0, len(own), self.micro_batch)]
        whole = batches if self.processes.size == 1 else [self._collated(rows)]
        scale = 1 / len(rows)
        if self.settings.loss == "tokens":
            scale = 1 / (sum(len(batch.counted) for batch in whole) + DENOMINATOR_EPS)
        device = self.arithmetic.device
        loss = torch.zeros((), device=device)
        # Of several processes each takes part in every sum, even if it has no pair, or a parameter no part in them.
        alone = self.processes.size == 1
        gradients: list[Tensor | None] = [None if alone else torch.zeros_like(p) for p in self.parameters]
        for batch in batches:
            self.tokens += len(batch.slots) * self.processes.size
            with self.arithmetic():
                part = batch_loss(
                    self.model,
                    batch.to(device),
                    label_smoothing=self.settings.label_smoothing,
                    scale=scale / self.settings.accumulate,
                    forward=self.forward,
                )
            found = torch.autograd.grad(part, self.parameters, allow_unused=True)
            loss = loss + part.detach()
            for i, gradient in enumerate(found):
                if gradient is None:
                    continue
                if self.forward is not None:
                    gradient = gradient.clone()  # a CUDA graph's next replay writes there
                before = gradients[i]
                gradients[i] = gradient if before is None else before + gradient
        return loss * self.settings.accumulate, gradients

    def _collated(self, rows: Sequence[int]) -> Batch:
        return collate(
            self.data,
            rows,
            max_length=self.protocol.max_length,
            loss_on=self.protocol.loss_on,
            multiple=1 if self.forward is None else WIDTH_MULTIPLE,
        )

    def _compiled(self) -> Forward:
        graphs = self.arithmetic.device.type == "cuda"
        options: dict[str, Any] = {"mode": "reduce-overhead"} if graphs else {}
        torch._dynamo.config.recompile_limit = WIDTHS
        compiled = torch.compile(self.model, dynamic=False, **options)

        def forward(tokens: Tensor) -> Tensor:
            if graphs:
                torch.compiler.cudagraph_mark_step_begin()
            return cast(Tensor, compiled(tokens))

        return forward
