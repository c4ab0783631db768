"""Checkpoints in Hugging Face layout, in and out: `config.json`, `model.safetensors`, `tokenizer.json`.

Only safetensors are read, never pickles. A checkpoint is found in a folder, in the package (the
embedded model) or on the hub at a fixed commit.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from tokenizers import Tokenizer

from lodarepro import config
from lodarepro.errors import BadInput
from lodarepro.files import write_atomically
from lodarepro.model.gpt2 import GPT2, Sizes

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
EMBEDDED = Path(__file__).parent
SEMANTICS: dict[str, tuple[object, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
"""what a `config.json` may say of the computation, where it says anything"""


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model that was found.

    Attributes:
        folder: where its three files are.
        sha256: of the file `model.safetensors`.
        tokenizer_sha256: of the file `tokenizer.json`.
        origin: `embedded`, `local` or `hub`.
    """

    folder: Path
    sha256: str
    tokenizer_sha256: str
    origin: str

    def check_tokenizer(self, sha256: str, run: str) -> None:
        """Raise BadInput where the tokenizer is not the one, of this checksum, that a run was trained with."""
        if self.tokenizer_sha256 != sha256:
            raise BadInput(
                f"{self.folder}: its tokenizer is not the one that {run} was trained with (sha256 "
                f"{self.tokenizer_sha256}, not {sha256}); give that base model's folder with model.path"
            )


def sizes_of(model: config.Model) -> Sizes:
    """The shape that a model's configuration states."""
    return Sizes(**{f.name: getattr(model, f.name) for f in fields(Sizes)})


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically: after a failure the old content is still there.

    Raises:
        OSError: the file can't be written; no partial file stays.
    """
    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, serialise(content, metadata=metadata))


def hub_name(name: str) -> str:
    """The name of a parameter in Hugging Face's `GPT2LMHeadModel`."""
    return f"transformer.{name}"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(model: config.Model, *, download: bool = True) -> Checkpoint | None:
    """Find a model's files, downloading them if need be.

    Args:
        model: `path` is used if given, else the embedded model, else the hub at `revision`.
        download: False looks at what is on this machine only.

    Returns:
        The checkpoint, or None where it is on the hub alone and `download` is False.

    Raises:
        BadInput: files are missing, or the hub can't be reached.
    """
    if model.path is not None:
        return _checked(model, Path(model.path).expanduser(), "local")
    if model.hub is None:
        return _checked(model, EMBEDDED / model.name, "embedded")
    folder = _from_hub(model, download=download)
    return None if folder is None else _checked(model, folder, "hub")


def hub_url(model: config.Model) -> str:
    """Where a hub model's first file is asked for; $HF_ENDPOINT may name another hub."""
    from huggingface_hub import hf_hub_url

    assert model.hub is not None
    return str(hf_hub_url(model.hub, CONFIG, revision=model.revision))


def _checked(model: config.Model, folder: Path, origin: str) -> Checkpoint:
    missing = [name for name in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        there = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise BadInput(
            f"model '{model.name}': {folder} lacks {', '.join(missing)} (there: {there or 'nothing'}); "
            f"model.path must name a folder in Hugging Face layout with {CONFIG}, {WEIGHTS} and {TOKENIZER}"
        )
    return Checkpoint(folder, sha256_of(folder / WEIGHTS), sha256_of(folder / TOKENIZER), origin)


def _from_hub(model: config.Model, *, download: bool) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    assert model.hub is not None
    name = CONFIG
    try:
        for name in (CONFIG, TOKENIZER, WEIGHTS):
            path = hf_hub_download(model.hub, name, revision=model.revision, local_files_only=not download)
    except LocalEntryNotFoundError as e:
        if not download:
            return None
        raise BadInput(
            f"model '{model.name}': {name} of {model.hub} is not in the cache and the hub can't be reached "
            f"({_first_line(e.__cause__ or e)}); give model.path=FOLDER with its files, use the embedded "
            "model (model=gpt2-nano), or run where there is network"
        ) from None
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as e:
        raise BadInput(
            f"model '{model.name}': {name} of {model.hub} at {model.revision} could not be downloaded "
            f"({_first_line(e)}); give model.path=FOLDER with its files"
        ) from None
    return Path(path).parent


def _first_line(e: BaseException) -> str:
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0]}" if lines else type(e).__name__


