"""Schedule, optimizer, data order, and a training that stops and goes on to the same bits."""

import json
import math
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lodarepro.config import Ft, Lora, Protocol, Runtime, Train
from lodarepro.data.batch import collate, epoch_order, steps_an_epoch
from lodarepro.data.tokenise import Encoded
from lodarepro.distributed import Processes
from lodarepro.errors import BadInput, RunFailed, Stopped
from lodarepro.methods import attach, trained
from lodarepro.model import GPT2, Sizes
from lodarepro.train import loop
from lodarepro.train.checkpoint import Progress
from lodarepro.train.loop import total_steps, train, validation_loss
from lodarepro.train.optim import LoraAdamW, learning_rate, make_optimizer
from lodarepro.train.step import batch_loss

SIZES = Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=40, n_positions=32)
PROTOCOL = Protocol("lora", max_length=32)


# schedule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (1, 0.1), (9, 0.9), (10, 1.0), (11, 89 / 90), (55, 0.5), (99, 1 / 90), (100, 0.0), (101, 0.0)],
)
def test_linear_warm_up_and_decay(step: int, rate: float):
    assert learning_rate(Train(lr=1.0, warmup_steps=10), step, 100) == pytest.approx(rate, abs=1e-12)


def test_a_constant_rate_after_the_warm_up():
    settings = Train(lr=2.0, warmup_steps=4, schedule="constant")
    assert [learning_rate(settings, step, 10) for step in (0, 2, 4, 9)] == [0.0, 1.0, 2.0, 2.0]


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(Train(lr=1.0, warmup_steps=0), 0, 10) == 1.0


def test_a_warm_up_that_outlasts_the_training():
    settings = Train(lr=1.0, warmup_steps=100)
    assert [learning_rate(settings, step, 10) for step in (0, 9)] == [0.0, 0.09]


# the optimizer ----------------------------------------------------------------------------------


def formula(
    p: Tensor, grads: list[Tensor], *, lr: float, betas: tuple[float, float], eps: float, decay: float, correct: bool
) -> Tensor:
    """The rule as it is written down, in float64."""
    p = p.double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for k, g32 in enumerate(grads, 1):
        g = g32.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        size = lr * math.sqrt(1 - betas[1] ** k) / (1 - betas[0] ** k) if correct else lr
        p = p - size * m / (v.sqrt() + eps)
        p = p - lr * decay * p
    return p


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_the_original_rule(correct: bool, decay: float, eps: float):
    generator = torch.Generator().manual_seed(0)
    start = torch.empty(5, 3).normal_(generator=generator)
    grads = [torch.empty(5, 3).normal_(generator=generator) for _ in range(30)]
    p = nn.Parameter(start.clone())
    betas = (0.8, 0.95)
    optimizer = LoraAdamW([p], lr=0.05, betas=betas, eps=eps, weight_decay=decay, bias_correction=correct)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    expected = formula(start, grads, lr=0.05, betas=betas, eps=eps, decay=decay, correct=correct)
    torch.testing.assert_close(p.detach().double(), expected, atol=1e-5, rtol=0)
    # The test tells the rule from its neighbours.
    for other in ({"decay": decay + 0.1}, {"eps": eps * 100}, {"correct": not correct}):
        changed = {"lr": 0.05, "betas": betas, "eps": eps, "decay": decay, "correct": correct, **other}
        assert (formula(start, grads, **changed) - expected).abs().max() > 1e-4  # type: ignore[arg-type]


def test_a_parameter_without_a_gradient_stays():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LoraAdamW([p, q], lr=0.1, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.1, bias_correction=True)
    p.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(q, torch.ones(2)) and not torch.equal(p, torch.ones(2))


