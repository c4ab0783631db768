"""Finished runs, loaded again: what they trained on the base model that they trained it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lodarepro import compose, config, records
from lodarepro.errors import BadInput, nearest
from lodarepro.methods import restored
from lodarepro.model import GPT2, weights


@dataclass(frozen=True)
class Reopened:
    """A finished run whose adapter and base model are on this machine.

    Attributes:
        record: what it left.
        run: its configuration, with this machine's places.
        base: the base model's files.
        adapter: the file of what was trained.
    """

    record: records.Record
    run: config.Run
    base: weights.Checkpoint
    adapter: Path

    def model(self) -> GPT2:
        """The base model with what was trained, in eval mode on the CPU.

        Raises:
            BadInput: the adapter or the base model is not readable, or not the run's own.
        """
        return restored(self.adapter, self.run, self.base).eval()


def reopen(folder: Path, overrides: Sequence[str] = (), *, checkpoint: str = "last") -> Reopened:
    """Find all that a finished run's model is made of.

    Args:
        folder: of the run.
        overrides: `model.path=FOLDER` where this machine has the base model elsewhere.
        checkpoint: `last`, `best` or `epoch-N`.

    Raises:
        BadInput: no finished run there, it did not keep that checkpoint, or the base model is not here.
    """
    record = records.finished(folder)
    run = compose.changed(compose.from_plain(record.config), overrides)
    if checkpoint not in record.checkpoints:
        raise BadInput(f"{record.id} has no checkpoint '{checkpoint}'{nearest(checkpoint, record.checkpoints)}")
    base = weights.find(run.model)
    assert base is not None  # with download, `find` raises rather than give None
    base.check_tokenizer(record.identity["checksums"]["tokenizer"], record.id)
    return Reopened(record, run, base, folder / record.checkpoints[checkpoint]["adapter"])
