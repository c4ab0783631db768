"""The state of an interrupted training, from which it continues to the same bits."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from lodarepro.errors import BadInput
from lodarepro.methods import trained
from lodarepro.model import GPT2
from lodarepro.model.weights import save_tensors


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: steps done.
        losses: (steps of the whole training,) loss of each step before its update; 0 where not done.
        epochs: one entry a finished epoch: `epoch`, `step`, `val_loss`.
        seconds: time spent so far, interruptions left out.
        stretches: one entry for each time that the training was started or continued: `from_step`,
            and what the caller knows of it (code, device).
    """

    step: int
    losses: Tensor
    epochs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    stretches: list[dict[str, Any]] = field(default_factory=list)


def save(path: Path, model: GPT2, optimizer: Optimizer, progress: Progress) -> None:
    """Write parameters, optimizer and generator states and progress; replaces `path` atomically."""
    tensors: dict[str, Tensor] = {f"param.{name}": p for name, p in trained(model).items()}
    for name, p in trained(model).items():
        tensors |= {f"optim.{key}.{name}": torch.as_tensor(t) for key, t in optimizer.state[p].items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if model.wte.weight.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    tensors["losses"] = progress.losses
    described = {
        "step": progress.step,
        "epochs": progress.epochs,
        "seconds": progress.seconds,
        "stretches": progress.stretches,
    }
    metadata = {"progress": json.dumps({**described, "device": model.wte.weight.device.type})}
    save_tensors(path, tensors, metadata=metadata)


def load(path: Path, model: GPT2, optimizer: Optimizer) -> Progress | None:
    """Restore what `save` wrote; None where there is no checkpoint.

    Raises:
        BadInput: the file is corrupt, of another model or method, or was written on another kind of
            device, whose random numbers can't be continued.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
        raise BadInput(f"checkpoint {path} can't be read ({e}); delete it to train from the start") from None
    held = {name: t.shape for name, t in tensors.items() if name.startswith("param.")}
    if held != {f"param.{name}": p.shape for name, p in trained(model).items()}:
        raise BadInput(f"checkpoint {path} is that of another model or method; delete it to train from the start")
    device = model.wte.weight.device.type
    if described["device"] != device:
        raise BadInput(
            f"checkpoint {path} was written on {described['device']}, whose random numbers are not those of {device}; "
            f"continue with runtime.device={described['device']}, or delete it to train from the start"
        )
    states: dict[str, dict[str, Tensor]] = {}
    for key, t in tensors.items():
        if key.startswith("optim."):
            _, entry, name = key.split(".", 2)
            states.setdefault(name, {})[entry] = t
    with torch.no_grad():
        for name, p in trained(model).items():
            p.copy_(tensors[f"param.{name}"])
            # Step counts are scalars and stay on the CPU, as optimizers keep them.
            state = states.get(name, {})
            optimizer.state[p] = {entry: t if t.dim() == 0 else t.to(p.device) for entry, t in state.items()}
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return Progress(
        described["step"],
        tensors["losses"],
        epochs=described["epochs"],
        seconds=described["seconds"],
        stretches=described["stretches"],
    )
