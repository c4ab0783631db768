"""What stands for the frozen q/k/v projection."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from lodarepro import compose
from lodarepro.config import Base
from lodarepro.errors import BadInput
from lodarepro.methods import approx, trained
from lodarepro.methods.approx import LowRank, Sparse
from lodarepro.model import GPT2, Sizes
from lodarepro.model.gpt2 import Dense

SIZES = Sizes(n_layer=3, n_head=2, n_embd=32, vocab_size=60, n_positions=40)
TOKENS = torch.randint(SIZES.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
BASES = {
    "low-rank": Base("low-rank", rank=8),
    "sparse": Base("sparse", keep=0.4),
    "2:4": Base("sparse", pattern="2:4"),
}


def plain(seed: int = 0) -> GPT2:
    net = GPT2(SIZES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return net.eval().requires_grad_(False)


def approximated(base: Base, seed: int = 0) -> GPT2:
    net = plain(seed)
    approx.attach(net, base)
    return net


def projections(net: GPT2) -> list[Dense]:
    return list(net.denses("q"))


def matrix(dense: Dense) -> Tensor:
    """What a dense layer multiplies by, (d_in, d_out), found from its outputs."""
    with torch.no_grad():
        return dense(torch.eye(dense.d_in)) - dense.bias


def set_weight(net: GPT2, weight: Tensor) -> None:
    with torch.no_grad():
        for dense in projections(net):
            dense.weight.copy_(weight)


def test_dense_leaves_the_model_as_it_is():
    net = approximated(Base())
    assert all(dense.base is None for dense in projections(net))
    assert torch.equal(net(TOKENS), plain()(TOKENS))


# low-rank ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 8, 31, 32])
def test_the_truncated_svd_is_numpys(rank: int):
    for ours, given in zip(projections(approximated(Base("low-rank", rank=rank))), projections(plain()), strict=True):
        U, S, V = np.linalg.svd(given.weight.double().numpy(), full_matrices=False)
        best = torch.from_numpy((U[:, :rank] * S[:rank]) @ V[:rank]).float()
        assert isinstance(ours.base, LowRank)
        assert (ours.base.W_A.shape, ours.base.W_B.shape) == ((32, rank), (rank, 96))
        torch.testing.assert_close(ours.base.W_A @ ours.base.W_B, best, atol=2e-6, rtol=0)
        # The best in the Frobenius norm: what is missing are the other singular values.
        missing = (ours.base.W_A @ ours.base.W_B - given.weight).double().square().sum().item()
        assert missing == pytest.approx((S[rank:] ** 2).sum(), rel=1e-4, abs=1e-8)


def test_it_is_executed_as_two_products():
    (dense, *_) = projections(approximated(BASES["low-rank"]))
    assert isinstance(dense.base, LowRank)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(dense(x), (x @ dense.base.W_A) @ dense.base.W_B + dense.bias)
    assert dense.base.macs() == dense.macs() == 8 * (32 + 96)
    assert dense.base.W_A.is_contiguous() and dense.base.W_B.is_contiguous()


def test_at_full_rank_the_outputs_are_the_models():
    torch.testing.assert_close(approximated(Base("low-rank", rank=32))(TOKENS), plain()(TOKENS), atol=1e-4, rtol=0)
    assert (approximated(Base("low-rank", rank=8))(TOKENS) - plain()(TOKENS)).abs().max() > 0.01


# sparse -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1e-3, 0.1, 0.4, 0.5, 0.6, 1.0])
def test_the_largest_entries_stay_and_no_others(keep: float):
    for ours, given in zip(projections(approximated(Base("sparse", keep=keep))), projections(plain()), strict=True):
        kept = matrix(ours)
        entries = round(keep * 32 * 96)
        assert isinstance(ours.base, Sparse)
        assert int((ours.base.weight != 0).sum()) == ours.base.entries == ours.macs() == entries
        torch.testing.assert_close(kept, torch.where(ours.base.weight != 0, given.weight, 0.0), atol=1e-6, rtol=0)
        # Of the whole matrix, not of each row or column.
        margin = given.weight.abs().flatten().sort(descending=True).values[entries - 1]
        assert torch.equal(ours.base.weight != 0, given.weight.abs() >= margin)


def test_of_equal_entries_the_first_stay():
    net = plain()
    weight = torch.ones(32, 96)
    weight[20, 7] = -2.0
    set_weight(net, weight)
    approx.attach(net, Base("sparse", keep=0.5))
    expected = torch.zeros(32 * 96, dtype=torch.bool)
    expected[: 32 * 96 // 2 - 1] = True  # row by row
    expected[20 * 96 + 7] = True
    for dense in projections(net):
        assert isinstance(dense.base, Sparse)
        assert torch.equal(dense.base.weight.flatten() != 0, expected)


def test_two_of_each_four_inputs():
    for ours, given in zip(projections(approximated(BASES["2:4"])), projections(plain()), strict=True):
        assert isinstance(ours.base, Sparse)
        assert ours.macs() == ours.base.entries == 32 * 96 // 2
        groups, of = ours.base.weight.view(8, 4, 96), given.weight.view(8, 4, 96)
        assert torch.equal((groups != 0).sum(1), torch.full((8, 96), 2))
        smallest_kept = groups.abs().where(groups != 0, torch.inf).amin(1)
        greatest_lost = of.abs().where(groups == 0, 0.0).amax(1)
        assert (smallest_kept > greatest_lost).all()
        assert torch.equal(groups, of.where(groups != 0, 0.0))


def test_of_four_equal_inputs_the_first_two_stay():
    net = plain()
    set_weight(net, torch.ones(32, 96))
    approx.attach(net, BASES["2:4"])
    for dense in projections(net):
        assert isinstance(dense.base, Sparse)
        assert torch.equal(dense.base.weight, torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(8)[:, None].expand(32, 96))


# all of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_biases_stay_and_nothing_trains(base: Base):
    net = approximated(base)
    assert not trained(net)
    for ours, given in zip(projections(net), projections(plain()), strict=True):
        assert torch.equal(ours.bias, given.bias)
        with torch.no_grad():
            assert torch.equal(ours(torch.zeros(1, 32))[0], given.bias)
        assert not hasattr(ours, "weight")
    given_all = dict(plain().named_parameters())
    assert all(torch.equal(p, given_all[name]) for name, p in net.named_parameters() if "c_attn.base" not in name)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_same_weights_give_the_same_bits(base: Base):
    one, two, other = (dict(approximated(base, seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(p, two[name]) for name, p in one.items())
    assert any(not torch.equal(p, other[name]) for name, p in one.items())


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_without_weights_the_counts_are_the_same(base: Base, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "lodarepro")
    with torch.device("meta"):
        net = GPT2(SIZES)
        approx.attach(net, base)
    assert not caplog.records  # nothing was computed
    real = approximated(base)
    shapes = {name: p.shape for name, p in real.named_parameters()}
    assert {name: p.shape for name, p in net.named_parameters()} == shapes
    assert all(p.is_meta for p in net.parameters())
    assert net.macs() == real.macs() < plain().macs()
    assert not any("c_attn.base" in name for name in trained(net))


def shares(base: Base) -> list[float]:
    """The energy kept in each block, per cent, from the definitions."""
    found = []
    for ours, given in zip(projections(approximated(base)), projections(plain()), strict=True):
        W = given.weight.double().numpy()
        if base.kind == "low-rank":
            squares = np.linalg.svd(W, compute_uv=False) ** 2
            found.append(100 * squares[: base.rank].sum() / squares.sum())
        else:
            assert isinstance(ours.base, Sparse)
            found.append(100 * (ours.base.weight.double().numpy() ** 2).sum() / (W**2).sum())
    return found


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_log_says_how_much_energy_is_kept(base: Base, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "lodarepro")
    each = shares(base)
    expected = (each[0], min(each), sum(each) / 3, max(each))
    assert len({round(share, 2) for share in expected}) > 2  # figures that can be told apart
    assert caplog.messages[0] == (
        f"{base.kind} W_proj keeps {expected[0]:.2f} % of the energy in block 1; "
        f"over the blocks least {expected[1]:.2f}, mean {expected[2]:.2f}, greatest {expected[3]:.2f} %"
    )
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_a_projection_of_zeros_loses_nothing(base: Base, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "lodarepro")
    net = plain()
    set_weight(net, torch.zeros(32, 96))
    approx.attach(net, base)
    assert "keeps 100.00 %" in caplog.text
    assert all(matrix(dense).abs().max() == 0 for dense in projections(net))


# faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ["method=r-loda", "model=gpt2-nano", "method.base.rank=129"],
            "method.base.rank=129 exceeds the rank 128 of W_proj in gpt2-nano; give 128 or less",
        ),
        (
            ["method=s-loda", "method.base.keep=1e-9"],
            "method.base.keep=1e-09 keeps none of the 3145728 entries of W_proj in gpt2-medium",
        ),
        (
            ["method=s-loda", "method.base.keep=null"],
            "method.base.keep: a value is needed for kind=sparse",
        ),
        (
            ["method=s-loda", "method.base.pattern=2:4"],
            "method.base.keep=0.4: means nothing for kind=sparse of pattern=2:4; leave it out",
        ),
        (["method=loda", "method.base.rank=8"], "method.base.rank=8: means nothing for kind=dense; leave it out"),
        (["method=r-loda", "method.base.rank=null"], "method.base.rank: a value is needed for kind=low-rank"),
        (
            ["method=s-loda", "method.base={kind:sparse,keep:null,pattern:2:4}", "model.n_embd=1026", "model.n_head=2"],
            "method.base.pattern=2:4: the width 1026 of gpt2-medium is no multiple of 4; use pattern=unstructured",
        ),
    ],
)
def test_faults(overrides: list[str], fault: str):
    with pytest.raises(BadInput) as e:
        compose.cells(overrides)
    assert e.value.faults == (fault,)


@pytest.mark.parametrize("method", ["lora", "loda", "loda-plus"])
def test_the_published_bases(method: str):
    of = {letter: compose.cells([f"method={letter}-{method}"])[0].run.method.base for letter in "rs"}
    assert of == {"r": Base("low-rank", rank=300), "s": Base("sparse", keep=0.4)}  # LoDA paper, Table 1
