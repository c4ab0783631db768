"""One timer for all: calls that take turns, so that whatever slows the machine down slows all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TypeVar

import torch

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

        The error is that of the differences within trials: what disturbs a whole trial cancels out.
        """
        differences = [ours - theirs for ours, theirs in zip(self.trials, other.trials, strict=True)]
        error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
        return 100 * fmean(differences) / other.mean, 100 * error / other.mean


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
