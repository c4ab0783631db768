"""What other tools load of a finished run computes what the run's own model computes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel

from lodarepro import compose, config, export, methods, records
from lodarepro.cli import main
from lodarepro.methods import attach, finalize, save_adapter, trained
from lodarepro.model import GPT2, weights

ID = "mini_tiny_s1_0123456789ab"
TOKENS = torch.randint(299, (2, 11), generator=torch.Generator().manual_seed(3))
ALL_TARGETS = "method.targets=[q,k,v,o,up,down]"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's caches, or reaches beyond this machine."""
    monkeypatch.setenv("LODAREPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with all its parameters away from their start, and one more tokenizer file."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("base") / "gpt2-tiny"))
    path = folder / weights.WEIGHTS
    tensors = load_file(path)
    disturb(tensors.values(), seed=0)
    weights.save_tensors(path, tensors, metadata={"format": "pt"})
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')
    return folder


def disturb(tensors: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in tensors:
            t.add_(torch.empty(t.shape).normal_(0.0, 0.1, generator=generator))


@cache
def composed(base: Path, *overrides: str) -> config.Run:
    sizes = json.loads((base / "config.json").read_text())
    names = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")
    places = ["model=gpt2-nano", f"model.path={base}", *(f"model.{name}={sizes[name]}" for name in names)]
    (cell,) = compose.cells(["dataset=mini", "protocol.max_length=300", *places, *overrides])
    return cell.run


Finished = Callable[..., tuple[Path, GPT2]]


@pytest.fixture
def finished(base: Path, tmp_path: Path) -> Finished:
    """The folder of a finished run with given overrides, and the model that it trained."""

    def make(*overrides: str) -> tuple[Path, GPT2]:
        run = composed(base, *overrides)
        found = weights.find(run.model)
        assert found is not None
        model = weights.load(found, run.model)
        attach(model, run.method, torch.Generator().manual_seed(1))
        finalize(model, run.method)
        disturb(trained(model).values(), seed=2)
        folder = tmp_path / ID
        folder.mkdir()
        path = folder / records.ADAPTER
        save_adapter(model, path, method=run.method, base=run.model.name, base_sha256=found.sha256)
        checksums = {"model": found.sha256, "tokenizer": found.tokenizer_sha256}
        described: dict[str, Any] = {"config": compose.plain(run), "identity": compose.identity(run, checksums)}
        empty: dict[str, Any] = {"provenance": {}, "parameters": {}, "training": {"epochs": [{}]}, "evaluations": ()}
        records.write(folder, records.Record(id=ID, **described, **empty))
        return folder, model.eval()

    return make


def logits(model: GPT2) -> Tensor:
    with torch.no_grad():
        return model.logits(model(TOKENS))


def close(theirs: Any, ours: GPT2, base: Path) -> None:
    """The logits are those of the run, which are not those of the plain model."""
    plain = GPT2LMHeadModel.from_pretrained(base).eval()
    with torch.no_grad():
        found = theirs.eval()(TOKENS).logits
        assert (plain(TOKENS).logits - found).abs().max() > 0.1
    torch.testing.assert_close(found, logits(ours), atol=1e-4, rtol=0)


LINEAR = [
    ["method=lora"],
    ["method=lora", "method.rslora=true"],
    ["method=lora", "method.dora=true"],
    ["method=lora", "method.ranks={v:2}"],
    ["method=lora", "method.ranks={v:2,down:7}", ALL_TARGETS],
    ["method=lora", "method.ranks={v:2,down:7}", "method.rslora=true", ALL_TARGETS],
    ["method=lora", "method.ranks={k:1,o:3}", "method.dora=true", "method.targets=[k,o]"],
    ["method=lora", "method.dora=true", "method.ranks={q:1}", ALL_TARGETS],
    ["method=lora", "method.targets=[o,down]"],
]


@pytest.mark.parametrize("overrides", LINEAR, ids=" ".join)
def test_peft_computes_the_same(overrides: list[str], finished: Finished, base: Path, tmp_path: Path):
    folder, model = finished(*overrides)
    assert main(["export", str(folder), "--to", "peft", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), tmp_path / "out")
    close(loaded, model, base)
    close(loaded.merge_and_unload(), model, base)


@pytest.mark.parametrize("overrides", LINEAR[1:3], ids=" ".join)
def test_peft_writes_the_tensors_that_we_write(overrides: list[str], finished: Finished, base: Path, tmp_path: Path):
    """Names and shapes; peft passes over a name that it does not know."""
    folder, _ = finished(*overrides, ALL_TARGETS)
    assert main(["export", str(folder), "--to", "peft", str(tmp_path / "out")]) == 0
    loaded = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), tmp_path / "out")
    loaded.save_pretrained(str(tmp_path / "peft"))
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_alpha_and_the_matrices_are_as_trained(finished: Finished, tmp_path: Path):
    folder, model = finished("method=lora", "method.rank=3", "method.alpha=6")
    assert main(["export", str(folder), "--to", "peft", str(tmp_path / "out")]) == 0
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"]) == (6, 12.0)  # one adapter for q and v: of both ranks
    assert described["target_modules"] == ["attn.c_attn"]
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    B = tensors["base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"].t()  # (6, 96)
    deltas = trained(model)
    assert torch.equal(B[:3, :32], deltas["h.1.attn.c_attn.deltas.q.B"])
    assert torch.equal(B[3:, 64:], deltas["h.1.attn.c_attn.deltas.v.B"])
    assert int(B.count_nonzero()) == 2 * 3 * 32


