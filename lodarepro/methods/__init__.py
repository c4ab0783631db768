"""The methods: one family a file; the registry is the only place that names them all."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer

from lodarepro.config import Run
from lodarepro.data.tokenise import Layout
from lodarepro.errors import BadInput
from lodarepro.methods import adapter, loda, lora, prefix, tuning
from lodarepro.methods.base import Method, load_adapter, merge, mergeable, one_group, save_adapter, trained
from lodarepro.model import GPT2, weights

REGISTRY: dict[str, Method] = {
    "ft": tuning.FT,
    "ft-top2": tuning.FT_TOP,
    "ft-qv": tuning.FT_QV,
    "bitfit": tuning.BITFIT,
    "one-shot": tuning.ONE_SHOT,
    "adapter-h": adapter.ADAPTER,
    "adapter-l": adapter.ADAPTER,
    "adapter-l-wide": adapter.ADAPTER,
    "adapter-p": adapter.ADAPTER,
    "adapter-drop": adapter.ADAPTER,
    "prefix-embed": prefix.PREFIX_EMBED,
    "prefix-layer": prefix.PREFIX_LAYER,
    "lora": lora.LORA,
    "r-lora": lora.LORA,
    "s-lora": lora.LORA,
    "loda": loda.LODA,
    "r-loda": loda.LODA,
    "s-loda": loda.LODA,
    "loda-plus": loda.LODA,
    "r-loda-plus": loda.LODA,
    "s-loda-plus": loda.LODA,
}
"""name in `configs/method/` to the method's code; `config.METHODS` has the same names"""


def _code(config: Any) -> Method:
    """The code of a config's method; of a user's own, what stands in the same file as its dataclass."""
    if config.name in REGISTRY:
        return REGISTRY[config.name]
    beside = sys.modules[type(config).__module__]
    functions = {f.name: getattr(beside, f.name, None) for f in fields(Method)}
    return Method(**{name: None if f is None else _guarded(f, beside) for name, f in functions.items()})  # type: ignore[arg-type]


def _guarded(function: Callable[..., Any], module: ModuleType) -> Callable[..., Any]:
    """A user's function whose faults are lines that name its file."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as e:
            lines = [
                frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == module.__file__
            ]
            said = str(e).partition("\n")[0]
            raise BadInput(
                f"method file {module.__file__}, line {lines[-1] if lines else '?'}: {function.__name__} failed "
                f"({type(e).__name__}: {said})"
            ) from e

    return call


def attach(model: GPT2, config: Any, generator: torch.Generator) -> None:
    """Freeze the model and attach the method that `config.name` names.

    Args:
        model: edited in place; afterwards the parameters with `requires_grad` are what trains.
        config: the method's dataclass.
        generator: CPU generator for new parameters.
    """
    model.requires_grad_(False)
    _code(config).attach(model, config, generator)


def layout(config: Any, tokenizer: Tokenizer) -> Layout | None:
    """What the method does to the ids of every context, or None."""
    make = _code(config).layout
    return None if make is None else make(config, tokenizer)


def param_groups(model: GPT2, config: Any) -> list[dict[str, Any]]:
    """The optimizer groups of a model to which the method is attached: `params` and `lr_scale`."""
    make = _code(config).param_groups
    return one_group(model) if make is None else make(model, config)


def finalize(model: GPT2, config: Any) -> None:
    """Make a trained model what is kept of it: decoded, saved, and loaded into."""
    if (edit := _code(config).finalize) is not None:
        edit(model, config)


def restored(adapter: Path, run: Run, base: weights.Checkpoint) -> GPT2:
    """The base model with what a finished run trained, on the CPU.

    Args:
        adapter: the run's file of it.
        run: the run's configuration.
        base: the base model's files on this machine.

    Raises:
        BadInput: the adapter is not readable, or not one of this method on this base.
    """
    model = weights.load(base, run.model)
    attach(model, run.method, torch.Generator())  # whatever it draws, the file replaces
    finalize(model, run.method)
    load_adapter(model, adapter, method=run.method, base=run.model.name, base_sha256=base.sha256)
    return model


__all__ = [
    "REGISTRY",
    "Method",
    "attach",
    "finalize",
    "layout",
    "load_adapter",
    "merge",
    "mergeable",
    "one_group",
    "param_groups",
    "restored",
    "save_adapter",
    "trained",
]
