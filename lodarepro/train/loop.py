"""The training loop and its loss (protocol section 2).

Letters: B pairs a step, T tokens, N tokens that count, d width, V vocabulary.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lodarepro import config
from lodarepro.data.batch import Batch, collate, epoch_order, steps_an_epoch
from lodarepro.data.tokenise import Encoded
from lodarepro.errors import RunFailed, Stopped
from lodarepro.methods import one_group, trained
from lodarepro.model import GPT2
from lodarepro.seeds import derived_seed
from lodarepro.train import checkpoint
from lodarepro.train.checkpoint import Progress
from lodarepro.train.optim import learning_rate, make_optimizer

logger = logging.getLogger(__name__)

DENOMINATOR_EPS = 1e-4  # the original divides by the token count plus this
LOGS_AN_EPOCH = 10
VALIDATION_ROWS = 64  # pairs a forward pass; the figure does not depend on it


def batch_loss(model: GPT2, batch: Batch, *, label_smoothing: float) -> Tensor:
    """Sum of the token losses over (number of completion tokens + 1e-4).

    Smoothing spreads its mass over the whole vocabulary. The vocabulary projection runs on the N
    positions that count only.
    """
    hidden = model(batch.inputs)[batch.mask]  # (N, d)
    targets = batch.targets[batch.mask]  # (N,)
    total = F.cross_entropy(model.logits(hidden).float(), targets, reduction="sum", label_smoothing=label_smoothing)
    return total / (len(targets) + DENOMINATOR_EPS)


@torch.no_grad()
def validation_loss(model: GPT2, data: Encoded, settings: config.Train, protocol: config.Protocol) -> float:
    """Mean over batches of `train.valid_batch_size` of each batch's loss, without label smoothing.

    As in the original, the last batch is filled with rows drawn at random; here with the same ones
    every time, so that epochs compare.
    """
    model.eval()
    device = model.wte.weight.device
    sums, counts = torch.zeros(len(data)), torch.zeros(len(data))
    by_length = torch.argsort(torch.from_numpy(data.starts[1:] - data.starts[:-1]), stable=True)
    for rows in by_length.split(VALIDATION_ROWS):
        batch = collate(data, rows.tolist(), max_length=protocol.max_length, loss_on=protocol.loss_on)
        batch = batch.to(device)
        with autocast(settings, device):
            logits = model.logits(model(batch.inputs)[batch.mask]).float()  # (N, V)
        token_loss = torch.zeros(batch.mask.shape, device=device)  # (B, T)
        token_loss[batch.mask] = F.cross_entropy(logits, batch.targets[batch.mask], reduction="none")
        sums[rows] = token_loss.sum(1).cpu()
        counts[rows] = batch.mask.sum(1).float().cpu()
    model.train()
    size = settings.valid_batch_size
    order = torch.from_numpy(
        epoch_order(len(data), 0, batch_size=size, seed=0, shuffle=False, fill=settings.fill_last_batch)
    )
    means = [
        float(s.sum() / (c.sum() + DENOMINATOR_EPS))
        for s, c in zip(sums[order].split(size), counts[order].split(size), strict=True)
    ]
    return sum(means) / len(means)


def autocast(settings: config.Train, device: torch.device) -> AbstractContextManager[object]:
    """The arithmetic that `train.precision` names."""
    if settings.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def total_steps(n: int, settings: config.Train) -> int:
    """Steps of a whole training on n pairs."""
    return settings.epochs * steps_an_epoch(n, settings.batch_size)


def train(
    model: GPT2,
    data: Encoded,
    valid: Encoded,
    settings: config.Train,
    *,
    protocol: config.Protocol,
    seed: int,
    groups: list[dict[str, Any]] | None = None,
    stretch: dict[str, Any] | None = None,
    checkpoint_path: Path | None = None,
    checkpoint_minutes: float = 5.0,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> Progress:
    """Train what the method left trainable, to the end or to a stop.

    Where that is nothing, there are no steps, and the validation loss is that of epoch 0.

    Args:
        model: with its method attached, on its device.
        data: the training split.
        valid: the validation split.
        settings: the optimisation.
        protocol: the layout of a pair.
        seed: data order and dropout.
        groups: optimizer groups with `params` and `lr_scale`; None: one group at 1.
        stretch: what to note of this start or continuation (code, device).
        checkpoint_path: continued from if it exists; None: no checkpoints.
        checkpoint_minutes: time between checkpoints within an epoch.
        stop_signal: asked after each step: the number of a signal that asks to stop, or None.

    Returns:
        The losses and validation losses of the whole training.

    Raises:
        Stopped: `stop_signal` answered; a checkpoint has been written.
        RunFailed: the loss is not a number.
    """
    device = model.wte.weight.device
    parameters = list(trained(model).values())
    if not parameters:
        return _untrained(model, valid, settings, protocol=protocol, stretch=stretch)
    optimizer = make_optimizer(one_group(model) if groups is None else groups, settings)
    an_epoch, total = steps_an_epoch(len(data), settings.batch_size), total_steps(len(data), settings)
    if settings.warmup_steps >= total:
        logger.warning(
            "warm-up (%d steps) outlasts the training (%d steps): the peak learning rate is never reached; "
            "set train.warmup_steps",
            settings.warmup_steps,
            total,
        )
    torch.manual_seed(derived_seed(seed, "dropout"))
    progress = checkpoint.load(checkpoint_path, model, optimizer) if checkpoint_path else None
    if progress is None:
        progress = Progress(step=0, losses=torch.zeros(total))
    else:
        logger.info("continuing at step %d of %d", progress.step, total)
    progress.stretches.append({"from_step": progress.step, **(stretch or {})})
    began = saved = time.monotonic()
    due = False
    spent_before = progress.seconds
    model.train()

    for epoch in range(progress.step // an_epoch, settings.epochs):
        order = epoch_order(
            len(data),
            epoch,
            batch_size=settings.batch_size,
            seed=seed,
            shuffle=settings.shuffle,
            fill=settings.fill_last_batch,
        )
        for i in range(progress.step - epoch * an_epoch, an_epoch):
            step = progress.step
            rows = order[i * settings.batch_size : (i + 1) * settings.batch_size]
            batch = collate(data, rows.tolist(), max_length=protocol.max_length, loss_on=protocol.loss_on).to(device)
            with autocast(settings, device):
                loss = batch_loss(model, batch, label_smoothing=settings.label_smoothing)
            (loss / settings.accumulate).backward()
            progress.losses[step] = loss.detach()
            progress.step += 1

            whole_update = progress.step % settings.accumulate == 0
            if whole_update:
                if settings.clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
                for group in optimizer.param_groups:
                    group["lr"] = group["lr_scale"] * learning_rate(settings, step, total)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            if progress.step % max(1, an_epoch // LOGS_AN_EPOCH) == 0:
                _log(progress, total, epoch, began)
            if i + 1 == an_epoch:
                val_loss = validation_loss(model, valid, settings, protocol)
                _check_finite(val_loss, progress.step)  # a record can't hold it, and a checkpoint should not
                progress.epochs.append({"epoch": epoch + 1, "step": progress.step, "val_loss": val_loss})
                logger.info("epoch %d of %d: validation loss %.4f", epoch + 1, settings.epochs, val_loss)
            # Gradients are not part of a checkpoint, so it waits for a whole update.
            number = stop_signal()
            due = due or i + 1 == an_epoch or time.monotonic() - saved > 60 * checkpoint_minutes
            if checkpoint_path and whole_update and (due or number is not None):
                progress.seconds = spent_before + time.monotonic() - began
                checkpoint.save(checkpoint_path, model, optimizer, progress)
                saved, due = time.monotonic(), False
            if number is not None and (whole_update or not checkpoint_path):
                raise Stopped(f"stopped at step {progress.step} of {total}; the same command continues", number)
    progress.seconds = spent_before + time.monotonic() - began
    return progress


def _untrained(
    model: GPT2,
    valid: Encoded,
    settings: config.Train,
    *,
    protocol: config.Protocol,
    stretch: dict[str, Any] | None,
) -> Progress:
    val_loss = validation_loss(model, valid, settings, protocol)
    if not math.isfinite(val_loss):
        raise RunFailed(
            f"the validation loss is {val_loss} though nothing has been trained: the base model's weights are damaged; "
            "fetch them again"
        )
    logger.info("the method trains nothing: no steps, validation loss %.4f", val_loss)
    return Progress(
        step=0,
        losses=torch.zeros(0),
        epochs=[{"epoch": 0, "step": 0, "val_loss": val_loss}],
        stretches=[{"from_step": 0, **(stretch or {})}],
    )


def _check_finite(loss: float, step: int) -> None:
    if not loss < float("inf"):
        raise RunFailed(f"the loss is {loss} around step {step}: training diverged; lower train.lr or set train.clip")


def _log(progress: Progress, total: int, epoch: int, began: float) -> None:
    recent = progress.losses[max(0, progress.step - 100) : progress.step].mean().item()
    _check_finite(recent, progress.step)
    logger.info(
        "step %d of %d (epoch %d): loss %.4f, %.0f s",
        progress.step,
        total,
        epoch + 1,
        recent,
        time.monotonic() - began,
    )
