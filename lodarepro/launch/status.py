"""What a job of a sweep leaves in its folder when it starts and when it ends.

The process that started the sweep reads nothing else, so that Hydra's own launcher, joblib's and SLURM's look alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from lodarepro.files import write_atomically

FILE = "status.json"

State = Literal["running", "finished", "failed", "stopped", "busy"]


@dataclass(frozen=True)
class Status:
    """How far a cell is.

    Attributes:
        overrides: of the cell, as on the command line.
        state: `busy`: another process holds the run.
        number: of the job; a cell that is handed over again has a new one.
        faults: one line each.
        exit_code: as that of a command of this one cell.
        folder: of the run, where it is known.
        started: seconds since the epoch.
        seconds: that the job took.
        found: the run was finished before.
    """

    overrides: tuple[str, ...]
    state: State
    number: int
    faults: tuple[str, ...] = ()
    exit_code: int = 0
    folder: str | None = None
    started: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    found: bool = False


def write_status(folder: Path, status: Status) -> None:
    """Leave a job's status in its folder of the sweep."""
    write_atomically(folder / FILE, json.dumps(asdict(status), indent=1).encode())


def read_statuses(sweep: Path) -> list[Status]:
    """The last status of each cell that has started, in the order of the cells; a damaged file counts as none."""
    found = []
    for path in sweep.rglob(FILE):
        with suppress(OSError, ValueError, KeyError, TypeError):
            tree = json.loads(path.read_text(encoding="utf-8"))
            found.append(Status(**{**tree, "overrides": tuple(tree["overrides"]), "faults": tuple(tree["faults"])}))
    found.sort(key=lambda status: status.number)
    return list({status.overrides: status for status in found}.values())


def clear_statuses(sweep: Path) -> None:
    """Remove what an older sweep left in this folder."""
    for stale in sweep.rglob(FILE):
        stale.unlink()


def own_texts(statuses: Sequence[Status]) -> list[str]:
    """What tells each cell from the others: its overrides but for those that all have; of one cell all."""
    common = set.intersection(*(set(s.overrides) for s in statuses)) if len(statuses) > 1 else set()
    return [" ".join(text for text in s.overrides if text not in common) for s in statuses]
