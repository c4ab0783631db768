"""One run: find its inputs, attach, train, decode, score, record."""

from __future__ import annotations

import copy
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tokenizers import Tokenizer

from lodarepro import compose, config, devices, distributed, loggers, provenance, records
from lodarepro.cost import Count, count_parameters
from lodarepro.data import SPLITS, Split, load
from lodarepro.data.sources import download_url
from lodarepro.data.tokenise import encode
from lodarepro.decode.generate import decode
from lodarepro.distributed import Processes
from lodarepro.errors import BadInput, LodareproError, RunFailed, Stopped
from lodarepro.methods import attach, finalize, layout, param_groups, restored, save_adapter
from lodarepro.model import GPT2, weights
from lodarepro.network import unreachable
from lodarepro.records import Decoded, Evaluation, Record
from lodarepro.rescore import keep_values, measured, segment_values
from lodarepro.seeds import derived_seed
from lodarepro.train.checkpoint import Checkpoints, Progress
from lodarepro.train.loop import train
from lodarepro.train.optim import learning_rate

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
MARK_SECONDS = 1.0  # between two looks for the mark of a sweep that was told to stop
UNHANDLED = (signal.SIG_DFL, signal.default_int_handler)


@dataclass(frozen=True)
class Outcome:
    """What `execute` ended with.

    Attributes:
        folder: of the run.
        record: what it left.
        stopped: exit code (128 + signal) where a signal asked to stop when only the end was left to do.
        found: it was finished already.
    """

    folder: Path
    record: Record
    stopped: int | None
    found: bool


def execute(run: config.Run, *, retry: bool = True, stop_mark: Path | None = None, show_bar: bool = False) -> Outcome:
    """Do one run, or find that it is done; an interrupted one continues where it was.

    A run that fails leaves the reason in its folder. Where `torchrun` started several processes, they do it together
    and the first of them writes.

    Args:
        run: what to do.
        retry: try again where it failed before.
        stop_mark: a file that asks to stop by being there, with the number of a signal in it.
        show_bar: show progress bars if there is a terminal.

    Raises:
        BadInput: an input is missing or unfit, or the results can't be written.
        RunFailed: the training diverged, a scorer failed, something unexpected happened; or it did before.
        Busy: another process holds the run.
        Stopped: a signal asked to stop; the same call continues.
    """
    gpus = torch.cuda.is_available() and run.runtime.device != "cpu"
    with (
        _stop_signals(stop_mark) as signals,
        records.disk_faults(run.results.root),
        distributed.joined("nccl" if gpus else "gloo") as processes,
    ):
        try:
            folder, record, found = _execute(run, _Doing(signals, processes, show_bar), retry=retry)
        except Stopped:
            raise
        except LodareproError:
            if signals.number is not None:
                raise Stopped("stopped; the same command continues", signals.number) from None
            raise
        return Outcome(folder, record, None if signals.number is None else 128 + signals.number, found)


@dataclass(frozen=True)
class _Doing:
    """How a run is done, besides its configuration.

    Attributes:
        signals: that ask to stop.
        processes: that work on it.
        show_bar: show progress bars if there is a terminal.
        log: where its course is shown.
    """

    signals: _Signals
    processes: Processes
    show_bar: bool
    log: loggers.Log = loggers.NOTHING


def _execute(run: config.Run, doing: _Doing, *, retry: bool) -> tuple[Path, Record, bool]:
    base = check_reachable(run)
    devices.set_threads(run)
    devices.check(run.runtime.device)
    splits = {name: load(run.dataset, run.data, name) for name in SPLITS}
    checksums = {name: split.source.sha256 for name, split in splits.items()}
    checksums |= {"model": base.sha256, "tokenizer": base.tokenizer_sha256}
    inputs = _Inputs(base, splits, checksums)
    name = compose.run_id(run, checksums)
    folder = Path(run.results.root).expanduser() / records.RUNS / name
    if not doing.processes.main:
        return folder, *_followed(run, folder, inputs, doing)
    with ExitStack() as held:
        try:
            taken = _taken(run, folder, held, doing, retry=retry)
        except BaseException:
            doing.processes.told(_ENDED)
            raise
        if isinstance(taken, Record):
            doing.processes.told(_FOUND)
            logger.info("%s is finished already", name)
            Checkpoints(folder / CHECKPOINT, ()).remove()  # which a process left that was killed at the very end
            return folder, taken, True
        doing.processes.told(_BEGUN)
        with _failure_noted(folder, run, compose.identity(run, checksums), doing.signals):
            with loggers.opened(run.logger, folder, compose.without_places(compose.plain(run))) as log:
                record = _recorded(run, folder, taken, inputs, replace(doing, log=log))
            doing.processes.told(_BEGUN)
    return folder, record, False


