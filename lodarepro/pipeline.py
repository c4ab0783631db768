"""One run: find its inputs, attach, train, decode, score, record."""

from __future__ import annotations

import fcntl
import logging
import signal
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tokenizers import Tokenizer

from lodarepro import compose, config, metrics, provenance, records
from lodarepro.cost import count_parameters
from lodarepro.data import SPLITS, Split, load
from lodarepro.data.sources import download_url
from lodarepro.data.tokenise import encode
from lodarepro.decode.generate import decode
from lodarepro.errors import BadInput, LodareproError, RunFailed, Stopped
from lodarepro.methods import attach, load_adapter, save_adapter
from lodarepro.model import GPT2, weights
from lodarepro.records import Decoded, Evaluation, Record
from lodarepro.scores import SuiteScores
from lodarepro.seeds import derived_seed
from lodarepro.train.checkpoint import Progress
from lodarepro.train.loop import total_steps, train
from lodarepro.train.optim import learning_rate

logger = logging.getLogger(__name__)

CHECKPOINT, LOCK = "checkpoint.safetensors", ".lock"
TINY_WIDTH = 256  # up to this width d a CPU run takes one thread
REACH_SECONDS = 5  # longest wait for a server before a run is said to be impossible


@dataclass(frozen=True)
class Outcome:
    """What `execute` ended with.

    Attributes:
        folder: of the run.
        record: what it left.
        fresh: False where it had been finished before.
    """

    folder: Path
    record: Record
    fresh: bool


def execute(run: config.Run) -> Outcome:
    """Do one run, or find that it is done; an interrupted one continues where it was.

    Raises:
        BadInput: an input is missing or unfit, or the results can't be written.
        RunFailed: the training diverged, a scorer failed, or another process holds the run.
        Stopped: a signal asked to stop; the same call continues.
    """
    with _stop_signals() as signals:
        try:
            return _execute(run, signals)
        except OSError as e:
            raise BadInput(
                f"{e.filename or run.results.root}: can't be written ({e.strerror or e}); make room or give "
                "another folder with results.root=FOLDER; the run continues from its last checkpoint"
            ) from e
        except LodareproError:
            if signals.number is not None:
                raise Stopped("stopped; the same command continues", signals.number) from None
            raise