def test_each_parameter_counts_its_own_updates():
    """One that has no gradient at first is as new when it has."""
    generator = torch.Generator().manual_seed(0)
    p, q = (nn.Parameter(torch.empty(5, 3).normal_(generator=generator)) for _ in range(2))
    begins = {name: t.detach().clone() for name, t in (("p", p), ("q", q))}
    grads: dict[str, list[Tensor]] = {"p": [], "q": []}
    numbers: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6}
    optimizer = LoraAdamW([p, q], **numbers, weight_decay=0.1, bias_correction=True)
    for i in range(12):
        for name, t in (("p", p), ("q", q)):
            t.grad = None
            if name == "p" or (i >= 4 and i % 3):
                t.grad = torch.empty(5, 3).normal_(generator=generator)
                grads[name].append(t.grad.clone())
        optimizer.step()
    for name, t in (("p", p), ("q", q)):
        expected = formula(begins[name], grads[name], **numbers, decay=0.1, correct=True)
        torch.testing.assert_close(t.detach().double(), expected, atol=1e-5, rtol=0)


def test_no_closure_is_taken():
    with pytest.raises(TypeError, match="closure"):
        make_optimizer([{"params": [nn.Parameter(torch.ones(1))]}], Train()).step(lambda: 0.0)


def test_the_optimizer_that_the_settings_name():
    p = nn.Parameter(torch.ones(1))
    assert isinstance(make_optimizer([{"params": [p]}], Train()), LoraAdamW)
    other = make_optimizer(
        [{"params": [p]}], Train(optimizer="pytorch", lr=0.5, weight_decay=0.3, betas=(0.1, 0.2), eps=0.7)
    )
    assert type(other) is torch.optim.AdamW
    (group,) = other.param_groups
    assert [group[k] for k in ("lr", "weight_decay", "betas", "eps")] == [0.5, 0.3, (0.1, 0.2), 0.7]


# data order -------------------------------------------------------------------------------------


def order(n: int, epoch: int = 0, **changes: Any) -> list[int]:
    settings = {"batch_size": 4, "seed": 1, "shuffle": True, "fill": True, **changes}
    return epoch_order(n, epoch, **settings).tolist()


@pytest.mark.parametrize("n", [1, 3, 4, 5, 10, 11])
def test_an_epoch_holds_every_row_and_fills_its_last_batch(n: int):
    for epoch in range(3):
        rows = order(n, epoch)
        assert len(rows) == steps_an_epoch(n, 4) * 4
        assert set(rows) == set(range(n))


@pytest.mark.parametrize("n", [3, 4, 10])
def test_without_filling_every_row_comes_once(n: int):
    assert sorted(order(n, fill=False)) == list(range(n))


def test_an_order_depends_on_seed_and_epoch_alone():
    """Of whole batches, so that no filler rows make the difference."""
    assert order(48) == order(48)
    assert order(48) != order(48, epoch=1)
    assert order(48) != order(48, seed=2)
    assert order(48, epoch=1, seed=1) != order(48, epoch=0, seed=2)


def test_without_shuffling_the_order_is_the_files():
    assert order(8, shuffle=False) == list(range(8))
    rows = order(6, shuffle=False)
    assert rows[:6] == list(range(6)) and all(0 <= row < 6 for row in rows[6:])


def test_filler_rows_go_on_from_epoch_to_epoch():
    """One generator draws them through the whole training, as the original's does."""
    drawn = [row for epoch in range(40) for row in order(5, epoch, shuffle=False)[5:]]
    assert len(drawn) == 120
    assert set(drawn) == set(range(5))
    assert drawn[:3] != drawn[3:6] or drawn[3:6] != drawn[6:9]


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    order(50)
    assert torch.equal(torch.get_rng_state(), before)


# training ---------------------------------------------------------------------------------------


def pairs(n: int, seed: int) -> Encoded:
    generator = np.random.default_rng(seed)
    return Encoded.of(
        [
            (generator.integers(1, 40, generator.integers(2, 6)).tolist(), generator.integers(1, 40, 5).tolist())
            for _ in range(n)
        ]
    )


DATA, VALID = pairs(11, 0), pairs(5, 1)
# 3 batches an epoch, 4 epochs: 12 steps; dropout, smoothing and filler rows are all in play.
SETTINGS = Train(epochs=4, batch_size=4, lr=1e-2, warmup_steps=2)
LORA = Lora(rank=2, dropout=0.1)


