"""One cell as Hydra's launchers call it, in this process or in a worker."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from lodarepro.errors import Busy, LodareproError, Stopped
from lodarepro.launch.status import Status, write_status
from lodarepro.log import log_to_file, log_to_stderr

logger = logging.getLogger(__name__)

STOP = "stop"
"""file in a sweep's folder that asks its workers to stop: the number of a signal"""
WATCH_SECONDS = 1.0  # between two looks whether the process that started a worker is still there
STARTED_BY = "LODAREPRO_STARTED_BY"
"""environment variable: the process that started the jobs"""
LOG = "log.txt"
"""a worker's log, in the job's folder: on the terminal, several would be mixed"""

ended_here: list[Status] = []
"""how the jobs of this process ended; those of workers are in the sweep's folder alone"""


def job(composed: Any) -> None:
    """Do one cell; how it ended is in `ended_here` and, of a sweep, in the job's folder. It never raises a fault.

    Raises:
        SystemExit: a signal asked to stop in the process that started the sweep, which then must not go on with its
            next cell.
    """
    described = HydraConfig.get()
    sweep = described.mode is RunMode.MULTIRUN
    folder = Path(described.runtime.output_dir)
    here = os.environ.get(STARTED_BY) == str(os.getpid())
    if here:
        log_to_stderr()
    else:
        log_to_file(folder / LOG)
        _watch_parent()
    number = int(described.job.num) if sweep else 0
    status = Status(tuple(described.overrides.task), "running", number, started=time.time())
    if sweep:
        write_status(folder, status)
    with _at_work:
        mark = Path(described.sweep.dir) / STOP if sweep and not here else None
        status = _ended(composed, status, alone=not sweep, stop_mark=mark)
        if sweep:
            write_status(folder, status)
    ended_here.append(status)
    # A time limit is that of one run, after which a sweep goes on.
    if status.state == "stopped" and here and status.exit_code != 128 + signal.SIGALRM:
        raise SystemExit(status.exit_code)


_at_work = threading.Lock()
_watching = threading.Event()


def _watch_parent() -> None:
    """Let a worker end when the process that started it has died: after its cell is saved, not with it."""
    parent = os.getppid()
    if _watching.is_set() or os.environ.get(STARTED_BY) != str(parent):  # SLURM's jobs have parents of their own
        return
    _watching.set()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)  # a cell at work stops in order; an idle worker ends
        with _at_work:
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def started_here() -> None:
    """Say that what follows is started by this process; workers inherit it and know that they are others."""
    os.environ[STARTED_BY] = str(os.getpid())
    ended_here.clear()


def _ended(composed: Any, status: Status, *, alone: bool, stop_mark: Path | None) -> Status:
    from lodarepro import compose, pipeline  # torch takes seconds, which --cfg and --help need not pay

    def now(**changes: Any) -> Status:
        return replace(status, seconds=round(time.time() - status.started, 1), **changes)

    try:
        if stop_mark is not None and stop_mark.exists():
            raise Stopped("not started: the sweep was told to stop", int(stop_mark.read_text(encoding="ascii")))
        run = compose.to_run(composed)
        outcome = pipeline.execute(run, retry=alone or run.runtime.retry, stop_mark=stop_mark, show_bar=alone)
    except Busy as e:
        return now(state="busy", faults=e.faults, exit_code=e.exit_code, folder=str(e.folder))
    except LodareproError as e:
        return now(state="stopped" if isinstance(e, Stopped) else "failed", faults=e.faults, exit_code=e.exit_code)
    except Exception as e:  # a bug of ours must not end a sweep
        logger.error("%s", traceback.format_exc())
        fault = f"{pipeline.unexpected(e)} (the traceback is above; please report it)"
        return now(state="failed", faults=(fault,), exit_code=1)
    if outcome.stopped is not None:
        return now(state="stopped", exit_code=outcome.stopped, folder=str(outcome.folder))
    return now(state="finished", folder=str(outcome.folder), found=outcome.found)
