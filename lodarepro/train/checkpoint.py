"""The state of an interrupted training, from which it continues to the same bits, and the epochs that are kept.

Files beside each other, NAME being that of the checkpoint:

    NAME.safetensors            the last checkpoint
    NAME-before.safetensors     the one before it, to fall back on
    NAME-epoch-3.safetensors    what was trained after an epoch that is to be evaluated

Each holds a hash of its content. A file is written beside its place first, and an epoch's file before the checkpoint
that counts on it, so that a crash at any moment leaves a state to continue from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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

logger = logging.getLogger(__name__)


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

    def epoch_of(self, name: str) -> dict[str, Any]:
        """The entry of `epochs` that `last`, `best` or `epoch-N` means; of equal losses the first is best."""
        if name == "best":
            return min(self.epochs, key=lambda e: e["val_loss"])
        if name == "last" or self.epochs[-1]["epoch"] == 0:  # nothing trains: every epoch is the same
            return self.epochs[-1]
        return next(e for e in self.epochs if f"epoch-{e['epoch']}" == name)

    def needed(self, keep: Sequence[str]) -> set[int]:
        """The epochs so far whose files the checkpoints to `keep` will be made from; the last has the model itself."""
        done = {e["epoch"] for e in self.epochs}
        best = {self.epoch_of("best")["epoch"]} if "best" in keep and done else set()
        return best | {number for number in done if f"epoch-{number}" in keep}


class Unusable(Exception):
    """A file is damaged or not there."""


class Checkpoints:
    """The files of one training."""

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        """Name them.

        Args:
            path: of the last checkpoint.
            keep: checkpoints that will be evaluated: `last`, `best`, `epoch-N`.
        """
        self.path, self.keep = path, keep
        self.before = path.with_name(f"{path.stem}-before{path.suffix}")
        self._needed: list[set[int]] = []  # epochs that the checkpoint and the one before it count on

    def of_epoch(self, number: int) -> Path:
        """The file of an epoch."""
        return self.path.with_name(f"{self.path.stem}-epoch-{number}{self.path.suffix}")

    def keep_epoch(self, model: GPT2, progress: Progress) -> None:
        """Write what is trained so far if the epoch that has just ended is one to keep."""
        number = progress.epochs[-1]["epoch"]
        if number in progress.needed(self.keep):
            _write(self.of_epoch(number), {f"param.{name}": p for name, p in trained(model).items()}, {"epoch": number})

    def save(self, model: GPT2, optimizer: Optimizer, progress: Progress, generators: Sequence[Tensor]) -> None:
        """Write parameters, optimizer, generators and progress; the last checkpoint becomes the one before.

        Args:
            model: with its method attached.
            optimizer: of its trained parameters.
            progress: how far it is.
            generators: states of the dropout's generators, one for each process.
        """
        tensors: dict[str, Tensor] = {f"param.{name}": p for name, p in trained(model).items()}
        for name, p in trained(model).items():
            tensors |= {f"optim.{key}.{name}": torch.as_tensor(t) for key, t in optimizer.state[p].items()}
        tensors |= {f"generator.{rank}": state for rank, state in enumerate(generators)}
        tensors["losses"] = progress.losses
        described = {key: value for key, value in asdict(progress).items() if key != "losses"}
        device = model.wte.weight.device.type
        new = self.path.with_name(f"{self.path.stem}-new{self.path.suffix}")
        _write(new, tensors, {**described, "device": device, "processes": len(generators)})
        if self.path.exists():
            self.path.replace(self.before)
        new.replace(self.path)
        self._needed = [*self._needed[-1:], progress.needed(self.keep)]
        for path in self._epochs():
            if path not in {self.of_epoch(number) for needed in self._needed for number in needed}:
                path.unlink()

    def load(self, model: GPT2, optimizer: Optimizer, *, rank: int = 0, processes: int = 1) -> Progress | None:
        """Restore what `save` wrote last; a damaged file falls back to the one before, with a warning.

        Returns:
            None where there is nothing to continue from: no checkpoint, or, with a warning, none that can be used.

        Raises:
            BadInput: it is that of another model or method, of another kind of device, whose random numbers can't be
                continued, or of another number of processes.
        """
        found = [path for path in (self.path, self.before) if path.exists()]
        for path in found:
            try:
                tensors, described = _read(path)
                progress = _progress(tensors, described)
                for number in progress.needed(self.keep):
                    _read(self.of_epoch(number))
            except Unusable as e:
                logger.warning("%s; falling back to the checkpoint before it", e)
                continue
            _check_fits(path, model, tensors, described, processes)
            _restore(model, optimizer, tensors, rank=rank)
            self._needed = [progress.needed(self.keep)]
            if path != self.path and rank == 0:
                self.path.unlink(missing_ok=True)  # or the next one would take the good one's place by the damaged
            return progress
        if found:
            logger.warning("no checkpoint can be used: training starts over")
        return None

    def restore_epoch(self, model: GPT2, number: int) -> None:
        """Give the trained parameters the values that they had after an epoch that is kept.

        Raises:
            BadInput: its file is damaged.
        """
        try:
            tensors, _ = _read(self.of_epoch(number))
        except Unusable as e:
            raise BadInput(f"{e}; delete {self.path.parent} to train again") from None
        with torch.no_grad():
            for name, p in trained(model).items():
                p.copy_(tensors[f"param.{name}"])

    def remove(self) -> None:
        """Delete all of them."""
        for path in (self.path, self.before, *self._epochs()):
            path.unlink(missing_ok=True)

    def _epochs(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}-epoch-*{self.path.suffix}"))


def generator_state(device: torch.device) -> Tensor:
    """The state of the generator that dropout draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _write(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(described)
    save_tensors(path, content, metadata={"described": text, "sha256": _digest(content, text)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of a file whose content has the hash that it says."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if _digest(tensors, metadata["described"]) != metadata["sha256"]:
            raise ValueError("its content does not have the hash that it names")
        return tensors, json.loads(metadata["described"])
    except (SafetensorError, OSError, KeyError, ValueError) as e:
        raise Unusable(f"checkpoint {path} can't be used ({e})") from None


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {list(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def _progress(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Progress:
    known = {key: described[key] for key in ("step", "epochs", "seconds", "stretches")}
    return Progress(losses=tensors["losses"].clone(), **known)  # not mapped from a file that will be replaced


def _check_fits(
    path: Path, model: GPT2, tensors: Mapping[str, Tensor], described: Mapping[str, Any], processes: int
) -> None:
    delete = f"delete {path.parent} to train from the start"
    held = {name: t.shape for name, t in tensors.items() if name.startswith("param.")}
    if held != {f"param.{name}": p.shape for name, p in trained(model).items()}:
        raise BadInput(f"checkpoint {path} is that of another model or method; {delete}")
    device = model.wte.weight.device.type
    if described["device"] != device:
        raise BadInput(
            f"checkpoint {path} was written on {described['device']}, whose random numbers are not those of {device}; "
            f"continue with runtime.device={described['device']}, or {delete}"
        )
    if described["processes"] != processes:
        raise BadInput(
            f"checkpoint {path} was written by {described['processes']} processes, each with random numbers of its "
            f"own, not by {processes}; continue with torchrun --nproc-per-node {described['processes']}, or {delete}"
        )


def _restore(model: GPT2, optimizer: Optimizer, tensors: Mapping[str, Tensor], *, rank: int) -> None:
    states: dict[str, dict[str, Tensor]] = {}
    for key, t in tensors.items():
        if key.startswith("optim."):
            _, entry, name = key.split(".", 2)
            states.setdefault(name, {})[entry] = t
    with torch.no_grad():
        for name, p in trained(model).items():
            p.copy_(tensors[f"param.{name}"])
            # The original rule counts its updates in integers.
            optimizer.state[p] = {
                entry: t.to(p.device) if t.is_floating_point() else int(t) for entry, t in states.get(name, {}).items()
            }
    device = model.wte.weight.device
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"generator.{rank}"], device)
    else:
        torch.set_rng_state(tensors[f"generator.{rank}"])