def fresh(method: Any = LORA) -> GPT2:
    net = GPT2(SIZES)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, method, torch.Generator().manual_seed(1))
    return net


def stop_at(step: int) -> Callable[[], int | None]:
    """A signal that arrives while the given step is done."""
    asked = iter(range(1, 1000))
    return lambda: 15 if next(asked) >= step else None


def go(net: GPT2, settings: Train = SETTINGS, **options: Any) -> Progress:
    return train(net, DATA, VALID, settings, protocol=PROTOCOL, seed=3, **options)


def same(one: GPT2, two: GPT2) -> bool:
    a, b = trained(one), trained(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_training_learns_and_tells_of_every_step_and_epoch():
    net = fresh()
    start = {name: p.detach().clone() for name, p in trained(net).items()}
    frozen = {name: p.detach().clone() for name, p in net.named_parameters() if not p.requires_grad}
    progress = go(net)
    assert progress.step == total_steps(11, SETTINGS) == 12
    assert progress.losses.shape == (12,) and (progress.losses > 0).all()
    assert [(e["epoch"], e["step"]) for e in progress.epochs] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert progress.losses[-3:].mean() < progress.losses[:3].mean()
    assert all(not torch.equal(p, start[name]) for name, p in trained(net).items())
    assert all(torch.equal(p, frozen[name]) for name, p in net.named_parameters() if name in frozen)


def test_the_same_seed_trains_to_the_same_bits():
    one, two, other = fresh(), fresh(), fresh()
    assert torch.equal(go(one).losses, go(two).losses)
    assert same(one, two)
    train(other, DATA, VALID, SETTINGS, protocol=PROTOCOL, seed=4)
    assert not same(one, other)


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


EVERY_UPDATE = Runtime(checkpoint_minutes=1e-9)

CASES = {
    "first step": (1, SETTINGS, LORA),
    "within an epoch": (5, SETTINGS, LORA),
    "an epoch's end": (6, SETTINGS, LORA),
    "the last step but one": (11, SETTINGS, LORA),
    "an update over two steps": (4, replace(SETTINGS, accumulate=2), LORA),
    "within an update over two steps": (5, replace(SETTINGS, accumulate=2), LORA),
    "an update across two epochs": (3, replace(SETTINGS, accumulate=2), LORA),
    "clipped, bf16": (4, replace(SETTINGS, clip=0.1, precision="bf16"), LORA),
    "the model's own dropout": (4, replace(SETTINGS, model_dropout=0.2), LORA),
    "a loss of pairs": (4, replace(SETTINGS, loss="pairs"), LORA),
    "PyTorch's AdamW": (4, replace(SETTINGS, optimizer="pytorch"), LORA),
    "own masks": (4, SETTINGS, replace(LORA, same_mask=False)),
    "a constant rate, no filling": (4, replace(SETTINGS, schedule="constant", fill_last_batch=False), LORA),
    "everything trains": (4, SETTINGS, Ft()),
}


@pytest.mark.parametrize(("stop", "settings", "method"), CASES.values(), ids=CASES)
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, stop: int, settings: Train, method: Any):
    whole = fresh(method)
    expected = go(whole, settings)

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stopped) as e:
        go(fresh(method), settings, checkpoint_path=path, stop_signal=stop_at(stop))
    assert e.value.exit_code == 128 + 15
    at = math.ceil(stop / settings.accumulate) * settings.accumulate  # a whole update
    assert f"step {at} of 12" in e.value.faults[0]
    assert path.exists()
    assert names(tmp_path) <= {"checkpoint", "checkpoint-before", *(f"checkpoint-epoch-{i}" for i in range(1, 5))}

    torch.manual_seed(99)  # another process has another generator
    resumed = fresh(method)
    progress = go(resumed, settings, checkpoint_path=path)
    assert same(resumed, whole)
    assert torch.equal(progress.losses, expected.losses)
    assert progress.epochs == expected.epochs
    assert progress.step == expected.step