def load(checkpoint: Checkpoint, model: config.Model) -> GPT2:
    """Build the model and load its weights in fp32.

    Raises:
        BadInput: the checkpoint's sizes are not those of `model`, a tensor is missing, superfluous
            or of another shape, or the file is not safetensors.
    """
    sizes = sizes_of(model)
    where = f"model '{model.name}': {checkpoint.folder / CONFIG}"
    described = _described(checkpoint.folder)
    faults = [
        f"{where} says {key} = {described[key]}, expected {want}; "
        f"choose the model option that fits the checkpoint, or set model.{key}={described[key]}"
        if described.get(key) is not None
        else f"{where} lacks {key}, expected {want}; fetch it again"
        for key, want in asdict(sizes).items()
        if described.get(key) != want
    ]
    faults += [
        f"{where} says {key} = {described[key]}, which is not GPT-2 as this project computes it ({allowed[0]})"
        for key, allowed in SEMANTICS.items()
        if key in described and described[key] not in allowed
    ]
    if faults:
        raise BadInput(faults)
    path = checkpoint.folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as e:
        raise BadInput(
            f"model '{model.name}': {path} is not a readable safetensors file ({_first_line(e)}); "
            "fetch it again (pickled checkpoints are not read)"
        ) from None
    net = GPT2(sizes)
    net.load_state_dict(_state(tensors, net, path), assign=True)
    return net.float().eval()


def _described(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}")
    except ValueError as e:
        raise BadInput(f"{folder / CONFIG} is not a JSON object ({_first_line(e)}); fetch it again") from None
    return found


def _state(tensors: dict[str, torch.Tensor], net: GPT2, path: Path) -> dict[str, torch.Tensor]:
    """The tensors under our names; the hub's GPT-2 files lack the `transformer.` prefix."""
    found = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    # Not parameters: the causal mask's buffers of old checkpoints, and the tied output layer.
    found = {
        name: t
        for name, t in found.items()
        if name != "lm_head.weight" and not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    wanted = net.state_dict()
    faults = [f"{path}: tensor '{name}' is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{path}: tensor '{name}' is not part of a GPT-2" for name in found.keys() - wanted.keys()]
    faults += [
        f"{path}: tensor '{name}' has shape {tuple(t.shape)}, expected {tuple(wanted[name].shape)}"
        for name, t in found.items()
        if name in wanted and t.shape != wanted[name].shape
    ]
    tied = found.get("wte.weight")
    head = tensors.get("lm_head.weight", tied)
    if tied is not None and head is not None and not torch.equal(head, tied):
        faults.append(f"{path}: 'lm_head.weight' is not the embedding, as it is in a GPT-2")
    if faults:
        raise BadInput(sorted(faults))
    # A copy: the tensors are a mapping of the file, which must not reach into the model when it changes.
    return {name: t.to(torch.float32, copy=True) for name, t in found.items()}


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer, without the truncation and padding that its file may ask for.

    Raises:
        BadInput: the file is corrupt, or has more entries than the model.
    """
    path = checkpoint.folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
        raise BadInput(f"{path} is not a readable tokenizer ({_first_line(e)}); fetch it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    entries = _described(checkpoint.folder).get("vocab_size", 0)
    if tokenizer.get_vocab_size() > entries:
        raise BadInput(
            f"{path} has {tokenizer.get_vocab_size()} entries, the model {entries}: it is another model's tokenizer"
        )
    return tokenizer


def save(net: GPT2, tokenizer: Tokenizer, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint that `transformers.GPT2LMHeadModel.from_pretrained` loads.

    Args:
        net: the model; deltas must have been merged, as the layout has no place for them.
        tokenizer: written beside it; its `<|endoftext|>` is the begin and end token.
        folder: made if need be.
        dtype: of the tensors on disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id("<|endoftext|>")
    described = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **asdict(net.sizes),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": True,
        "dtype": str(dtype).removeprefix("torch."),
    }
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / TOKENIZER))
    state = {hub_name(name): t.to(dtype) for name, t in net.state_dict().items()}
    save_tensors(folder / WEIGHTS, state, metadata={"format": "pt"})
