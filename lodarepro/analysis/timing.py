"""One timer for all: calls that take turns, so that whatever slows the machine down slows all of them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TypeVar

import torch

from lodarepro.precision import Arithmetic

logger = logging.getLogger(__name__)

_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True)
class Times:
    """Milliseconds of the trials of one call, in the order in which all were tried."""

    trials: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return fmean(self.trials)

    @property
    def std(self) -> float:
        """Their standard deviation; 0 of a single one."""
        return stdev(self.trials) if len(self.trials) > 1 else 0.0

    @property
    def median(self) -> float:
        """Their median, which a few disturbed trials don't move."""
        return median(self.trials)

    def slower_than(self, other: Times) -> tuple[float, float]:
        """How much longer this takes than another, in per cent, and the standard error of that.

        It is the quotient of the means; its error is that of the residuals within trials (the delta method), so that
        what makes all calls of a trial slower by the same factor cancels out.
        """
        quotient = self.mean / other.mean
        residuals = [ours - quotient * theirs for ours, theirs in zip(self.trials, other.trials, strict=True)]
        error = stdev(residuals) / len(residuals) ** 0.5 if len(residuals) > 1 else 0.0
        return 100 * (quotient - 1), 100 * error / other.mean


def interleaved(
    calls: Mapping[_K, Callable[[], object]],
    *,
    trials: int,
    warmup: int,
    device: torch.device,
    seed: int = 1,
    done: Callable[[], None] = lambda: None,
) -> dict[_K, Times]:
    """Time calls in turn: in each trial every call once, in an order of its own.

    On a GPU the time between two events around a call is that of its kernels and of waiting for them to be launched; on
    a CPU it is the wall clock's.

    Args:
        calls: name to what is timed.
        trials: of each.
        warmup: rounds before, which are not counted.
        device: on which they run.
        seed: of the orders, so that no call is always behind the same other.
        done: told after each call.
    """
    order = random.Random(seed)
    measured: dict[_K, list[float]] = {key: [] for key in calls}
    time_one = _on_gpu if device.type == "cuda" else _on_cpu
    for trial in range(-warmup, trials):
        for key in order.sample(list(calls), len(calls)):
            took = time_one(calls[key])
            if trial >= 0:
                measured[key].append(took)
            done()
    return {key: Times(tuple(found)) for key, found in measured.items()}


def _on_cpu(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _on_gpu(call: Callable[[], object]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended))


@dataclass(frozen=True)
class Timer:
    """Times calls on a device, as often as was asked.

    Attributes:
        device: on which they run.
        arithmetic: their precision.
        trials, warmup: of each call.
    """

    device: torch.device
    arithmetic: Arithmetic
    trials: int
    warmup: int

    def __call__(
        self, calls: Mapping[_K, Callable[[], object]], where: str, *, autocast: bool, done: Callable[[], None]
    ) -> dict[_K, Times] | None:
        """Times of calls; None, with a warning that says where, if there is no memory for them.

        Args:
            calls: name to what is timed.
            where: for the warning.
            autocast: whether weights are fp32 and cast at each use. Where they are in the precision of the products
                already, a GPU needs no autocast; a CPU has it, as its attention gives fp32 back.
            done: told after each call.
        """
        plain = self.device.type == "cuda" and not autocast
        context: AbstractContextManager[object] = nullcontext() if plain else self.arithmetic()
        with torch.inference_mode(), context, _without_fills():
            try:
                return interleaved(calls, trials=self.trials, warmup=self.warmup, device=self.device, done=done)
            except RuntimeError as e:
                if not isinstance(e, torch.OutOfMemoryError) and NO_MEMORY not in str(e):
                    raise
        # Only now, as the error holds on to what it was made of.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("%s: no memory for it; left out", where)
        return None


NO_MEMORY = "DefaultCPUAllocator"  # of a CPU's error, which has no class of its own


@contextmanager
def _without_fills() -> Iterator[None]:
    """Without deterministic algorithms, which a run on a GPU asks for: they fill each new tensor by a kernel more."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
