"""The loss over the vocabulary and its gradients against `cross_entropy` in float64, and what it holds at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lodarepro.config import Ft, Lora
from lodarepro.methods import attach
from lodarepro.model import GPT2, Sizes
from lodarepro.train import loss as module
from lodarepro.train.loss import token_losses, vocabulary_loss

SIZES = Sizes(n_layer=1, n_head=2, n_embd=24, vocab_size=70, n_positions=16)
WIDE = Sizes(n_layer=1, n_head=2, n_embd=96, vocab_size=1500, n_positions=16)
"""its output layer is one that `pack` lays out"""
M = 23


def model_of(sizes: Sizes = SIZES, method: Any = None) -> GPT2:
    net = GPT2(sizes)
    generator = torch.Generator().manual_seed(0)
    net.initialise(generator)
    with torch.no_grad():
        net.wte.weight.normal_(0.0, 0.5, generator=generator)
    attach(net, method or Ft(), generator)
    return net


def given(sizes: Sizes = SIZES, m: int = M) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, targets, scales; the loss is not that of even probabilities."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.empty(m, sizes.n_embd).normal_(0.0, 1.0, generator=generator)
    targets = torch.randint(sizes.vocab_size, (m,), generator=generator)
    return hidden.requires_grad_(), targets, torch.rand(m, generator=generator)


def exact(net: GPT2, hidden: Tensor, targets: Tensor, scale: Tensor, e: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its gradient in the hidden states and in the output layer, by autograd in float64."""
    h = hidden.detach().double().requires_grad_()
    W = net.wte.weight.detach().double().requires_grad_()
    losses = F.cross_entropy(h @ W.T, targets, reduction="none", label_smoothing=e)
    loss = (losses * scale.double()).sum()
    loss.backward()
    assert h.grad is not None and W.grad is not None
    return loss.detach(), h.grad, W.grad


