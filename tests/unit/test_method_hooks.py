"""The optional parts of a method, on a method that uses all of them."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from lodarepro import config, methods
from lodarepro.data.tokenise import Encoded, Layout, encode, encode_contexts
from lodarepro.data.types import Example
from lodarepro.methods import Method, trained
from lodarepro.model import GPT2, Sizes
from lodarepro.train.loop import train

SIZES = Sizes(n_layer=1, n_head=2, n_embd=8, vocab_size=40, n_positions=32)
PROTOCOL = config.Protocol(name="lora", max_length=32)
DATA = Encoded.of([([i, 5, 6, 7], [8, 9, i]) for i in range(8)])


@dataclass(frozen=True)
class Toy:
    """Trains the final LayerNorm, its bias at 16 times the rate, and keeps the negative of the bias."""

    name: str = "toy"
    marks: int = 2


def attach(model: GPT2, settings: Toy, generator: torch.Generator) -> None:
    del settings, generator
    model.ln_f.requires_grad_(True)


def layout(settings: Toy, tokenizer: Tokenizer) -> Layout:
    mark = tokenizer.encode("!").ids
    return Layout(key=f"toy {settings.marks}", apply=lambda context: [*mark * settings.marks, *context])


def param_groups(model: GPT2, settings: Toy) -> list[dict[str, Any]]:
    del settings
    return [{"params": [model.ln_f.weight], "lr_scale": 1.0}, {"params": [model.ln_f.bias], "lr_scale": 16.0}]


@torch.no_grad()
def finalize(model: GPT2, settings: Toy) -> None:
    del settings
    model.ln_f.bias.neg_()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method(attach, layout=layout, param_groups=param_groups, finalize=finalize)
    monkeypatch.setitem(methods.REGISTRY, "toy", method)


@pytest.fixture
def model() -> GPT2:
    net = GPT2(SIZES)
    net.initialise(torch.Generator().manual_seed(0))
    methods.attach(net, Toy(), torch.Generator())
    return net


def settings(**changes: Any) -> config.Train:
    return config.Train(**{"epochs": 1, "batch_size": 8, "warmup_steps": 0, "weight_decay": 0.0, **changes})


def test_groups_train_at_their_own_rates(model):
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    train(model, DATA, DATA, settings(), protocol=PROTOCOL, seed=1, groups=methods.param_groups(model, Toy()))
    moved = {name: (p.detach() - before[name]).abs().median().item() for name, p in trained(model).items()}
    # Adam's first step is about the rate, whatever the gradient.
    assert moved["ln_f.weight"] == pytest.approx(2e-4, rel=0.05)
    assert moved["ln_f.bias"] == pytest.approx(16 * 2e-4, rel=0.05)


def test_a_method_without_groups_has_one_at_the_schedules_rate(model):
    (group,) = methods.one_group(model)
    assert group["lr_scale"] == 1.0
    assert [id(p) for p in group["params"]] == [id(p) for p in trained(model).values()]


def test_finalize_makes_the_model_what_is_kept(model):
    with torch.no_grad():
        model.ln_f.bias.fill_(3.0)
    methods.finalize(model, Toy())
    assert torch.equal(model.ln_f.bias, torch.full((8,), -3.0))


def test_methods_without_the_optional_parts_leave_everything_as_it_is(tiny_tokenizer):
    net = GPT2(SIZES)
    net.initialise(torch.Generator().manual_seed(0))
    before = {name: p.clone() for name, p in net.state_dict().items()}
    methods.finalize(net, config.Ft())
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert methods.layout(config.Ft(), tiny_tokenizer) is None


def test_a_layout_changes_contexts_of_training_and_decoding_alike(tiny_tokenizer, tmp_path):
    examples = [Example("a : b", "b ."), Example("c : d", "d .")]
    plain = encode(examples, tiny_tokenizer, PROTOCOL, cache=tmp_path)
    laid = methods.layout(Toy(), tiny_tokenizer)
    data = encode(examples, tiny_tokenizer, PROTOCOL, cache=tmp_path, layout=laid)
    assert (data.contexts == plain.contexts + 2).all()
    prompts = encode_contexts([e.context for e in examples], tiny_tokenizer, PROTOCOL, layout=laid)
    assert prompts == [data.sequence(row)[: data.contexts[row]].tolist() for row in range(2)]
    assert data.sequence(0)[2:].tolist() == plain.sequence(0).tolist()
    # Another layout of the same texts is another entry of the cache.
    more = encode(
        examples, tiny_tokenizer, PROTOCOL, cache=tmp_path, layout=methods.layout(Toy(marks=3), tiny_tokenizer)
    )
    assert (more.contexts == plain.contexts + 3).all()


def test_modules_without_weights_of_their_own_are_no_obstacle(model):
    """A site may hold any module: here one that does nothing."""
    tokens = torch.arange(6)[None]
    before = model(tokens)
    model.h[0].after_attn = nn.Identity()
    model.h[0].after_mlp = nn.Identity()
    torch.testing.assert_close(model(tokens), before)