@pytest.mark.parametrize("length", [1, 5])
def test_peft_reads_a_prefix_as_we_do(length: int, finished: Finished, base: Path, tmp_path: Path):
    folder, model = finished("method=prefix-layer", f"method.length={length}")
    assert main(["export", str(folder), "--to", "peft", str(tmp_path / "out")]) == 0
    loaded = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), tmp_path / "out").eval()
    close(loaded, model, base)
    with torch.no_grad():
        masked = loaded(TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    torch.testing.assert_close(masked, logits(model), atol=1e-4, rtol=0)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {"prompt_embeddings": (length, 2 * 2 * 32)}


def test_peft_generates_after_a_prefix_what_we_do(finished: Finished, base: Path, tmp_path: Path):
    folder, model = finished("method=prefix-layer")
    assert main(["export", str(folder), "--to", "peft", str(tmp_path / "out")]) == 0
    loaded = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), tmp_path / "out").eval()
    ids = TOKENS[:1, :4]
    mask = torch.ones_like(ids)
    found = loaded.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    expected = ids
    with torch.no_grad():
        for _ in range(6):
            best = model.logits(model(expected))[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, best], dim=1)
    assert found.tolist() == expected.tolist()


MERGED = [
    *LINEAR[:1],
    ["method=lora", "method.dora=true", ALL_TARGETS],
    ["method=ft"],
    ["method=ft-top2", "method.final_norm=true"],
    ["method=ft-qv"],
    ["method=bitfit"],
]


@pytest.mark.parametrize("overrides", MERGED, ids=" ".join)
def test_transformers_computes_the_same(overrides: list[str], finished: Finished, base: Path, tmp_path: Path):
    folder, model = finished(*overrides)
    out = tmp_path / "below" / "out"
    assert main(["export", str(folder), "--to", "hf", str(out)]) == 0
    close(GPT2LMHeadModel.from_pretrained(out), model, base)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names
    for name in names & set(export.TOKENIZER_FILES):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    text = "The Mill is a cheap pub."
    assert AutoTokenizer.from_pretrained(out)(text).input_ids == AutoTokenizer.from_pretrained(base)(text).input_ids
    assert {path.name for path in tmp_path.iterdir()} >= {ID, "below"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # nothing half-written is left


def test_what_was_exported_is_a_base_model_again(finished: Finished, tmp_path: Path):
    folder, model = finished("method=lora")
    assert main(["export", str(folder), "--to", "hf", str(tmp_path / "out")]) == 0
    run = compose.from_plain(records.finished(folder).config)
    described = replace(run.model, path=str(tmp_path / "out"))
    found = weights.find(described)
    assert found is not None
    torch.testing.assert_close(logits(weights.load(found, described)), logits(model), atol=1e-4, rtol=0)


def test_the_log_says_how_to_load_it(finished: Finished, base: Path, tmp_path: Path, capsys):
    folder, model = finished("method=lora")
    out = {form: tmp_path / form for form in ("peft", "hf")}
    for form, place in out.items():
        place.mkdir()  # an empty one will do
        assert main(["export", str(folder), str(place), "--to", form, f"model.path={base}"]) == 0
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines() if " wrote " in line]
    ways = [line.partition("; to load it: ")[2] for line in said]
    assert [line.partition(";")[0] for line in said] == [f"wrote {place}" for place in out.values()]
    for way in ways:
        close(eval(way, {"peft": peft, "GPT2LMHeadModel": GPT2LMHeadModel}), model, base)


