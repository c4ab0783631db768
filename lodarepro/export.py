"""Finished runs in the formats of other tools: adapters of `peft`, checkpoints of `transformers`.

Both are written for Hugging Face's `GPT2LMHeadModel` and give its logits those of the run. What a run's method can
be written as follows from what it put at the model's sites.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lodarepro import config
from lodarepro.errors import BadInput
from lodarepro.methods import merge, mergeable, trained
from lodarepro.methods.lora import DoraDelta, LoraDelta
from lodarepro.model import GPT2, weights
from lodarepro.model.gpt2 import Dense
from lodarepro.reopen import reopen

logger = logging.getLogger(__name__)

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = (
    weights.TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def export(folder: Path, form: str, place: Path, overrides: Sequence[str] = (), *, checkpoint: str = "last") -> None:
    """Write what a finished run trained in another tool's format.

    Args:
        folder: of the run.
        form: a key of `FORMS`.
        place: a folder that is not there yet, or empty; after a failure it is as it was.
        overrides: `model.path=FOLDER` where this machine has the base model elsewhere.
        checkpoint: `last`, `best` or `epoch-N`.

    Raises:
        BadInput: no finished run there, or it did not keep that checkpoint, the base model is not the run's own, its
            method has no such form, or `place` can't be written.
    """
    if odd := [text for text in overrides if not text.startswith("model.path=")]:
        raise BadInput(f"{odd[0]}: an export has no such setting; give model.path=FOLDER, or nothing")
    try:
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise BadInput(f"{place} is there and is no empty folder; give another, or delete it first")
        opened = reopen(folder, overrides, checkpoint=checkpoint)
        model = opened.model()
        with _appearing(place) as unfinished:
            try:
                FORMS[form](model, opened.run.model, opened.base, unfinished)
            except BadInput as e:
                raise BadInput(f"{opened.record.id} has no form for --to {form}: {e}") from None
    except OSError as e:
        raise BadInput(f"{e.filename or place}: can't be used ({e.strerror or e}); give another folder") from None
    logger.info("wrote %s; to load it: %s", place, _to_load(form, place, opened.run.model, opened.base))


@contextmanager
def _appearing(place: Path) -> Iterator[Path]:
    """A folder to fill that takes its place when all is in it."""
    place = place.resolve()  # which has a name, as `.` has not
    unfinished = place.with_name(place.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _to_load(form: str, place: Path, described: config.Model, base: weights.Checkpoint) -> str:
    if form == "hf":
        return f"GPT2LMHeadModel.from_pretrained('{place}')"
    plain = f"'{base.folder}'" if base.origin != "hub" else f"'{described.hub}', revision='{described.revision}'"
    # The embedded model is fp16 on disk, which transformers would keep.
    return f"peft.PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained({plain}, dtype='float32'), '{place}')"


def _write_hf(model: GPT2, described: config.Model, base: weights.Checkpoint, folder: Path) -> None:
    """A merged checkpoint in fp32, with the base's tokenizer files."""
    del described
    if not trained(model):
        raise BadInput("it trains nothing, so the base model's own files are that checkpoint")
    merge(model)
    weights.save(model, Tokenizer.from_file(str(base.folder / weights.TOKENIZER)), folder)
    for name in TOKENIZER_FILES:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)


def _write_peft(model: GPT2, described: config.Model, base: weights.Checkpoint, folder: Path) -> None:
    """An adapter of peft's: `adapter_config.json` and `adapter_model.safetensors`."""
    has_prefix = any(block.attn.prefix is not None for block in model.h)  # type: ignore[union-attr]
    site = ".attn.prefix." if has_prefix else ".deltas."
    others = [name for name in trained(model) if site not in name]
    if others:
        instead = "; give --to hf" if mergeable(model) is None else ""
        raise BadInput(f"peft's formats have no place for what it trains ({others[0]}){instead}")
    if not trained(model):
        raise BadInput("it trains nothing")
    own, tensors = _prefix(model) if has_prefix else _low_rank(model)
    hub = {"base_model_name_or_path": described.hub, "revision": described.revision} if base.origin == "hub" else {}
    tree = {"task_type": "CAUSAL_LM", "inference_mode": True, **hub, **own}
    (folder / PEFT_CONFIG).write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights.save_tensors(folder / PEFT_WEIGHTS, tensors, metadata={"format": "pt"})


