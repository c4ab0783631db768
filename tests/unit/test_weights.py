"""Checkpoints in and out: folders, faults, `transformers`, and the hub played by a local server."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from lodarepro import config
from lodarepro.errors import BadInput
from lodarepro.model import GPT2, Sizes, weights

NAMES = {"config.json", "model.safetensors", "tokenizer.json"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
TEXT = "name : Ovenna Tal | food : Thai\n\nCafé <|endoftext|>"


def described(folder: Path, **changes: object) -> config.Model:
    """The model option that fits a folder's config.json."""
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = {key: tree[key] for key in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")}
    return replace(config.Model(name="tiny", path=str(folder), **sizes), **changes)  # type: ignore[arg-type]


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may spoil."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    return folder


def spoil(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def load(folder: Path, **changes: object) -> GPT2:
    model = described(folder, **changes)
    found = weights.find(model)
    assert found is not None
    return weights.load(found, model)


def faults(folder: Path, **changes: object) -> tuple[str, ...]:
    with pytest.raises(BadInput) as e:
        load(folder, **changes)
    assert all("\n" not in fault for fault in e.value.faults)
    return e.value.faults


# a folder ---------------------------------------------------------------------------------------


def test_a_folder_is_found_with_the_hash_of_its_weights(tiny_model: Path):
    found = weights.find(described(tiny_model))
    assert found is not None
    content = (tiny_model / "model.safetensors").read_bytes()
    assert (found.folder, found.origin) == (tiny_model, "local")
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert weights.sha256_of(tiny_model / "model.safetensors") == found.sha256


def test_a_home_relative_path_is_understood(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    found = weights.find(described(tiny_model, path=f"~/{tiny_model.name}"))
    assert found is not None and found.folder == tiny_model


def test_missing_files_are_named_with_what_is_there(copy: Path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    model = described(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BadInput) as e:
        weights.find(model)
    assert e.value.faults == (
        f"model 'tiny': {copy} lacks model.safetensors, tokenizer.json (there: config.json, pytorch_model.bin); "
        "model.path must name a folder in Hugging Face layout with config.json, model.safetensors and tokenizer.json",
    )


@pytest.mark.parametrize(("make", "there"), [(True, "nothing"), (False, "no such folder")])
def test_an_empty_or_absent_folder(tiny_model: Path, tmp_path: Path, make: bool, there: str):
    folder = tmp_path / "none"
    if make:
        folder.mkdir()
    with pytest.raises(BadInput, match=rf"lacks config.json, model.safetensors, tokenizer.json \(there: {there}\)"):
        weights.find(described(tiny_model, path=str(folder)))


def test_an_embedded_model_is_looked_for_in_the_package(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path)
    shutil.copytree(tiny_model, tmp_path / "tiny")
    found = weights.find(described(tiny_model, path=None))
    assert found is not None
    assert (found.folder, found.origin) == (tmp_path / "tiny", "embedded")


# config.json and tensors ------------------------------------------------------------------------


def test_every_other_size_is_one_line(tiny_model: Path):
    found = faults(tiny_model, n_layer=3, n_positions=1024)
    where = tiny_model / "config.json"
    assert found == (
        f"model 'tiny': {where} says n_layer = 2, expected 3; "
        "choose the model option that fits the checkpoint, or set model.n_layer=2",
        f"model 'tiny': {where} says n_positions = 512, expected 1024; "
        "choose the model option that fits the checkpoint, or set model.n_positions=512",
    )


def test_a_size_that_config_json_lacks(copy: Path):
    tree = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    model = described(copy)
    del tree["n_head"]
    (copy / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    found = weights.find(model)
    assert found is not None
    with pytest.raises(BadInput) as e:
        weights.load(found, model)
    (fault,) = e.value.faults
    assert fault == f"model 'tiny': {copy / 'config.json'} lacks n_head, expected 2; fetch it again"


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '"gpt2"'])
def test_a_corrupt_config_json(copy: Path, content: str):
    model = described(copy)
    (copy / "config.json").write_text(content, encoding="utf-8")
    found = weights.find(model)
    assert found is not None
    with pytest.raises(BadInput, match=re.escape(f"{copy / 'config.json'} is not a JSON object (")) as e:
        weights.load(found, model)
    (fault,) = e.value.faults
    assert "\n" not in fault and fault.endswith("fetch it again")


def test_config_json_in_another_encoding(copy: Path):
    model = described(copy)
    (copy / "config.json").write_bytes(b"\xff\xfe{}")
    found = weights.find(model)
    assert found is not None
    with pytest.raises(BadInput, match="is not a JSON object"):
        weights.load(found, model)


def test_every_fault_of_the_tensors_is_one_line(copy: Path):
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["transformer.h.1.mlp.c_fc.bias"]
        del tensors["transformer.wpe.weight"]
        tensors["transformer.h.0.attn.c_attn.lora_A"] = torch.zeros(4, 32)
        tensors["transformer.h.0.attn.c_attn.weight"] = torch.zeros(96, 32)  # as nn.Linear would have it

    spoil(copy, change)
    path = copy / "model.safetensors"
    assert faults(copy) == (
        f"{path}: tensor 'h.0.attn.c_attn.lora_A' is not part of a GPT-2",
        f"{path}: tensor 'h.0.attn.c_attn.weight' has shape (96, 32), expected (32, 96)",
        f"{path}: tensor 'h.1.mlp.c_fc.bias' is missing",
        f"{path}: tensor 'wpe.weight' is missing",
    )


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_or_foreign_weights_file(copy: Path, keep: int):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    (fault,) = faults(copy)
    assert fault.startswith(f"model 'tiny': {path} is not a readable safetensors file (")
    assert fault.endswith("fetch it again (pickled checkpoints are not read)")


def test_a_pickle_under_the_name_of_the_weights_is_not_read(copy: Path):
    net = load(copy)
    torch.save(net.state_dict(), copy / "model.safetensors")
    (fault,) = faults(copy)
    assert "is not a readable safetensors file" in fault


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "None"}}'])
def test_a_corrupt_tokenizer(copy: Path, content: str):
    found = weights.find(described(copy))
    assert found is not None
    (copy / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadInput) as e:
        weights.load_tokenizer(found)
    (fault,) = e.value.faults
    assert fault.startswith(f"{copy / 'tokenizer.json'} is not a readable tokenizer (") and "\n" not in fault


def test_names_as_on_the_hub(copy: Path):
    """The hub's GPT-2 files: no prefix, causal-mask buffers, and in some an explicit output layer."""
    expected = load(copy).state_dict()

    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for i in range(2):
            tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 512, 512).tril()
            tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    spoil(copy, change)
    actual = load(copy).state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_loaded_weights_may_be_trained_and_are_not_the_file(copy: Path):
    """Gradients flow to every parameter, and an update does not write through to the file."""
    before = (copy / "model.safetensors").read_bytes()
    net = load(copy)
    assert not net.training
    net.logits(net(torch.tensor([[1, 2, 3]]))).square().mean().backward()
    with torch.no_grad():
        for p in net.parameters():
            assert p.grad is not None
            p.add_(1.0)
    assert (copy / "model.safetensors").read_bytes() == before