def test_many_stops_end_with_the_same_bits(tmp_path: Path):
    whole, path = fresh(), tmp_path / "checkpoint.safetensors"
    expected = go(whole)
    for _ in range(5):
        with pytest.raises(Stopped):
            go(fresh(), checkpoint_path=path, stop_signal=stop_at(2))
    resumed = fresh()
    assert torch.equal(go(resumed, checkpoint_path=path).losses, expected.losses)
    assert same(resumed, whole)


@pytest.mark.parametrize("step", [2, 3, 4, 5, 6])
def test_a_killed_training_resumes_to_the_same_bits(tmp_path: Path, step: int):
    """It had no time to write: what counts is the last checkpoint, which holds no gradients."""
    settings = replace(SETTINGS, accumulate=2)
    whole, path = fresh(), tmp_path / "checkpoint.safetensors"
    expected = go(whole, settings)
    asked = iter(range(1, 1000))

    def killed() -> None:
        if next(asked) > step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(fresh(), settings, checkpoint_path=path, runtime=EVERY_UPDATE, stop_signal=killed)
    assert path.exists()
    resumed = fresh()
    assert torch.equal(go(resumed, settings, checkpoint_path=path).losses, expected.losses)
    assert same(resumed, whole)


def test_checkpoints_change_nothing(tmp_path: Path):
    """One after each step: neither writing nor the time it takes may reach the numbers."""
    plain, checked = fresh(), fresh()
    expected = go(plain)
    progress = go(checked, checkpoint_path=tmp_path / "c.safetensors", runtime=EVERY_UPDATE)
    assert torch.equal(progress.losses, expected.losses) and same(plain, checked)


def test_a_finished_training_is_not_repeated(tmp_path: Path):
    path = tmp_path / "c.safetensors"
    one, two = fresh(), fresh()
    expected = go(one, checkpoint_path=path)
    progress = go(two, checkpoint_path=path, stop_signal=lambda: pytest.fail("another step"))
    assert progress.step == 12 and torch.equal(progress.losses, expected.losses)
    assert same(one, two)


def test_a_checkpoint_holds_what_trains_and_no_more(tmp_path: Path):
    path = tmp_path / "c.safetensors"
    net = fresh()
    go(net, checkpoint_path=path)
    held = {name.removeprefix("param.") for name in load_file(path) if name.startswith("param.")}
    assert held == trained(net).keys()


def test_without_a_checkpoint_a_stop_is_still_a_stop():
    with pytest.raises(Stopped, match="step 2 of 12"):
        go(fresh(), stop_signal=stop_at(2))


