"""Counts of parameters, bytes and multiply-accumulates, exactly."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lodarepro import compose, config
from lodarepro.cli import main
from lodarepro.config import Adapter, Base, BitFit, Ft, FtQv, FtTop, Loda, Lora, OneShot, PrefixEmbed, PrefixLayer
from lodarepro.cost import count, count_parameters
from lodarepro.methods import attach, finalize, merge, save_adapter
from lodarepro.model import GPT2, Sizes

TINY = Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=16)
TINY_MODEL = config.Model("tiny", **{f: getattr(TINY, f) for f in TINY.__dataclass_fields__})
PLUS = Loda("loda-plus", f2=("activation",))


@pytest.fixture(scope="module")
def models() -> dict[str, config.Model]:
    return {name: compose.cells([f"model={name}"])[0].run.model for name in compose.groups()["model"]}


def adapter_l(m: int) -> Adapter:
    return Adapter("adapter-l", bottleneck=m, sites=("block",), layer_norm=True)


@pytest.mark.parametrize(
    ("model", "method", "trainable"),
    [
        ("gpt2-medium", Ft(), 354_823_168),  # transformers counts the same; the papers print 354.92M
        ("gpt2-large", Ft(), 774_030_080),  # LoRA paper, Table 3: 774.03M
        ("gpt2-medium", FtTop(), 25_192_448),  # LoRA paper, Table 3: 25.19M
        ("gpt2-medium", FtQv(), 50_331_648),  # LoDA Table 1: 48.00M of 2**20
        ("gpt2-medium", BitFit(), 271_360),
        ("gpt2-medium", OneShot(), 0),
        ("gpt2-medium", adapter_l(6), 368_784),  # LoRA paper, Table 3: 0.37M, 11.09M, 0.88M, 23.00M
        ("gpt2-medium", adapter_l(224), 11_089_152),
        ("gpt2-large", adapter_l(8), 875_808),
        ("gpt2-large", adapter_l(248), 23_002_848),
        ("gpt2-medium", Adapter(), 11_064_576),  # m = 112; LoRA paper, Table 3: 11.09M, which no m gives
        # The MLP that a prefix comes from while it trains is not counted.
        ("gpt2-medium", PrefixEmbed(length=10), 10_240),
        ("gpt2-medium", PrefixLayer(length=5), 245_760),  # 2 L d l
        ("gpt2-medium", PrefixLayer(length=5, hidden=None), 245_760),
        ("gpt2-medium", Lora(rank=4), 393_216),  # LoRA paper, Table 3: 0.35M; LoDA: 0.38M of 2**20
        ("gpt2-large", Lora(rank=4), 737_280),  # LoRA paper, Table 3: 0.77M
        ("gpt2-medium", Lora(rank=1), 98_304),
        ("gpt2-medium", Lora(rank=2, targets=("q", "k", "v", "o")), 24 * 4 * 2 * 2 * 1024),
        ("gpt2-medium", Lora(rank=2, targets=("up", "down")), 24 * 2 * 2 * 5 * 1024),
        ("gpt2-medium", Lora(base=Base("low-rank", rank=300)), 393_216),
        ("gpt2-medium", Loda(), 394_752),  # LoDA Table 1: 0.38M of 2**20
        ("gpt2-medium", PLUS, 394_752),
        ("gpt2-medium", Loda(rank=16), 24 * 2 * (2 * 1024 * 16 + 2 * 16 * 16)),
        ("gpt2-medium", Loda(f1=config.F1(depth=0)), 393_216),
        ("gpt2-medium", Loda(f1=config.F1(depth=5)), 393_216 + 24 * 2 * 5 * 4 * 4),
        ("gpt2-large", replace(PLUS, base=Base("sparse", keep=0.4)), 36 * 2 * (2 * 1280 * 4 + 2 * 4 * 4)),
    ],
)
def test_trainable_parameters(models: dict[str, config.Model], model: str, method: object, trainable: int):
    assert count(models[model], method).trainable == trainable


def test_all_parameters_are_the_models_and_the_methods(models: dict[str, config.Model]):
    medium = models["gpt2-medium"]
    assert count(medium, Ft()).total == 354_823_168
    assert count(medium, Lora()).total == 354_823_168 + 393_216
    dense, low_rank = 24 * 3 * 1024**2, 24 * 300 * 4 * 1024
    assert count(medium, Lora(base=Base("low-rank", rank=300))).total == 354_823_168 + 393_216 - dense + low_rank


def test_the_share_is_of_the_pretrained_model(models: dict[str, config.Model]):
    medium = models["gpt2-medium"]
    assert count(medium, Ft()).share == 100
    for base in (Base(), Base("low-rank", rank=300)):
        assert count(medium, Lora(base=base)).share == pytest.approx(100 * 393_216 / 354_823_168)


# multiply-accumulates ---------------------------------------------------------------------------

# LoDA (MERL TR2025-130), Table 2, GPT-2 Medium, in 10^6 as printed.
TABLE_2: list[tuple[Any, str]] = [
    (FtQv(), "75.5"),
    (Lora(), "75.9"),  # merged 75.5
    (Loda(), "75.9"),
    (Loda(base=Base("sparse", keep=0.6)), "45.7"),
    (Loda(base=Base("sparse", keep=0.5)), "38.1"),
    (Loda(base=Base("low-rank", rank=500)), "49.5"),
    (Loda(base=Base("low-rank", rank=400)), "39.7"),
    (Loda(base=Base("low-rank", rank=300)), "29.9"),
    (PLUS, "76.1"),
    (replace(PLUS, base=Base("sparse", keep=0.6)), "45.9"),
    (replace(PLUS, base=Base("sparse", keep=0.5)), "38.3"),
    (replace(PLUS, base=Base("low-rank", rank=500)), "49.7"),
    (replace(PLUS, base=Base("low-rank", rank=400)), "39.9"),
    (replace(PLUS, base=Base("low-rank", rank=300)), "30.1"),
]


@pytest.mark.parametrize(("method", "printed"), TABLE_2)
def test_lodas_table_2(models: dict[str, config.Model], method: Any, printed: str):
    counted = count(models["gpt2-medium"], method)
    assert f"{counted.qkv_macs / 1e6:.1f}" == printed
    merged = "75.5" if method == Lora() else None
    assert (counted.qkv_macs_merged and f"{counted.qkv_macs_merged / 1e6:.1f}") == merged


@pytest.mark.parametrize(
    ("method", "macs", "merged"),
    [
        (Ft(), 75_497_472, None),  # 24 blocks of d x 3 d; nothing to merge
        (BitFit(), 75_497_472, None),
        (PrefixLayer(), 75_497_472, None),
        (Adapter(), 75_497_472, None),
        (Lora(rank=4), 75_890_688, 75_497_472),
        (Lora(rank=4, targets=("o", "down")), 75_497_472, 75_497_472),  # not in the q/k/v projection
        (Lora(rank=4, base=Base("low-rank", rank=300)), 24 * (300 * 4 * 1024 + 2 * 2 * 1024 * 4), None),
        (Loda(), 24 * (3 * 1024**2 + 2 * (2 * 1024 * 4 + 2 * 16)), None),
        (PLUS, 24 * (3 * 1024**2 + 2 * (3 * 1024 * 4 + 2 * 16)), None),
        (Loda(f1=config.F1(depth=1)), 24 * (3 * 1024**2 + 2 * (2 * 1024 * 4 + 16)), None),
        (Loda(f1=config.F1(depth=0), f2=("norm",)), 75_890_688, None),
        (Lora(base=Base("sparse", keep=0.4)), 24 * (1_258_291 + 2 * 2 * 1024 * 4), None),  # round(0.4 d 3 d)
        (Lora(base=Base("sparse", pattern="2:4")), 24 * (3 * 1024**2 // 2 + 2 * 2 * 1024 * 4), None),
    ],
)
def test_multiply_accumulates_of_qkv(models: dict[str, config.Model], method: object, macs: int, merged: int | None):
    counted = count(models["gpt2-medium"], method)
    assert (counted.qkv_macs, counted.qkv_macs_merged) == (macs, merged)


def test_multiply_accumulates_of_the_model(models: dict[str, config.Model]):
    d, L, V, r = 1024, 24, 50_257, 4
    model = L * 12 * d**2 + V * d  # 4 d^2 in attention, 8 d^2 in the MLP; the output layer
    medium = models["gpt2-medium"]
    assert count(medium, Ft()).macs == model
    assert count(medium, Lora()).macs == model + L * 2 * 2 * d * r
    assert count(medium, Adapter(bottleneck=112)).macs == model + L * 2 * 2 * d * 112
    assert count(medium, PrefixLayer()).macs == model


def test_a_merged_model_costs_what_was_said():
    net = GPT2(TINY)
    attach(net, Lora(), torch.Generator())
    counted = count_parameters(net)
    merge(net)
    assert counted.qkv_macs_merged == count_parameters(net).qkv_macs < counted.qkv_macs


# files, models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Ft(), Lora(), Loda(base=Base("low-rank", rank=8)), PrefixLayer(length=3), BitFit()])
def test_bytes_are_those_of_the_adapters_tensors(method: Any, tmp_path: Path):
    net = GPT2(TINY)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, method, torch.Generator())
    finalize(net, method)
    path = tmp_path / "adapter.safetensors"
    save_adapter(net, path, method=method, base="tiny", base_sha256="a" * 64)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")  # safetensors: its length, then JSON
    assert count(TINY_MODEL, method).adapter_bytes == path.stat().st_size - header


def test_a_count_takes_no_memory(models: dict[str, config.Model]):
    """GPT-2 Large fills 3 GB; a count of a model a thousand times wider must not fill any."""
    wide = replace(models["gpt2-large"], n_embd=1_280_000, n_layer=2)
    for base in (Base(), Base("low-rank", rank=300), Base("sparse", keep=0.4)):
        assert count(wide, Lora(rank=1, base=base)).trainable == 2 * 2 * 2 * 1_280_000
        assert count(wide, Loda(rank=2, base=base)).trainable == 2 * 2 * (2 * 2 * 1_280_000 + 2 * 4)


@pytest.mark.parametrize(
    "method", [Ft(), Lora(), PLUS, Loda(base=Base("low-rank", rank=8)), Lora(base=Base("sparse", keep=0.3)), FtQv()]
)
def test_a_count_on_a_real_model_is_the_same(method: object):
    net = GPT2(TINY)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, method, torch.Generator())
    assert count_parameters(net) == count(TINY_MODEL, method)


# the command ------------------------------------------------------------------------------------


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["count", *arguments]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def cells_of(table: str) -> list[list[str]]:
    head, _rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [head, *rows]


def test_a_cell_is_counted(capsys: pytest.CaptureFixture[str]):
    assert cells_of(shown(["method=lora"], capsys)) == [
        ["model", "method", "rank", "trainable", "% of model", "adapter bytes", "q/k/v MACs", "merged", "all MACs"],
        ["gpt2-medium", "lora", "4", "393,216", "0.1108", "1,572,864", "75,890,688", "75,497,472", "353,846,272"],
    ]  # fmt: skip
    (_, row) = cells_of(shown(["method=adapter-l", "model=gpt2-large", "method.bottleneck=8"], capsys))
    assert row == ["gpt2-large", "adapter-l", "", "875,808", "0.1131", "3,503,232", "176,947,200", "", "772,855,040"]


def test_a_cell_as_json(capsys: pytest.CaptureFixture[str]):
    assert json.loads(shown(["method=lora", "--json"], capsys)) == {
        "model": "gpt2-medium",
        "method": "lora",
        "rank": 4,
        "trainable": 393_216,
        "trainable_per_cent": 0.1108,
        "adapter_bytes": 1_572_864,
        "qkv_macs_per_token": 75_890_688,
        "qkv_macs_per_token_merged": 75_497_472,
        "macs_per_token": 353_846_272,
    }
    without = json.loads(shown(["method=loda", "--json"], capsys))
    assert without["qkv_macs_per_token"] == 75_892_224 and "qkv_macs_per_token_merged" not in without
    assert json.loads(shown(["method=ft", "--json"], capsys))["rank"] is None


def test_every_method_has_a_row(capsys: pytest.CaptureFixture[str]):
    rows = json.loads(shown(["--all", "--json", "model=gpt2-medium"], capsys))
    assert [row["method"] for row in rows] == list(config.METHODS)
    found = {row["method"]: row["trainable"] for row in rows}
    assert found["ft"] == 354_823_168 and found["one-shot"] == 0
    assert found["lora"] == found["s-lora"] == 393_216
    assert found["r-loda-plus"] == found["loda"] == 394_752


def test_a_method_that_does_not_fit_the_model_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    few = {name: config.METHODS[name] for name in ("r-lora", "lora", "s-loda", "r-loda-plus")}
    monkeypatch.setattr(config, "METHODS", few)
    narrow = ["model.n_embd=256", "model.n_head=4"]
    assert main(["count", "--all", *narrow]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"lodarepro: method={name}: method.base.rank=300 exceeds the rank 256 of W_proj in gpt2-medium; "
        "give 256 or less"
        for name in ("r-lora", "r-loda-plus")
    ]
    assert [row[1] for row in cells_of(captured.out)[1:]] == ["lora", "s-loda"]


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        (["method=lora"], ["method=lora: --all counts every method at its defaults; leave one of the two out"]),
        (["method.rank=8"], ["method.rank=8: --all counts every method at its defaults; leave one of the two out"]),
        (["seed=x"], ["seed=x: input should be a valid integer"]),  # once, not for every method
    ],
)
def test_faults_of_all(arguments: list[str], faults: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["count", "--all", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"lodarepro: {fault}" for fault in faults]
    assert not captured.out
