"""One step of training: micro-batches, memory that ends, losses of pairs, processes' shares, a compiler."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lodarepro.config import Ft, Lora, Protocol, Runtime, Train
from lodarepro.data.batch import Batch
from lodarepro.data.tokenise import Encoded
from lodarepro.distributed import Processes
from lodarepro.errors import RunFailed
from lodarepro.methods import attach, one_group, trained
from lodarepro.model import GPT2, Sizes
from lodarepro.precision import Arithmetic
from lodarepro.train import step as module
from lodarepro.train.loop import train
from lodarepro.train.optim import make_optimizer
from lodarepro.train.step import Step, batch_loss

SIZES = Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=40, n_positions=64)
PROTOCOL = Protocol("lora", max_length=32)
CPU = torch.device("cpu")
LORA = Lora(rank=2, dropout=0.0)
SETTINGS = Train(epochs=2, batch_size=8, lr=1e-2, warmup_steps=2)
ROWS = [3, 0, 7, 7, 2, 9, 5, 1]
MEMORY_ENDS = "CUDA out of memory. Tried to allocate 2.00 GiB"


def pairs(n: int, seed: int = 0) -> Encoded:
    generator = np.random.default_rng(seed)

    def tokens(least: int, most: int) -> list[int]:
        return generator.integers(1, 40, generator.integers(least, most)).tolist()

    return Encoded.of([(tokens(2, 12), tokens(1, 14)) for _ in range(n)])


DATA = pairs(12)


def fresh(method: Any = LORA, sizes: Sizes = SIZES) -> GPT2:
    """B of the deltas is not 0, so that A has a gradient too."""
    net = GPT2(sizes)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, method, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained(net).values():
            p.add_(torch.empty_like(p).normal_(0.0, 0.1, generator=generator))
    return net


def step_of(net: GPT2, settings: Train = SETTINGS, **options: Any) -> Step:
    return Step(
        net, options.pop("data", DATA), settings, protocol=PROTOCOL, arithmetic=Arithmetic("fp32", CPU), **options
    )


def gradients(net: GPT2) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in trained(net).items()}
    return {name: grad for name, grad in found.items() if grad is not None}


def done(settings: Train = SETTINGS, rows: Sequence[int] = ROWS, **options: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step of a fresh model."""
    net = fresh()
    loss = step_of(net, settings, **options)(rows)
    assert loss.shape == () and not loss.requires_grad
    return float(loss), gradients(net)


def close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys() and expected
    for name, grad in expected.items():
        assert grad.abs().max() > 1e-4
        torch.testing.assert_close(actual[name], grad, atol=1e-7, rtol=1e-4)


def token_nll(net: GPT2, row: int, smoothing: float) -> list[Tensor]:
    """The losses of a pair's completion tokens, each from a forward pass of the pair alone."""
    tokens = torch.from_numpy(DATA.sequence(row))
    logits = net.logits(net(tokens[None]))[0]
    return [
        F.cross_entropy(logits[i - 1], tokens[i], label_smoothing=smoothing)
        for i in range(int(DATA.contexts[row]), len(tokens))
    ]


# what a step is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["tokens", "pairs"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_loss_is_a_mean_over_tokens_or_over_pairs_of_sums(smoothing: float, loss: Any, micro_batch: int | None):
    net = fresh()
    losses = [token_nll(net, row, smoothing) for row in ROWS]
    whole = torch.stack([token for pair in losses for token in pair]).sum()
    expected = whole / 8 if loss == "pairs" else whole / (sum(map(len, losses)) + 1e-4)
    expected.backward()
    found, grads = done(replace(SETTINGS, loss=loss, label_smoothing=smoothing), micro_batch=micro_batch)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    close(grads, gradients(net))


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("loss", ["tokens", "pairs"])
def test_micro_batches_make_the_same_step(micro_batch: int, loss: Any):
    settings = replace(SETTINGS, loss=loss)
    value, expected = done(settings)
    found, grads = done(settings, micro_batch=micro_batch)
    assert found == pytest.approx(value, rel=1e-6)
    close(grads, expected)


def test_a_micro_batch_is_what_goes_through_the_model_at_once(monkeypatch: pytest.MonkeyPatch):
    seen = watched(monkeypatch)
    done(micro_batch=3)
    assert seen == [3, 3, 2]


def test_steps_of_one_update_are_averaged():
    net = fresh()
    settings = replace(SETTINGS, accumulate=2)
    gradient = step_of(net, settings)
    first, second = float(gradient([0, 1, 2])), float(gradient([3, 4]))
    found = gradients(net)
    (one, grads), (two, others) = done(rows=[0, 1, 2]), done(rows=[3, 4])
    assert (first, second) == pytest.approx((one, two))  # a loss is that of its step
    close(found, {name: (grads[name] + others[name]) / 2 for name in grads})


