"""The training loop (protocol section 2).

Letters: M tokens that count.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lodarepro import config
from lodarepro.bar import Tick, bar
from lodarepro.data.batch import collate, epoch_order, steps_an_epoch
from lodarepro.data.tokenise import Encoded
from lodarepro.distributed import ALONE, Processes
from lodarepro.errors import BadInput, RunFailed, Stopped
from lodarepro.loggers import NOTHING, Log
from lodarepro.methods import one_group, trained
from lodarepro.model import GPT2
from lodarepro.precision import Arithmetic
from lodarepro.seeds import derived_seed
from lodarepro.train.checkpoint import Checkpoints, Progress, generator_state
from lodarepro.train.loss import token_losses
from lodarepro.train.optim import learning_rate, make_optimizer
from lodarepro.train.step import DENOMINATOR_EPS, Step, counted_states

logger = logging.getLogger(__name__)

LOOK_STEPS = 50  # between two looks at the losses, for which a GPU has to be waited for
LOG_SECONDS = 30  # between two lines of the log
RECENT = 100  # steps whose mean loss is shown
VALIDATION_ROWS = 64  # pairs a forward pass; the figure does not depend on it


@torch.no_grad()
def validation_loss(
    model: GPT2, data: Encoded, settings: config.Train, protocol: config.Protocol, *, processes: Processes = ALONE
) -> float:
    """Mean over batches of `train.valid_batch_size` of each batch's loss, without label smoothing.

    As in the original, the last batch is filled with rows drawn at random; here with the same ones
    every time, so that epochs compare.
    """
    was_training = model.training
    model.eval()
    device = model.wte.weight.device
    arithmetic = Arithmetic(settings.precision, device)
    sums, counts = torch.zeros(len(data), device=device), torch.zeros(len(data), device=device)
    by_length = torch.argsort(torch.from_numpy(data.lengths), stable=True)
    for rows in processes.share(by_length.split(VALIDATION_ROWS)):
        batch = collate(data, rows.tolist(), max_length=protocol.max_length, loss_on=protocol.loss_on).to(device)
        with arithmetic():
            hidden, targets = counted_states(model, batch)
            found = token_losses(model, hidden, targets)  # (M,)
        per_token = torch.zeros(batch.mask.numel(), device=device)
        per_token[batch.slots[batch.counted]] = found
        sums[rows] = per_token.view(batch.mask.shape).sum(1)
        counts[rows] = batch.mask.sum(1).float()
    processes.sum([sums, counts])
    model.train(was_training)
    size = settings.valid_batch_size
    order = torch.from_numpy(
        epoch_order(len(data), 0, batch_size=size, seed=0, shuffle=False, fill=settings.fill_last_batch)
    )
    means = [
        float(s.sum() / (c.sum() + DENOMINATOR_EPS))
        for s, c in zip(sums.cpu()[order].split(size), counts.cpu()[order].split(size), strict=True)
    ]
    return sum(means) / len(means)


def total_steps(n: int, settings: config.Train) -> int:
    """Steps of a whole training on n pairs."""
    return settings.max_steps or settings.epochs * steps_an_epoch(n, settings.batch_size)


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
    runtime: config.Runtime | None = None,
    checkpoint_path: Path | None = None,
    stop_signal: Callable[[], int | None] = lambda: None,
    processes: Processes = ALONE,
    show_bar: bool = False,
    log: Log = NOTHING,
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
        runtime: how this machine does the work; None: the defaults.
        checkpoint_path: continued from if it exists; the epochs to keep are beside it. None: no checkpoints.
        stop_signal: asked after each step: the number of a signal that asks to stop, or None.
        processes: that train together.
        show_bar: show a progress bar if there is a terminal.
        log: where losses are shown besides.

    Returns:
        The losses and validation losses of the whole training.

    Raises:
        Stopped: `stop_signal` answered, or the time limit was reached; a checkpoint has been written.
        RunFailed: the loss is not a number, or memory is too small.
        BadInput: a checkpoint does not fit, or an epoch to keep is none of this training's.
    """
    runtime = runtime or config.Runtime()
    device = model.wte.weight.device
    arithmetic = Arithmetic(settings.precision, device)
    _check_lengths({"training": data, "validation": valid}, protocol)
    parameters = list(trained(model).values())
    if not parameters:
        progress = _untrained(model, valid, settings, protocol=protocol, stretch=stretch, processes=processes)
        log.begin(-1)  # not even the row of step 0 is there yet
        log.row(progress.epochs[-1])
        return progress
    optimizer = make_optimizer(one_group(model) if groups is None else groups, settings)
    an_epoch, total = steps_an_epoch(len(data), settings.batch_size), total_steps(len(data), settings)
    epochs = -(-total // an_epoch)
    _check(settings, epochs, total)
    torch.manual_seed(derived_seed(seed, "dropout", processes.rank))
    checkpoints = Checkpoints(checkpoint_path, settings.keep) if checkpoint_path else None
    found = None
    if checkpoints:
        found = checkpoints.load(model, optimizer, rank=processes.rank, processes=processes.size)
    progress = found or Progress(step=0, losses=torch.zeros(total))
    if found:
        logger.info("continuing at step %d of %d", progress.step, total)
    log.begin(progress.step)
    progress.losses = progress.losses.to(device)
    progress.stretches.append({"from_step": progress.step, **(stretch or {})})
    model.set_dropout(settings.model_dropout)
    model.train()
    if not runtime.compile or device.type != "cpu":  # whose compiler lays matrices out itself
        model.pack(arithmetic.dtype, training=True)
    gradient = Step(
        model,
        data,
        settings,
        protocol=protocol,
        arithmetic=arithmetic,
        micro_batch=runtime.micro_batch,
        compiled=runtime.compile,
        processes=processes,
    )
    watch = _Watch(progress, settings, runtime, stop_signal, processes, log)

    with bar("training", total, done=progress.step, shown=show_bar and processes.main) as tick:
        for epoch in range(progress.step // an_epoch, epochs):
            order = _order(len(data), epoch, settings, seed)
            for i in range(progress.step - epoch * an_epoch, min(an_epoch, total - epoch * an_epoch)):
                step = progress.step
                rows = order[i * settings.batch_size : (i + 1) * settings.batch_size]
                progress.losses[step] = gradient(rows.tolist())
                progress.step += 1

                whole_update = progress.step % settings.accumulate == 0
                if whole_update:
                    processes.sum([p.grad for p in parameters if p.grad is not None])
                    if settings.clip is not None:
                        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
                    for group in optimizer.param_groups:
                        group["lr"] = group["lr_scale"] * learning_rate(settings, step, total)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                epoch_ends = i + 1 == an_epoch or progress.step == total
                if not (epoch_ends or watch.due(whole_update)):
                    continue
                watch.look()
                _check_losses(progress, len(data), settings, seed)
                watch.show(epoch, gradient.tokens, tick)
                watch.log()
                if epoch_ends:
                    val_loss = validation_loss(model, valid, settings, protocol, processes=processes)
                    if not math.isfinite(val_loss):  # a record can't hold it, and a checkpoint should not
                        raise _diverged(f"the validation loss is {val_loss} after step {progress.step}")
                    progress.epochs.append({"epoch": epoch + 1, "step": progress.step, "val_loss": val_loss})
                    logger.info("epoch %d of %d: validation loss %.4f", epoch + 1, epochs, val_loss)
                    log.row(progress.epochs[-1])
                    if checkpoints and processes.main:
                        checkpoints.keep_epoch(model, progress)
                    watch.save = True
                # Gradients are not part of a checkpoint, so it waits for a whole update.
                if checkpoints and whole_update and (watch.save or watch.stop):
                    progress.seconds = watch.seconds()
                    generators = processes.gather(generator_state(device))
                    if processes.main:
                        checkpoints.save(model, optimizer, progress, generators)
                    watch.saved()
                if watch.stop and (whole_update or not checkpoints):
                    raise watch.stopped()
    progress.seconds = watch.seconds()
    progress.losses = progress.losses.cpu()
    model.unpack()
    return progress


class _Watch:
    """What is looked at between steps, by all processes alike: the clock, signals, losses.

    A GPU is given step after step without waiting for any of them, so it is looked up from time to time only.

    Attributes:
        save: a checkpoint is wanted.
        stop: the training is to stop.
    """

    def __init__(
        self,
        progress: Progress,
        settings: config.Train,
        runtime: config.Runtime,
        stop_signal: Callable[[], int | None],
        processes: Processes,
        log: Log,
    ) -> None:
        self._progress, self._settings, self._runtime = progress, settings, runtime
        self._stop_signal, self._processes = stop_signal, processes
        self._every = 1 if progress.losses.device.type == "cpu" else LOOK_STEPS
        self._before = progress.seconds
        self._began = self._now = self._saved = self._logged = time.monotonic()
        self._looked = progress.step
        self._log = log
        self._told = progress.step - progress.step % (log.every or 1)
        self._signal: int | None = None
        self.save = self.stop = False

    def seconds(self) -> float:
        """Time spent on the training so far."""
        return self._before + time.monotonic() - self._began

    def due(self, whole_update: bool) -> bool:
        """Whether to look after this step."""
        return self._progress.step % self._every == 0 or (whole_update and (self.save or self.stop))

    def look(self) -> None:
        """Sum the losses since the last look over all processes; see what any of them was asked for."""
        self._now = time.monotonic()
        limit = self._settings.time_limit
        if limit is not None and self._now - self._began > 60 * limit:
            self._signal = self._signal or signal.SIGALRM
        self._signal = self._signal or self._stop_signal()
        old = self._now - self._saved > 60 * self._runtime.checkpoint_minutes
        losses = self._progress.losses[self._looked : self._progress.step]
        asked = torch.tensor([self._signal is not None, old], device=losses.device)
        stop, save = self._processes.agree(losses, asked)
        self.stop, self.save = self.stop or stop, self.save or save
        self._looked = self._progress.step

    def show(self, epoch: int, tokens: int, tick: Tick | None) -> None:
        """Move the bar, or write a line into the log if the last one is old."""
        if tick is None and self._now - self._logged < LOG_SECONDS:
            return
        step, losses = self._progress.step, self._progress.losses
        recent = float(losses[max(0, step - RECENT) : step].mean())
        shown = f"loss {recent:.4f}, {tokens / (self._now - self._began):,.0f} tokens/s"
        if tick is not None:
            tick(step, shown)
        else:
            logger.info("step %d of %d (epoch %d): %s", step, len(losses), epoch + 1, shown)
            self._logged = self._now

    def log(self) -> None:
        """Tell the log what it has not had yet: means of so many losses as it wants, and of what is left at the end."""
        every, step, total = self._log.every, self._progress.step, len(self._progress.losses)
        if every is None or (step < self._told + every and step < total):
            return
        for part in self._progress.losses[self._told : step].cpu().split(every):
            if len(part) == every or step == total:
                self._told += len(part)
                rate = learning_rate(self._settings, self._told - 1, total)
                self._log.row({"step": self._told, "loss": float(part.mean()), "lr": rate})

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved, self.save = time.monotonic(), False

    def stopped(self) -> Stopped:
        """The end that was asked for."""
        limit = self._settings.time_limit
        why = f" (train.time_limit={limit:g})" if limit is not None and self._signal == signal.SIGALRM else ""
        return Stopped(
            f"stopped at step {self._progress.step} of {len(self._progress.losses)}{why}; the same command continues",
            self._signal or signal.SIGTERM,  # of another process
        )


def _order(n: int, epoch: int, settings: config.Train, seed: int) -> npt.NDArray[np.int64]:
    size, shuffle, fill = settings.batch_size, settings.shuffle, settings.fill_last_batch
    return epoch_order(n, epoch, batch_size=size, seed=seed, shuffle=shuffle, fill=fill)


def _check_lengths(splits: Mapping[str, Encoded], protocol: config.Protocol) -> None:
    """End where sequences are cut before anything counts."""
    for name, data in splits.items():
        lengths = np.minimum(data.lengths, protocol.max_length)
        if not (lengths > (data.contexts if protocol.loss_on == "completion" else 1)).any():
            raise BadInput(
                f"protocol.max_length={protocol.max_length}: no token of the {name} split would count in the loss; "
                "give a greater one"
            )


def _check(settings: config.Train, epochs: int, total: int) -> None:
    """Settings whose fault shows when the data are there."""
    if settings.accumulate > total:
        raise BadInput(
            f"train.accumulate={settings.accumulate}: {total} steps would make no update; give {total} or less"
        )
    if left := total % settings.accumulate:
        logger.warning(
            "%d steps are no multiple of train.accumulate=%d: the last %d make no update",
            total,
            settings.accumulate,
            left,
        )
    if settings.warmup_steps >= total:
        logger.warning(
            "warm-up (%d steps) outlasts the training (%d steps): the peak learning rate is never reached; "
            "set train.warmup_steps",
            settings.warmup_steps,
            total,
        )
    for name in settings.keep:
        if name.startswith("epoch-") and int(name.removeprefix("epoch-")) > epochs:
            raise BadInput(f"train.keep: there is no {name} in a training of {total} steps, {epochs} epochs")


def _check_losses(progress: Progress, n: int, settings: config.Train, seed: int) -> None:
    """End the run if a loss is no number, and say at which step it was, of which pairs."""
    losses = progress.losses[: progress.step]
    if bool(losses[-LOOK_STEPS:].isfinite().all()):
        return
    step = int(losses.isfinite().logical_not().nonzero()[0])
    epoch, i = divmod(step, steps_an_epoch(n, settings.batch_size))
    pairs = _order(n, epoch, settings, seed)[i * settings.batch_size : (i + 1) * settings.batch_size]
    rate = learning_rate(settings, step, len(progress.losses))
    raise _diverged(
        f"the loss is {float(losses[step])} at step {step} (learning rate {rate:.3g}; pairs "
        f"{', '.join(str(pair) for pair in pairs)} of the training file, counted from 0)"
    )


def _diverged(what: str) -> RunFailed:
    return RunFailed(f"{what}: training diverged; lower train.lr or set train.clip")


def _untrained(
    model: GPT2,
    valid: Encoded,
    settings: config.Train,
    *,
    protocol: config.Protocol,
    stretch: dict[str, Any] | None,
    processes: Processes,
) -> Progress:
    val_loss = validation_loss(model, valid, settings, protocol, processes=processes)
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