def test_a_file_overwritten_after_loading_does_not_reach_the_model(copy: Path):
    """Safetensors maps the file into memory; whoever writes into it must not change a training."""
    path = copy / "model.safetensors"
    net = load(copy)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\0" * size)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


# out --------------------------------------------------------------------------------------------


def random_net(tiny_model: Path) -> GPT2:
    """A tiny model whose biases and LayerNorms are random too."""
    net = GPT2(weights.sizes_of(described(tiny_model)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return net.eval()


def test_transformers_loads_what_is_saved(tiny_model: Path, tmp_path: Path):
    net = random_net(tiny_model)
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    weights.save(net, tokenizer, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert {p.name for p in folder.iterdir()} == NAMES

    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer.encode(TEXT).ids])
    with torch.no_grad():
        expected = theirs(ids).logits
        actual = net.logits(net(ids))
    assert expected.abs().max() > 0.5  # not a comparison of zeros
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    assert theirs.config.eos_token_id == tokenizer.token_to_id("<|endoftext|>")

    ours = load(folder)
    assert all(torch.equal(p, ours.state_dict()[name]) for name, p in net.state_dict().items())


def test_transformers_loads_the_tokenizer(tiny_model: Path):
    ours = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tiny_model / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(tiny_model)
    expected = ours.encode(TEXT).ids
    assert ours.token_to_id("\n\n") in expected and ours.token_to_id("<|endoftext|>") in expected
    assert fast(TEXT)["input_ids"] == expected
    assert auto(TEXT)["input_ids"] == expected


def test_half_precision_on_disk_is_single_in_memory(tiny_model: Path, tmp_path: Path):
    net = random_net(tiny_model)
    weights.save(net, Tokenizer.from_file(str(tiny_model / "tokenizer.json")), tmp_path, dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["dtype"] == "float16"
    loaded = load(tmp_path).state_dict()
    for name, t in net.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], t.half().float()), name