def test_sequences_are_cut_and_the_loss_covers_what_the_protocol_says():
    net = fresh()
    protocol = Protocol("x", max_length=6, loss_on="all")
    settings = replace(SETTINGS, label_smoothing=0.0)
    found = Step(net, DATA, settings, protocol=protocol, arithmetic=Arithmetic("fp32", CPU))(ROWS)
    losses = []
    for row in ROWS:
        tokens = torch.from_numpy(DATA.sequence(row))[:6]
        losses.append(F.cross_entropy(net.logits(net(tokens[None]))[0, :-1], tokens[1:], reduction="sum"))
    count = sum(min(6, len(DATA.sequence(row))) - 1 for row in ROWS)
    assert float(found) == pytest.approx(sum(loss.item() for loss in losses) / (count + 1e-4), rel=1e-5)


def test_tokens_are_counted_without_padding():
    gradient = step_of(fresh(), micro_batch=3)
    gradient(ROWS)
    gradient([0])
    assert gradient.tokens == sum(len(DATA.sequence(row)) for row in [*ROWS, 0])


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_that_is_cut_before_its_completions_has_no_loss(packed: bool):
    """The 1e-4 keeps it a number; with packed matrices the last block has no token to run on."""
    wide = Sizes(n_layer=2, n_head=2, n_embd=256, vocab_size=600, n_positions=64)
    net = GPT2(wide)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, LORA, torch.Generator().manual_seed(1))
    if packed:
        net.pack(torch.float32, training=True)
    data = Encoded.of([([5] * 40, [1, 2]), ([6] * 33, [3])])
    loss = step_of(net, data=data)([0, 1])
    assert float(loss) == 0
    assert all((grad == 0).all() for grad in gradients(net).values())


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_gradients_lie_in_memory_as_their_parameters_do(micro_batch: int | None):
    """An optimizer's kernel reads both in the order of memory; and none shares it with another's."""
    net = fresh(Ft())
    gradient = step_of(net, micro_batch=micro_batch)
    gradient(ROWS)
    grads = gradients(net)
    assert grads.keys() == trained(net).keys()
    for name, p in trained(net).items():
        assert grads[name].stride() == p.stride(), name
    assert len({grad.untyped_storage().data_ptr() for grad in grads.values()}) == len(grads)
    twin = fresh(Ft())
    batch = module.collate(DATA, ROWS, max_length=32)
    batch_loss(twin, batch, label_smoothing=0.1).backward()
    for name, grad in gradients(twin).items():
        torch.testing.assert_close(grads[name], grad, atol=1e-6, rtol=1e-4)


# memory -----------------------------------------------------------------------------------------


def watched(
    monkeypatch: pytest.MonkeyPatch, *, fits: int = 10**6, when: Callable[[], bool] = lambda: True
) -> list[int]:
    """The pairs of each pass; memory ends where there are more than fit."""
    seen: list[int] = []

    def loss(net: GPT2, batch: Batch, **options: Any) -> Tensor:
        seen.append(batch.rows)
        if batch.rows > fits and when():
            raise torch.OutOfMemoryError(MEMORY_ENDS)
        return batch_loss(net, batch, **options)

    monkeypatch.setattr(module, "batch_loss", loss)
    return seen


@pytest.mark.parametrize(
    ("fits", "tries", "sizes"),
    [
        (7, [8, 4, 4], [4]),
        (4, [8, 4, 4], [4]),
        (3, [8, 4, 2, 2, 2, 2], [4, 2]),
        (1, [8, 4, 2, *[1] * 8], [4, 2, 1]),
    ],
)
def test_where_memory_ends_a_step_is_split_further(
    fits: int, tries: list[int], sizes: list[int], monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
):
    value, expected = done()
    seen = watched(monkeypatch, fits=fits)
    net = fresh()
    gradient = step_of(net)
    found = float(gradient(ROWS))
    assert seen == tries
    assert found == pytest.approx(value, rel=1e-6)
    close(gradients(net), expected)
    said = [f"out of memory: going on with {n} pairs at once, to the same update" for n in sizes]
    assert [record.getMessage() for record in log.records] == said
    assert gradient.micro_batch == sizes[-1]  # from now on
    gradient(ROWS)
    assert len(log.records) == len(sizes)


def test_a_small_last_batch_is_halved_by_what_it_has(monkeypatch: pytest.MonkeyPatch):
    seen = watched(monkeypatch, fits=2)
    step_of(fresh())([0, 1, 2])
    assert seen == [3, 2, 1]


