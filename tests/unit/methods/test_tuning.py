"""Tuning part of the model, and one-shot: what trains, how many parameters, what a run of it leaves."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from lodarepro import compose, pipeline, records
from lodarepro.config import BitFit, FtQv, FtTop, OneShot, Protocol, Train
from lodarepro.cost import count
from lodarepro.data.tokenise import Encoded, encode, encode_contexts
from lodarepro.data.types import Example
from lodarepro.errors import BadInput, RunFailed
from lodarepro.methods import attach, layout, trained
from lodarepro.methods.tuning import SplitProjection
from lodarepro.model import GPT2, Sizes
from lodarepro.train import loop
from lodarepro.train.loop import train

SIZES = Sizes(n_layer=3, n_head=2, n_embd=32, vocab_size=60, n_positions=40)
TOKENS = torch.randint(SIZES.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
PROTOCOL = Protocol(name="lora", max_length=40)


def base() -> GPT2:
    """A random model, biases and LayerNorms random too."""
    net = GPT2(SIZES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return net.eval()


def attached(method: Any) -> GPT2:
    net = base()
    attach(net, method, torch.Generator().manual_seed(1))
    return net.eval()


def logits(net: GPT2) -> Tensor:
    with torch.no_grad():
        return net.logits(net(TOKENS))


@pytest.mark.parametrize(
    ("method", "trainable"),
    [
        (FtTop(), 25_192_448),  # Li & Liang 2021
        (FtTop(final_norm=True), 25_194_496),  # their code
        (FtTop(blocks=24, final_norm=True), 354_823_168 - (50_257 + 1_024) * 1_024),
        (FtQv(), 50_331_648),  # LoDA paper, Table 1: 48.00M of 2^20
        (FtQv(targets=("k",)), 24 * 1_024**2),
        (BitFit(), 271_360),
        (BitFit(layer_norm=False), 221_184),
        (OneShot(), 0),
    ],
)
def test_trainable_parameters(method: Any, trainable: int):
    (cell,) = compose.cells(["model=gpt2-medium"])
    counted = count(cell.run.model, method)
    assert (counted.trainable, counted.total) == (trainable, 354_823_168)
    assert counted.qkv_macs == 24 * 3 * 1_024**2  # whatever stands for the weight


# the highest blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("final_norm", [False, True])
def test_the_highest_blocks_train(final_norm: bool):
    names = trained(attached(FtTop(blocks=2, final_norm=final_norm)))
    expected = {name for name, _ in base().named_parameters() if name.startswith(("h.1.", "h.2."))}
    assert names.keys() == expected | ({"ln_f.weight", "ln_f.bias"} if final_norm else set())


def test_more_blocks_than_there_are():
    with pytest.raises(BadInput) as e:
        compose.cells(["model=gpt2-medium", "method=ft-top2", "method.blocks=25"])
    assert e.value.faults == ("method.blocks=25 exceeds the 24 blocks of gpt2-medium; give 24 or less",)


# slices of the fused projection -----------------------------------------------------------------


@pytest.mark.parametrize("targets", [("q", "v"), ("k",), ("v", "q", "k")])
def test_slices_train(targets: Any):
    net = attached(FtQv(targets=targets))
    assert trained(net).keys() == {f"h.{i}.attn.c_attn.base.{target}" for i in range(3) for target in targets}
    for dense, plain in zip(net.denses("q"), base().denses("q"), strict=True):
        split = dense.base
        assert isinstance(split, SplitProjection)
        assert [key for key, _ in split.named_parameters()] == ["q", "k", "v"]
        assert torch.equal(torch.cat([split.get_parameter(name) for name in "qkv"], dim=1), plain.weight)
        assert not hasattr(dense, "weight")
        assert dense.macs() == plain.macs() == 32 * 96


def test_the_split_product_is_the_fused_one():
    torch.testing.assert_close(logits(attached(FtQv())), logits(base()), atol=1e-5, rtol=0)


def test_a_trained_slice_stands_for_its_columns():
    net, fused = attached(FtQv()), base()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for split, plain in zip(net.denses("q"), fused.denses("q"), strict=True):
            change = torch.empty(32, 32).normal_(0.0, 0.2, generator=generator)
            assert isinstance(split.base, SplitProjection)
            split.base.get_parameter("v").add_(change)
            plain.weight[:, plain.slices["v"]] += change
    torch.testing.assert_close(logits(net), logits(fused), atol=1e-4, rtol=0)
    assert (logits(fused) - logits(base())).abs().max() > 0.1


# biases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_norm", [True, False])
def test_biases_train(layer_norm: bool):
    names = trained(attached(BitFit(layer_norm=layer_norm)))
    biases = {name for name, _ in base().named_parameters() if name.endswith("bias")}
    assert names.keys() == {name for name in biases if layer_norm or "ln_" not in name}


# one-shot ---------------------------------------------------------------------------------------


def test_the_text_that_a_one_shot_model_sees(tiny_tokenizer: Tokenizer):
    method = OneShot(prompt="Example: a : b. ", after=" ->")
    pair = Example("near : Café Lune", "Near Café Lune.")
    data = encode([pair], tiny_tokenizer, PROTOCOL, cache=None, layout=layout(method, tiny_tokenizer))
    (context,) = encode_contexts([pair.context], tiny_tokenizer, PROTOCOL, layout=layout(method, tiny_tokenizer))
    assert data.sequence(0)[: data.contexts[0]].tolist() == context
    assert tiny_tokenizer.decode(context, skip_special_tokens=False) == "Example: a : b. near : Café Lune ->"
    # As typed: the prompt's last space belongs to the context's first token.
    assert context == tiny_tokenizer.encode("Example: a : b. near : Café Lune ->", add_special_tokens=False).ids
    whole = tiny_tokenizer.decode(data.sequence(0).tolist(), skip_special_tokens=False)
    assert whole == "Example: a : b. near : Café Lune -> Near Café Lune.<|endoftext|>"


def test_another_prompt_is_another_entry_of_the_cache(tiny_tokenizer: Tokenizer):
    methods = [OneShot(), OneShot(prompt="a"), OneShot(after="a"), OneShot(prompt="", after="a")]
    made = [layout(method, tiny_tokenizer) for method in methods]
    assert len({laid.key for laid in made if laid is not None}) == len(methods)


def test_the_default_prompt_is_the_papers():
    (cell,) = compose.cells(["method=one-shot"])
    assert cell.run.method == OneShot()
    assert cell.run.method.prompt.startswith("Generate a restaurant description from the table. Here is an example: ")


DATA = Encoded.of([([i, 5, 6, 7], [8, 9, i]) for i in range(8)])


def test_a_training_of_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    net = attached(OneShot())
    expected = loop.validation_loss(net, DATA, Train(), PROTOCOL)
    with caplog.at_level(logging.INFO):
        done = train(
            net,
            DATA,
            DATA,
            Train(),
            protocol=PROTOCOL,
            seed=1,
            stretch={"device": "cpu"},
            checkpoint_path=tmp_path / "checkpoint",
        )
    assert (done.step, len(done.losses)) == (0, 0)
    assert done.epochs == [{"epoch": 0, "step": 0, "val_loss": expected}]
    assert done.stretches == [{"from_step": 0, "device": "cpu"}]
    assert caplog.messages == [f"the method trains nothing: no steps, validation loss {expected:.4f}"]
    assert not list(tmp_path.iterdir())


def test_a_frozen_model_of_damaged_weights():
    net = attached(OneShot())
    with torch.no_grad():
        net.ln_f.weight.fill_(float("nan"))
    with pytest.raises(RunFailed) as e:
        train(net, DATA, DATA, Train(), protocol=PROTOCOL, seed=1)
    assert str(e.value) == (
        "the validation loss is nan though nothing has been trained: the base model's weights are damaged; "
        "fetch them again"
    )


def test_a_one_shot_run_leaves_a_record(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LODAREPRO_CACHE", str(tmp_path / "cache"))
    sizes = json.loads((tiny_model / "config.json").read_text())
    (cell,) = compose.cells(
        [
            "model=gpt2-nano",
            f"model.path={tiny_model}",
            *(f"model.{key}={sizes[key]}" for key in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")),
            "method=one-shot",
            "method.prompt='Describe: '",
            "train.keep=[best,epoch-1,last]",  # which are all the same
            "dataset=mini",
            "dataset.limit.train=8",
            "dataset.limit.valid=8",
            "dataset.limit.test=4",
            "decode.beam=2",
            "decode.max_new_tokens=8",
            f"results.root={tmp_path / 'results'}",
        ]
    )
    done = pipeline.execute(cell.run)
    record = done.record
    assert record.parameters["trainable"] == 0
    assert record.training["steps"] == 0
    (epoch,) = record.training["epochs"]
    assert record.evaluations[0].val_loss == epoch["val_loss"] > 0
    assert record.evaluations[0].segments == 4
    assert (done.folder / "steps.csv").read_text() == "step,lr,loss\n"
    assert load_file(done.folder / "adapter.safetensors") == {}
    assert not (done.folder / "checkpoint.safetensors").exists()

    assert pipeline.execute(cell.run).record == records.read(done.folder)
    # The adapter without tensors is loaded as any other.
    again = pipeline.redecode(done.folder, ["decode.beam=1"])
    assert [(e.checkpoint, e.decode["beam"]) for e in again.evaluations] == [
        (checkpoint, beam) for beam in (2, 1) for checkpoint in ("last", "best", "epoch-1")
    ]
    assert [e.val_loss for e in again.evaluations] == [epoch["val_loss"]] * 6
