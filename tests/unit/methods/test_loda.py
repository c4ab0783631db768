"""LoDA and LoDA+: the map against computations by hand, its special cases, its start and its learning."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lodarepro import compose, config
from lodarepro.config import F1, Loda, Lora
from lodarepro.errors import BadInput
from lodarepro.methods import attach, load_adapter, merge, mergeable, save_adapter, trained
from lodarepro.methods.loda import LodaDelta
from lodarepro.model import GPT2, Sizes

SIZES = Sizes(n_layer=3, n_head=2, n_embd=32, vocab_size=60, n_positions=40)
TOKENS = torch.randint(SIZES.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
PLUS = Loda("loda-plus", f2=("activation",))


def base(seed: int = 0) -> GPT2:
    net = GPT2(SIZES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return net.eval()


def attached(method: Any, seed: int = 1) -> GPT2:
    net = base()
    attach(net, method, torch.Generator().manual_seed(seed))
    return net.eval()


def disturbed(method: Any) -> GPT2:
    net = attached(method)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained(net).values():
            p.add_(torch.empty(p.shape).normal_(0.0, 0.2, generator=generator))
    return net


def logits(net: GPT2) -> Tensor:
    with torch.no_grad():
        return net.logits(net(TOKENS))


def deltas(net: GPT2, target: str) -> list[LodaDelta]:
    found = [dense.deltas[target] for dense in net.denses(target)]
    assert all(isinstance(delta, LodaDelta) for delta in found)
    return found  # type: ignore[return-value]


# by hand ----------------------------------------------------------------------------------------

X = [1.0, -2.0]
A = [[1.0, 0.0], [0.0, 1.0]]  # so that x A = x
F_1 = [[0.0, 1.0], [1.0, 0.0]]  # exchanges the two numbers
F_2 = [[2.0, 0.0], [0.0, 1.0]]
B = [[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]]
EPS = 1e-5  # of PyTorch's LayerNorm


def by_hand(**options: Any) -> list[float]:
    """The delta of X with rank 2, scale 1, and a slope of 0.5 unless said otherwise."""
    f1 = F1(**{"slope": 0.5, **options.pop("f1", {})})
    linear = f1.depth * f1.order.count("linear")
    matrices = [torch.tensor(M) for M in (F_1, F_2)[:linear]]
    method = Loda(rank=2, **{"alpha": 2.0, **options, "f1": f1})
    delta = LodaDelta(torch.tensor(A), matrices, 3, config=method, dropout=None)
    with torch.no_grad():
        delta.B.copy_(torch.tensor(B))
        return [round(value, 5) for value in delta(torch.tensor(X)).tolist()]


LINEAR = ("linear",)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # x A = (1, -2), x A B = (1, -2, -3)
        ({"f1": {"depth": 0}}, [1, -2, -3]),
        # f1: (1, -2) F_1 = (-2, 1); (-2, 1) B = (-2, 1, 3)
        ({"f1": {"depth": 1, "order": LINEAR}}, [1 - 2, -2 + 1, -3 + 3]),
        # (-2, 1) F_2 = (-4, 1); times B = (-4, 1, 5)
        ({"f1": {"depth": 2, "order": LINEAR}}, [1 - 4, -2 + 1, -3 + 5]),
        # the same in one turn of two linear steps
        ({"f1": {"depth": 1, "order": ("linear", "linear")}}, [1 - 4, -2 + 1, -3 + 5]),
        # leaky (-2, 1) -> (-1, 1); F_2 -> (-2, 1); leaky -> (-1, 1); times B = (-1, 1, 2)
        ({"f1": {"depth": 2, "order": ("linear", "activation")}}, [1 - 1, -2 + 1, -3 + 2]),
        # leaky before linear: (1, -1); (-1, 1); (-0.5, 1); (-1, 1); times B = (-1, 1, 2)
        ({"f1": {"depth": 2, "order": ("activation", "linear")}}, [1 - 1, -2 + 1, -3 + 2]),
        # slope 0.25: (-0.5, 1); F_2 -> (-1, 1); (-0.25, 1); times B = (-0.25, 1, 1.25)
        ({"f1": {"slope": 0.25, "order": ("linear", "activation")}}, [1 - 0.25, -2 + 1, -3 + 1.25]),
        # relu: (0, 1); (0, 1); (0, 1); times B = (0, 1, 1)
        ({"f1": {"activation": "relu", "order": ("linear", "activation")}}, [1, -2 + 1, -3 + 1]),
        # alpha / rank = 3
        ({"alpha": 6.0, "f1": {"depth": 1, "order": LINEAR}}, [-3, -3, 0]),
        # f2 = leaky on (-2, 1, 3): (-1, 1, 3)
        ({"f2": ("activation",), "f1": {"depth": 1, "order": LINEAR}}, [1 - 1, -2 + 1, -3 + 3]),
        # without f1 there is nothing that f2 could make something of
        ({"f2": ("activation", "norm"), "f1": {"depth": 0}}, [1, -2, -3]),
    ],
)
def test_the_delta_by_hand(options: dict[str, Any], expected: list[float]):
    assert by_hand(**options) == pytest.approx(expected, abs=1e-6)


def test_the_norm_by_hand():
    # (-2, 1) has mean -0.5 and variance 2.25: (-1.5, 1.5) / sqrt(2.25 + eps); a sign, as of any two numbers.
    unit = 1.5 / (2.25 + EPS) ** 0.5
    given = by_hand(f1={"depth": 1, "order": ("linear", "norm")})
    assert given == pytest.approx([1 - unit, -2 + unit, -3 + 2 * unit], abs=1e-5)
    # f2's is over d_out: (-2, 1, 3) has mean 2/3 and variance 38/9
    given = by_hand(f1={"depth": 1, "order": LINEAR}, f2=("norm",))
    deviation = (38 / 9 + EPS) ** 0.5
    of_f2 = [(value - 2 / 3) / deviation for value in (-2, 1, 3)]
    assert given == pytest.approx([1 + of_f2[0], -2 + of_f2[1], -3 + of_f2[2]], abs=1e-5)


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("tanh", torch.tanh)])
def test_the_other_activations(activation: str, function: Any):
    at = {x: function(torch.tensor(float(x))).item() for x in (-2, 1)}
    given = by_hand(f1={"depth": 1, "order": ("linear", "activation"), "activation": activation})
    assert given == pytest.approx([1 + at[-2], -2 + at[1], -3 - at[-2] + at[1]], abs=1e-5)


def test_the_default_is_two_turns_of_linear_leaky_norm():
    net = disturbed(Loda(rank=4, dropout=0.0))
    delta = deltas(net, "v")[1]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = x @ delta.A
        f = z
        for M in delta.matrices:
            f = torch.where(f @ M > 0, f @ M, 0.8 * (f @ M))
            f = (f - f.mean(-1, keepdim=True)) / (f.var(-1, correction=0, keepdim=True) + EPS).sqrt()
        expected = 32 / 4 * (z @ delta.B + f @ delta.B)
        torch.testing.assert_close(delta(x), expected, atol=1e-4, rtol=1e-5)
        plus = deltas(disturbed(PLUS), "v")[1]
        assert all(torch.equal(p, q) for p, q in zip(plus.parameters(), delta.parameters(), strict=True))
        expected = 32 / 4 * (z @ delta.B + torch.where(f @ delta.B > 0, f @ delta.B, 0.8 * (f @ delta.B)))
        torch.testing.assert_close(plus(x), expected, atol=1e-4, rtol=1e-5)
        assert (plus(x) - delta(x)).abs().max() > 0.1


# LoRA as a special case -------------------------------------------------------------------------


@pytest.mark.parametrize("f2", [(), ("activation",), ("activation", "norm")])
def test_without_f1_it_is_lora_to_the_bit(f2: Any):
    lora, loda = disturbed(Lora()), disturbed(Loda(f1=F1(depth=0), f2=f2))
    assert trained(lora).keys() == trained(loda).keys()
    assert torch.equal(logits(loda), logits(lora))
    assert (logits(lora) - logits(base())).abs().max() > 0.1


@pytest.mark.parametrize("f2", [(), ("activation",), ("activation", "norm")])
def test_with_matrices_of_zeros_it_is_lora(f2: Any):
    lora, loda = disturbed(Lora()), disturbed(Loda(f2=f2))
    with torch.no_grad():
        for name, p in trained(loda).items():
            p.copy_(torch.zeros_like(p) if "matrices" in name else trained(lora)[name])
    torch.testing.assert_close(logits(loda), logits(lora), atol=1e-5, rtol=0)


def test_it_starts_from_loras_first_matrices():
    lora, loda = (trained(attached(method)) for method in (Lora(same_init=False), Loda(same_init=False)))
    assert all(torch.equal(loda[name], p) for name, p in lora.items())


# the start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Loda(), PLUS, Loda(f2=("norm", "activation")), Loda(f1=F1(order=("norm",)))])
def test_it_starts_as_a_no_op(method: Loda):
    assert torch.equal(logits(attached(method)), logits(base()))


def test_what_trains():
    net = attached(Loda(rank=3))
    site = "h.{}.attn.c_attn.deltas.{}.{}"
    parts = {"A": (32, 3), "B": (3, 32), "matrices.0": (3, 3), "matrices.1": (3, 3)}
    expected = {
        site.format(i, target, part): shape for i in range(3) for target in "qv" for part, shape in parts.items()
    }
    assert {name: tuple(p.shape) for name, p in trained(net).items()} == expected
    for target in ("q", "v"):
        for delta in deltas(net, target):
            assert not delta.B.any()
            assert 0.5 * 32**-0.5 < delta.A.abs().max() <= 32**-0.5
            for M in delta.matrices:  # PyTorch's linear default
                assert 0.3 * 3**-0.5 < M.abs().max() <= 3**-0.5
            assert not torch.equal(*delta.matrices)
    assert not torch.equal(deltas(net, "q")[0].matrices[0], deltas(net, "v")[0].matrices[0])


@pytest.mark.parametrize("same", [True, False])
def test_all_blocks_start_alike_or_each_for_itself(same: bool):
    first, *others = deltas(attached(Loda(same_init=same)), "q")
    for other in others:
        for p, q in zip(other.parameters(), first.parameters(), strict=True):
            assert torch.equal(p, q) is (same or not p.any())  # B is 0 everywhere
            assert p.data_ptr() != q.data_ptr()


@pytest.mark.parametrize("same", [True, False])
def test_one_dropout_mask_or_two(same: bool):
    net = attached(Loda(rank=2, dropout=0.5, same_mask=same)).train()
    (dense, *_) = net.denses("q")
    seen: dict[str, Tensor] = {}
    for target in ("q", "v"):
        with torch.no_grad():
            delta = deltas(net, target)[0]
            delta.A.fill_(1.0)
            delta.B.fill_(1.0)
            for M in delta.matrices:
                M.zero_()
    torch.manual_seed(0)
    x = torch.ones(64, 32)
    with torch.no_grad():
        change = dense(x) - (x @ dense.weight + dense.bias)
    seen["q"], k, seen["v"] = (part[:, 0] for part in change.split(32, dim=-1))
    assert k.abs().max() < 1e-4
    assert seen["q"].std() > 1  # sums of 32 numbers, half of them dropped
    assert torch.allclose(seen["q"], seen["v"], atol=1e-3) is same
    net.eval()
    with torch.no_grad():
        assert torch.equal(dense(x), dense(x))


# learning ---------------------------------------------------------------------------------------


def step(net: GPT2) -> dict[str, Tensor]:
    """One update by plain gradient descent, and the gradients that it took."""
    for p in trained(net).values():
        p.grad = None
    F.cross_entropy(net.logits(net(TOKENS[:, :-1])).flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    gradients = {}
    with torch.no_grad():
        for name, p in trained(net).items():
            assert p.grad is not None, name
            gradients[name] = p.grad.clone()
            p -= 0.5 * p.grad
    return gradients


@pytest.mark.parametrize(
    "method",
    [
        Loda(),
        PLUS,
        Loda(f2=("norm",)),
        Loda(f1=F1(depth=3, order=("norm", "linear", "activation"), activation="gelu")),
        Loda(targets=("k", "o", "up", "down")),
        Loda(base=config.Base("low-rank", rank=8)),
    ],
)
def test_everything_learns_once_b_has_moved(method: Loda):
    net = attached(method)
    first = step(net)
    assert all(bool(gradient.any()) is name.endswith(".B") for name, gradient in first.items())
    for name, gradient in step(net).items():
        assert gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("target", ["q", "k", "v", "o", "up", "down"])
def test_a_target_changes_the_output(target: Any):
    assert (logits(disturbed(Loda(rank=2, targets=(target,)))) - logits(base())).abs().max() > 1e-2


def test_in_bf16_it_stays_finite():
    net = disturbed(PLUS)
    with torch.autocast("cpu", torch.bfloat16):
        net.logits(net(TOKENS)).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in trained(net).values())


# files, merging, faults -------------------------------------------------------------------------


def test_an_adapter_on_an_approximated_base_survives_to_the_bit(tmp_path: Path):
    method = Loda("r-loda-plus", f2=("activation",), base=config.Base("low-rank", rank=8))
    net, path = disturbed(method), tmp_path / "adapter.safetensors"
    described: dict[str, Any] = {"method": method, "base": "gpt2-tiny", "base_sha256": "a" * 64}
    save_adapter(net, path, **described)
    fresh = attached(method, seed=9)
    load_adapter(fresh, path, **described)
    assert torch.equal(logits(fresh), logits(net))
    assert path.stat().st_size < sum(p.nbytes for p in trained(net).values()) + 10_000  # without the base


def test_it_can_not_be_merged():
    net = disturbed(Loda())
    before = logits(net)
    reason = "its delta is not a linear map of x, so that no matrix added to a weight computes it"
    assert mergeable(net) == reason
    with pytest.raises(BadInput, match="can't be merged: its delta is not a linear map"):
        merge(net)
    assert torch.equal(logits(net), before)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["method.f1.order=[]"], "method.f1.order=[]: name at least one step; depth=0 leaves f1 out"),
        (
            ["method.rank=1"],
            "method.rank=1: f1's norm of one number is 0; give rank=2 or more, or an f1.order without norm",
        ),
        (["method.rank=2048"], "method.rank=2048 exceeds the width 1024 of gpt2-medium; give 1024 or less"),
        (["method.targets=[]"], "method.targets=[]: name at least one target, each once"),
    ],
)
def test_faults(overrides: list[str], fault: str):
    with pytest.raises(BadInput) as e:
        compose.cells(["method=loda", *overrides])
    assert e.value.faults == (fault,)


@pytest.mark.parametrize("overrides", [["method.f1.depth=0"], ["method.f1.order=[linear,activation]"]])
def test_rank_1_without_a_norm_is_fine(overrides: list[str]):
    (cell,) = compose.cells(["method=loda", "method.rank=1", *overrides])
    assert cell.run.method.rank == 1
