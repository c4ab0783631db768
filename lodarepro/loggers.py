"""The course of a run as it goes on: losses and validation losses as a CSV file, or at Weights & Biases.

Nothing here is needed for a result: records hold everything, and a logger that fails later on is left with a warning.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from lodarepro import config, records
from lodarepro.errors import BadInput, Stopped
from lodarepro.files import write_atomically
from lodarepro.network import unreachable
from lodarepro.records import Record

logger = logging.getLogger(__name__)

CSV = "log.csv"
COLUMNS = ("step", "epoch", "loss", "lr", "val_loss")
WANDB_ID = "wandb-id"
"""file in a run's folder with its id at Weights & Biases, by which it goes on there too"""
KEYS = {"loss": "train/loss", "lr": "train/lr", "val_loss": "val/loss"}
"""columns as Weights & Biases shows them"""
WAYS_OUT = "give logger.mode=offline (`wandb sync` sends it later) or logger=csv"
FINISH_SECONDS = 120  # for what is not sent yet at a run's end; `wandb sync` sends the rest
LONGEST = 200  # characters of what a server said

ValuesOf = Callable[[str], Mapping[str, Sequence[float]]]
"""from a file of a run's hypotheses to metric, to each segment's figure (`rescore.segment_values`)"""


class Log:
    """Where the course of a run goes; this one keeps nothing.

    Whatever fails in it is told once, and the run goes on without.

    Attributes:
        every: steps from one logged training loss to the next; None: none are wanted, or no longer.
    """

    name = "none"
    every: int | None = None

    def begin(self, step: int) -> None:
        """The training goes on after so many steps; what was logged of later ones is done again."""
        self._tried(lambda: self._begin(step))

    def row(self, values: Mapping[str, float]) -> None:
        """Figures after a step: `step`, and of `epoch`, `loss`, `lr`, `val_loss` what there is."""
        self._tried(lambda: self._row(values))

    def record(self, record: Record, values_of: ValuesOf) -> None:
        """The run is finished: its record, and what gives each segment's figures in a file of its hypotheses."""
        self._tried(lambda: self._record(record, values_of))

    def _begin(self, step: int) -> None: ...

    def _row(self, values: Mapping[str, float]) -> None: ...

    def _record(self, record: Record, values_of: ValuesOf) -> None: ...

    def _tried(self, work: Callable[[], Any]) -> None:
        if self.every is None:
            return
        try:
            work()
        except Exception as e:  # of another's code, or of a disk: neither is worth a run
            self.every = None
            logger.warning("logger=%s: %s; the run goes on without", self.name, _first_line(e))


NOTHING = Log()


def check(settings: config.Logger) -> None:
    """End at once, with one line, where a logger can't work.

    Raises:
        BadInput: the package is missing, the server gives no answer, or there is no key for it.
    """
    if settings.name != "wandb":
        return
    wandb = _wandb()
    if _mode(settings) != "online":
        return
    try:
        server = wandb.setup().settings.base_url
    except ValueError as e:  # pydantic's, of an environment variable or a file of settings
        raise BadInput(f"logger=wandb: its settings can't be read ({_first_line(e)}); check WANDB_*") from None
    if reason := unreachable(server):
        raise BadInput(f"logger=wandb: the server gives no answer ({reason}); {WAYS_OUT}")
    try:
        known = wandb.login(prompt=False, verify=False)
    except wandb.Error as e:
        raise BadInput(f"logger=wandb: {_first_line(e)}; run `wandb login`, or {WAYS_OUT}") from None
    if not known:
        raise BadInput(f"logger=wandb: no API key for {server}; run `wandb login`, set WANDB_API_KEY, or {WAYS_OUT}")


@contextmanager
def opened(settings: config.Logger, folder: Path, described: Mapping[str, Any]) -> Iterator[Log]:
    """The log of a run, closed at the end of the block with how it ended.

    Args:
        settings: which, and how.
        folder: of the run.
        described: its configuration, as its record will have it.

    Raises:
        BadInput: it can't be begun.
    """
    if settings.name == "csv":
        yield _Csv(folder / CSV, settings.every)
    elif settings.name == "wandb":
        with _WandbLog.opened(settings, folder, described) as log:
            yield log
    else:
        yield NOTHING


class _Csv(Log):
    """A line for each logged loss and each epoch; those of an interrupted run are the same bytes in the end."""

    name = "csv"

    def __init__(self, path: Path, every: int) -> None:
        self.every = every
        self._path = path

    def _begin(self, step: int) -> None:
        try:
            whole, _, _ = self._path.read_text(encoding="ascii").rpartition("\n")  # a torn line lacks its end
            rows = [row for row in csv.DictReader(whole.splitlines()) if None not in row.values()]
            kept = [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= step]
        except (OSError, ValueError, KeyError, csv.Error):  # not there, or damaged
            kept = []
        write_atomically(self._path, (",".join(COLUMNS) + "\n" + "".join(map(_csv_line, kept))).encode())

    def _row(self, values: Mapping[str, float]) -> None:
        with self._path.open("a", encoding="ascii") as file:
            file.write(_csv_line({key: f"{value:.9g}" for key, value in values.items()}))