def near(actual: Tensor | None, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert actual is not None
    largest = expected.abs().max().item()
    assert largest > 1e-3
    torch.testing.assert_close(actual.double(), expected, atol=tolerance * largest, rtol=0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of logits that are made at once."""
    found: list[int] = []
    times = module.Product.times

    def counted(self: Any, hidden: Tensor) -> Tensor:
        logits = times(self, hidden)
        found.append(logits.numel())
        return logits

    monkeypatch.setattr(module.Product, "times", counted)
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("chunk", "passes"), [(1, M), (70 * 5 + 69, 5), (70 * M, 1), (2**24, 1)])
def test_value_and_gradients_are_those_of_cross_entropy(
    smoothing: float, chunk: int, passes: int, held: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CHUNK", chunk)
    net = model_of()
    hidden, targets, scale = given()
    loss = vocabulary_loss(net, hidden, targets, scale=scale, label_smoothing=smoothing)
    (3 * loss).backward()  # what comes from above counts
    value, grad_hidden, grad_weight = exact(net, hidden, targets, scale, smoothing)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(value), rel=1e-6)
    near(hidden.grad, 3 * grad_hidden)
    near(net.wte.weight.grad, 3 * grad_weight)
    # Made in one pass: the backward pass makes no logits again.
    assert len(held) == passes and max(held) <= max(chunk, 70) and sum(held) == M * 70


def test_gradients_are_made_of_what_asks_for_them():
    hidden, targets, scale = given()
    frozen = model_of(method=Lora(rank=2))
    vocabulary_loss(frozen, hidden, targets, scale=scale, label_smoothing=0.1).backward()
    _, grad_hidden, grad_weight = exact(frozen, hidden, targets, scale, 0.1)
    near(hidden.grad, grad_hidden)
    assert frozen.wte.weight.grad is None

    net = model_of()
    vocabulary_loss(net, hidden.detach(), targets, scale=scale, label_smoothing=0.1).backward()
    near(net.wte.weight.grad, grad_weight)


def test_the_value_alone_without_gradients():
    net = model_of()
    hidden, targets, scale = given()
    with torch.no_grad():
        found = vocabulary_loss(net, hidden, targets, scale=scale, label_smoothing=0.1)
    assert not found.requires_grad
    assert float(found) == pytest.approx(float(exact(net, hidden, targets, scale, 0.1)[0]), rel=1e-6)


def test_the_gradient_goes_on_below_the_hidden_states():
    """As where they come from a model: through another operation, and beside another use of the embedding."""
    net = model_of()
    hidden, targets, scale = given()
    loss = vocabulary_loss(net, hidden.tanh() + net.wte(targets), targets, scale=scale, label_smoothing=0.1)
    loss.backward()
    h = hidden.detach().double().requires_grad_()
    W = net.wte.weight.detach().double().requires_grad_()
    losses = F.cross_entropy((h.tanh() + W[targets]) @ W.T, targets, reduction="none", label_smoothing=0.1)
    (losses * scale.double()).sum().backward()
    assert h.grad is not None and W.grad is not None
    near(hidden.grad, h.grad)
    near(net.wte.weight.grad, W.grad)


def test_large_logits_overflow_nowhere():
    net = model_of()
    hidden, targets, scale = given()
    with torch.no_grad():
        hidden.mul_(200)
    loss = vocabulary_loss(net, hidden, targets, scale=scale, label_smoothing=0.1)
    loss.backward()
    value, grad_hidden, grad_weight = exact(net, hidden, targets, scale, 0.1)
    assert float(value) > 1000
    assert float(loss.detach()) == pytest.approx(float(value), rel=1e-5)
    near(hidden.grad, grad_hidden, 1e-4)
    near(net.wte.weight.grad, grad_weight, 1e-4)


def test_where_no_position_counts_the_loss_is_0():
    net = model_of()
    hidden, targets, scale = given(m=0)
    loss = vocabulary_loss(net, hidden, targets, scale=scale, label_smoothing=0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert hidden.grad is not None and hidden.grad.shape == (0, 24)
    assert net.wte.weight.grad is not None and not net.wte.weight.grad.any()


@pytest.mark.parametrize("chunk", [1500 * 7, 2**24])
def test_a_packed_output_layer_gives_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    net = model_of(WIDE, Lora(rank=2))
    hidden, targets, scale = given(WIDE)
    net.pack(torch.float32, training=True)
    assert net.output is not None
    loss = vocabulary_loss(net, hidden, targets, scale=scale, label_smoothing=0.1)
    loss.backward()
    value, grad_hidden, _ = exact(net, hidden, targets, scale, 0.1)
    assert float(loss.detach()) == pytest.approx(float(value), rel=1e-6)
    near(hidden.grad, grad_hidden, 5e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", [Ft(), Lora(rank=2)])
def test_bf16_is_near_and_its_sums_are_fp32(packed: bool, method: Any):
    net = model_of(WIDE, method)
    hidden, targets, scale = given(WIDE)
    if packed:
        net.pack(torch.bfloat16, training=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vocabulary_loss(net, hidden, targets, scale=scale, label_smoothing=0.1)
    loss.backward()
    value, grad_hidden, grad_weight = exact(net, hidden, targets, scale, 0.1)
    assert loss.dtype == torch.float32
    assert 1e-7 < abs(float(loss.detach()) / float(value) - 1) < 1e-2
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    assert 1e-5 < (hidden.grad - grad_hidden).norm() / grad_hidden.norm() < 2e-2
    if isinstance(method, Ft):
        grad = net.wte.weight.grad
        assert grad is not None and grad.dtype == torch.float32
        assert 1e-5 < (grad - grad_weight).norm() / grad_weight.norm() < 2e-2


@pytest.mark.parametrize("chunk", [1, 70 * 5, 2**24])
def test_the_loss_of_each_token(chunk: int, held: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    net = model_of()
    hidden, targets, _ = given()
    found = token_losses(net, hidden, targets)
    expected = F.cross_entropy(hidden.detach().double() @ net.wte.weight.detach().double().T, targets, reduction="none")
    assert found.shape == (M,) and not found.requires_grad
    near(found, expected)
    assert max(held) <= max(chunk, 70)
