"""How far a sweep is: a live table on a terminal, a line for each change in a log."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lodarepro.launch.status import State, Status, own_texts, read_statuses
from lodarepro.log import log_to_stderr
from lodarepro.report.summary import duration

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
ROWS = 12  # cells that the live table shows: those at work, then those that ended last
STATE_WIDTH = 48  # columns for a state with its fault, which is told whole at the end
SIGNS: dict[State, str] = {
    "finished": "done",
    "running": "at work",
    "failed": "failed",
    "stopped": "stopped",
    "busy": "elsewhere",
}
STYLES = {"finished": "green", "running": "bold", "failed": "red", "stopped": "yellow", "busy": "dim"}


@contextmanager
def shown(total: int | None, folder: Callable[[], Path | None]) -> Iterator[None]:
    """Show how far a sweep is until the block ends.

    Args:
        total: cells; None: not known before.
        folder: of the sweep, once it is known.
    """
    console = Console(stderr=True)
    ended = threading.Event()

    def statuses() -> list[Status]:
        where = folder()
        return [] if where is None else read_statuses(where)

    def watch(show: Callable[[list[Status]], None]) -> None:
        while not ended.wait(LOOK_SECONDS):
            show(statuses())

    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, redirect_stdout=False) as live:
            with _beside(lambda: watch(lambda found: live.update(live_table(found, total, now=time.time()))), ended):
                yield
            live.update(live_table(statuses(), total, now=time.time()))
        log_to_stderr()  # the jobs' log went through the live table
        return
    last: list[str] = []

    def note(found: list[Status]) -> None:
        text = counted(found, total)
        if found and [text] != last:
            last[:] = [text]
            logger.info("%s%s", text, left(found, total, now=time.time()))

    with _beside(lambda: watch(note), ended):
        yield
    note(statuses())


@contextmanager
def _beside(work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def counted(found: Sequence[Status], total: int | None) -> str:
    """One line: how many cells are in which state."""
    states: Counter[State] = Counter(status.state for status in found)
    before = sum(status.found for status in found)
    parts = [f"cells: {states['finished']} of {len(found) if total is None else total} done"]
    parts[0] += f" ({before} before)" if before else ""
    parts += [f"{states[state]} {SIGNS[state]}" for state in SIGNS if state != "finished" and states[state]]
    return ", ".join(parts)


def left(found: Sequence[Status], total: int | None, *, now: float) -> str:
    """How long the rest takes if its cells take as long as those that were done; empty: nothing to go by."""
    took = [s.seconds for s in found if s.state in ("finished", "failed") and not s.found and s.seconds]
    running = [s for s in found if s.state == "running"]
    if not took or total is None or not running:
        return ""
    usual = statistics.fmean(took)
    waiting = max(0, total - len(found))
    seconds = waiting * usual / len(running) + max(max(0.0, usual - (now - s.started)) for s in running)
    return f"; about {duration(seconds)} left"


def live_table(found: Sequence[Status], total: int | None, *, now: float) -> Group:
    """The cells at work, the youngest first, then those that ended last, below a line for all."""
    table = Table(box=None, expand=True)
    table.add_column("cell", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("state", overflow="ellipsis", no_wrap=True, max_width=STATE_WIDTH)
    table.add_column("time", justify="right", no_wrap=True)
    rows = list(zip(found, own_texts(found), strict=True))
    rows.sort(key=lambda row: (row[0].state != "running", -row[0].started - row[0].seconds))
    for status, cell in rows[:ROWS]:
        seconds = now - status.started if status.state == "running" else status.seconds
        why = f": {status.faults[0]}" if status.state == "failed" and status.faults else ""
        table.add_row(
            Text(cell or " ".join(status.overrides)),
            Text(SIGNS[status.state] + why, style=STYLES[status.state]),
            duration(seconds),
        )
    return Group(Text(counted(found, total) + left(found, total, now=now)), table)
