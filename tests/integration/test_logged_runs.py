"""Loggers of whole runs: what they write, that they change no number, and what a stop, a kill or a fault leaves.

A helper process, which is this file run as a program, has imported everything once and forks a child for each job: one
command or more in an environment of its own. The scorers that need Java, seconds a run, are replaced by counts there.
"""

import csv
import http.server
import importlib
import io
import json
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lodarepro import compose, loggers, records

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "train.epochs=2",
    "decode.beam=2",
    "decode.max_new_tokens=6",
    "dataset.limit.train=80",
    "dataset.limit.valid=8",
    "dataset.limit.test=4",
    "logger.every=3",
]
"""20 steps in two epochs; checkpoints at their ends"""
LOGGED = [3, 6, 9, 12, 15, 18, 20]
"""the last row is of what is left"""
OFFLINE = ["logger=wandb", "logger.mode=offline"]
NO_SERVER = {"WANDB_BASE_URL": "http://127.0.0.1:9"}
COUNTED = ("meteor", "rouge_l", "cider")
"""metrics that are replaced, and have a figure for each segment"""
KEY = "0123456789" * 4

needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb")


# in the helper ----------------------------------------------------------------------------------


def after_row(step: int, act: Callable[[], None]) -> None:
    """Act when the loss of this step was logged."""
    for kind in (loggers._Csv, loggers._WandbLog):
        setattr(kind, "row", acting_row(kind.row, step, act))  # noqa: B010 (for mypy)


def acting_row(row: Callable[..., None], step: int, act: Callable[[], None]) -> Callable[..., None]:
    def acting(self: loggers.Log, values: dict[str, float]) -> None:
        row(self, values)
        if values["step"] == step and "loss" in values:
            act()

    return acting


def signal_at(step: int, number: int) -> None:
    def kill() -> None:
        if number == signal.SIGKILL:
            time.sleep(1.5)  # as steps of a real model would take; what was logged within a second of a kill is lost
        os.kill(os.getpid(), number)

    after_row(step, kill)


def raising() -> None:
    """The package fails at the fourth thing that it is given."""
    wandb = importlib.import_module("wandb")
    original, calls = wandb.Run.log, iter(range(100))

    def log(self: Any, *arguments: Any, **named: Any) -> None:
        if next(calls) >= 3:
            raise wandb.Error("the server is gone\nand more")
        original(self, *arguments, **named)

    wandb.Run.log = log


def core_killed_at(step: int) -> None:
    """The package's own process is killed."""

    def kill() -> None:
        for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.3)

    after_row(step, kill)


def lacking() -> None:
    """The package is not installed."""
    sys.modules["wandb"] = None  # type: ignore[assignment]


def without_java() -> None:
    from lodarepro.metrics import suites
    from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures

    def counts(of: str) -> Callable[[Segments, Sequence[Group]], list[Figure]]:
        return lambda segments, groups: mean_figures(
            [(1 + text.count(of)) / (2 + len(text)) for text in segments.hypotheses], groups
        )

    metrics = [
        replace(metric, form="raw", compute=counts(metric.key[0]), begin=None, signature=lambda: "counted")
        if metric.key in COUNTED
        else replace(metric, form="raw")
        for metric in suites.SUITES["e2e"].metrics
    ]
    suites.SUITES["e2e"] = suites.Suite(lambda raw: {"raw": raw}, tuple(metrics))


def done(job: dict[str, Any]) -> int:
    """Do a job's commands in this process, which is a child; their exit codes go to a file."""
    from lodarepro.cli import main

    os.environ.update(job["environment"])
    place = Path(job["place"])
    for number, name in enumerate(("in", "out", "err")):
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(os.devnull if name == "in" else place / name, flags, 0o600), number)
    for name, arguments in job["patches"].items():
        globals()[name](*arguments)
    before = sys.excepthook, sys.exit
    codes = [main(command) for command in job["commands"]]
    kept = (sys.excepthook, sys.exit) == before
    (place / "ended.json").write_text(json.dumps({"codes": codes, "hooks": kept}))
    return max(codes)


