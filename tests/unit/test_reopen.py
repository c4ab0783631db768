"""A finished run's parts, found again. (What is said of another base model or tokenizer: test_export.py.)"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lodarepro import compose, records
from lodarepro.errors import BadInput
from lodarepro.methods import attach, save_adapter, trained
from lodarepro.model import GPT2, weights
from lodarepro.records import Record
from lodarepro.reopen import reopen

ID = "mini_tiny_lora-r2_lora_s1_0123456789ab"
TOKENS = torch.randint(299, (2, 7), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def finished(tiny_model: Path, tmp_path: Path, own_caches: None) -> tuple[Path, dict[str, GPT2]]:
    """A run with two checkpoints, and their models."""
    sizes = json.loads((tiny_model / "config.json").read_text())
    names = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")
    given = ["model=gpt2-nano", f"model.path={tiny_model}", *(f"model.{name}={sizes[name]}" for name in names)]
    (cell,) = compose.cells([*given, "dataset=mini", "method=lora", "method.rank=2"])
    base = weights.find(cell.run.model)
    assert base is not None
    folder = tmp_path / ID
    folder.mkdir()
    models, checkpoints = {}, {}
    for seed, (name, file) in enumerate({"last": records.ADAPTER, "epoch-1": "adapter-epoch-1.safetensors"}.items()):
        model = weights.load(base, cell.run.model)
        attach(model, cell.run.method, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for p in trained(model).values():
                p.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(seed))
        save_adapter(model, folder / file, method=cell.run.method, base=cell.run.model.name, base_sha256=base.sha256)
        models[name] = model.eval()
        checkpoints[name] = {"epoch": 2 - seed, "adapter": file}
    checksums = {"model": base.sha256, "tokenizer": base.tokenizer_sha256}
    nothing: dict[str, Any] = {"provenance": {}, "parameters": {}, "evaluations": ()}
    described = compose.plain(cell.run), compose.identity(cell.run, checksums)
    records.write(folder, Record(ID, *described, training={"checkpoints": checkpoints}, **nothing))
    return folder, models


@pytest.mark.parametrize("name", ["last", "epoch-1"])
def test_the_checkpoint_that_is_asked_for(name: str, finished: tuple[Path, dict[str, GPT2]]):
    folder, models = finished
    opened = reopen(folder, checkpoint=name)
    model = opened.model()
    assert not model.training
    assert torch.equal(model(TOKENS), models[name](TOKENS))
    assert not torch.equal(models["last"](TOKENS), models["epoch-1"](TOKENS))
    assert opened.adapter.is_file()
    assert (opened.record.id, opened.run.method.rank) == (ID, 2)


def test_the_last_one_where_none_is_named(finished: tuple[Path, dict[str, GPT2]]):
    assert reopen(finished[0]).adapter == finished[0] / records.ADAPTER


@pytest.mark.parametrize(("name", "nearest"), [("best", ""), ("epoch-2", "; did you mean 'epoch-1'?")])
def test_one_that_was_not_kept(name: str, nearest: str, finished: tuple[Path, dict[str, GPT2]]):
    with pytest.raises(BadInput) as e:
        reopen(finished[0], checkpoint=name)
    (fault,) = e.value.faults
    assert fault.startswith(f"{ID} has no checkpoint '{name}'{nearest}")
    assert fault.endswith(" (valid: epoch-1, last)")


def test_an_adapter_that_is_gone(finished: tuple[Path, dict[str, GPT2]]):
    folder, _ = finished
    (folder / "adapter-epoch-1.safetensors").unlink()
    with pytest.raises(BadInput) as e:
        reopen(folder, checkpoint="epoch-1").model()
    (fault,) = e.value.faults
    assert fault.startswith(f"adapter {folder / 'adapter-epoch-1.safetensors'} can't be read (")


def test_a_base_model_that_is_gone_and_given_elsewhere(finished: tuple[Path, dict[str, GPT2]], tiny_model: Path):
    folder, models = finished
    record = records.finished(folder)
    gone = {**record.config, "model": {**record.config["model"], "path": "/nowhere/model"}}
    records.write(folder, replace(record, config=gone))
    with pytest.raises(BadInput) as e:
        reopen(folder)
    (fault,) = e.value.faults
    assert "/nowhere/model" in fault
    assert torch.equal(reopen(folder, [f"model.path={tiny_model}"]).model()(TOKENS), models["last"](TOKENS))


def test_settings_of_the_training_stay(finished: tuple[Path, dict[str, GPT2]]):
    with pytest.raises(BadInput) as e:
        reopen(finished[0], ["method.rank=4"])
    assert len(e.value.faults) == 1
    assert e.value.faults[0].startswith("method.rank=4: a finished run's training can't change")