def test_what_a_pass_added_before_memory_ended_does_not_count_twice(monkeypatch: pytest.MonkeyPatch):
    """Memory ends at the third micro-batch; and the gradient of the step before is kept."""
    net, twin = fresh(), fresh()
    before = step_of(twin)
    before([9, 10])
    before(ROWS)
    gradient = step_of(net, micro_batch=3)
    gradient([9, 10])
    ends = iter([False, False, True])
    seen = watched(monkeypatch, fits=1, when=lambda: next(ends, False))
    gradient(ROWS)
    assert seen == [3, 3, 2, 2, 2, 2, 2]
    close(gradients(net), gradients(twin))


def test_memory_may_end_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch):
    class Hungry(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, rows: int) -> Tensor:
            ctx.rows = rows
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            if ctx.rows > 2:
                raise torch.OutOfMemoryError(MEMORY_ENDS)
            return grads[0], None

    value, expected = done()
    monkeypatch.setattr(module, "batch_loss", lambda net, b, **o: Hungry.apply(batch_loss(net, b, **o), b.rows))
    found, grads = done()
    assert found == pytest.approx(value, rel=1e-6)
    close(grads, expected)


def test_a_pair_for_which_there_is_no_memory_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    watched(monkeypatch, fits=0)
    net = fresh()
    with pytest.raises(RunFailed) as e:
        step_of(net)(ROWS)
    assert e.value.faults == (
        "not even one pair fits into the device's memory; give a smaller model or protocol.max_length",
    )
    assert gradients(net) == {}


def test_a_training_short_of_memory_is_the_same_training(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
):
    one, two = fresh(), fresh()
    expected = train(one, DATA, DATA, SETTINGS, protocol=PROTOCOL, seed=1)
    watched(monkeypatch, fits=3)
    found = train(two, DATA, DATA, SETTINGS, protocol=PROTOCOL, seed=1)
    torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=0)
    for name, p in trained(one).items():
        torch.testing.assert_close(trained(two)[name], p, atol=1e-5, rtol=0)
    assert [text for text in log.messages if "memory" in text] == [
        f"out of memory: going on with {n} pairs at once, to the same update" for n in (4, 2)
    ]