def test_a_failed_write_leaves_the_old_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.safetensors"
    weights.save_tensors(path, {"a": torch.ones(3)}, metadata={"n": "1"})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        weights.save_tensors(path, {"a": torch.zeros(3)}, metadata={"n": "2"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_cut_short_by_the_system_leaves_the_old_tensors(tmp_path: Path):
    """A real short write, in a process of its own whose files may not grow."""
    path = tmp_path / "x.safetensors"
    weights.save_tensors(path, {"a": torch.ones(3)}, metadata={})
    before = path.read_bytes()
    program = (
        "import sys, torch; from pathlib import Path; from lodarepro.model.weights import save_tensors\n"
        "save_tensors(Path(sys.argv[1]), {'a': torch.zeros(100_000)}, metadata={})"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_view_is_written_as_it_looks(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    t = torch.arange(12.0).view(3, 4).t()
    weights.save_tensors(path, {"t": t}, metadata={"k": "v"})
    assert torch.equal(load_file(path)["t"], t)


# the hub ----------------------------------------------------------------------------------------


@dataclass
class Hub:
    """A server that answers as the hub's file routes do.

    Attributes:
        endpoint: its address.
        files: name to content; others are answered 404.
        status: answered instead, where set.
        asked: method and path of every request for a file.
    """

    endpoint: str
    files: dict[str, bytes]
    status: int | None = None
    asked: list[str] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub with the tiny model as `someone/tiny` at COMMIT, and an empty cache in `tmp_path`."""
    played = Hub(endpoint="", files={name: (tiny_model / name).read_bytes() for name in NAMES})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            del format, args

        def answer(self, *, body: bool) -> None:
            if "/resolve/" in self.path:  # the library also asks for lists of its own
                played.asked.append(f"{self.command} {self.path}")
            prefix = f"/someone/tiny/resolve/{COMMIT}/"
            name = self.path.removeprefix(prefix)
            content = played.files.get(name) if self.path.startswith(prefix) else None
            if played.status is not None:
                content, status = b"", played.status
            elif content is None:
                content, status = b"Entry not found", 404
            else:
                status = 200
            self.send_response(status)
            if status == 404:
                known = self.path.startswith(prefix)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RevisionNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

    played.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    played.endpoint = f"http://127.0.0.1:{played.server.server_port}"
    threading.Thread(target=played.server.serve_forever, args=(0.02,), daemon=True).start()
    # The library reads its environment once, at import.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", played.endpoint)
    template = f"{played.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's waits before it tries again
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    huggingface_hub.close_session()
    yield played
    played.stop()
    huggingface_hub.close_session()


def on_hub(tiny_model: Path, **changes: object) -> config.Model:
    return described(tiny_model, **{"path": None, "hub": "someone/tiny", "revision": COMMIT, **changes})


def test_a_model_is_downloaded_once(tiny_model: Path, hub: Hub, tmp_path: Path):
    model = on_hub(tiny_model)
    found = weights.find(model)
    assert found is not None
    assert found.origin == "hub"
    assert found.folder.is_relative_to(tmp_path / "hub") and found.folder.name == COMMIT
    assert found.sha256 == hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    assert {path.rsplit("/", 1)[1] for path in hub.asked} == NAMES
    net = weights.load(found, model)
    assert torch.equal(net.wte.weight, load(tiny_model).wte.weight)
    assert weights.load_tokenizer(found).get_vocab_size() == model.vocab_size

    hub.stop()
    assert weights.find(model) == found
    assert weights.find(model, download=False) == found


def test_a_pinned_model_in_the_cache_asks_no_server(tiny_model: Path, hub: Hub):
    weights.find(on_hub(tiny_model))
    hub.asked.clear()
    weights.find(on_hub(tiny_model))
    assert hub.asked == []


def test_looking_without_downloading_asks_no_server(tiny_model: Path, hub: Hub, tmp_path: Path):
    assert weights.find(on_hub(tiny_model), download=False) is None
    assert hub.asked == []
    assert not list(tmp_path.glob("hub/**/*.json"))


def test_a_half_filled_cache_counts_as_empty(tiny_model: Path, hub: Hub):
    content = hub.files.pop("model.safetensors")
    with pytest.raises(BadInput):
        weights.find(on_hub(tiny_model))
    assert weights.find(on_hub(tiny_model), download=False) is None
    hub.files["model.safetensors"] = content
    assert weights.find(on_hub(tiny_model)) is not None


def hub_fault(tiny_model: Path, **changes: object) -> str:
    with pytest.raises(BadInput) as e:
        weights.find(on_hub(tiny_model, **changes))
    (fault,) = e.value.faults
    assert "\n" not in fault
    return fault


def test_a_file_that_the_repository_lacks(tiny_model: Path, hub: Hub):
    del hub.files["model.safetensors"]
    fault = hub_fault(tiny_model)
    assert fault.startswith(
        f"model 'tiny': model.safetensors of someone/tiny at {COMMIT} could not be downloaded (RemoteEntryNotFoundError"
    )
    assert fault.endswith("give model.path=FOLDER with its files")


def test_a_revision_that_the_repository_lacks(tiny_model: Path, hub: Hub):
    fault = hub_fault(tiny_model, revision=OTHER_COMMIT)
    assert f"config.json of someone/tiny at {OTHER_COMMIT} could not be downloaded (RevisionNotFoundError" in fault


@pytest.mark.parametrize("status", [403, 500])
def test_a_server_that_refuses(tiny_model: Path, hub: Hub, status: int):
    hub.status = status
    fault = hub_fault(tiny_model)
    assert fault.startswith("model 'tiny': config.json of someone/tiny")
    assert str(status) in fault and "model.path=FOLDER" in fault


def test_no_server_and_no_cache(tiny_model: Path, hub: Hub):
    hub.stop()
    fault = hub_fault(tiny_model)
    assert fault.startswith(
        "model 'tiny': config.json of someone/tiny is not in the cache and the hub can't be reached (ConnectError"
    )
    assert "give model.path=FOLDER" in fault and "model=gpt2-nano" in fault


def test_offline_mode_and_no_cache(tiny_model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fault = hub_fault(tiny_model)
    assert "the hub can't be reached (" in fault and "model.path=FOLDER" in fault
    assert hub.asked == []


def test_a_repository_name_that_none_can_have(tiny_model: Path, hub: Hub):
    fault = hub_fault(tiny_model, hub="a/b/c")
    assert "a/b/c" in fault and "model.path=FOLDER" in fault


def test_the_address_of_the_first_file(tiny_model: Path, hub: Hub):
    assert weights.hub_url(on_hub(tiny_model)) == f"{hub.endpoint}/someone/tiny/resolve/{COMMIT}/config.json"


def test_the_hub_and_its_cache_are_those_of_the_environment(tiny_model: Path, hub: Hub, tmp_path: Path):
    """A new process, to which HF_ENDPOINT and HF_HOME are given as users give them."""
    program = (
        "import sys; from lodarepro import config; from lodarepro.model import weights\n"
        "model = config.Model(name='tiny', n_layer=2, n_head=2, n_embd=32, n_positions=512,\n"
        f"                     vocab_size=int(sys.argv[1]), hub='someone/tiny', revision='{COMMIT}')\n"
        "found = weights.find(model)\n"
        "weights.load(found, model)\n"
        "print(weights.hub_url(model)); print(found.folder)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    vocabulary = str(described(tiny_model).vocab_size)
    done = subprocess.run(
        [sys.executable, "-c", program, vocabulary], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    url, folder = done.stdout.splitlines()
    assert url.startswith(hub.endpoint)
    assert Path(folder).is_relative_to(tmp_path / "home" / "hub")


def test_sizes_are_those_of_the_option(tiny_model: Path):
    model = described(tiny_model)
    assert weights.sizes_of(model) == Sizes(2, 2, 32, model.vocab_size, 512)