_FOUND, _BEGUN, _ENDED = "found", "begun", "ended"
"""what the first of several processes tells the others: the run is finished, to work on, or not to be had"""


def _taken(run: config.Run, folder: Path, held: ExitStack, doing: _Doing, *, retry: bool) -> torch.device | Record:
    """Hold a run and a device for it; where the run is finished, its record."""
    if (record := records.read(folder)) is not None:
        return record
    folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(records.locked(folder))
    if (record := records.read(folder)) is not None:  # finished by another process meanwhile
        return record
    if not retry and (failure := records.read_failure(folder)) is not None:
        raise RunFailed(f"{fault} (it failed before: runtime.retry=true tries again)" for fault in failure.faults)
    (folder / records.FAILURE).unlink(missing_ok=True)
    loggers.check(run.logger)
    return held.enter_context(devices.taken(run.runtime.device, stop_signal=doing.signals.asked))


def _followed(run: config.Run, folder: Path, inputs: _Inputs, doing: _Doing) -> tuple[Record, bool]:
    """Work on a run whose folder and record are the first process's."""
    logging.getLogger("lodarepro").setLevel(logging.ERROR)  # the first says what there is to say
    word = doing.processes.told()
    if word == _ENDED:
        raise RunFailed("the first process ended before the run began")
    if word == _FOUND:
        return records.finished(folder), True
    with devices.taken(run.runtime.device) as device:
        _evaluated(run, folder, device, inputs, doing)
        doing.processes.told()
    return records.finished(folder), False


@contextmanager
def _failure_noted(folder: Path, run: config.Run, identity: dict[str, Any], signals: _Signals) -> Iterator[None]:
    """Leave the reason in the folder of a run that fails although its input was good and nobody stopped it."""
    try:
        yield
    except Exception as e:
        failed = isinstance(e, RunFailed) or not isinstance(e, LodareproError | OSError)
        if failed and signals.number is None:
            faults = e.faults if isinstance(e, LodareproError) else (unexpected(e),)
            described = {**provenance.gather(), "finished": datetime.now(UTC).isoformat(timespec="seconds")}
            records.write_failure(folder, records.Failure(folder.name, compose.plain(run), identity, faults, described))
        raise


def unexpected(e: Exception) -> str:
    """The line about an error that nobody foresaw."""
    return f"unexpected {type(e).__name__}: {(str(e).splitlines() or [''])[0]}"


@dataclass(frozen=True)
class _Inputs:
    """What a run reads."""

    base: weights.Checkpoint
    splits: Mapping[str, Split]
    checksums: Mapping[str, str]


@dataclass(frozen=True)
class _Kept:
    """A trained state that was decoded: the last epoch's, the best's, or another that is kept.

    Attributes:
        names: `last`, `best`, `epoch-N`, as many as mean it.
        epoch: its entry of `Progress.epochs`.
        decoded: the test segments.
    """

    names: tuple[str, ...]
    epoch: dict[str, Any]
    decoded: list[Decoded]

    @property
    def adapter(self) -> str:
        """The file in the run's folder that holds it."""
        name = self.names[0]
        return records.ADAPTER if "last" in self.names else f"adapter-{name}.safetensors"

    @property
    def hypotheses(self) -> str:
        """The file in the run's folder that holds its texts."""
        return f"{records.EVALUATIONS}/{self.names[0]}-test.jsonl"