def _csv_line(values: Mapping[str, str]) -> str:
    out = io.StringIO()
    csv.DictWriter(out, COLUMNS, lineterminator="\n").writerow({key: values.get(key, "") for key in COLUMNS})
    return out.getvalue()


# Weights & Biases -------------------------------------------------------------------------------


class _WandbLog(Log):
    """A run at Weights & Biases: configuration, curves over our own steps, scores, tables of hypotheses."""

    name = "wandb"

    def __init__(self, wandb: Any, run: Any, folder: Path, every: int) -> None:
        self.every = every
        self._wandb, self._run, self._folder = wandb, run, folder

    def _begin(self, step: int) -> None:
        # A resumed run logs some steps again, which only axes of our own allow.
        self._run.define_metric("step", hidden=True)
        for key in KEYS.values():
            self._run.define_metric(key, step_metric="step")

    @classmethod
    @contextmanager
    def opened(cls, settings: config.Logger, folder: Path, described: Mapping[str, Any]) -> Iterator[_WandbLog]:
        wandb = _wandb()
        hooks = sys.excepthook, sys.exit
        try:
            begun = wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group or folder.name.rpartition("_s")[0],
                tags=list(settings.tags),
                name=folder.name,
                id=_kept_id(folder),
                resume="allow",
                reinit="finish_previous",
                mode=_mode(settings),
                dir=folder,
                config=dict(described),
                settings=wandb.Settings(silent=True, console="off", disable_git=True),  # the record has the commit
            )
        except Exception as e:  # its own errors, pydantic's of its settings, those of a service that doesn't start
            raise BadInput(f"logger=wandb: the run can't be begun there ({_first_line(e)}); {WAYS_OUT}") from None
        finally:
            sys.excepthook, sys.exit = hooks  # wandb puts its own there, and leaves them
        if _mode(settings) != "disabled":
            logger.info("Weights & Biases: %s", begun.url or f"offline in {begun.dir}; `wandb sync` sends it")
        log = cls(wandb, begun, folder, settings.every)
        try:
            yield log
        except BaseException as e:
            log._end(e)
            raise
        log._end(None)

    def _row(self, values: Mapping[str, float]) -> None:
        self._run.log({KEYS.get(key, key): value for key, value in values.items()})

    def _record(self, record: Record, values_of: ValuesOf) -> None:
        self._run.config.update({"provenance": record.provenance, "parameters": record.parameters})
        summary: dict[str, float] = {}
        for evaluation in record.evaluations:
            subset = "" if evaluation.subset == "all" else f"{evaluation.subset}/"
            where = f"test/{evaluation.checkpoint}/{subset}"
            summary |= {where + key: score.value for key, score in evaluation.scores.items()}
        self._run.summary.update(summary)
        for file in dict.fromkeys(evaluation.hypotheses for evaluation in record.evaluations):
            decoded = records.read_decoded(self._folder / file)
            values = values_of(file)
            table = self._wandb.Table(
                columns=["segment", "subset", "context", "references", "hypothesis", "finished", *values],
                data=[
                    [i + 1, d.subset, d.context, "\n".join(d.references), d.hypothesis, d.finished, *figures]
                    for i, (d, *figures) in enumerate(zip(decoded, *values.values(), strict=True))
                ],
            )
            self._run.log({f"hypotheses/{Path(file).stem}": table})

    def _end(self, fault: BaseException | None) -> None:
        if isinstance(fault, Stopped):  # the same command continues
            self._tried(self._run.mark_preempting)
        status = 0 if fault is None else getattr(fault, "exit_code", 1)
        if self.every is not None:
            self._tried(lambda: self._run.finish(exit_code=status))
        if self.every is None:
            # Quietly, as it has been told: else the next run of this process would go on in this one, and wandb
            # complain at the process's end.
            with suppress(Exception):
                self._run.finish(exit_code=status)
            with suppress(Exception):
                self._wandb.teardown()


def _wandb() -> Any:
    """The package, silent."""
    # Without these it writes among our lines, asks questions, and calls home about itself; it would keep what it has
    # not written yet for 15 s, to be lost with a process that is killed, and hold run and GPU for as long as its server
    # is away.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB__TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(FINISH_SECONDS))
    os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
    try:
        import wandb
    except ImportError:
        raise BadInput(
            "logger=wandb: the package wandb is not installed; pip install 'lodarepro[wandb]', or give logger=csv"
        ) from None
    return wandb


def _mode(settings: config.Logger) -> str:
    mode = settings.mode or os.environ.get("WANDB_MODE") or "online"
    if mode not in (modes := get_args(config.WandbMode)):
        raise BadInput(f"WANDB_MODE={mode}: none of {', '.join(modes)}")
    return mode


def _kept_id(folder: Path) -> str:
    """A run's id there: drawn when it first begins, and its own from then on."""
    path = folder / WANDB_ID
    if path.is_file() and re.fullmatch(r"[0-9a-f]{16}\n", known := path.read_text(encoding="ascii", errors="replace")):
        return known.strip()
    drawn = secrets.token_hex(8)
    write_atomically(path, f"{drawn}\n".encode())
    return drawn


def _first_line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:LONGEST]