def test_another_fault_is_none_of_memory(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(module, "batch_loss", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        step_of(fresh())(ROWS)


# processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:3], ROWS[:1]])
@pytest.mark.parametrize("loss", ["tokens", "pairs"])
def test_the_shares_of_processes_sum_to_the_step(size: int, rows: list[int], loss: Any):
    """One without a pair has gradients too, of zeros, as it takes part in the sum."""
    settings = replace(SETTINGS, loss=loss)
    value, expected = done(settings, rows)
    shares = [done(settings, rows, processes=Processes(rank, size)) for rank in range(size)]
    assert sum(share for share, _ in shares) == pytest.approx(value, rel=1e-6)
    assert all(grads.keys() == expected.keys() for _, grads in shares)
    close({name: sum((grads[name] for _, grads in shares), torch.zeros(())) for name in expected}, expected)
    for rank, (share, grads) in enumerate(shares):
        if rank >= len(rows):
            assert share == 0 and all((grad == 0).all() for grad in grads.values())


# the compiler -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_compiled_model_trains_the_same(log: pytest.LogCaptureFixture):
    one, two = (fresh(sizes=replace(SIZES, n_layer=1)) for _ in range(2))
    settings = replace(SETTINGS, epochs=3, batch_size=5)  # filler rows; and one shape, of 32 columns
    expected = train(one, DATA, DATA, settings, protocol=PROTOCOL, seed=1)
    found = train(two, DATA, DATA, settings, protocol=PROTOCOL, seed=1, runtime=Runtime(compile=True))
    assert [text for text in log.messages if "compile" in text] == []
    torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=0)
    for name, p in trained(one).items():
        torch.testing.assert_close(trained(two)[name], p, atol=1e-5, rtol=0)


def test_a_compiled_model_is_given_padded_rows_of_few_widths(monkeypatch: pytest.MonkeyPatch):
    widths: list[tuple[int, ...]] = []

    def compiled(net: GPT2, **_: Any) -> Callable[[Tensor], Tensor]:
        def call(tokens: Tensor) -> Tensor:
            widths.append(tuple(tokens.shape))
            hidden: Tensor = net(tokens)
            return hidden

        return call

    value, expected = done()
    monkeypatch.setattr(torch, "compile", compiled)
    found, grads = done(compiled=True)
    assert widths == [(8, 32)]
    assert found == pytest.approx(value, rel=1e-5)
    close(grads, expected)
    assert done(compiled=True, micro_batch=4)[0] == pytest.approx(value, rel=1e-5)
    assert widths[1:] == [(4, 32), (4, 32)]


def test_a_compiler_that_fails_is_told_once_and_left_out(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
):
    """Compilation starts with the first batch, so that is where it fails."""

    def compiled(net: GPT2, **_: Any) -> Callable[[Tensor], Tensor]:
        def call(tokens: Tensor) -> Tensor:
            raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx: ('g++',)\nSet X to Y")

        return call

    value, expected = done()
    monkeypatch.setattr(torch, "compile", compiled)
    net = fresh()
    gradient = step_of(net, compiled=True)
    found = float(gradient(ROWS))
    assert found == pytest.approx(value, rel=1e-6)
    close(gradients(net), expected)
    gradient(ROWS)
    assert log.messages == [
        "torch.compile failed (RuntimeError: No working C++ compiler found in torch._inductor.config.cpp.cxx: "
        "('g++',)): going on without it"
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_machine_without_a_c_compiler_trains_without_compiling(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: pytest.LogCaptureFixture
):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled before
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    net, other = fresh(), fresh()
    step_of(other)(ROWS)
    step_of(net, compiled=True)(ROWS)
    (warning,) = log.messages
    assert warning.startswith("torch.compile failed (") and warning.endswith("): going on without it")
    close(gradients(net), gradients(other))


def no_compiler() -> str:
    raise RuntimeError("no C++ compiler here")


def test_memory_that_ends_in_a_compiled_model_splits_the_step(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
):
    def compiled(net: GPT2, **_: Any) -> Callable[[Tensor], Tensor]:
        def call(tokens: Tensor) -> Tensor:
            if len(tokens) > 4:
                raise torch.OutOfMemoryError(MEMORY_ENDS)
            hidden: Tensor = net(tokens)
            return hidden

        return call

    value, _ = done()
    monkeypatch.setattr(torch, "compile", compiled)
    assert done(compiled=True)[0] == pytest.approx(value, rel=1e-5)
    assert log.messages == ["out of memory: going on with 4 pairs at once, to the same update"]


# precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [LORA, Ft()])
def test_bf16_rounds_passes_and_not_what_trains(method: Any):
    net, exact = fresh(method), fresh(method)
    arithmetic = Arithmetic("bf16", CPU)
    net.pack(arithmetic.dtype, training=True)
    found = Step(net, DATA, SETTINGS, protocol=PROTOCOL, arithmetic=arithmetic)(ROWS)
    expected = step_of(exact)(ROWS)
    assert found.dtype == torch.float32
    assert 0 < abs(float(found) - float(expected)) < 0.02 * float(expected)
    for name, p in trained(net).items():
        grad = trained(exact)[name].grad
        assert p.dtype == torch.float32 and p.grad is not None and grad is not None
        assert p.grad.dtype == torch.float32
        assert (p.grad - grad).norm() < 0.05 * grad.norm(), name


@pytest.mark.parametrize(("precision", "setting"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "highest")])
def test_the_precision_of_matrix_products_is_stated_for_every_run(precision: Any, setting: str):
    torch.set_float32_matmul_precision("medium")
    try:
        Arithmetic(precision, CPU)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")


# gradients that autograd gives in other shapes of memory ------------------------------------------


class Transposed(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.zeros(d, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.P.t() * torch.tensor([0.1, 0.5, 2.0])[:, None]).sum(0)


class OneGradientOfTwo(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.zeros(d)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.a + self.b)


class Expanded(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.zeros(5, d))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.P.sum(0)


@pytest.mark.parametrize("module_type", [Transposed, OneGradientOfTwo, Expanded])
@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, None), (1, 1e-3)])
def test_an_update_is_that_of_autograds_own_accumulation(module_type: Any, accumulate: int, clip: float | None):
    updated = []
    for own in (True, False):
        net = GPT2(SIZES)
        net.initialise(torch.Generator().manual_seed(0))
        net.requires_grad_(False)
        net.h[0].after_mlp = module_type(SIZES.n_embd)
        settings = replace(SETTINGS, accumulate=accumulate)
        step = step_of(net, settings)
        for _ in range(accumulate):
            if own:
                step(ROWS)
            else:
                batch = module.collate(DATA, ROWS, max_length=PROTOCOL.max_length)
                (batch_loss(net, batch, label_smoothing=0.1) / accumulate).backward()
        parameters = list(trained(net).values())
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer = make_optimizer(one_group(net), settings)
        optimizer.step()
        updated.append(torch.cat([p.detach().flatten() for p in parameters]))
    assert updated[1].abs().max() > 1e-3
    torch.testing.assert_close(updated[0], updated[1], atol=1e-5, rtol=0)
