"""The methods: one family a file; the registry is the only place that names them all."""

from __future__ import annotations

from typing import Any

import torch

from lodarepro.methods import lora, tuning
from lodarepro.methods.base import Method, load_adapter, save_adapter, trained
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


__all__ = ["REGISTRY", "Method", "attach", "load_adapter", "save_adapter", "trained"]