@torch.no_grad()
def _low_rank(model: GPT2) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Low-rank deltas as peft's LoRA: one adapter for a dense layer, however many of its slices have a delta.

    The slices' A stand side by side, (d_in, R) with R the sum of their ranks, and B (R, d_out) is 0 but in each
    slice's own rows and columns. peft scales a layer by alpha / R: alpha is the slices' scale times R, and where
    the scales of a layer differ, the largest is taken and the others' remainder goes into B.

    DoRA's magnitudes cover a layer's columns. A column without one gets the norm of W + s A B, which leaves it as
    it is.
    """
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    adapted = [(name, dense) for name, dense in model.named_modules() if isinstance(dense, Dense) and dense.deltas]
    dora = any(isinstance(delta, DoraDelta) for _, dense in adapted for delta in dense.deltas.values())
    for name, dense in adapted:
        if dense.base is not None:
            raise BadInput("its q/k/v projection is not the plain model's, beside which peft would put the adapter")
        deltas = [(dense.slices[target], _checked(delta)) for target, delta in dense.deltas.items()]
        A = torch.cat([delta.A for _, delta in deltas], dim=1)  # (d_in, R)
        B = A.new_zeros(A.shape[1], dense.d_out)
        scale = max(delta.scale for _, delta in deltas)
        row = 0
        for columns, delta in deltas:
            rank = delta.B.shape[0]
            B[row : row + rank, columns] = delta.B * (delta.scale / scale)
            row += rank
        _, _, module = name.split(".", 2)  # attn.c_attn of h.0.attn.c_attn
        ranks[module], alphas[module] = A.shape[1], scale * A.shape[1]
        key = f"base_model.model.{weights.hub_name(name)}"
        tensors |= {f"{key}.lora_A.weight": A.t(), f"{key}.lora_B.weight": B.t()}
        if dora:
            magnitude = torch.linalg.vector_norm(dense.weight + scale * (A @ B), dim=0)  # (d_out,)
            for columns, delta in deltas:
                if isinstance(delta, DoraDelta):
                    magnitude[columns] = delta.magnitude
            tensors[f"{key}.lora_magnitude_vector"] = magnitude
    first = next(iter(ranks))
    described = {
        "peft_type": "LORA",
        "target_modules": sorted(ranks),
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "rank_pattern": {module: r for module, r in ranks.items() if r != ranks[first]},
        "alpha_pattern": {module: alpha for module, alpha in alphas.items() if alpha != alphas[first]},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,  # its Conv1D holds W as (in, out)
        "use_dora": dora,
        "use_rslora": False,  # alpha is in our scale already
    }
    return described, tensors


def _checked(delta: torch.nn.Module) -> LoraDelta:
    if not isinstance(delta, LoraDelta):
        why = getattr(delta, "unmergeable", f"a {type(delta).__name__} is something else")
        raise BadInput(f"peft's deltas are products of two matrices: {why}")
    return delta


@torch.no_grad()
def _prefix(model: GPT2) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keys and values before all others as peft's prefix tuning, without the MLP that they came from.

    One tensor (l, 2 L d): for each position the keys of block 1, its values, the keys of block 2, ... As after a
    cache, tokens have the positions from l on.
    """
    parts = [part for block in model.h for part in block.attn.prefix()]  # type: ignore[union-attr,operator]
    states = torch.stack([part.transpose(0, 1) for part in parts], dim=1)  # (l, 2 L, H, Dh)
    sizes, length = model.sizes, states.shape[0]
    described = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "num_layers": sizes.n_layer,
        "num_attention_heads": sizes.n_head,
        "token_dim": sizes.n_embd,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    return described, {"prompt_embeddings": states.reshape(length, -1)}


FORMS: dict[str, Callable[[GPT2, config.Model, weights.Checkpoint, Path], None]] = {
    "peft": _write_peft,
    "hf": _write_hf,
}
"""value of `--to` to what writes it: (model with the run's method, its description, its files, folder) -> None"""
