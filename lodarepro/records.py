"""What a run leaves: `record.json`, its hypotheses and references, what was trained.

Layout of a run's folder (results/README.md says what is promised):

    record.json              everything below, written last and atomically
    failure.json             in its place where the run failed: why
    adapter.safetensors      what was trained, at the last epoch, with its base model's name and hash
    adapter-<name>.safetensors  the same of `best` and `epoch-N`, where they are not the last
    evaluations/<name>.jsonl one segment a line: context, references, hypothesis, subset, log score
    evaluations/<name>.values.json  each segment's figures, of the metrics that give one
    steps.csv                step, learning rate and loss of every training step
    log.csv, wandb/, wandb-id   of loggers (`loggers.py`), where one is set
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lodarepro.errors import BadInput, Busy
from lodarepro.files import write_atomically
from lodarepro.scores import Score

SCHEMA = 1
"""Raised when a reader of old records would misread new ones."""

RECORD, ADAPTER, STEPS, EVALUATIONS = "record.json", "adapter.safetensors", "steps.csv", "evaluations"
RUNS = "runs"
"""folder below `results.root` that holds one folder a run"""
FAILURE = "failure.json"
LOCK = ".lock"
LOCK_TRIES, LOCK_SECONDS = 3, 0.02
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


@dataclass(frozen=True)
class Decoded:
    """One test segment as it was decoded.

    Attributes:
        context: the input text.
        references: its reference texts.
        hypothesis: the text decoded for it.
        subset: `seen`, `unseen` or None.
        log_score: the search's normalised score.
        finished: whether the hypothesis ended by itself.
    """

    context: str
    references: tuple[str, ...]
    hypothesis: str
    subset: str | None
    log_score: float
    finished: bool


@dataclass(frozen=True)
class Evaluation:
    """Scores of one decoding of one checkpoint on one split or subset of it.

    Attributes:
        checkpoint: `last`, `best` or `epoch-N`.
        decode: settings of the search.
        split: `test` or `valid`.
        subset: `all`, or a label of the dataset (`seen`, `unseen`).
        hypotheses: file in the run's folder that the scores are derived from.
        segments: segments scored.
        scores: metric key to score.
        val_loss: validation loss of that checkpoint, nats a token.
    """

    checkpoint: str
    decode: dict[str, Any]
    split: str
    subset: str
    hypotheses: str
    segments: int
    scores: dict[str, Score]
    val_loss: float


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        id: the run id.
        config: the whole configuration.
        identity: what the id is the hash of.
        provenance: code, packages, machine, data and weights, times.
        parameters: `trainable` and `total` counts.
        training: epochs with validation losses, steps, seconds, and what `checkpoints` gives.
        evaluations: at least one.
        schema: of this file.
    """

    id: str
    config: dict[str, Any]
    identity: dict[str, Any]
    provenance: dict[str, Any]
    parameters: dict[str, int]
    training: dict[str, Any]
    evaluations: tuple[Evaluation, ...]
    schema: int = field(default=SCHEMA)

    @property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """`last`, `best`, `epoch-N` to what is kept of it: `epoch`, `step`, `val_loss`, `adapter` (its file)."""
        # The first records have the last epoch alone.
        return self.training.get("checkpoints") or {"last": {**self.training["epochs"][-1], "adapter": ADAPTER}}

    def evaluation_of(self, hypotheses: str) -> Evaluation:
        """The first evaluation of a file of hypotheses over all its segments."""
        return next(e for e in self.evaluations if e.hypotheses == hypotheses and e.subset == "all")


def method_of(record: Record) -> str:
    """`ft`, `lora r=4`."""
    method = record.config["method"]
    rank = method.get("rank")
    return method["name"] + ("" if rank is None else f" r={rank}")


def write(folder: Path, record: Record) -> None:
    """Write a run's `record.json`."""
    text = json.dumps(asdict(record), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / RECORD, f"{text}\n".encode())


def read(folder: Path) -> Record | None:
    """The record in a run's folder, or None where the run is not finished.

    Raises:
        BadInput: it is corrupt, or of another schema.
    """
    path = folder / RECORD
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise BadInput(f"{path}: can't be used ({e.strerror}); check the path") from None
    except ValueError as e:
        raise BadInput(f"{path} is not a record ({e}); delete it to run again") from None
    try:
        tree = json.loads(text)
        schema = tree["schema"]
        if schema != SCHEMA:
            raise BadInput(f"{path} has schema {schema}, this version reads {SCHEMA}; use the version that wrote it")
        tree["evaluations"] = tuple(
            Evaluation(**{**e, "scores": {key: _score(s) for key, s in e["scores"].items()}})
            for e in tree["evaluations"]
        )
        record = Record(**tree)
        for part in (record.config, record.identity, record.provenance, record.parameters, record.training):
            part.keys()
        return record
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BadInput(f"{path} is not a record ({e}); delete it to run again") from None


def finished(folder: Path) -> Record:
    """The record of a finished run.

    Raises:
        BadInput: there is none, or it is corrupt.
    """
    record = read(folder)
    if record is None:
        raise BadInput(f"{folder} holds no {RECORD}: not the folder of a finished run")
    return record


SHOWN = (
    *("config.dataset.name", "config.dataset.suite", "config.model.name", "config.method.name", "config.protocol.name"),
    *("config.seed", "identity.checksums.test", "identity.checksums.model", "identity.protocol_version"),
    *("provenance.code.version", "provenance.packages", "provenance.machine", "provenance.device", "provenance.data"),
    *("parameters.trainable", "parameters.total", "training.steps", "training.seconds", "training.epochs"),
)
"""what a report shows of every record"""


