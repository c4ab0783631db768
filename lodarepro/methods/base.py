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
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from lodarepro.data.tokenise import Layout
from lodarepro.errors import BadInput
from lodarepro.model import GPT2
from lodarepro.model.gpt2 import Block
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


def mergeable(model: GPT2) -> str | None:
    """Why what a method added can't be folded into the model's weights; None: it can, or it added nothing.

    A delta that can has a method `merged(weight) -> weight` for its slice (d_in, width); one that can't says why
    in an attribute `unmergeable`. What stands for a weight can if it has `merged() -> weight` (d_in, d_out).
    """
    blocks = cast(list[Block], list(model.h))
    if model.virtual is not None or any(block.attn.prefix is not None for block in blocks):
        return "its prefix stands beside the tokens, where there is no weight to merge it into"
    if any(site is not None for block in blocks for site in (block.after_attn, block.after_mlp, block.after_block)):
        return "its modules stand between the layers, where there is no weight to merge them into"
    for dense in model.denses():
        if dense.base is not None and not hasattr(dense.base, "merged"):
            return "what stands for the q/k/v weight is no dense weight, and merging would make it one again"
        for delta in dense.deltas.values():
            if not hasattr(delta, "merged"):
                return str(getattr(delta, "unmergeable", f"a {type(delta).__name__} does not say how"))
    return None


@torch.no_grad()
def merge(model: GPT2) -> None:
    """Fold every delta into the dense weight beside it; the model is then a plain GPT-2 of the same outputs.

    Raises:
        BadInput: something of the method is no part of a weight; the model is as it was.
    """
    if (reason := mergeable(model)) is not None:
        raise BadInput(f"the method can't be merged: {reason}")
    for dense in model.denses():
        if dense.base is not None:
            dense.weight = nn.Parameter(dense.base.merged())  # type: ignore[operator]
            dense.base = None
        for name, delta in dense.deltas.items():
            columns = dense.slices[name]
            dense.weight[:, columns] = delta.merged(dense.weight[:, columns])  # type: ignore[operator]
        dense.deltas.clear()
        dense.branch_dropout = None


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
