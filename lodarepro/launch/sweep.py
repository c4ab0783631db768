"""Cells handed to Hydra's launcher, and what other processes hold done after them."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from lodarepro import compose, records
from lodarepro.errors import BadInput
from lodarepro.launch.job import STOP, job
from lodarepro.launch.status import Status, clear_statuses, read_statuses

LOOK_SECONDS = 1.0  # between two looks at runs that other processes hold
JOBLIB, SUBMITIT = "hydra_plugins.hydra_joblib_launcher", "hydra_plugins.hydra_submitit_launcher"
PLUGINS = {
    "joblib": ("parallel", JOBLIB),
    "parallel": ("parallel", JOBLIB),
    "slurm": ("slurm", SUBMITIT),
    "submitit_slurm": ("slurm", SUBMITIT),
    "submitit_local": ("slurm", SUBMITIT),
}
"""launcher to this package's extra that brings it, and its module"""
JOBLIBS = {f"hydra/launcher={name}" for name, (_, module) in PLUGINS.items() if module == JOBLIB}

logger = logging.getLogger(__name__)


class SweepFolder(Callback):
    """Tells the process that started a sweep where it is, and clears what an older one left there.

    The folder is known only when Hydra has resolved `hydra.sweep.dir`.
    """

    latest: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before the first job."""
        folder = Path(config.hydra.sweep.dir)
        clear_statuses(folder)
        (folder / STOP).unlink(missing_ok=True)
        SweepFolder.latest = folder


def check_launcher(overrides: Iterable[str]) -> Literal["here", "elsewhere"] | None:
    """Where the launcher that the overrides name has cells done.

    Returns:
        `here` in workers on this machine, `elsewhere` on other machines; None: in this process, or by a launcher that
        is not known.

    Raises:
        BadInput: its package is not installed.
    """
    place: Literal["here", "elsewhere"] | None = None
    for text in overrides:
        key, _, name = text.partition("=")
        if key == "hydra/launcher" and name in PLUGINS:
            extra, module = PLUGINS[name]
            if not _installed(module):
                raise BadInput(f"{text}: its package is not installed; pip install 'lodarepro[{extra}]'")
            place = "elsewhere" if name in ("slurm", "submitit_slurm") else "here"
    return place


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class Sweep:
    """Cells that are handed to one launcher, in one folder.

    Attributes:
        folder: of the sweep.
    """

    def __init__(self, overrides: Sequence[str], *, folder: Path | None = None) -> None:
        """Choose the launcher and the folder.

        Args:
            overrides: `hydra.*`, and what else the sweep's folder follows from.
            folder: of a sweep to go on with, whose statuses are kept; None: a new one.

        Raises:
            BadInput: Hydra can't compose the launcher's configuration.
        """
        place = [] if folder is None else [f"hydra.sweep.dir={quoted(str(folder))}"]
        try:
            GlobalHydra.instance().clear()
            hydra = Hydra.create_main_hydra2(
                task_name=compose.PRIMARY,
                config_search_path=create_config_search_path(str(compose.config_folder())),
            )
            self._config = hydra.compose_config(
                config_name=compose.PRIMARY,
                overrides=[*overrides, *place, "hydra.mode=MULTIRUN"],
                run_mode=RunMode.MULTIRUN,
                with_log_configuration=False,
            )
            callbacks = Callbacks(self._config)
            self._context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
            self.folder = Path(self._config.hydra.sweep.dir)
            if folder is None:
                callbacks.on_multirun_start(config=self._config, config_name=compose.PRIMARY)
        except compose.UNFIT as e:
            raise compose.fault_of(e) from None
        self._next = 1 + max((status.number for status in read_statuses(self.folder)), default=-1)

    def launch(self, cells: Sequence[Sequence[str]]) -> None:
        """Do these cells, as many at a time as the launcher does; each leaves its status.

        Raises:
            BadInput: the launcher refuses its settings, or the folder can't be written.
        """
        with records.disk_faults(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self._config, self.folder / "multirun.yaml")
        try:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self._context, task_function=job, config=self._config
            )
            for returned in launcher.launch([list(cell) for cell in cells], initial_job_idx=self._next):
                _ = returned.return_value  # raises what kept a job from leaving its status
        except compose.UNFIT as e:
            raise compose.fault_of(e) from None
        finally:
            self._next += len(cells)


@contextmanager
def stopping_workers(overrides: Iterable[str], folder: Callable[[], Path | None]) -> Iterator[Callable[[], int]]:
    """Let SIGINT and SIGTERM end a sweep in workers of this machine in order, as they do one in this process.

    joblib would end its workers at once. Here the first signal leaves a mark in the sweep's folder, by which the cells
    at work save and stop and no other starts; the second ends all at once.

    Args:
        overrides: which name the launcher; with others nothing is done.
        folder: of the sweep, once it is known.

    Yields:
        A function that gives the exit status of a stop: 128 + the number of the signal, or 0.
    """
    asked: list[int] = []

    def mark(number: int, frame: FrameType | None) -> None:
        del frame
        where = folder()
        if asked or where is None:
            raise KeyboardInterrupt
        asked.append(number)
        (where / STOP).write_text(str(int(number)), encoding="ascii")
        logger.warning("stopping the workers after this step (again to stop at once)")

    if not JOBLIBS & set(overrides):
        yield lambda: 0
        return
    before = {number: signal.signal(number, mark) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: 128 + asked[0] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quoted(text: str) -> str:
    """A text as one value of an override, whatever is in it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def settle(folder: Path, launch: Callable[[list[tuple[str, ...]]], None]) -> None:
    """Do again what other processes held in a first pass over a sweep's cells, until nothing is held any more.

    A process that ends well leaves its record, which is found; one that dies frees its run, which continues here from
    its last checkpoint.

    Args:
        folder: of the sweep.
        launch: hands cells to the launcher.
    """
    while busy := [status for status in read_statuses(folder) if status.state == "busy"]:
        if (folder / STOP).exists():
            return
        free = [s.overrides for s in busy if s.folder is None or not records.held(Path(s.folder))]
        if free:
            launch(free)
        else:
            time.sleep(LOOK_SECONDS)


def concluded(folder: Path, cells: Iterable[Sequence[str]] = ()) -> list[Status]:
    """How the cells of a sweep ended, once its launcher has.

    Args:
        folder: of the sweep.
        cells: what was handed to the launcher, where it is known.

    Returns:
        Their last statuses. A worker that died without a word has failed; a cell without a status was not started.
    """
    died = "its worker ended without a word (killed, or out of memory?); the same command continues"
    found = [
        Status(s.overrides, "failed", s.number, (died,), exit_code=1, started=s.started) if s.state == "running" else s
        for s in read_statuses(folder)
    ]
    known = {status.overrides for status in found}
    fault = "was not started; the same command goes on"
    return found + [Status(tuple(c), "failed", -1, (fault,), exit_code=1) for c in cells if tuple(c) not in known]