def serve() -> int:
    """For each line of the input, a job's JSON: a child's end."""
    # But not wandb, which makes a folder when it is imported, and removes it at its end.
    for name in ("datasets", "hydra", "lodarepro.pipeline", "torch._dynamo"):
        importlib.import_module(name)
    without_java()
    from lodarepro.cli import main

    for line in sys.stdin:
        job, began = json.loads(line), time.monotonic()
        if job["here"]:  # and what takes seconds the first time, children need not do again
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                code = max(main(command) for command in job["commands"])
            print(json.dumps([code, time.monotonic() - began]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            return done(job)
        _, ended = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(ended), time.monotonic() - began]), flush=True)
    return 0


def one_of_several(command: list[str]) -> int:
    """As one of torchrun's processes."""
    from lodarepro.cli import main

    without_java()
    return main(command)


if __name__ == "__main__":
    sys.exit(one_of_several(sys.argv[1:]) if sys.argv[1:] else serve())


# in the tests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code, negative for a signal; those of its commands, unless it was killed."""

    code: int
    codes: list[int]
    hooks_kept: bool
    out: str
    err: str
    seconds: float

    @property
    def faults(self) -> list[str]:
        return [line for line in self.err.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]

    @property
    def told(self) -> list[str]:
        return [line[9:] for line in self.err.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]


@dataclass(frozen=True)
class Place:
    """Where the jobs of a test run."""

    folder: Path
    settings: list[str]
    helper: subprocess.Popen[str]

    @property
    def root(self) -> Path:
        return self.folder / "results"

    @property
    def run(self) -> Path:
        (folder,) = (self.root / "runs").iterdir()
        return folder

    def job(
        self,
        *commands: Sequence[str],
        patches: dict[str, list[Any]] | None = None,
        whole: bool = False,
        here: bool = False,
        env: dict[str, str] | None = None,
    ) -> Ended:
        """Do `lodarepro run` with each of these settings besides the usual ones, or whole commands.

        Args:
            commands: of one process.
            patches: functions of this file that the process calls before, with their arguments.
            whole: they are no settings.
            here: the helper does them itself.
            env: environment variables.
        """
        self.folder.mkdir(exist_ok=True)
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        isolated = {f"WANDB_{name}_DIR": str(home / name) for name in ("CACHE", "DATA", "CONFIG", "ARTIFACT")}
        job = {
            "place": str(self.folder),
            "environment": {"HOME": str(home), "NETRC": str(home / "netrc"), **isolated, **(env or {})},
            "patches": patches or {},
            "here": here,
            "commands": [[*command] if whole else self.command(*command) for command in commands],
        }
        assert self.helper.stdin is not None and self.helper.stdout is not None
        (self.folder / "ended.json").unlink(missing_ok=True)
        print(json.dumps(job), file=self.helper.stdin, flush=True)
        code, seconds = json.loads(self.helper.stdout.readline())
        ended = self.folder / "ended.json"
        tree: dict[str, Any] = json.loads(ended.read_text()) if ended.exists() else {"codes": [], "hooks": False}
        out, err = ("", "") if here else ((self.folder / name).read_text() for name in ("out", "err"))
        return Ended(code, tree["codes"], tree["hooks"], out, err, seconds)

    def command(self, *settings: str) -> list[str]:
        return ["run", *self.settings, *QUICK, f"results.root={self.root}", *settings]

    def done(self, *settings: str, **options: Any) -> Path:
        """The folder of the one run that a command finishes."""
        ended = self.job(settings, **options)
        assert ended.code == 0, ended.err
        return self.run


@pytest.fixture(scope="module")
def starting(caches: None) -> Iterator[subprocess.Popen[str]]:
    apart = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    helper = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**apart, "PYTHONPATH": str(ROOT)},
    )
    yield helper
    helper.communicate(timeout=60)


