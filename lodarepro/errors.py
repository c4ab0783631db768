"""What can go wrong, as the user sees it: one line a fault and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class LodareproError(Exception):
    """An error with a message for the user; the command line prints it without a traceback.

    Attributes:
        faults: one line each: what is wrong, where, and how to fix it.
        exit_code: the status of the process (1 a run failed, 2 bad input).
    """

    exit_code = 1

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class RunFailed(LodareproError):
    """A run or cell could not be completed although its input was good (exit code 1)."""

    exit_code = 1


class Busy(RunFailed):
    """Another process is at work on the run; a sweep turns to its other cells first.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"another process is at work on {folder}; try again when it has ended")
        self.folder = folder


class BadInput(LodareproError):
    """Something the user gave, or the machine lacks, has to change first (exit code 2)."""

    exit_code = 2


class Stopped(LodareproError):
    """The run was told to stop and can be resumed (exit code 128 + signal number)."""

    def __init__(self, faults: str, signal_number: int) -> None:
        super().__init__(faults)
        self.exit_code = 128 + signal_number


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error line: the nearest valid name, if one is near, and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    listed = ", ".join(names) if names else "none"
    return f"{hint} (valid: {listed})"
