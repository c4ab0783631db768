"""Counts of parameters and multiply-accumulates, exactly."""

from dataclasses import replace

import pytest
import torch

from lodarepro import compose, config
from lodarepro.cost import count, count_parameters
from lodarepro.methods import attach
from lodarepro.model import GPT2, Sizes

TINY = Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=16)


@pytest.fixture(scope="module")
def models() -> dict[str, config.Model]:
    return {name: compose.cells([f"model={name}"])[0].run.model for name in compose.groups()["model"]}


@pytest.mark.parametrize(
    ("model", "method", "trainable"),
    [
        ("gpt2-medium", config.Ft(), 354_823_168),  # transformers counts the same; the papers print 354.92M
        ("gpt2-large", config.Ft(), 774_030_080),
        ("gpt2-medium", config.Lora(rank=4), 393_216),  # LoRA paper, Table 3: 0.35M
        ("gpt2-large", config.Lora(rank=4), 737_280),  # LoRA paper, Table 3: 0.77M
        ("gpt2-medium", config.Lora(rank=1), 98_304),
        ("gpt2-medium", config.Lora(rank=2, targets=("q", "k", "v", "o")), 24 * 4 * 2 * 2 * 1024),
        ("gpt2-medium", config.Lora(rank=2, targets=("up", "down")), 24 * 2 * 2 * 5 * 1024),
    ],
)
def test_trainable_parameters(models: dict[str, config.Model], model: str, method: object, trainable: int):
    assert count(models[model], method).trainable == trainable


def test_all_parameters_are_the_models_and_the_methods(models: dict[str, config.Model]):
    assert count(models["gpt2-medium"], config.Ft()).total == 354_823_168
    assert count(models["gpt2-medium"], config.Lora()).total == 354_823_168 + 393_216


@pytest.mark.parametrize(
    ("method", "macs"),
    [
        (config.Ft(), 75_497_472),  # 24 blocks of d x 3 d
        (config.Lora(rank=4), 75_890_688),
        (config.Lora(rank=4, targets=("o", "down")), 75_497_472),  # not in the q/k/v projection
    ],
)
def test_multiply_accumulates_of_qkv(models: dict[str, config.Model], method: object, macs: int):
    assert count(models["gpt2-medium"], method).qkv_macs == macs


def test_a_count_takes_no_memory(models: dict[str, config.Model]):
    """GPT-2 Large fills 3 GB; a count of a model a thousand times wider must not fill any."""
    wide = replace(models["gpt2-large"], n_embd=1_280_000, n_layer=2)
    assert count(wide, config.Lora(rank=1)).trainable == 2 * 2 * 2 * 1_280_000


@pytest.mark.parametrize("method", [config.Ft(), config.Lora()])
def test_a_count_on_a_real_model_is_the_same(method: object):
    net = GPT2(TINY)
    attach(net, method, torch.Generator())
    model = config.Model("tiny", **{f: getattr(TINY, f) for f in TINY.__dataclass_fields__})
    assert count_parameters(net) == count(model, method)