@dataclass(frozen=True)
class _Done:
    """What training and decoding gave; of `kept` the last epoch first, which stands for the run."""

    progress: Progress
    kept: list[_Kept]
    counted: Count
    origin: dict[str, Any]
    decode_seconds: float


def _evaluated(run: config.Run, folder: Path, device: torch.device, inputs: _Inputs, doing: _Doing) -> _Done:
    """Train, save what was trained, and decode: the work of all processes of a run."""
    model, tokenizer = weights.load(inputs.base, run.model), weights.load_tokenizer(inputs.base)
    logger.info("run %s on %s", folder.name, device)
    origin = provenance.gather()  # now: the checkout may change while the run goes on
    origin |= {"device": _describe(device), "threads": torch.get_num_threads()}
    if doing.processes.size > 1:
        origin["processes"] = doing.processes.size
    attach(model, run.method, torch.Generator().manual_seed(derived_seed(run.seed, "init")))
    model.to(device)

    encoded = {
        name: encode(
            inputs.splits[name].examples,
            tokenizer,
            run.protocol,
            cache=Path(run.data.cache),
            layout=layout(run.method, tokenizer),
        )
        for name in ("train", "valid")
    }
    progress = train(
        model,
        encoded["train"],
        encoded["valid"],
        run.train,
        protocol=run.protocol,
        seed=run.seed,
        groups=param_groups(model, run.method),
        stretch={"code": origin["code"], "device": origin["device"], "torch": origin["packages"]["torch"]},
        runtime=run.runtime,
        checkpoint_path=folder / CHECKPOINT,
        stop_signal=doing.signals.asked,
        processes=doing.processes,
        show_bar=doing.show_bar,
        log=doing.log,
    )
    names: dict[int, list[str]] = {}
    for name in sorted({"last", *run.train.keep}, key=lambda name: (name != "last", name != "best", name)):
        names.setdefault(progress.epoch_of(name)["epoch"], []).append(name)
    last = progress.epochs[-1]["epoch"]  # of which there is an adapter whatever is kept
    began = time.monotonic()
    kept: dict[int, _Kept] = {}
    for epoch in sorted(names, key=lambda epoch: epoch == last):  # the last is the model itself, to be finalized then
        state = _Kept(tuple(names[epoch]), progress.epoch_of(names[epoch][0]), [])
        net = model
        if epoch != last:
            net = copy.deepcopy(model)
            Checkpoints(folder / CHECKPOINT, run.train.keep).restore_epoch(net, epoch)
        finalize(net, run.method)
        if doing.processes.main:
            base = inputs.base.sha256
            save_adapter(net, folder / state.adapter, method=run.method, base=run.model.name, base_sha256=base)
        if set(state.names) & set(run.train.keep):
            decoded = _decoded(run, net.eval(), tokenizer, inputs.splits["test"], doing)
            kept[epoch] = replace(state, decoded=decoded)
    decode_seconds = time.monotonic() - began
    # Counted is what is kept, which is what the papers print.
    ordered = [kept[epoch] for epoch in names if epoch in kept]
    return _Done(progress, ordered, count_parameters(model), origin, decode_seconds)