def test_an_adapter_names_the_hubs_base_model(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, _ = finished("method=lora")
    real = weights.find
    monkeypatch.setattr(weights, "find", lambda model: replace(real(model), origin="hub"))  # type: ignore[type-var]
    path = folder / records.RECORD
    tree = json.loads(path.read_text())
    tree["config"]["model"] |= {"hub": "openai-community/gpt2", "revision": "a" * 40}
    path.write_text(json.dumps(tree))
    assert main(["export", str(folder), "--to", "peft", str(tmp_path / "out")]) == 0
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == ("openai-community/gpt2", "a" * 40)


# refusals ---------------------------------------------------------------------------------------

NOT_LINEAR = "its delta is not a linear map of x, so that no matrix added to a weight computes it"
BESIDE = "its prefix stands beside the tokens, where there is no weight to merge it into"
NO_PLACE = "peft's formats have no place for what it trains"


@pytest.mark.parametrize(
    ("form", "override", "why"),
    [
        ("peft", "method=loda", f"peft's deltas are products of two matrices: {NOT_LINEAR}"),
        (
            "peft",
            "method=r-lora",
            "its q/k/v projection is not the plain model's, beside which peft would put the adapter",
        ),
        ("peft", "method=adapter-h", f"{NO_PLACE} (h.0.after_attn.down)"),
        ("peft", "method=prefix-embed", f"{NO_PLACE} (virtual.states)"),
        ("peft", "method=bitfit", f"{NO_PLACE} (h.0.ln_1.bias); give --to hf"),
        ("peft", "method=one-shot", "it trains nothing"),
        ("hf", "method=one-shot", "it trains nothing, so the base model's own files are that checkpoint"),
        ("hf", "method=loda", f"the method can't be merged: {NOT_LINEAR}"),
        (
            "hf",
            "method=s-lora",
            "the method can't be merged: what stands for the q/k/v weight is no dense weight, and merging would make "
            "it one again",
        ),
        (
            "hf",
            "method=adapter-l",
            "the method can't be merged: its modules stand between the layers, where there is no weight to merge them "
            "into",
        ),
        ("hf", "method=prefix-layer", f"the method can't be merged: {BESIDE}"),
        ("hf", "method=prefix-embed", f"the method can't be merged: {BESIDE}"),
    ],
)
def test_a_method_without_that_form(form: str, override: str, why: str, finished: Finished, tmp_path: Path, capsys):
    small = ["method.base.rank=8"] if override == "method=r-lora" else []
    folder, _ = finished(override, *small)
    before = {path.name for path in tmp_path.iterdir()}
    assert refusal(capsys, folder, form, tmp_path / "out") == f"{ID} has no form for --to {form}: {why}"
    assert {path.name for path in tmp_path.iterdir()} == before


def refusal(capsys: Any, folder: Path, form: str, place: Path, *overrides: str) -> str:
    assert main(["export", str(folder), "--to", form, str(place), *overrides]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lodarepro: ")]
    (line,) = lines
    return line.removeprefix("lodarepro: ")


def test_a_delta_with_something_else_trained(finished: Finished, tmp_path: Path, capsys, monkeypatch):
    """What a format can't hold must not be left out in silence."""
    folder, _ = finished("method=lora")
    monkeypatch.setattr(methods, "load_adapter", lambda model, *_, **__: model.ln_f.bias.requires_grad_(True))
    said = refusal(capsys, folder, "peft", tmp_path / "out")
    assert said == f"{ID} has no form for --to peft: {NO_PLACE} (ln_f.bias); give --to hf"


@pytest.mark.parametrize("content", ["file", "folder"])
def test_what_is_there_stays(content: str, finished: Finished, tmp_path: Path, capsys):
    folder, _ = finished("method=lora")
    place = tmp_path / "out"
    kept = place / "kept" if content == "folder" else place
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept")
    said = refusal(capsys, folder, "peft", place)
    assert said == f"{place} is there and is no empty folder; give another, or delete it first"
    assert kept.read_text() == "kept"


def test_a_folder_that_cant_be_made(finished: Finished, tmp_path: Path, capsys):
    folder, _ = finished("method=lora")
    (tmp_path / "file").write_text("")
    said = refusal(capsys, folder, "hf", tmp_path / "file" / "out")
    assert said == f"{tmp_path / 'file' / 'out.partial'}: can't be used (Not a directory); give another folder"


def test_a_folder_without_a_run(tmp_path: Path, capsys):
    said = refusal(capsys, tmp_path, "hf", tmp_path / "out")
    assert said == f"{tmp_path} holds no record.json: not the folder of a finished run"


def test_another_base_model(finished: Finished, tiny_model: Path, tmp_path: Path, capsys):
    folder, _ = finished("method=lora")
    said = refusal(capsys, folder, "peft", tmp_path / "out", f"model.path={tiny_model}")
    assert said.startswith(f"adapter {folder / 'adapter.safetensors'} was trained on gpt2-nano (weights sha256 ")
    assert said.endswith("; give that base model (model=, model.path=)")


def test_another_tokenizer(finished: Finished, base: Path, tmp_path: Path, capsys):
    folder, _ = finished("method=lora")
    other = Path(shutil.copytree(base, tmp_path / "other"))
    with (other / "tokenizer.json").open("a") as file:
        file.write("\n")
    said = refusal(capsys, folder, "hf", tmp_path / "out", f"model.path={other}")
    assert said.startswith(f"{other}: its tokenizer is not the one that {ID} was trained with (sha256 ")


@pytest.mark.parametrize("override", ["decode.beam_size=3", "model.name=x", "peft"])
def test_settings_that_mean_nothing(override: str, finished: Finished, tmp_path: Path, capsys):
    folder, _ = finished("method=lora")
    said = refusal(capsys, folder, "peft", tmp_path / "out", override)
    assert said == f"{override}: an export has no such setting; give model.path=FOLDER, or nothing"


def test_a_killed_exports_remains_are_cleared(finished: Finished, tmp_path: Path):
    folder, _ = finished("method=lora")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "adapter_model.safetensors").write_text("half")
    assert main(["export", str(folder), "--to", "peft", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out.partial").exists()
    assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == 4
