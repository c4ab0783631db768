"""A progress bar on a terminal; elsewhere a log says how far things are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lodarepro.log import log_to_stderr

Tick = Callable[[int, str], None]
"""told how much is done and what else to show"""


@contextmanager
def bar(what: str, total: int, *, done: int = 0, shown: bool) -> Iterator[Tick | None]:
    """Show a bar until the block ends.

    Args:
        what: stands before it.
        total: what it counts to.
        done: where it starts.
        shown: False: no bar, as where others use the terminal.

    Returns:
        What moves the bar; None where there is none.
    """
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield None
        return
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    try:
        with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
            log_to_stderr()  # which goes above the bar while it is there
            task = progress.add_task(what, total=total, completed=done, note="")
            yield lambda done, note: progress.update(task, completed=done, note=note)
    finally:
        log_to_stderr()


@contextmanager
def counter(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar that counts calls of what it gives."""
    with bar(what, total, shown=True) as tick:
        count = 0

        def done() -> None:
            nonlocal count
            count += 1
            if tick is not None:
                tick(count, "")

        yield done
