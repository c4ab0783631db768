"""What a method is, and the files that hold what it trained.

A method edits the model: `attach` inserts modules at the model's sites and says what trains, which
is every parameter with `requires_grad` afterwards. The loop, the optimizer, the checkpoints and the
counts look at nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from lodarepro.data.tokenise import Layout
from lodarepro.errors import BadInput
from lodarepro.model import GPT2
from lodarepro.model.weights import save_tensors
from lodarepro.provenance import canonical_json

FORMAT = "lodarepro-adapter-1"


@dataclass(frozen=True)
class Method:
    """The code of one method.

    Attributes:
        attach: edits the frozen model: (model, config, generator) -> None. New parameters are drawn
            from the CPU generator, on whichever device the model is.
        layout: (config, tokenizer) -> what is done to the ids of every context, its separator
            included, in training and decoding; None: nothing.
        param_groups: (model, config) -> optimizer groups with `params` and `lr_scale`, a factor on the
            schedule's rate, which together hold each trained parameter once; None: one group at 1.
        finalize: (model, config) -> None: edits the model after training where what is kept differs
            from what was trained; None: it is the same.
    """

    attach: Callable[[GPT2, Any, torch.Generator], None]
    layout: Callable[[Any, Tokenizer], Layout] | None = None
    param_groups: Callable[[GPT2, Any], list[dict[str, Any]]] | None = None
    finalize: Callable[[GPT2, Any], None] | None = None


def trained(model: GPT2) -> dict[str, Tensor]:
    """Name to parameter of all that trains; the tied embedding once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def one_group(model: GPT2) -> list[dict[str, Any]]:
    """All that trains as one optimizer group at the schedule's rate."""
    return [{"params": list(trained(model).values()), "lr_scale": 1.0}]


def save_adapter(model: GPT2, path: Path, *, method: Any, base: str, base_sha256: str) -> None:
    """Write what was trained, with the method's config and the base model it belongs to.

    Without the base such a file says nothing: the LoRA authors' decoder ran adapters on a random
    model (people reported BLEU 0.0000), so the base's name and hash are part of the file.

    Args:
        model: after `attach`.
        path: a safetensors file, replaced atomically.
        method: the method's config, a dataclass.
        base: name of the base model.
        base_sha256: SHA-256 of its weights file.
    """
    # One entry: the library writes several in a random order, and equal adapters should be equal files.
    described = {"method": asdict(method), "base": base, "base_sha256": base_sha256}
    save_tensors(path, trained(model), metadata={FORMAT: json.dumps(described, sort_keys=True)})


def load_adapter(model: GPT2, path: Path, *, method: Any, base: str, base_sha256: str) -> None:
    """Load what `save_adapter` wrote into a model to which the same method is attached.

    Raises:
        BadInput: not such a file, or it belongs to another base model or another method.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as e:
        raise BadInput(f"adapter {path} can't be read ({e}); train it again") from None
    if not metadata.get("base") or not metadata.get("base_sha256"):
        raise BadInput(
            f"adapter {path} does not name its base model and that model's weight hash, so it can't be "
            "used: on another base it would decode noise; train it again with lodarepro"
        )
    if (metadata["base"], metadata["base_sha256"]) != (base, base_sha256):
        raise BadInput(
            f"adapter {path} was trained on {metadata['base']} (weights sha256 {metadata['base_sha256'][:12]}), "
            f"but the model given is {base} (sha256 {base_sha256[:12]}); give that base model (model=, model.path=)"
        )
    wanted_method = json.loads(json.dumps(asdict(method)))
    if metadata.get("method") != wanted_method:
        raise BadInput(
            f"adapter {path} holds {canonical_json(metadata.get('method'))}, but the run's method is "
            f"{canonical_json(wanted_method)}; give the adapter's own method and options"
        )
    ours = trained(model)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    wanted = {name: tuple(p.shape) for name, p in ours.items()}
    if shapes != wanted:
        odd = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise BadInput(
            f"adapter {path} does not fit: {odd[0]} has shape {shapes.get(odd[0])}, expected {wanted.get(odd[0])} "
            f"({len(odd)} such tensors); train it again"
        )
    with torch.no_grad():
        for name, p in ours.items():
            p.copy_(tensors[name])