def _execute(run: config.Run, signals: _Signals) -> Outcome:
    check_reachable(run)
    device = _device(run.runtime)
    if threads := _threads(run):
        torch.set_num_threads(threads)
    splits = {name: load(run.dataset, run.data, name) for name in SPLITS}
    base = weights.find(run.model)
    assert base is not None
    checksums = {name: split.source.sha256 for name, split in splits.items()} | {"model": base.sha256}
    name = compose.run_id(run, checksums)
    folder = Path(run.results.root).expanduser() / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if (record := records.read(folder)) is not None:
            logger.info("%s is finished already", name)
            return Outcome(folder, record, fresh=False)
        logger.info("run %s on %s", name, device)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        origin = provenance.gather()  # now: the checkout may change while the run goes on
        model, tokenizer = weights.load(base, run.model), weights.load_tokenizer(base)
        attach(model, run.method, torch.Generator().manual_seed(derived_seed(run.seed, "init")))
        model.to(device)

        cache = Path(run.data.cache)
        encoded = {
            name: encode(splits[name].examples, tokenizer, run.protocol, cache=cache) for name in ("train", "valid")
        }
        progress = train(
            model,
            encoded["train"],
            encoded["valid"],
            run.train,
            protocol=run.protocol,
            seed=run.seed,
            checkpoint_path=folder / CHECKPOINT,
            checkpoint_minutes=run.runtime.checkpoint_minutes,
            stop_signal=lambda: signals.number,
        )
        save_adapter(model, folder / records.ADAPTER, method=run.method, base=run.model.name, base_sha256=base.sha256)
        _write_steps(folder, progress, run.train, pairs=len(encoded["train"]))

        began = time.monotonic()
        decoded = _decoded(run, model.eval(), tokenizer, splits["test"], signals)
        decode_seconds = time.monotonic() - began
        file = f"{records.EVALUATIONS}/last-test.jsonl"
        records.write_decoded(folder / file, decoded)
        logger.info("decoded %d contexts in %.0f s", len(decoded), decode_seconds)

        began = time.monotonic()
        evaluations = _evaluations(run, decoded, file, val_loss=progress.epochs[-1]["val_loss"])
        score_seconds = time.monotonic() - began
        record = Record(
            id=name,
            config=compose.plain(run),
            identity=compose.identity(run, checksums),
            provenance={
                **origin,
                "device": _describe(device),
                "threads": torch.get_num_threads(),
                "data": {name: _source(split) for name, split in splits.items()},
                "base_model": {"name": run.model.name, "sha256": base.sha256, "origin": base.origin},
                "started": started,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            parameters=_parameters(model),
            training={
                "steps": progress.step,
                "epochs": progress.epochs,
                "seconds": {
                    "train": round(progress.seconds, 1),
                    "decode": round(decode_seconds, 1),
                    "score": round(score_seconds, 1),
                },
            },
            evaluations=evaluations,
        )
        records.write(folder, record)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return Outcome(folder, record, fresh=True)


def rescore(folder: Path) -> Record:
    """Derive a finished run's scores again from the hypotheses and references in its folder.

    Returns:
        The record with the new scores, which has been written if they differ.

    Raises:
        BadInput: no finished run there, or its hypotheses are missing or corrupt.
    """
    record = _finished(folder)
    suite = record.config["dataset"]["suite"]
    scored: dict[str, SuiteScores] = {}
    evaluations = []
    for evaluation in record.evaluations:
        if evaluation.hypotheses not in scored:
            decoded = records.read_decoded(folder / evaluation.hypotheses)
            scored[evaluation.hypotheses] = _score(decoded, suite)
        found = scored[evaluation.hypotheses]
        scores = found.scores if evaluation.subset == "all" else found.subsets[evaluation.subset]
        evaluations.append(replace(evaluation, scores=scores))
    new = replace(record, evaluations=tuple(evaluations))
    if new != record:
        logger.warning("%s: the scores differ from the record's, which is brought up to date", record.id)
        records.write(folder, new)
    return new


def redecode(folder: Path, overrides: Sequence[str]) -> Record:
    """Decode a finished run's test split with other settings and append the evaluation.

    Args:
        folder: of the run.
        overrides: `decode.KEY=VALUE`, and `model.path`, `data.root` or `runtime.*` where this
            machine has them elsewhere.

    Returns:
        The record, with the new evaluation unless one with these settings was there.

    Raises:
        BadInput: no finished run there; the base model or the test file is not the run's own.
    """
    record = _finished(folder)
    run = compose.changed(compose.from_plain(record.config), overrides)
    described = compose.plain(run)
    if any(described["decode"] == e.decode for e in record.evaluations):
        logger.info("%s has an evaluation with these settings already", record.id)
        return record
    with _stop_signals() as signals, _locked(folder):
        test = load(run.dataset, run.data, "test")
        if test.source.sha256 != record.provenance["data"]["test"]["sha256"]:
            raise BadInput(
                f"{test.source.path} is not the file that {record.id} was tested on (sha256 {test.source.sha256}, "
                f"not {record.provenance['data']['test']['sha256']}); give that file's folder with data.root"
            )
        base = weights.find(run.model)
        assert base is not None
        model, tokenizer = weights.load(base, run.model), weights.load_tokenizer(base)
        attach(model, run.method, torch.Generator())
        load_adapter(model, folder / records.ADAPTER, method=run.method, base=run.model.name, base_sha256=base.sha256)
        model.to(_device(run.runtime)).eval()
        file = f"{records.EVALUATIONS}/last-test-{len(record.evaluations) + 1}.jsonl"
        decoded = _decoded(run, model, tokenizer, test, signals)
        records.write_decoded(folder / file, decoded)
        added = _evaluations(run, decoded, file, val_loss=record.training["epochs"][-1]["val_loss"])
        new = replace(record, evaluations=(*record.evaluations, *added))
        records.write(folder, new)
    return new


def _finished(folder: Path) -> Record:
    record = records.read(folder)
    if record is None:
        raise BadInput(f"{folder} holds no {records.RECORD}: not the folder of a finished run")
    return record


def _decoded(run: config.Run, model: GPT2, tokenizer: Tokenizer, test: Split, signals: _Signals) -> list[Decoded]:
    return decode(
        model,
        tokenizer,
        test.segments,
        run.decode,
        protocol=run.protocol,
        batch=run.runtime.decode_batch,
        stop_signal=lambda: signals.number,
    )


def check_reachable(run: config.Run) -> None:
    """End at once, with one line, where a run's inputs are neither here nor to be had.

    Raises:
        BadInput: naming what is missing and the ways out.
    """
    missing: list[str] = []
    ways: list[str] = []
    urls = {split: download_url(run.dataset, run.data, split) for split in SPLITS}
    wanted = [url for url in urls.values() if url is not None]
    if wanted and (reason := _unreachable(wanted[0])):
        files = ", ".join(getattr(run.dataset.files, split) for split, url in urls.items() if url is not None)
        missing.append(f"the data of {run.dataset.name} ({files}; {reason})")
        ways.append("data.root=FOLDER")
    if weights.find(run.model, download=False) is None and (reason := _unreachable(weights.hub_url(run.model))):
        missing.append(f"the weights of {run.model.hub} ({reason})")
        ways.append("model.path=FOLDER")
    if missing:
        gpu = "" if torch.cuda.is_available() or run.runtime.device == "cpu" else "; this machine has no GPU either"
        raise BadInput(
            f"not on this machine and out of reach: {' and '.join(missing)}{gpu}. "
            f"Give {' and '.join(ways)}, use the embedded model=gpt2-nano dataset=mini, or run on "
            "another machine (with network, or with its caches copied)"
        )


def _unreachable(url: str) -> str | None:
    """Why a server gives no answer at all, or None if it gives any."""
    host = urllib.parse.urlsplit(url).hostname
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError as e:
        e.close()
    except urllib.error.URLError as e:
        return f"{host}: {getattr(e.reason, 'strerror', None) or e.reason}"
    except (OSError, ValueError) as e:
        return f"{host}: {e}"
    return None


class _Signals:
    number: int | None = None


@contextmanager
def _stop_signals() -> Iterator[_Signals]:
    """Remember SIGINT and SIGTERM so that stages can stop in order; a second one stops at once."""
    asked = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        if asked.number is not None:
            raise KeyboardInterrupt
        asked.number = number
        logger.warning("stopping after this step (again to stop at once)")

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes off a run; the lock is freed by the process's death."""
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed(f"another process is at work on {folder}; try again when it has ended") from None
        yield


def _device(runtime: config.Runtime) -> torch.device:
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("runtime.device=cuda: torch sees no CUDA device here; see `lodarepro doctor`")
    if runtime.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(runtime.device)


def _threads(run: config.Run) -> int | None:
    """CPU threads: as given, else one for a tiny model, else torch's choice.

    On a busy machine two threads were 20 times slower than one on a model of a million parameters:
    its operations are shorter than the waiting for each other.
    """
    if run.runtime.threads is None and run.model.n_embd <= TINY_WIDTH:
        return 1
    return run.runtime.threads


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _source(split: Split) -> dict[str, Any]:
    source = split.source
    return {
        "file": source.path.name,
        "sha256": source.sha256,
        "blob": source.blob,
        "pinned": source.pinned,
        "origin": source.origin,
        "examples": len(split.examples),
    }


def _parameters(model: GPT2) -> dict[str, int]:
    counted = count_parameters(model)
    return {"trainable": counted.trainable, "total": counted.total}


def _write_steps(folder: Path, progress: Progress, settings: config.Train, *, pairs: int) -> None:
    total = total_steps(pairs, settings)
    rates = [learning_rate(settings, step, total) for step in range(total)]
    records.write_steps(folder / records.STEPS, rates, progress.losses.tolist())


def _score(decoded: Sequence[Decoded], suite: str) -> SuiteScores:
    subsets = [d.subset for d in decoded]
    return metrics.score(
        [d.hypothesis for d in decoded],
        [list(d.references) for d in decoded],
        suite=suite,
        subsets=subsets if any(subsets) else None,
    )


def _evaluations(run: config.Run, decoded: Sequence[Decoded], file: str, *, val_loss: float) -> tuple[Evaluation, ...]:
    found = _score(decoded, run.dataset.suite)
    described = compose.plain(run)
    sizes = {label: sum(d.subset == label for d in decoded) for label in found.subsets}
    return tuple(
        Evaluation(
            checkpoint="last",
            decode=described["decode"],
            split="test",
            subset=subset,
            hypotheses=file,
            segments=segments,
            scores=scores,
            val_loss=val_loss,
        )
        for subset, segments, scores in [
            ("all", found.segments, found.scores),
            *((label, sizes[label], scores) for label, scores in found.subsets.items()),
        ]
    )
