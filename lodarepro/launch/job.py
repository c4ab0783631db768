"""One cell as Hydra's launchers call it, in this process or in a worker."""

from __future__ import annotations

import logging
import os
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
    log_to_stderr() if here else log_to_file(folder / LOG)
    number = int(described.job.num) if sweep else 0
    status = Status(tuple(described.overrides.task), "running", number, started=time.time())
    if sweep:
        write_status(folder, status)
    status = _ended(composed, status, retry=not sweep)
    if sweep:
        write_status(folder, status)
    ended_here.append(status)
    if status.state == "stopped" and here:
        raise SystemExit(status.exit_code)


def started_here() -> None:
    """Say that what follows is started by this process; workers inherit it and know that they are others."""
    os.environ[STARTED_BY] = str(os.getpid())
    ended_here.clear()


def _ended(composed: Any, status: Status, *, retry: bool) -> Status:
    from lodarepro import compose, pipeline  # torch takes seconds, which --cfg and --help need not pay

    def now(**changes: Any) -> Status:
        return replace(status, seconds=round(time.time() - status.started, 1), **changes)

    try:
        run = compose.to_run(composed)
        outcome = pipeline.execute(run, retry=retry or run.runtime.retry)
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