def check_whole(record: Record) -> None:
    """Refuse a record that others have taken something from.

    Raises:
        BadInput: it lacks what a report shows.
    """
    tree = asdict(record)
    for path in SHOWN:
        part: Any = tree
        for key in path.split("."):
            part = part.get(key) if isinstance(part, dict) else None
        if part in (None, [], {}):
            raise BadInput(f"the record of {record.id} lacks {path}; delete the run's folder to run it again")
    if not any(evaluation.subset == "all" for evaluation in record.evaluations):
        raise BadInput(f"the record of {record.id} holds no evaluation; decode the run again")


def runs(root: Path) -> list[Path]:
    """The folders of all runs below a results folder that ended, well or not, in the order of their names.

    Raises:
        BadInput: a folder can't be read; what is in it must not pass for not run.
    """
    try:
        folders = sorted(path for path in (root / RUNS).iterdir() if path.is_dir())
        return [f for f in folders if {RECORD, FAILURE} & {path.name for path in f.iterdir()}]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise BadInput(f"{e.filename or root / RUNS}: can't be used ({e.strerror}); check the path") from None


@dataclass(frozen=True)
class Failure:
    """Why a run has no record although its input was good.

    Attributes:
        id: the run id.
        config: the whole configuration.
        identity: what the id is the hash of.
        faults: one line each, as the command printed them.
        provenance: code, packages, machine, time.
    """

    id: str
    config: dict[str, Any]
    identity: dict[str, Any]
    faults: tuple[str, ...]
    provenance: dict[str, Any]


def write_failure(folder: Path, failure: Failure) -> None:
    """Write a run's `failure.json`."""
    text = json.dumps(asdict(failure), indent=1, ensure_ascii=False)
    write_atomically(folder / FAILURE, f"{text}\n".encode())


def read_failure(folder: Path) -> Failure | None:
    """Why the run in a folder failed; None where it did not, or the file can't be read: then it may be tried again."""
    try:
        tree = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        failure = Failure(**{**tree, "faults": tuple(tree["faults"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = failure.faults and isinstance(failure.config, dict) and isinstance(failure.identity, dict)
    return failure if whole else None


def _score(tree: dict[str, Any]) -> Score:
    for key in ("segments", "interval"):
        if tree.get(key) is not None:
            tree[key] = tuple(tree[key])
    return Score(**tree)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes off a run; the lock is freed by the process's death.

    Raises:
        Busy: another process has it.
    """
    with (folder / LOCK).open("a") as lock:
        for _ in range(LOCK_TRIES):  # `held` takes it for a moment
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_SECONDS)
        else:
            raise Busy(folder)
        yield


def held(folder: Path) -> bool:
    """Whether a process is at work on a run."""
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # no process ever was
        return False
    return False


@contextmanager
def disk_faults(folder: str | Path) -> Iterator[None]:
    """Make an error of the disk one line; nothing is lost, as every file is written beside its place first."""
    try:
        yield
    except OSError as e:
        if e.errno in WRITE_ERRORS:
            raise BadInput(
                f"{e.filename or folder}: can't be written ({e.strerror}); make room or give another folder with "
                "results.root=FOLDER; an unfinished run continues from its last checkpoint"
            ) from e
        raise BadInput(f"{e.filename or folder}: can't be used ({e.strerror or e}); check the path") from e


def write_decoded(path: Path, decoded: Iterable[Decoded]) -> None:
    """Write hypotheses with their references, one segment a line."""
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, "".join(json.dumps(asdict(d), ensure_ascii=False) + "\n" for d in decoded).encode())


def read_decoded(path: Path) -> list[Decoded]:
    """Read what `write_decoded` wrote.

    Raises:
        BadInput: the file is missing or a line is corrupt.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as e:
        raise BadInput(f"{path} can't be read ({e.strerror}); decode the run again") from None
    except ValueError as e:
        raise BadInput(f"{path} is not UTF-8 ({e}); decode the run again") from None
    if not lines[-1]:
        lines.pop()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            tree = json.loads(line)
            found.append(Decoded(**{**tree, "references": tuple(tree["references"])}))
        except (ValueError, TypeError, KeyError) as e:
            raise BadInput(f"{path}, line {number} is not a decoded segment ({e}); decode the run again") from None
    return found


def write_steps(path: Path, rates: Sequence[float], losses: Sequence[float]) -> None:
    """Write learning rate and loss of every step."""
    lines = [f"{i},{lr:.9g},{loss:.9g}" for i, (lr, loss) in enumerate(zip(rates, losses, strict=True))]
    write_atomically(path, "\n".join(["step,lr,loss", *lines, ""]).encode())


def read_steps(path: Path) -> list[float]:
    """The loss of every step that `write_steps` wrote.

    Raises:
        BadInput: the file is corrupt, or can't be read although it is there.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        losses = [float(line.split(",")[2]) for line in lines[1:]]
        if not all(map(math.isfinite, losses)):
            raise ValueError
        return losses
    except FileNotFoundError:
        return []
    except OSError as e:
        raise BadInput(f"{path}: can't be read ({e.strerror})") from None
    except (ValueError, IndexError):
        raise BadInput(f"{path} is not a list of steps with their losses; delete it") from None