def test_a_checkpoint_of_another_training(tmp_path: Path):
    path = tmp_path / "c.safetensors"
    go(fresh(), checkpoint_path=path)
    for other in (Ft(), Lora(rank=3)):
        with pytest.raises(BadInput) as e:
            go(fresh(other), checkpoint_path=path)
        assert e.value.faults == (
            f"checkpoint {path} is that of another model or method; delete {path.parent} to train from the start",
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(value: float, tmp_path: Path):
    net = fresh()
    with torch.no_grad():
        net.ln_f.weight.fill_(value)
    with pytest.raises(RunFailed) as e:
        go(net, checkpoint_path=tmp_path / "c.safetensors")
    (fault,) = e.value.faults
    assert "training diverged; lower train.lr or set train.clip" in fault
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_midway_ends_within_the_epoch():
    with pytest.raises(RunFailed, match="diverged"):
        go(fresh(Ft()), replace(SETTINGS, lr=1e30, warmup_steps=0))


def test_a_training_that_diverges_with_its_last_update_is_not_finished(tmp_path: Path):
    """Its losses are numbers; the validation loss alone tells."""
    settings = Train(epochs=1, batch_size=11, lr=1e30, warmup_steps=0)
    with pytest.raises(RunFailed, match="diverged"):
        go(fresh(Ft()), settings, checkpoint_path=tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_names_step_rate_and_pairs(tmp_path: Path):
    """One pair reaches the position whose embedding is broken; what was saved before it is there."""
    broken = order(11, seed=3)[9]  # in the first epoch's third step
    assert broken not in order(11, seed=3)[:8]
    lengths = [20 if i == broken else 5 for i in range(11)]
    data = Encoded.of([([1, 2, 3], [4 + i] * (n - 3)) for i, n in enumerate(lengths)])
    net, path = fresh(), tmp_path / "c.safetensors"
    with torch.no_grad():
        net.wpe.weight[15] = math.nan
    settings = replace(SETTINGS, warmup_steps=4)
    with pytest.raises(RunFailed) as e:
        train(net, data, VALID, settings, protocol=PROTOCOL, seed=3, checkpoint_path=path, runtime=EVERY_UPDATE)
    pairs = ", ".join(map(str, order(11, seed=3)[8:]))
    assert e.value.faults == (
        f"the loss is nan at step 2 (learning rate 0.005; pairs {pairs} of the training file, counted from 0): "
        "training diverged; lower train.lr or set train.clip",
    )
    losses = load_file(path)["losses"]
    assert (losses[:2] > 0).all() and not losses[2:].any()


@pytest.mark.parametrize(("steps", "warns"), [(12, True), (500, True), (11, False), (0, False)])
def test_a_warm_up_as_long_as_the_training_is_told(steps: int, warns: bool, log: pytest.LogCaptureFixture):
    with pytest.raises(Stopped):
        go(fresh(), replace(SETTINGS, warmup_steps=steps), stop_signal=lambda: 2)
    text = f"warm-up ({steps} steps) outlasts the training (12 steps): the peak learning rate is never reached"
    assert any(text in message for message in log.messages) is warns


# the model's own dropout ------------------------------------------------------------------------

STILL = replace(LORA, dropout=0.0)


def test_a_model_dropout_of_0_changes_nothing():
    one, two = fresh(), fresh()
    assert torch.equal(go(one).losses, go(two, replace(SETTINGS, model_dropout=0.0)).losses)
    assert same(one, two)


def test_model_dropout_is_random_in_steps_and_not_in_the_validation_loss():
    """At a rate of 0 the same batches come with other masks; the validation loss is that of the whole model."""
    settings = replace(SETTINGS, model_dropout=0.1, shuffle=False, lr=1e-30, epochs=3, batch_size=11)
    net = fresh(STILL)
    progress = go(net, settings)
    assert len(set(progress.losses.tolist())) == 3
    plain = go(fresh(STILL), replace(settings, model_dropout=0.0))
    assert len(set(plain.losses.tolist())) == 1
    assert [e["val_loss"] for e in progress.epochs] == [e["val_loss"] for e in plain.epochs]
    assert abs(progress.losses.mean() / plain.losses[0] - 1) < 0.02
    # The seed draws the masks, and nothing else does.
    torch.manual_seed(5)
    assert torch.equal(go(fresh(STILL), settings).losses, progress.losses)
    other = train(fresh(STILL), DATA, VALID, settings, protocol=PROTOCOL, seed=4)
    assert not torch.equal(other.losses, progress.losses)


# steps in place of epochs, and a time limit -----------------------------------------------------


@pytest.mark.parametrize(("steps", "epochs"), [(1, [1]), (3, [3]), (7, [3, 6, 7]), (14, [3, 6, 9, 12, 14])])
def test_steps_in_place_of_epochs(steps: int, epochs: list[int]):
    """The last pass is cut; its end is an epoch's end all the same, and the rate falls to 0 there."""
    settings = replace(SETTINGS, max_steps=steps, warmup_steps=0)
    progress = go(fresh(), settings)
    assert (progress.step, len(progress.losses)) == (steps, steps)
    assert (progress.losses > 0).all()
    assert [(e["epoch"], e["step"]) for e in progress.epochs] == list(enumerate(epochs, 1))


def test_as_many_steps_as_epochs_have_are_the_same_training():
    one, two = fresh(), fresh()
    expected = go(one, SETTINGS)
    progress = go(two, replace(SETTINGS, epochs=1, max_steps=12))
    assert torch.equal(progress.losses, expected.losses) and progress.epochs == expected.epochs
    assert same(one, two)


@pytest.mark.parametrize("stop", [2, 6, 7])
def test_a_training_of_steps_resumes_to_the_same_bits(stop: int, tmp_path: Path):
    settings, path = replace(SETTINGS, max_steps=8), tmp_path / "c.safetensors"
    whole, resumed = fresh(), fresh()
    expected = go(whole, settings)
    with pytest.raises(Stopped, match=f"step {stop} of 8"):
        go(fresh(), settings, checkpoint_path=path, stop_signal=stop_at(stop))
    progress = go(resumed, settings, checkpoint_path=path)
    assert torch.equal(progress.losses, expected.losses) and progress.epochs == expected.epochs
    assert same(resumed, whole)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock of the loop that goes on by the one number here, seconds, at every look."""
    pace, now = [1.0], [0.0]

    def monotonic() -> float:
        now[0] += pace[0]
        return now[0]

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=monotonic))
    return pace


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_time_limit_stops_with_a_checkpoint_to_go_on_from(accumulate: int, tmp_path: Path, clock: list[float]):
    """Each start has the time anew; the same bits in the end."""
    settings, path = replace(SETTINGS, accumulate=accumulate), tmp_path / "c.safetensors"
    whole, limited = fresh(), replace(settings, time_limit=0.05)  # 3 s
    expected = go(whole, settings)
    at, starts = 0, 0
    while True:
        net = fresh()
        try:
            progress = go(net, limited, checkpoint_path=path)
            break
        except Stopped as e:
            (fault,) = e.faults
            assert e.exit_code == 142 == 128 + signal.SIGALRM
            before, at = at, int(fault.split()[3])
            assert fault == f"stopped at step {at} of 12 (train.time_limit=0.05); the same command continues"
            assert at % accumulate == 0 and at > before
            with safe_open(path, framework="pt") as file:
                assert json.loads(file.metadata()["described"])["step"] == at
            starts += 1
    assert starts > 1
    assert len(progress.stretches) == starts + 1
    assert torch.equal(progress.losses, expected.losses) and progress.epochs == expected.epochs
    assert same(net, whole)


def test_a_time_limit_that_is_not_reached_stops_nothing(clock: list[float]):
    assert go(fresh(), replace(SETTINGS, time_limit=10)).step == 12


# what is told -----------------------------------------------------------------------------------


def test_the_log_tells_of_epochs_and_now_and_then_of_steps(clock: list[float], log: pytest.LogCaptureFixture):
    clock[0] = 11.0  # a step; a line every 30 s
    progress = go(fresh())
    tokens = sum(len(DATA.sequence(row)) for row in order(11, 0, seed=3))
    epochs = [m for m in log.messages if m.startswith("epoch")]
    assert epochs == [f"epoch {e['epoch']} of 4: validation loss {e['val_loss']:.4f}" for e in progress.epochs]
    steps = [m for m in log.messages if m.startswith("step")]
    assert [m.partition(":")[0] for m in steps] == [
        f"step {step} of 12 (epoch {-(-step // 3)})" for step in (3, 6, 9, 12)
    ]
    assert steps[0].endswith(f": loss {progress.losses[:3].mean():.4f}, {tokens / 33:,.0f} tokens/s")
    assert log.messages == [m for pair in zip(steps, epochs, strict=True) for m in pair]


def test_a_bar_takes_the_place_of_lines_about_steps(
    clock: list[float], log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    clock[0] = 11.0
    ticks: list[tuple[int, str]] = []
    shown: list[Any] = []

    @contextmanager
    def bar(what: str, total: int, **options: Any) -> Iterator[Callable[[int, str], None]]:
        shown.append((what, total, options))
        yield lambda done, note: ticks.append((done, note))

    monkeypatch.setattr(loop, "bar", bar)
    progress = go(fresh(), show_bar=True)
    assert shown == [("training", 12, {"done": 0, "shown": True})]
    assert [done for done, _ in ticks] == list(range(1, 13))
    assert ticks[1][1].startswith(f"loss {progress.losses[:2].mean():.4f}, ")
    assert all(m.startswith("epoch") for m in log.messages)


@pytest.mark.parametrize(("rank", "show", "shown"), [(0, True, True), (1, True, False), (0, False, False)])
def test_the_first_process_alone_shows_a_bar(rank: int, show: bool, shown: bool, monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []

    class Alone(Processes):
        """Sums are its own: there is nobody else."""

        def sum(self, tensors: Any) -> None:
            pass

    @contextmanager
    def bar(*_: Any, shown: bool, **__: Any) -> Iterator[None]:
        seen.append(shown)
        yield None

    monkeypatch.setattr(loop, "bar", bar)
    go(fresh(), processes=Alone(rank, 2), show_bar=show)
    assert seen == [shown]


# losses -----------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_completions_tokens():
    """Summed by hand over the tokens of each completion, with the mass spread over the vocabulary."""
    net = fresh().eval()
    batch = collate(DATA, [0, 3], max_length=32)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in (0, 3):
            tokens = torch.from_numpy(DATA.sequence(row))
            log_p = net.logits(net(tokens[None]))[0].log_softmax(-1)
            for i in range(int(DATA.contexts[row]), len(tokens)):
                total -= 0.9 * float(log_p[i - 1, tokens[i]]) + 0.1 * float(log_p[i - 1].mean())
                count += 1
        loss = batch_loss(net, batch, label_smoothing=0.1)
    assert float(loss) == pytest.approx(total / (count + 1e-4), rel=1e-5)


@pytest.mark.parametrize("fill", [True, False])
def test_the_validation_loss_is_a_mean_of_batch_means_without_smoothing(fill: bool):
    net = fresh()
    settings = replace(SETTINGS, valid_batch_size=2, label_smoothing=0.3, fill_last_batch=fill)
    drawn = random.Random(911).randint(0, len(VALID) - 1)  # the original's filler row
    found = validation_loss(net, VALID, settings, PROTOCOL)
    assert net.training
    net.eval()
    with torch.no_grad():
        means = [
            float(batch_loss(net, collate(VALID, rows, max_length=32), label_smoothing=0.0))
            for rows in ([0, 1], [2, 3], [4, drawn] if fill else [4])
        ]
    assert found == pytest.approx(sum(means) / 3, rel=1e-5)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_split_of_which_nothing_would_count_is_told(split: str):
    uncounted = Encoded.of([([1] * 40, [2])])
    splits = (uncounted, VALID) if split == "training" else (DATA, uncounted)
    with pytest.raises(BadInput) as e:
        train(fresh(), *splits, SETTINGS, protocol=PROTOCOL, seed=1)
    assert e.value.faults == (
        f"protocol.max_length=32: no token of the {split} split would count in the loss; give a greater one",
    )


def test_steps_that_make_no_update_are_told(log: pytest.LogCaptureFixture):
    with pytest.raises(BadInput) as e:
        go(fresh(), replace(SETTINGS, accumulate=13))
    assert e.value.faults == ("train.accumulate=13: 12 steps would make no update; give 12 or less",)
    net, before = fresh(), fresh()
    go(net, replace(SETTINGS, accumulate=12, warmup_steps=0))
    assert not same(net, before) and log.messages[:1] != []
    assert not any("no multiple" in text for text in log.messages)
    go(net, replace(SETTINGS, accumulate=5))
    assert "12 steps are no multiple of train.accumulate=5: the last 2 make no update" in log.messages


def test_accumulated_steps_are_one_larger_batch():
    """Without dropout, batches of equal token counts: two steps of four rows are one of eight."""
    data = Encoded.of([([1 + i, 2], [3 + i, 4, 5 + i]) for i in range(8)])
    settings = Train(epochs=1, batch_size=8, lr=1e-2, warmup_steps=0, schedule="constant", shuffle=False)
    one, two = fresh(replace(LORA, dropout=0.0)), fresh(replace(LORA, dropout=0.0))
    train(one, data, VALID, settings, protocol=PROTOCOL, seed=0)
    train(two, data, VALID, replace(settings, batch_size=4, accumulate=2), protocol=PROTOCOL, seed=0)
    for name, p in trained(one).items():
        torch.testing.assert_close(trained(two)[name], p, atol=1e-5, rtol=0)
