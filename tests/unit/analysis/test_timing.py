"""One timer for all: planted times are measured, and what slows a whole trial slows nothing in comparison."""

import random
import time
from collections import Counter
from functools import partial
from statistics import fmean, stdev

import pytest
import torch

from lodarepro.analysis.timing import Times, interleaved

CPU = torch.device("cpu")


def nothing() -> None:
    """What takes no time."""


def order(*, trials: int, warmup: int, seed: int = 1, names: str = "abcd") -> list[str]:
    """The calls in the order in which they were made."""
    made: list[str] = []
    interleaved(
        {name: partial(made.append, name) for name in names}, trials=trials, warmup=warmup, device=CPU, seed=seed
    )
    return made


def rounds(made: list[str], size: int = 4) -> list[tuple[str, ...]]:
    return [tuple(made[i : i + size]) for i in range(0, len(made), size)]


# numbers ----------------------------------------------------------------------------------------


def test_mean_deviation_and_median_are_the_textbooks():
    times = Times((2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 90.0))
    assert times.mean == pytest.approx(121 / 8)
    assert times.std == pytest.approx((((2 - 15.125) ** 2 + 3 * (4 - 15.125) ** 2 + 2 * (5 - 15.125) ** 2
                                        + (7 - 15.125) ** 2 + (90 - 15.125) ** 2) / 7) ** 0.5)  # fmt: skip
    assert times.median == 4.5  # which the 90 does not move


def test_a_single_trial_has_no_deviation():
    assert Times((3.0,)).std == 0.0
    assert Times((3.0,)).slower_than(Times((2.0,))) == (pytest.approx(50.0), 0.0)


def test_slower_is_in_per_cent_of_the_other_with_the_error_of_the_differences():
    ours, theirs = Times((11.0, 13.0, 15.0, 13.0)), Times((10.0, 10.0, 10.0, 10.0))
    slower, error = ours.slower_than(theirs)  # differences 1, 3, 5, 3: mean 3, deviation sqrt(8 / 3)
    assert slower == pytest.approx(30.0)
    assert error == pytest.approx(100 * (8 / 3) ** 0.5 / 2 / 10)
    assert theirs.slower_than(ours)[0] == pytest.approx(-100 * 3 / 13)
    assert theirs.slower_than(theirs) == (0.0, 0.0)


def test_what_slows_a_whole_trial_cancels_in_the_error():
    """A machine that is busy for a trial makes all its calls longer by the same factor."""
    busy = (1.0, 5.0, 1.0, 20.0)
    theirs, ours = Times(tuple(10 * b for b in busy)), Times(tuple(30 * b for b in busy))
    assert ours.slower_than(theirs) == (pytest.approx(200.0), pytest.approx(0.0, abs=1e-12))


def test_the_error_is_that_of_a_quotient_of_means():
    """What many repetitions of the whole measurement scatter by, far from a quotient of 1 and of noisy trials."""
    noise = random.Random(1)

    def measured() -> tuple[float, float]:
        busy = [noise.lognormvariate(0, 0.2) for _ in range(100)]
        ours = Times(tuple(40 * b * noise.gauss(1, 0.02) for b in busy))
        return ours.slower_than(Times(tuple(10 * b * noise.gauss(1, 0.1) for b in busy)))

    found = [measured() for _ in range(300)]
    scatter = stdev(slower for slower, _ in found)
    assert fmean(error for _, error in found) == pytest.approx(scatter, rel=0.15)


def test_trials_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="zip"):
        Times((1.0, 2.0)).slower_than(Times((1.0,)))


# turns ------------------------------------------------------------------------------------------


def test_each_trial_calls_each_once_in_an_order_of_its_own():
    made = rounds(order(trials=12, warmup=0))
    assert len(made) == 12
    assert all(sorted(one) == list("abcd") for one in made)
    assert len(set(made)) > 6
    assert Counter(one[0] for one in made).keys() == set("abcd")  # none is always first


def test_the_orders_follow_from_the_seed():
    assert order(trials=5, warmup=1, seed=3) == order(trials=5, warmup=1, seed=3)
    assert order(trials=5, warmup=1, seed=3) != order(trials=5, warmup=1, seed=4)


@pytest.mark.parametrize(("trials", "warmup"), [(3, 0), (3, 2), (1, 4)])
def test_rounds_before_are_called_and_not_counted(trials: int, warmup: int):
    made: list[str] = []
    told: list[int] = []
    times = interleaved(
        {name: partial(made.append, name) for name in "ab"},
        trials=trials,
        warmup=warmup,
        device=CPU,
        done=lambda: told.append(len(made)),
    )
    assert Counter(made) == {"a": trials + warmup, "b": trials + warmup}
    assert {name: len(of.trials) for name, of in times.items()} == {"a": trials, "b": trials}
    assert told == list(range(1, 2 * (trials + warmup) + 1))  # after each call, those before included


def test_a_slow_warm_up_is_in_no_figure():
    calls = iter([0.05, 0.0, 0.0, 0.0])
    times = interleaved({"a": lambda: time.sleep(next(calls))}, trials=3, warmup=1, device=CPU)
    assert max(times["a"].trials) < 40


def test_names_keep_their_order():
    assert list(interleaved(dict.fromkeys("cab", nothing), trials=2, warmup=0, device=CPU)) == list("cab")


# time -------------------------------------------------------------------------------------------


def test_planted_times_are_measured():
    planted = {"slow": 6.0, "none": 0.0, "middle": 2.0}
    calls = {name: partial(time.sleep, ms / 1e3) for name, ms in planted.items()}
    times = interleaved(calls, trials=15, warmup=1, device=CPU)
    for name, ms in planted.items():
        # Nothing is shorter than it sleeps; the median is not moved by what a busy machine adds now and then.
        assert min(times[name].trials) >= ms
        assert times[name].median < ms + 1.5
    assert times["none"].mean < times["middle"].mean < times["slow"].mean
    slower = Times((times["slow"].median,)).slower_than(Times((times["middle"].median,)))[0]
    assert slower == pytest.approx(200.0, abs=100.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_work_and_not_the_launch_is_timed():
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(x, x)

    times = interleaved({count: partial(products, count) for count in (2, 20)}, trials=10, warmup=3, device=device)
    assert times[20].median / times[2].median == pytest.approx(10.0, rel=0.25)