def _recorded(run: config.Run, folder: Path, device: torch.device, inputs: _Inputs, doing: _Doing) -> Record:
    """Train, decode and score a run whose folder and device are held."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    done = _evaluated(run, folder, device, inputs, doing)
    progress = done.progress
    _write_steps(folder, progress, run.train)
    logger.info(
        "decoded %d contexts of %d checkpoints in %.0f s",
        len(inputs.splits["test"].segments),
        len(done.kept),
        done.decode_seconds,
    )
    began = time.monotonic()
    evaluations: list[Evaluation] = []
    for state in done.kept:
        evaluations += _evaluations(
            run, folder, state.decoded, state.hypotheses, checkpoints=state.names, val_loss=state.epoch["val_loss"]
        )
    score_seconds = time.monotonic() - began
    record = Record(
        id=folder.name,
        config=compose.plain(run),
        identity=compose.identity(run, inputs.checksums),
        provenance={
            **done.origin,
            "data": {name: _source(split) for name, split in inputs.splits.items()},
            "base_model": {
                "name": run.model.name,
                "sha256": inputs.base.sha256,
                "tokenizer_sha256": inputs.base.tokenizer_sha256,
                "origin": inputs.base.origin,
            },
            "started": started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        parameters={"trainable": done.counted.trainable, "total": done.counted.total},
        training={
            "steps": progress.step,
            "epochs": progress.epochs,
            "checkpoints": {
                name: {**state.epoch, "adapter": state.adapter} for state in done.kept for name in state.names
            },
            "stretches": progress.stretches,
            "seconds": {
                "train": round(progress.seconds, 1),
                "decode": round(done.decode_seconds, 1),
                "score": round(score_seconds, 1),
            },
        },
        evaluations=tuple(evaluations),
    )
    records.write(folder, record)
    Checkpoints(folder / CHECKPOINT, run.train.keep).remove()
    doing.log.record(record, partial(segment_values, folder, record))
    return record


def redecode(folder: Path, overrides: Sequence[str], *, show_bar: bool = False) -> Record:
    """Decode a finished run's test split with other settings and append the evaluations, one a checkpoint.

    Args:
        folder: of the run.
        overrides: `decode.KEY=VALUE`, and `model.path`, `data.root` or `runtime.*` where this
            machine has them elsewhere.
        show_bar: show progress bars if there is a terminal.

    Returns:
        The record, with the new evaluations unless those with these settings were there.

    Raises:
        BadInput: no finished run there; the base model or the test file is not the run's own.
    """
    run = compose.changed(compose.from_plain(records.finished(folder).config), overrides)
    described = compose.plain(run)["decode"]
    with _stop_signals() as signals, records.disk_faults(folder), records.locked(folder):
        record = records.finished(folder)
        states = record.checkpoints
        defaults = compose.plain_defaults("decode")  # of settings that came later than the record
        same = {e.checkpoint: e.hypotheses for e in record.evaluations if {**defaults, **e.decode} == described}
        if same.keys() >= states.keys() and all(_readable(folder / file) for file in same.values()):
            logger.info("%s has evaluations with these settings already", record.id)
            return record
        base = check_reachable(run, splits=("test",))
        test = load(run.dataset, run.data, "test")
        known = record.identity["checksums"]
        if test.source.sha256 != known["test"]:
            raise BadInput(
                f"{test.source.path} is not the file that {record.id} was tested on (sha256 {test.source.sha256}, "
                f"not {known['test']}); give that file's folder with data.root"
            )
        base.check_tokenizer(known["tokenizer"], record.id)
        devices.set_threads(run)
        tokenizer = weights.load_tokenizer(base)
        number = len({e.hypotheses for e in record.evaluations}) + 1
        added: list[Evaluation] = []
        for adapter in dict.fromkeys(state["adapter"] for state in states.values()):
            names = [name for name, state in states.items() if state["adapter"] == adapter]
            model = restored(folder / adapter, run, base)
            file = same.get(names[0], f"{records.EVALUATIONS}/{names[0]}-test-{number}.jsonl")
            with devices.taken(run.runtime.device, stop_signal=signals.asked) as device:
                doing = _Doing(signals, distributed.ALONE, show_bar)
                decoded = _decoded(run, model.to(device).eval(), tokenizer, test, doing)
            val_loss = states[names[0]]["val_loss"]
            added += _evaluations(run, folder, decoded, file, checkpoints=names, val_loss=val_loss)
        files = {e.hypotheses for e in added}
        kept = (e for e in record.evaluations if e.hypotheses not in files)
        new = replace(record, evaluations=(*kept, *added))
        records.write(folder, new)
    return new


def _readable(path: Path) -> bool:
    try:
        return bool(records.read_decoded(path))
    except BadInput:
        return False


def _decoded(run: config.Run, model: GPT2, tokenizer: Tokenizer, test: Split, doing: _Doing) -> list[Decoded]:
    return decode(
        model,
        tokenizer,
        test.segments,
        run.decode,
        protocol=run.protocol,
        batch=run.runtime.decode_batch,
        layout=layout(run.method, tokenizer),
        stop_signal=doing.signals.asked,
        processes=doing.processes,
        show_bar=doing.show_bar,
    )


def check_reachable(run: config.Run, *, splits: Sequence[str] = SPLITS) -> weights.Checkpoint:
    """Find the base model; end at once, with one line, where inputs are neither here nor to be had.

    Args:
        run: what is to run.
        splits: the splits that it needs.

    Raises:
        BadInput: naming what is missing and the ways out.
    """
    missing: list[str] = []
    ways: list[str] = []
    urls = {split: download_url(run.dataset, run.data, split) for split in splits}
    wanted = [url for url in urls.values() if url is not None]
    if wanted and (reason := unreachable(wanted[0])):
        lacking = dict.fromkeys(getattr(run.dataset.files, split) for split, url in urls.items() if url is not None)
        missing.append(f"the data of {run.dataset.name} ({', '.join(lacking)}; {reason})")
        ways.append("data.root=FOLDER")
    base = weights.find(run.model, download=False)
    if base is None and (reason := unreachable(weights.hub_url(run.model))):
        missing.append(f"the weights of {run.model.hub} ({reason})")
        ways.append("model.path=FOLDER")
    if missing:
        gpu = "" if torch.cuda.is_available() or run.runtime.device == "cpu" else "; this machine has no GPU either"
        raise BadInput(
            f"not on this machine and out of reach: {' and '.join(missing)}{gpu}. "
            f"Give {' and '.join(ways)}, use the embedded model=gpt2-nano dataset=mini, or run on "
            "another machine (with network, or with its caches copied)"
        )
    base = base or weights.find(run.model)
    assert base is not None  # with download, `find` raises rather than give None
    return base


class _Signals:
    number: int | None = None

    def __init__(self, stop_mark: Path | None = None) -> None:
        self._mark = stop_mark
        self._looked = time.monotonic()

    def asked(self) -> int | None:
        """The number of the signal that asked to stop, this process or, by a mark, its sweep; or None."""
        if self.number is None and self._mark is not None and time.monotonic() - self._looked > MARK_SECONDS:
            self._looked = time.monotonic()
            with suppress(OSError, ValueError):
                self.number = int(self._mark.read_text(encoding="ascii"))
        return self.number


@contextmanager
def _stop_signals(stop_mark: Path | None = None) -> Iterator[_Signals]:
    """Remember SIGINT and SIGTERM so that stages can stop in order; a second one stops at once."""
    asked = _Signals(stop_mark)
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        if asked.number is not None:
            raise KeyboardInterrupt
        asked.number = number
        logger.warning("stopping after this step (again to stop at once)")

    # Not what another handles: SLURM's jobs are told to bypass SIGTERM, as another signal hands them in again.
    plain = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) in UNHANDLED]
    before = {number: signal.signal(number, remember) for number in plain}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _write_steps(folder: Path, progress: Progress, settings: config.Train) -> None:
    total = progress.step  # of a training at its end; none where nothing trained
    rates = [learning_rate(settings, step, total) for step in range(total)]
    records.write_steps(folder / records.STEPS, rates, progress.losses.tolist())


def _evaluations(
    run: config.Run, folder: Path, decoded: Sequence[Decoded], file: str, *, checkpoints: Sequence[str], val_loss: float
) -> list[Evaluation]:
    """Keep decoded texts and score them: one for each checkpoint that the same texts are of, and each subset."""
    records.write_decoded(folder / file, decoded)
    measurement = measured(decoded, run.dataset.suite)
    keep_values(folder / file, measurement)
    found = measurement.scores()
    described = compose.plain(run)
    return [
        Evaluation(
            checkpoint=checkpoint,
            decode=described["decode"],
            split="test",
            subset=subset,
            hypotheses=file,
            segments=segments,
            scores=scores,
            val_loss=val_loss,
        )
        for checkpoint in checkpoints
        for subset, segments, scores in [
            ("all", found.segments, found.scores),
            *((label, found.subset_segments[label], scores) for label, scores in found.subsets.items()),
        ]
    ]