@pytest.fixture(scope="module")
def warm(
    tmp_path_factory: pytest.TempPathFactory, settings: list[str], starting: subprocess.Popen[str]
) -> tuple[Path, subprocess.Popen[str]]:
    place = Place(tmp_path_factory.mktemp("plain"), settings, starting)
    return place.done(here=True), starting


@pytest.fixture(scope="module")
def helper(warm: tuple[Path, subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """It has done a run itself, so that its children need not load everything."""
    return warm[1]


@pytest.fixture(scope="module")
def plain(warm: tuple[Path, subprocess.Popen[str]]) -> Path:
    """The folder of that run, which had no logger; no test may change it or those that follow."""
    return warm[0]


@pytest.fixture
def place(tmp_path: Path, settings: list[str], helper: subprocess.Popen[str]) -> Place:
    return Place(tmp_path, settings, helper)


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, settings: list[str], helper: subprocess.Popen[str]
) -> Callable[[str], Place]:
    return lambda name: Place(tmp_path_factory.mktemp(name), settings, helper)


@pytest.fixture(scope="module")
def with_csv(places) -> Path:
    return places("csv").done("logger=csv")


SHOWN = ["logger.project=figures", "logger.group=nano", "logger.tags=[a,b c]"]


@pytest.fixture(scope="module")
def with_wandb(places) -> tuple[list[Path], Ended]:
    """The folders of two runs that one process did."""
    place = places("shown")
    ended = place.job([*OFFLINE, *SHOWN], [*OFFLINE, "seed=2"])
    return sorted((place.root / "runs").iterdir()), ended


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder: Path) -> dict[str, bytes]:
    """What a run computed, byte for byte."""
    names = ("adapter.safetensors", records.STEPS, "evaluations/last-test.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def points(folder: Path) -> list[dict[str, float]]:
    """The points of log.csv."""
    names = {"step": "step", "epoch": "epoch", "loss": "train/loss", "lr": "train/lr", "val_loss": "val/loss"}
    return [{names[key]: float(value) for key, value in row.items() if value} for row in rows(folder / loggers.CSV)]


# csv --------------------------------------------------------------------------------------------


def test_csv_rows_are_means_of_the_steps_and_the_epochs_losses(with_csv: Path):
    content = (with_csv / "log.csv").read_text()
    assert content.startswith("step,epoch,loss,lr,val_loss\n") and content.endswith("\n") and "\r" not in content
    found, steps = rows(with_csv / "log.csv"), rows(with_csv / "steps.csv")
    assert [int(row["step"]) for row in found] == sorted([*LOGGED, 10, 20])
    losses = [row for row in found if row["loss"]]
    assert [int(row["step"]) for row in losses] == LOGGED
    for row in losses:
        step = int(row["step"])
        mean = statistics.fmean(float(one["loss"]) for one in steps[(step - 1) // 3 * 3 : step])
        # Float32's mean of three float32's, which steps.csv has in full.
        assert float(row["loss"]) == pytest.approx(mean, rel=1e-7)
        assert row["lr"] == steps[step - 1]["lr"]
        assert row["epoch"] == row["val_loss"] == ""
    record = records.finished(with_csv)
    assert [row for row in found if row["val_loss"]] == [
        {"step": str(e["step"]), "epoch": str(e["epoch"]), "loss": "", "lr": "", "val_loss": f"{e['val_loss']:.9g}"}
        for e in record.training["epochs"]
    ]


def test_no_logger_leaves_no_file(plain: Path, with_csv: Path):
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*")}

    assert files(with_csv) - files(plain) == {"log.csv"}
    assert not files(plain) - files(with_csv)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "start"), [(signal.SIGTERM, 16), (signal.SIGKILL, 10)])
def test_an_interrupted_log_ends_as_the_same_bytes(number: int, start: int, place: Place, with_csv: Path):
    """Killed after step 15, the last checkpoint is that of step 10; told to stop there, that of the step after it."""
    ended = place.job(["logger=csv"], patches={"signal_at": [15, number]})
    assert ended.code == (-number if number == signal.SIGKILL else 128 + number), ended.err
    assert [int(row["step"]) for row in rows(place.run / "log.csv")] == [3, 6, 9, 10, 12, 15]
    with (place.run / "log.csv").open("a") as file:
        file.write("18,,5.6")  # torn by a machine that went down
    folder = place.done("logger=csv")
    assert [s["from_step"] for s in records.finished(folder).training["stretches"]] == [0, start]
    assert (folder / "log.csv").read_bytes() == (with_csv / "log.csv").read_bytes()


@pytest.mark.slow
def test_where_nothing_trains_there_is_one_row(place: Place):
    words = [text for text in place.command("logger=csv") if not text.startswith("method.")]
    ended = place.job([*words, "method=one-shot"], whole=True)
    assert ended.code == 0, ended.err
    folder = place.run
    (epoch,) = records.finished(folder).training["epochs"]
    assert (folder / "log.csv").read_text() == f"step,epoch,loss,lr,val_loss\n0,0,,,{epoch['val_loss']:.9g}\n"


@pytest.mark.slow
def test_of_two_processes_the_first_logs(place: Place):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(__file__, *place.command("logger=csv")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert records.finished(place.run).provenance["processes"] == 2
    found, steps = rows(place.run / "log.csv"), rows(place.run / "steps.csv")
    assert [int(row["step"]) for row in found] == sorted([*LOGGED, 10, 20])
    for row in found:
        if row["loss"]:
            step = int(row["step"])
            mean = statistics.fmean(float(one["loss"]) for one in steps[(step - 1) // 3 * 3 : step])
            assert float(row["loss"]) == pytest.approx(mean, rel=1e-6)


# identity ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_is_found_with_another_logger(place: Place, plain: Path):
    """Without its settings being looked at: there is no server here."""
    before = (plain / "record.json").stat().st_mtime_ns
    root = f"results.root={plain.parent.parent}"
    ended = place.job(
        [root, "logger=csv", "logger.every=7"], [root, "logger=wandb", "logger.mode=online"], env=NO_SERVER
    )
    assert (ended.codes, ended.faults) == ([0, 0], [])
    assert ended.told == [f"{plain.name} is finished already"] * 2
    assert (plain / "record.json").stat().st_mtime_ns == before
    assert not (plain / "log.csv").exists() and not (plain / "wandb-id").exists()


@pytest.mark.slow
def test_a_record_without_the_section_is_found_and_decoded_again(place: Place, plain: Path):
    """As those that came before loggers."""
    copy = place.root / "runs" / plain.name
    subprocess.run(["cp", "-r", plain.parent.parent, place.root], check=True)
    tree = json.loads((copy / "record.json").read_text())
    del tree["config"]["logger"]
    (copy / "record.json").write_text(json.dumps(tree))
    ended = place.job(place.command("logger=csv"), ["decode", str(copy), "decode.beam=1"], whole=True)
    assert ended.codes == [0, 0], ended.err
    assert f"{plain.name} is finished already" in ended.told
    assert len(records.finished(copy).evaluations) == 2 * len(records.finished(plain).evaluations)


@pytest.mark.slow
def test_a_tables_runs_may_be_logged(place: Place, plain: Path):
    table = place.folder / "mine.yaml"
    of_cell = [text for text in [*place.settings, *QUICK] if not text.startswith(("model.path", "logger"))]
    table.write_text(
        "title: Ours\nsource: Nowhere\ncolumns: {val_loss: nats}\nseeds: [1]\n"
        f"cell: [{', '.join(of_cell)}]\ngroups: [{{title: A, rows: [{{label: LoRA, cell: []}}]}}]\n"
    )
    (path,) = [text for text in place.settings if text.startswith("model.path")]
    words = ["table", str(table), path, f"results.root={place.root}", "logger=csv", "logger.every=3", "--run"]
    ended = place.job(words, whole=True)
    assert ended.code == 0, ended.err
    assert place.run.name == plain.name
    assert len(rows(place.run / "log.csv")) == len(LOGGED) + 2


# Weights & Biases, offline ----------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What an offline folder holds."""

    folder: Path
    run: Any
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int | None
    preempting: bool

    @property
    def curves(self) -> list[dict[str, float]]:
        """Points without what the package adds."""
        found = [{key: value for key, value in row.items() if not key.startswith("_")} for row in self.history]
        return [row for row in found if "step" in row]

    @property
    def steps(self) -> list[int]:
        return [int(row["step"]) for row in self.curves if "train/loss" in row]

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        return {
            key: json.loads((self.folder / "files" / value["path"]).read_text())
            for row in self.history
            for key, value in row.items()
            if isinstance(value, dict) and value.get("_type") == "table-file"
        }


def read_log(path: Path) -> Iterator[Any]:
    """The records of a transaction log, to its end or a torn one (the format is LevelDB's log's)."""
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content = path.read_bytes()
    assert struct.unpack("<4sHB", content[:7])[:2] == (b":W&B", 0xBEE1)
    at, part = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])  # kinds: 1 whole, 2 first, 3 middle, 4 last
        data = content[at + 7 : at + 7 + length]
        if kind == 0 or len(data) < length:
            return
        at += 7 + length
        part = data if kind in (1, 2) else part + data
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(part)
            yield record


def items_of(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        node = found
        for key in path:
            node = node.setdefault(key, {})
        node[last] = json.loads(item.value_json)
    return found


def seen(folder: Path) -> Seen:
    (path,) = folder.glob("*.wandb")
    run, exit_code, preempting = None, None, False
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in read_log(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = run or record.run
            config |= items_of(record.run.config.update)
        elif kind == "config":
            config |= items_of(record.config.update)
        elif kind == "history":
            history.append(items_of(record.history.item))
        elif kind == "summary":
            summary |= items_of(record.summary.update)
        elif kind == "exit":
            exit_code = record.exit.exit_code
        preempting |= kind == "preempting"
    return Seen(folder, run, config, history, summary, exit_code, preempting)


def all_seen(folder: Path) -> list[Seen]:
    return [seen(path) for path in sorted(folder.glob("wandb/offline-run-*"))]


@needs_wandb
def test_a_run_is_shown_whole(with_wandb: tuple[list[Path], Ended], with_csv: Path):
    (folder, _), ended = with_wandb
    assert ended.code == 0, ended.err
    (one,) = all_seen(folder)
    assert ended.faults == [] and "wandb" not in ended.out
    assert [line for line in ended.told if "andb" in line or "W&B" in line] == [
        f"Weights & Biases: offline in {seen_.folder}/files; `wandb sync` sends it"
        for path in with_wandb[0]
        for seen_ in all_seen(path)
    ]
    record = records.finished(folder)
    assert one.run.display_name == folder.name
    assert (one.run.project, one.run.run_group, list(one.run.tags)) == ("figures", "nano", ["a", "b c"])
    assert one.run.run_id == (folder / "wandb-id").read_text().strip()
    described = compose.without_places(record.config)
    assert {key: one.config[key] for key in described} == described
    assert one.config["provenance"] == record.provenance and one.config["parameters"] == record.parameters
    assert [{k: pytest.approx(v, rel=1e-8) for k, v in row.items()} for row in points(with_csv)] == one.curves
    assert (one.exit_code, one.preempting) == (0, False)

    scores = {
        f"test/{evaluation.checkpoint}/{key}": score.value
        for evaluation in record.evaluations
        for key, score in evaluation.scores.items()
    }
    assert len(scores) >= 10
    assert {key: value for key, value in one.summary.items() if key.startswith("test/")} == scores
    ((name, table),) = one.tables.items()
    assert name == "hypotheses/last-test"
    decoded = records.read_decoded(folder / record.evaluations[0].hypotheses)
    values = json.loads((folder / "evaluations" / "last-test.values.json").read_text())["values"]
    assert table["columns"] == ["segment", "subset", "context", "references", "hypothesis", "finished", *values]
    assert [*values] == [*COUNTED]
    assert table["data"] == [
        [i + 1, d.subset, d.context, "\n".join(d.references), d.hypothesis, d.finished, *figures]
        for i, (d, *figures) in enumerate(zip(decoded, *values.values(), strict=True))
    ]


@needs_wandb
def test_loggers_change_no_number(plain: Path, with_csv: Path, with_wandb: tuple[list[Path], Ended]):
    folders = [plain, with_csv, with_wandb[0][0]]
    assert {folder.name for folder in folders} == {plain.name}
    assert all(numbers(folder) == numbers(plain) for folder in folders[1:])
    found = [records.finished(folder) for folder in folders]
    assert all(record.evaluations == found[0].evaluations for record in found[1:])
    assert all(record.identity == found[0].identity for record in found[1:])


@needs_wandb
def test_two_runs_of_one_process_are_apart(with_wandb: tuple[list[Path], Ended]):
    """And everything of the interpreter's is in its place after them."""
    folders, ended = with_wandb
    assert ended.codes == [0, 0] and ended.hooks_kept
    one, two = (found for folder in folders for found in all_seen(folder))
    assert one.run.run_id != two.run.run_id
    assert (one.config["seed"], two.config["seed"]) == (1, 2)
    assert one.steps == two.steps == LOGGED
    assert one.curves != two.curves
    # By default those runs are a group that differ in the seed.
    assert (two.run.project, two.run.run_group, list(two.run.tags)) == ("lodarepro", "mini_gpt2-nano_lora-r2_lora", [])


@needs_wandb
@pytest.mark.slow
@pytest.mark.parametrize(("number", "start"), [(signal.SIGTERM, 16), (signal.SIGKILL, 10)])
def test_an_interrupted_run_goes_on_as_the_same_one(number: int, start: int, place: Place, with_wandb, plain: Path):
    ended = place.job(OFFLINE, patches={"signal_at": [15, number]})
    assert ended.code == (-number if number == signal.SIGKILL else 128 + number), ended.err
    (first,) = all_seen(place.run)
    assert first.steps == [3, 6, 9, 12, 15]
    if number == signal.SIGTERM:
        assert (first.exit_code, first.preempting) == (128 + number, True)
    folder = place.done("logger=wandb", env={"WANDB_MODE": "offline"})
    assert compose.from_plain(records.finished(folder).config).logger.mode is None
    first, second = all_seen(folder)
    assert first.run.run_id == second.run.run_id == (folder / "wandb-id").read_text().strip()
    assert second.steps == [step for step in LOGGED if step > start]
    assert (second.exit_code, second.preempting) == (0, False)
    (whole,) = all_seen(with_wandb[0][0])
    union = {tuple(sorted(row.items())) for one in (first, second) for row in one.curves}
    assert union == {tuple(sorted(row.items())) for row in whole.curves}
    assert numbers(folder) == numbers(plain)


@needs_wandb
@pytest.mark.slow
def test_a_failed_run_is_shown_as_one(place: Place):
    ended = place.job([*OFFLINE, "train.lr=1e30"])
    assert ended.code == 1
    (fault,) = ended.faults
    assert "training diverged" in fault
    (one,) = all_seen(place.run)
    assert (one.exit_code, one.preempting) == (1, False)


@needs_wandb
@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ({"raising": []}, "the server is gone"),
        ({"core_killed_at": [6]}, "Connection lost"),
    ],
    ids=["its own error", "its process killed"],
)
def test_a_logger_that_fails_costs_one_warning(patch: dict[str, list[Any]], reason: str, place: Place, plain: Path):
    ended = place.job(OFFLINE, patches=patch)
    assert ended.code == 0, ended.err
    assert ended.faults == []
    (warning,) = [line for line in ended.told if "logger=wandb" in line]
    assert re.fullmatch(f"logger=wandb: {reason}; the run goes on without", warning)
    assert numbers(place.run) == numbers(plain)
    assert records.finished(place.run).evaluations == records.finished(plain).evaluations


# Weights & Biases, online -----------------------------------------------------------------------


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that answers everything with one status."""

    def __init__(self, status: int, *arguments: Any) -> None:
        self._status = status
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self._status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


WAYS_OUT = r"give logger\.mode=offline \(`wandb sync` sends it later\) or logger=csv"


@needs_wandb
@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "environment", "expected"),
    [
        (
            200,
            {},
            rf"no API key for http://127\.0\.0\.1:\d+; run `wandb login`, set WANDB_API_KEY, or {WAYS_OUT}",
        ),
        (200, {"WANDB_API_KEY": "short"}, rf"[^;]+; run `wandb login`, or {WAYS_OUT}"),
        (401, {"WANDB_API_KEY": KEY}, rf"the run can't be begun there \(.+\); {WAYS_OUT}"),
        (501, {"WANDB_API_KEY": KEY}, rf"the run can't be begun there \(.+\); {WAYS_OUT}"),
    ],
    ids=["no key", "malformed key", "refused", "not implemented"],
)
def test_what_keeps_it_from_working_is_said_at_once(
    status: int, environment: dict[str, str], expected: str, place: Place
):
    with serving(partial(Refusing, status)) as url:
        ended = place.job(["logger=wandb"], env={"WANDB_BASE_URL": url, **environment})
    assert ended.code == 2, ended.err
    assert ended.seconds < 12
    (fault,) = ended.faults
    assert re.fullmatch(f"lodarepro: logger=wandb: {expected}", fault)
    assert not list((place.root / "runs").glob("*/failure.json"))


@needs_wandb
@pytest.mark.slow
def test_without_a_server_it_is_said_and_the_same_command_works_offline(place: Place):
    ended = place.job(["logger=wandb"], OFFLINE, env=NO_SERVER)
    assert ended.codes == [2, 0], ended.err
    (fault,) = ended.faults
    expected = rf"the server gives no answer \(127\.0\.0\.1: Connection refused\); {WAYS_OUT}"
    assert re.fullmatch(f"lodarepro: logger=wandb: {expected}", fault)
    (one,) = all_seen(place.run)
    assert (one.steps, one.exit_code) == (LOGGED, 0)


@needs_wandb
@pytest.mark.slow
@pytest.mark.parametrize(
    ("commands", "environment"),
    [
        ([[*OFFLINE, "logger.tags=['']"], [*OFFLINE, f"logger.tags=[{'x' * 65}]"]], {}),
        ([["logger=wandb"]], {"WANDB_MODE": "offlin"}),
        ([["logger=wandb"]], {"WANDB_BASE_URL": "wandb.example.org"}),
    ],
    ids=["tags", "mode", "server"],
)
def test_what_the_package_refuses_is_bad_input(commands: list[list[str]], environment: dict[str, str], place: Place):
    ended = place.job(*commands, env=environment)
    assert ended.codes == [2] * len(commands), ended.err
    assert len(ended.faults) == len(commands)
    assert all(re.match("lodarepro: (logger|WANDB)", fault) for fault in ended.faults)
    assert not list((place.root / "runs").glob("*/failure.json"))


@pytest.mark.slow
def test_a_missing_package_is_one_line(place: Place):
    ended = place.job(OFFLINE, patches={"lacking": []})
    assert ended.code == 2
    assert ended.faults == [
        "lodarepro: logger=wandb: the package wandb is not installed; pip install 'lodarepro[wandb]', or give "
        "logger=csv"
    ]
    assert not list((place.root / "runs").glob("*/failure.json"))
