"""The methods: one family a file; the registry is the only place that names them all."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer

from lodarepro.data.tokenise import Layout
from lodarepro.methods import lora, tuning
from lodarepro.methods.base import Method, load_adapter, one_group, save_adapter, trained
from lodarepro.model import GPT2

REGISTRY: dict[str, Method] = {
    "ft": tuning.FT,
    "lora": lora.LORA,
}
"""name in `configs/method/` to the method's code; `config.METHODS` has the same names"""


def attach(model: GPT2, config: Any, generator: torch.Generator) -> None:
    """Freeze the model and attach the method that `config.name` names.

    Args:
        model: edited in place; afterwards the parameters with `requires_grad` are what trains.
        config: the method's dataclass.
        generator: CPU generator for new parameters.
    """
    model.requires_grad_(False)
    REGISTRY[config.name].attach(model, config, generator)


def layout(config: Any, tokenizer: Tokenizer) -> Layout | None:
    """What the method does to the ids of every context, or None."""
    make = REGISTRY[config.name].layout
    return None if make is None else make(config, tokenizer)


def param_groups(model: GPT2, config: Any) -> list[dict[str, Any]]:
    """The optimizer groups of a model to which the method is attached: `params` and `lr_scale`."""
    make = REGISTRY[config.name].param_groups
    return one_group(model) if make is None else make(model, config)


def finalize(model: GPT2, config: Any) -> None:
    """Make a trained model what is kept of it: decoded, saved, and loaded into."""
    if (edit := REGISTRY[config.name].finalize) is not None:
        edit(model, config)


__all__ = [
    "REGISTRY",
    "Method",
    "attach",
    "finalize",
    "layout",
    "load_adapter",
    "one_group",
    "param_groups",
    "save_adapter",
    "trained",
]
