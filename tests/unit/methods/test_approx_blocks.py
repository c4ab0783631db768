"""Ranks and fractions of single blocks: a list in place of one value for all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lodarepro import compose, config
from lodarepro.cli import main
from lodarepro.config import Base
from lodarepro.cost import count
from lodarepro.errors import BadInput
from lodarepro.methods import approx, attach, load_adapter, save_adapter, trained
from lodarepro.methods.approx import LowRank, Sparse
from lodarepro.model import GPT2, Sizes

SIZES = Sizes(n_layer=3, n_head=2, n_embd=32, vocab_size=60, n_positions=40)
TOKENS = torch.randint(SIZES.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
RANKS = Base("low-rank", rank=(5, 1, 32))
KEEPS = Base("sparse", keep=(0.5, 0.01, 1.0))
NANO = ["model=gpt2-nano", "dataset=mini"]


def plain() -> GPT2:
    net = GPT2(SIZES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return net.eval().requires_grad_(False)


def approximated(base: Base) -> GPT2:
    net = plain()
    approx.attach(net, base)
    return net


def stand_ins(base: Base) -> list[Any]:
    return [dense.base for dense in approximated(base).denses("q")]


def test_each_block_has_its_own_rank():
    found = stand_ins(RANKS)
    assert all(isinstance(one, LowRank) for one in found)
    assert [(one.W_A.shape, one.W_B.shape) for one in found] == [((32, r), (r, 96)) for r in (5, 1, 32)]
    assert [one.macs() for one in found] == [r * (32 + 96) for r in (5, 1, 32)]


def test_each_block_keeps_its_own_share():
    found = stand_ins(KEEPS)
    assert all(isinstance(one, Sparse) for one in found)
    assert [int((one.weight != 0).sum()) for one in found] == [1536, 31, 3072]
    assert [one.macs() for one in found] == [1536, 31, 3072]


@pytest.mark.parametrize(("lists", "alone"), [
    (RANKS, [Base("low-rank", rank=r) for r in (5, 1, 32)]), (KEEPS, [Base("sparse", keep=s) for s in (0.5, 0.01, 1.0)])
])  # fmt: skip
def test_a_block_is_approximated_as_by_one_value_for_all(lists: Base, alone: list[Base]):
    for block, base in enumerate(alone):
        ours, theirs = stand_ins(lists)[block], stand_ins(base)[block]
        for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert torch.equal(p, q), name


@pytest.mark.parametrize(
    ("lists", "one"),
    [
        (Base("low-rank", rank=(7, 7, 7)), Base("low-rank", rank=7)),
        (Base("sparse", keep=(0.3,) * 3), Base("sparse", keep=0.3)),
    ],
)
def test_a_list_of_equals_is_one_value_for_all(lists: Base, one: Base):
    assert torch.equal(approximated(lists)(TOKENS), approximated(one)(TOKENS))


def test_of_block_has_no_list():
    assert [RANKS.of_block(i) for i in range(3)] == [Base("low-rank", rank=r) for r in (5, 1, 32)]
    assert KEEPS.of_block(1) == Base("sparse", keep=0.01)
    assert Base("low-rank", rank=4).of_block(2) == Base("low-rank", rank=4)


@pytest.mark.parametrize("base", [RANKS, KEEPS], ids=["rank", "keep"])
def test_the_log_has_the_energies_of_the_blocks(base: Base, log: pytest.LogCaptureFixture):
    kept = []
    for ours, given in zip(approximated(base).denses("q"), plain().denses("q"), strict=True):
        assert ours.base is not None
        with torch.no_grad():
            kept.append(
                float(100 * ours.base(torch.eye(32)).double().square().sum() / given.weight.double().square().sum())
            )
    assert kept[1] < 30 < kept[0] < kept[2] == pytest.approx(100)
    log.clear()
    approximated(base)
    (said,) = [record.getMessage() for record in log.records]
    assert said == (
        f"{base.kind} W_proj keeps {kept[0]:.2f} % of the energy in block 1; over the blocks least {kept[1]:.2f}, mean "
        f"{sum(kept) / 3:.2f}, greatest 100.00 %"
    )


@pytest.mark.parametrize("base", [RANKS, KEEPS], ids=["rank", "keep"])
def test_without_weights_the_counts_are_the_same(base: Base):
    with torch.device("meta"):
        net = GPT2(SIZES)
        approx.attach(net, base)
    assert net.macs() == approximated(base).macs()
    shapes = {name: p.shape for name, p in net.named_parameters()}
    assert shapes == {name: p.shape for name, p in approximated(base).named_parameters()}


# settings ---------------------------------------------------------------------------------------


def composed(*overrides: str) -> config.Run:
    (cell,) = compose.cells([*NANO, *overrides])
    return cell.run


@pytest.mark.parametrize("method", ["r-lora", "r-loda", "r-loda-plus"])
def test_ranks_are_given_as_a_list(method: str):
    base = composed(f"method={method}", "method.base.rank=[1,2,3,128]").method.base
    assert base == Base("low-rank", rank=(1, 2, 3, 128))
    assert base.faults(composed().model) == []


def test_fractions_are_given_as_a_list():
    assert composed("method=s-lora", "method.base.keep=[1,0.5,0.25,0.1]").method.base == Base(
        "sparse", keep=(1.0, 0.5, 0.25, 0.1)
    )


def test_a_record_gives_the_same_run():
    run = composed("method=r-loda", "method.base.rank=[1,2,3,4]")
    assert compose.from_plain(json.loads(json.dumps(compose.plain(run)))) == run


def test_lists_are_part_of_the_run_id():
    def run_id(ranks: str) -> str:
        return compose.run_id(composed("method=r-loda", f"method.base.rank={ranks}"), {})

    assert len({run_id("[1,2,3,4]"), run_id("[1,2,4,3]"), run_id("4"), run_id("[4,4,4,4]")}) == 4


@pytest.mark.parametrize(
    ("overrides", "faults"),
    [
        (
            ["method=r-loda", "method.base.rank=[4,4,4]"],
            ["method.base.rank: a list of 3, but gpt2-nano has 4 blocks; give one value for each"],
        ),
        (
            ["method=s-loda", "method.base.keep=[0.5,0.5,0.5,0.5,0.5]"],
            ["method.base.keep: a list of 5, but gpt2-nano has 4 blocks; give one value for each"],
        ),
        (
            ["method=r-loda", "method.base.rank=[4,129,4,130]"],
            [
                "method.base.rank=129 exceeds the rank 128 of W_proj in gpt2-nano; give 128 or less",
                "method.base.rank=130 exceeds the rank 128 of W_proj in gpt2-nano; give 128 or less",
            ],
        ),
        (
            ["method=r-loda", "method.base.rank=[129,4,129,4]"],
            ["method.base.rank=129 exceeds the rank 128 of W_proj in gpt2-nano; give 128 or less"],
        ),
        (
            ["method=s-loda", "method.base.keep=[0.5,1e-6,0.5,0.5]"],
            ["method.base.keep=1e-06 keeps none of the 49152 entries of W_proj in gpt2-nano"],
        ),
        (
            ["method=r-loda", "method.base.rank=[4,0,4,4]"],
            ["method.base.rank[1]=0: input should be greater than 0"],
        ),
        (
            ["method=r-loda", "method.base.rank=[4,x,4,4]"],
            ["method.base.rank[1]=x: input should be a valid integer"],
        ),
        (
            ["method=r-loda", "method.base.rank=[4,2.5,4,4]"],
            ["method.base.rank[1]=2.5: input should be a valid integer"],
        ),
        (
            ["method=s-loda", "method.base.keep=[0.5,1.5,0.5,0.5]"],
            ["method.base.keep[1]=1.5: input should be less than or equal to 1"],
        ),
        (
            ["method=r-loda", "method.base.rank=many"],
            ["method.base.rank=many: input should be a valid integer"],
        ),
        (
            ["method=r-loda", "method.base.rank=[]"],
            ["method.base.rank: a list of 0, but gpt2-nano has 4 blocks; give one value for each"],
        ),
    ],
)
def test_faults(overrides: list[str], faults: list[str]):
    with pytest.raises(BadInput) as e:
        composed(*overrides)
    assert len(e.value.faults) == len(faults)
    for found, expected in zip(e.value.faults, faults, strict=True):
        assert found.startswith(expected)


def test_a_list_means_nothing_for_another_kind():
    with pytest.raises(BadInput) as e:
        composed("method=loda", "method.base.rank=[1,2,3,4]")
    (fault,) = e.value.faults
    assert fault.startswith("method.base.rank=") and fault.endswith(": means nothing for kind=dense; leave it out")


# adapters and counts ----------------------------------------------------------------------------


@pytest.mark.parametrize("base", [RANKS, KEEPS], ids=["rank", "keep"])
def test_an_adapter_is_loaded_beside_the_same_approximation(base: Base, tmp_path: Path):
    method = config.Loda(name="r-loda" if base.kind == "low-rank" else "s-loda", base=base)
    described: dict[str, Any] = {"method": method, "base": "tiny", "base_sha256": "0" * 64}

    def model(seed: int) -> GPT2:
        net = plain()
        attach(net, method, torch.Generator().manual_seed(seed))
        return net.eval()

    one, other = model(1), model(2)
    with torch.no_grad():
        for p in trained(one).values():
            p.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(5))
    path = tmp_path / "adapter.safetensors"
    save_adapter(one, path, **described)
    assert not torch.equal(one(TOKENS), other(TOKENS))
    load_adapter(other, path, **described)
    assert torch.equal(one(TOKENS), other(TOKENS))
    another = config.Loda(name=method.name, base=base.of_block(0))
    with pytest.raises(BadInput, match="give the adapter's own method and options"):
        load_adapter(other, path, **{**described, "method": another})


def test_macs_of_medium_are_those_of_the_ranks():
    """R 4 d of each block and the deltas', as in LoDA Table 2: with one R for all the printed 29.9M."""
    (cell,) = compose.cells(["model=gpt2-medium", "method=r-loda"])
    ranks = tuple(300 + (10 if block % 2 else -10) for block in range(24))
    method = config.Loda(name="r-loda", base=Base("low-rank", rank=ranks))
    assert count(cell.run.model, method).qkv_macs == count(cell.run.model, cell.run.method).qkv_macs
    assert count(cell.run.model, method).qkv_macs == 4 * 1024 * sum(ranks) + 24 * 2 * (2 * 1024 * 4 + 2 * 16)


def test_the_command_counts_them(capsys: pytest.CaptureFixture[str]):
    assert main(["count", *NANO, "method=r-lora", "method.base.rank=[10,20,30,40]", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert str(4 * 128 * 100 + 4 * 2 * (2 * 128 * 4)) in json.dumps(counted)
