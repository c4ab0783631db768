"""Products with matrices laid out for the machine: as `F.linear` in value and gradient, and of frozen ones alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lodarepro import config
from lodarepro.methods import attach, trained
from lodarepro.model import GPT2, Sizes, products
from lodarepro.model.gpt2 import Dense, Packing
from lodarepro.model.products import WORTH, Product
from lodarepro.precision import Arithmetic
from lodarepro.train.loss import vocabulary_loss

D_IN, D_OUT = 384, 400  # above the threshold
SHAPES = [(1, D_IN), (7, D_IN), (2, 3, D_IN), (480, D_IN), (0, D_IN)]


@pytest.fixture(params=["here", "elsewhere"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A CPU with oneDNN, if this is one; and a machine that has no layout of its own, as a GPU."""
    if request.param == "elsewhere":
        monkeypatch.setattr(products, "_onednn", lambda W: False)
    elif not products._onednn(torch.zeros(D_IN, D_OUT)):
        pytest.skip("PyTorch has no oneDNN here")
    return str(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def rounded(actual: Tensor, expected: Tensor, plain: Tensor, magnitude: float) -> None:
    """No further from float64 than a few times what `F.linear` is, or than a few roundings of the terms' magnitude.

    How a processor's kernels split a sum decides how many roundings it has; on some, `F.linear` has very few.
    """
    assert actual.shape == expected.shape
    if expected.numel():
        of_plain = (plain.double() - expected).abs().max().item()
        roundings = torch.finfo(torch.float32).eps * magnitude
        assert (actual.double() - expected).abs().max().item() <= 4 * max(of_plain, roundings) + 1e-12


def magnitude(x: Tensor, W: Tensor) -> float:
    """The greatest sum of the terms' magnitudes in x W."""
    return float((x.detach().abs() @ W.abs()).max()) if x.numel() else 0.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_product_is_a_linear_map_to_fp32_rounding(shape: tuple[int, ...], with_bias: bool, machine: str):
    W, x = random(D_IN, D_OUT), random(*shape, seed=1).requires_grad_()
    bias = random(D_OUT, seed=2).requires_grad_() if with_bias else None
    g = random(*shape[:-1], D_OUT, seed=3)
    product = Product(W, torch.float32, gradient=True)
    assert product.packed == (machine == "here")
    y = product(x, bias)
    y.backward(g)

    x64 = x.detach().double().requires_grad_()
    bias64 = None if bias is None else bias.detach().double().requires_grad_()
    expected = F.linear(x64, W.t().double(), bias64)
    expected.backward(g.double())
    x32 = x.detach().clone().requires_grad_()
    bias32 = None if bias is None else bias.detach().clone().requires_grad_()
    plain = F.linear(x32, W.t(), bias32)
    plain.backward(g)

    assert y.dtype == torch.float32
    rounded(y, expected, plain, magnitude(x, W))
    assert x.grad is not None and x64.grad is not None and x32.grad is not None
    rounded(x.grad, x64.grad, x32.grad, magnitude(g, W.t()))
    if bias is not None and bias64 is not None and bias32 is not None:
        assert bias.grad is not None and bias64.grad is not None and bias32.grad is not None
        rounded(bias.grad, bias64.grad, bias32.grad, magnitude(torch.ones(1, g.numel() // D_OUT), g.view(-1, D_OUT)))
    with torch.no_grad():
        assert torch.equal(product.times(x, bias), y)
        assert torch.equal(product.times_transposed(g), x.grad)


def test_an_input_that_is_not_contiguous(machine: str):
    W, x = random(D_IN, D_OUT), random(D_IN, 9, seed=1).t()
    g = random(D_OUT, 9, seed=2).t()
    product = Product(W, torch.float32, gradient=True)
    torch.testing.assert_close(product(x), F.linear(x, W.t()), atol=1e-4, rtol=0)
    torch.testing.assert_close(product.times_transposed(g), g @ W.t(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("asked", ["input", "bias", "neither"])
def test_a_gradient_is_made_of_what_asks_for_it(asked: str, machine: str):
    W, x, bias = random(D_IN, D_OUT), random(5, D_IN, seed=1), random(D_OUT, seed=2)
    x.requires_grad_(asked == "input")
    bias.requires_grad_(asked == "bias")
    y = Product(W, torch.float32, gradient=True)(x, bias)
    assert y.requires_grad == (asked != "neither")
    if asked != "neither":
        y.sum().backward()
    assert (x.grad is not None, bias.grad is not None) == (asked == "input", asked == "bias")
    if bias.grad is not None:
        assert torch.equal(bias.grad, torch.full((D_OUT,), 5.0))


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_a_product_in_bf16(shape: tuple[int, ...], machine: str):
    """As `F.linear` in bf16; gradients come back in the dtype of what they are of."""
    W, x = random(D_IN, D_OUT), random(*shape, seed=1).requires_grad_()
    bias, g = random(D_OUT, seed=2).requires_grad_(), random(*shape[:-1], D_OUT, seed=3)
    y = Product(W, torch.bfloat16, gradient=True)(x, bias)
    y.backward(g.bfloat16())
    assert y.dtype == torch.bfloat16
    exact = F.linear(x.detach().double(), W.t().double(), bias.detach().double())
    assert 1e-5 < (y.double() - exact).norm() / exact.norm() < 6e-3  # 8 bits
    assert x.grad is not None and bias.grad is not None
    assert (x.grad.dtype, bias.grad.dtype) == (torch.float32, torch.float32)
    exact = g.double() @ W.t().double()
    assert 1e-5 < (x.grad.double() - exact).norm() / exact.norm() < 6e-3
    exact = g.double().flatten(0, -2).sum(0)
    assert (bias.grad.double() - exact).norm() / exact.norm() < 6e-3


def test_where_a_layout_of_its_own_pays():
    large, small = torch.zeros(WORTH // 256, 256), torch.zeros(WORTH // 256 - 1, 256)
    assert Product.pays(large, torch.float32) == products._onednn(torch.zeros(2000, 2000))
    assert not Product.pays(small, torch.float32)
    # Where it would be cast at every use, a copy pays at any size.
    assert Product.pays(small, torch.bfloat16) and Product.pays(large, torch.bfloat16)
    assert not Product(small, torch.bfloat16, gradient=True).packed


def test_a_copy_is_a_copy(machine: str):
    """What is laid out does not change with the matrix that it is of."""
    W, x = random(D_IN, D_OUT), random(3, D_IN, seed=1)
    product = Product(W, torch.float32, gradient=True)
    before = product(x)
    if machine == "here":
        W.zero_()
    assert torch.equal(product(x), before)


# models -----------------------------------------------------------------------------------------

SIZES = Sizes(n_layer=2, n_head=6, n_embd=384, vocab_size=500, n_positions=32)
METHODS = {
    "lora": config.Lora(rank=4, dropout=0.0, targets=("q", "k", "v", "o", "up", "down")),
    "dora": config.Lora(rank=4, dropout=0.0, dora=True),
    "bitfit": config.BitFit(),
    "ft-qv": config.FtQv(),
    "ft-top": config.FtTop(blocks=1),
    "ft": config.Ft(),
    "adapter": config.Adapter(bottleneck=8),
    "prefix-layer": config.PrefixLayer(hidden=None),
    "loda": config.Loda(dropout=0.0),
}


def model_of(method: Any) -> GPT2:
    net = GPT2(SIZES)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, method, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained(net).values():
            p.add_(torch.empty_like(p).normal_(0.0, 0.02, generator=generator))
    return net


def loss_of(net: GPT2, arithmetic: Arithmetic) -> Tensor:
    """Of two rows of unlike length, packed as in training."""
    packing = Packing(torch.tensor([*range(9), *range(12, 24)]), 2, 12)
    tokens = torch.randint(500, (21,), generator=torch.Generator().manual_seed(3))
    counted = torch.tensor([4, 5, 6, 7, 15, 16, 17, 18, 19])
    with arithmetic():
        hidden = net(tokens, packing=packing, keep=counted)
        return vocabulary_loss(net, hidden, tokens[counted + 1], scale=torch.ones(9), label_smoothing=0.1)


def matrices(net: GPT2) -> Iterator[tuple[Tensor, Product | None]]:
    """Each matrix of the model's own with the copy that is kept of it."""
    yield net.wte.weight, net.output
    for module in net.modules():
        if isinstance(module, Dense) and module.base is None:
            yield module.weight, module.product


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_packed_model_trains_as_it_does_unpacked(method: Any, precision: Any):
    net, arithmetic = model_of(method), Arithmetic(precision, torch.device("cpu"))
    expected = loss_of(net, arithmetic)
    expected.backward()
    grads = {name: p.grad for name, p in trained(net).items()}
    net.zero_grad()
    net.pack(arithmetic.dtype, training=True)
    found = loss_of(net, arithmetic)
    found.backward()
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)
    for name, p in trained(net).items():
        grad = grads[name]
        assert p.grad is not None and grad is not None and grad.norm() > 0, name
        assert p.grad.dtype == torch.float32
        assert (p.grad - grad).norm() < 5 * tolerance * grad.norm(), name
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_in_training_what_trains_is_never_packed_and_what_is_frozen_is(method: Any):
    net = model_of(method)
    net.pack(torch.float32, training=True)
    found = list(matrices(net))
    assert len(found) == (7 if method.name == "ft-qv" else 9)  # which has something else for two
    for W, product in found:
        assert (product is not None) == (not W.requires_grad and products._onednn(W))


def test_updates_reach_a_packed_model():
    """What trains is read anew in every pass."""
    net = model_of(METHODS["ft-top"])
    arithmetic = Arithmetic("fp32", torch.device("cpu"))
    net.pack(torch.float32, training=True)
    with torch.no_grad():
        for p in trained(net).values():
            p.mul_(1.5)
    found = loss_of(net, arithmetic)
    net.unpack()
    assert float(found.detach()) == pytest.approx(float(loss_of(net, arithmetic).detach()), rel=1e-5)


def test_to_decode_everything_large_is_packed_and_the_output_layer_is_fp32():
    net = model_of(METHODS["ft"])
    net.pack(torch.float32, training=False)
    for W, product in matrices(net):
        assert (product is not None) == products._onednn(W)
    net.pack(torch.bfloat16, training=False)
    (_, output), *others = matrices(net)
    assert output is None or output.dtype == torch.float32
    assert all(product is not None and product.dtype == torch.bfloat16 for _, product in others)
    net.unpack()
    assert all(product is None for _, product in matrices(net))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_packed_model_decodes_as_it_does_unpacked(precision: Any):
    net, arithmetic = model_of(METHODS["lora"]).eval(), Arithmetic(precision, torch.device("cpu"))
    tokens = torch.randint(500, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode(), arithmetic():
        expected = net.logits(net(tokens)).float()
        net.pack(arithmetic.dtype, training=False)
        found = net.logits(net(tokens))
    assert found.dtype == torch.float32
    assert (found - expected).norm() < (1e-5 if precision == "fp32" else 2e-2) * expected.norm()
