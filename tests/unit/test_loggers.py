"""Loggers apart from whole runs: what of a training they are told, files that are damaged, settings and identity, and
Weights & Biases by a stand-in for its package.

(The package itself, and kills of whole runs: tests/integration/test_logged_runs.py.)
"""

import http.server
import logging
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lodarepro import compose, config, loggers, records, tables
from lodarepro.archive import Archive
from lodarepro.cli import main
from lodarepro.errors import BadInput, RunFailed, Stopped
from lodarepro.methods import attach
from lodarepro.model import GPT2, Sizes
from lodarepro.network import unreachable
from lodarepro.records import Decoded, Evaluation, Record
from lodarepro.scores import Score
from lodarepro.train import loop
from lodarepro.train.checkpoint import Progress
from lodarepro.train.optim import learning_rate
from tests.pairs import pairs

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "results" / "mini"
HEADER = "step,epoch,loss,lr,val_loss\n"


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of commands that other tests ran write to what was stderr then."""
    monkeypatch.setattr(logging.getLogger("lodarepro"), "handlers", [])


# a training -------------------------------------------------------------------------------------

SETTINGS = config.Train(epochs=3, batch_size=4, lr=1e-2, warmup_steps=2, accumulate=2, keep=("last",))
"""14 pairs: 4 steps an epoch"""


DATA, VALID = pairs(14, 0), pairs(7, 1)


def trained(log: loggers.Log, settings: config.Train = SETTINGS, *, method: Any = None, **options: Any) -> Progress:
    net = GPT2(Sizes(n_layer=1, n_head=2, n_embd=16, vocab_size=60, n_positions=48))
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, method or config.Lora(rank=2, dropout=0.0), torch.Generator().manual_seed(1))
    protocol = config.Protocol("x", max_length=48)
    return loop.train(net, DATA, VALID, settings, protocol=protocol, seed=3, log=log, **options)


def csv_log(folder: Path, every: int = 5) -> loggers.Log:
    with loggers.opened(config.Logger(name="csv", every=every), folder, {}) as log:
        return log


def content(folder: Path) -> str:
    return (folder / loggers.CSV).read_text()


@pytest.mark.parametrize("every", [1, 4, 5, 12, 13])
@pytest.mark.parametrize(
    ("accumulate", "micro_batch"), [(1, None), (2, 1), (3, 3)], ids=["plain", "accumulated", "in pieces"]
)
def test_rows_are_means_whatever_a_step_is_made_of(
    every: int, accumulate: int, micro_batch: int | None, tmp_path: Path
):
    settings = replace(SETTINGS, accumulate=accumulate)
    progress = trained(csv_log(tmp_path, every), settings, runtime=config.Runtime(micro_batch=micro_batch))
    expected = [
        (end, f"{end},,{float(progress.losses[start:end].mean()):.9g},{rate:.9g},\n")
        for start in range(0, 12, every)
        for end in [min(start + every, 12)]  # the last row is of what is left
        for rate in [learning_rate(settings, end - 1, 12)]
    ]
    epochs = [(e["step"], f"{e['step']},{e['epoch']},,,{e['val_loss']:.9g}\n") for e in progress.epochs]
    # A loss stands before the validation loss of the same step.
    assert content(tmp_path) == HEADER + "".join(line for _, line in sorted(expected + epochs, key=lambda row: row[0]))


def test_steps_that_are_looked_at_rarely_are_logged_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU, which is not waited for after each step."""
    (tmp_path / "often").mkdir()
    (tmp_path / "rarely").mkdir()
    trained(csv_log(tmp_path / "often", 3))
    monkeypatch.setattr(loop._Watch, "due", lambda self, whole_update: False)  # at the ends of epochs alone
    trained(csv_log(tmp_path / "rarely", 3))
    often, rarely = (content(tmp_path / name).splitlines() for name in ("often", "rarely"))
    assert len(often) == 1 + 4 + 3
    assert rarely == often


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_training_that_is_stopped_anywhere_ends_in_the_same_log(stop: int, tmp_path: Path):
    (tmp_path / "whole").mkdir()
    trained(csv_log(tmp_path / "whole"))
    asked = iter(range(1, 100))
    path = tmp_path / "c.safetensors"
    with pytest.raises(Stopped):
        trained(csv_log(tmp_path), checkpoint_path=path, stop_signal=lambda: 15 if next(asked) >= stop else None)
    trained(csv_log(tmp_path), checkpoint_path=path)
    assert content(tmp_path) == content(tmp_path / "whole")


@pytest.mark.parametrize("before", [None, HEADER, HEADER + "0,0,,,5.5\n"], ids=["new", "killed before it", "and after"])
def test_nothing_that_trains_is_one_row(before: str | None, tmp_path: Path):
    if before is not None:
        (tmp_path / loggers.CSV).write_text(before)
    progress = trained(csv_log(tmp_path), method=config.OneShot())
    assert content(tmp_path) == HEADER + f"0,0,,,{progress.epochs[0]['val_loss']:.9g}\n"


def test_no_logger_is_told_nothing(tmp_path: Path):
    with loggers.opened(config.Logger(), tmp_path, {}) as log:
        trained(log)
    assert log is loggers.NOTHING and log.every is None
    assert not list(tmp_path.iterdir())


# damaged files ----------------------------------------------------------------------------------

GOOD = "5,,5.5,0.01,\n8,2,,,5.25\n10,,5.125,0.005,\n"


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ("", GOOD),
        ("15,,5.", GOOD),
        ("15", GOOD),
        ("15,,5.1,0.001,\n16,4,,,", GOOD),
        ("1", GOOD),  # of 15
        ("\0\0\0\0", GOOD),
        ("nonsense\n", GOOD),
    ],
)
def test_a_torn_end_is_left_out(after: str, kept: str, tmp_path: Path):
    """Of the steps that are done again, and what is no row."""
    (tmp_path / loggers.CSV).write_text(HEADER + GOOD + after)
    csv_log(tmp_path).begin(12)
    assert content(tmp_path) == HEADER + kept


def test_a_torn_row_of_the_checkpoints_own_step_does_not_pass_for_one(tmp_path: Path):
    (tmp_path / loggers.CSV).write_text(HEADER + GOOD + "12,3,,,5.")
    csv_log(tmp_path).begin(12)
    assert "5.\n" not in content(tmp_path)


@pytest.mark.parametrize(
    "damaged", [b"", b"\xff\xfe\x00", b"\0" * 100, b"a,b\n1,2\n", b'"' * 7, b"x" * 200_000, b"step\n\n,\n"]
)
def test_a_damaged_file_is_begun_anew(damaged: bytes, tmp_path: Path):
    (tmp_path / loggers.CSV).write_bytes(damaged)
    log = csv_log(tmp_path)
    log.begin(8)
    assert content(tmp_path) == HEADER
    log.row({"step": 10, "loss": 0.1 + 0.2, "lr": 1e-5})
    assert content(tmp_path) == HEADER + "10,,0.3,1e-05,\n"


# settings and identity --------------------------------------------------------------------------

CELL = ["model=gpt2-nano", "dataset=mini", "method=lora"]
CHECKSUMS = {"train": "1" * 64, "valid": "2" * 64, "test": "3" * 64, "model": "4" * 64, "tokenizer": "5" * 64}
WANDB = ["logger=wandb", "logger.every=3", "logger.project=p", "logger.entity=e", "logger.group=g", "logger.tags=[a,b]"]


def run_of(*overrides: str) -> config.Run:
    (cell,) = compose.cells([*CELL, *overrides])
    return cell.run


def test_a_logger_is_no_part_of_a_runs_identity():
    runs = [
        run_of(),
        run_of("logger=csv"),
        run_of("logger=csv", "logger.every=1"),
        run_of(*WANDB, "logger.mode=offline"),
    ]
    assert [run.logger.name for run in runs] == ["none", "csv", "csv", "wandb"]
    assert runs[3].logger == config.Logger("wandb", 3, "p", "e", "g", ("a", "b"), "offline")
    assert len({compose.run_id(run, CHECKSUMS) for run in runs}) == 1
    assert "logger" not in compose.identity(runs[1], CHECKSUMS)
    for run in runs:
        assert compose.from_plain(compose.plain(run)) == run


def test_records_that_came_before_loggers_are_read_and_found(tmp_path: Path):
    kept = [records.finished(folder) for folder in records.runs(KEPT)]
    assert kept
    before = [replace(record, config={k: v for k, v in record.config.items() if k != "logger"}) for record in kept]
    for record in before:
        folder = tmp_path / records.RUNS / record.id
        folder.mkdir(parents=True)
        records.write(folder, record)
    archive = Archive(tmp_path)
    for record in before:
        run = compose.from_plain(record.config)
        assert run.logger == config.Logger()
        assert compose.run_id(run, record.identity["checksums"]) == record.id
        logged = replace(run, logger=config.Logger(name="wandb", tags=("new",)))
        assert [found.record.id for found in archive.find(logged)] == [record.id]
        assert compose.changed(run, ["decode.beam=3"]).decode.beam == 3


def test_a_recorded_logger_does_not_hide_a_run(tmp_path: Path):
    (folder, *_) = records.runs(KEPT)
    record = records.finished(folder)
    (tmp_path / records.RUNS / record.id).mkdir(parents=True)
    logger = compose.plain(run_of(*WANDB))["logger"]
    records.write(tmp_path / records.RUNS / record.id, replace(record, config={**record.config, "logger": logger}))
    assert len(Archive(tmp_path).find(compose.from_plain(record.config))) == 1


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("logger=wandbb", "logger=wandbb: no such logger; did you mean 'wandb'? (valid: csv, none, wandb)"),
        ("logger.every=0", "logger.every=0: "),
        ("logger.every=1.5", "logger.every=1.5: "),
        ("logger.mode=x", "logger.mode=x: "),
        ("logger.name=tensorboard", "logger.name=tensorboard: "),
        ("logger.project=a/b", "logger.project=a/b: "),
        ("logger.tags=a", "logger.tags=a: "),
        ("logger.evry=3", "logger.evry=3: no such key 'evry' in 'logger'; did you mean 'every'?"),
    ],
)
def test_unfit_settings_are_one_line(override: str, fault: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", *CELL, override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lodarepro: {fault}")
    assert len(line) > len(f"lodarepro: {fault}") or line.endswith(")")


def test_the_group_is_shown_and_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["run", *CELL, "logger=csv", "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    settings = ("name: csv", "every: 10", "project: lodarepro", "entity: null", "group: null", "tags: []", "mode: null")
    assert "\n  ".join(["logger:", *settings]) in shown
    main(["run", "--help"])
    assert "  logger=csv|none|wandb\n" in capsys.readouterr().out


def test_a_table_takes_a_logger_for_all_its_runs_and_for_none_of_its_cells(tmp_path: Path):
    places = ["logger=csv", "logger.every=2"]
    table = tables.read("mini", places=places)
    runs = [row.run for group in table.groups for row in group.rows]
    assert runs and {run.logger for run in runs} == {config.Logger("csv", 2)}
    own = tmp_path / "own.yaml"
    for override in ("logger=csv", "logger.every=2"):
        own.write_text(
            "title: Ours\nsource: us\ncolumns: {bleu: percent}\nseeds: [1]\n"
            f"cell: [{', '.join(CELL)}]\ngroups: [{{title: G, rows: [{{label: A, cell: [{override}]}}]}}]\n"
        )
        with pytest.raises(BadInput, match="is no part of a cell; give it on the command line") as e:
            tables.read(str(own))
        assert len(e.value.faults) == 1 and f"cell: {override}: " in e.value.faults[0]


# Weights & Biases, by a stand-in ----------------------------------------------------------------


class Failing(Exception):
    """What the stand-in's errors derive from."""


class Run:
    """A run that notes what it is told."""

    url = "https://example.org/run"
    dir = "nowhere"

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.ended: list[Any] = []
        self.fault: Exception | None = None

    def define_metric(self, name: str, **_: Any) -> None: ...

    def log(self, values: dict[str, Any]) -> None:
        if self.fault:
            raise self.fault
        self.logged.append(values)

    def mark_preempting(self) -> None:
        self.ended.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The stand-in: its runs, what they began with, and what beginning raises."""
    module: Any = ModuleType("wandb")
    seen = SimpleNamespace(begun=[], runs=[], fault=None, module=module, hook=None)

    def init(**options: Any) -> Run:
        sys.excepthook = sys.exit = lambda *_: None  # type: ignore[assignment]
        if seen.fault:
            raise seen.fault
        seen.begun.append(options)
        seen.runs.append(Run())
        return seen.runs[-1]

    module.Error, module.init = Failing, init
    module.Settings = lambda **options: options
    module.Table = lambda columns, data: {"columns": columns, "data": data}
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL", "WANDB_MODE"):
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "exit", sys.exit)
    return seen


SHOWN = config.Logger("wandb", 2, mode="offline")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "mini_gpt2-nano_lora-r2_lora_s1_0123456789ab"
    place.mkdir()
    return place


def test_a_run_begins_with_its_names_and_leaves_the_interpreters_hooks(package: SimpleNamespace, folder: Path):
    before = sys.excepthook, sys.exit
    with loggers.opened(SHOWN, folder, {"seed": 1}) as log:
        assert (sys.excepthook, sys.exit) == before
        trained(log)
    (begun,) = package.begun
    assert begun["group"] == "mini_gpt2-nano_lora-r2_lora" and begun["name"] == folder.name
    assert (begun["mode"], begun["config"], begun["dir"]) == ("offline", {"seed": 1}, folder)
    assert package.runs[0].ended == [0]
    assert [row["step"] for row in package.runs[0].logged if "train/loss" in row] == [2, 4, 6, 8, 10, 12]
    assert [row["epoch"] for row in package.runs[0].logged if "val/loss" in row] == [1, 2, 3]


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe", b"two words\n", b"../../x\n", b"a" * 300 + b"\n"])
def test_a_runs_id_is_kept_and_a_damaged_one_drawn_anew(damaged: bytes, package: SimpleNamespace, folder: Path):
    for _ in range(2):
        with loggers.opened(SHOWN, folder, {}):
            pass
    first = package.begun[0]["id"]
    assert package.begun[1]["id"] == first and len(first) == 16
    (folder / loggers.WANDB_ID).write_bytes(damaged)
    for _ in range(2):
        with loggers.opened(SHOWN, folder, {}):
            pass
    assert package.begun[2]["id"] not in (first, damaged.decode(errors="replace").strip())
    assert package.begun[2]["id"] == package.begun[3]["id"]


@pytest.mark.parametrize(
    ("fault", "ended"),
    [
        (RunFailed("diverged"), [1]),
        (BadInput("unfit"), [2]),
        (Stopped("stopped", 15), ["preempting", 143]),
        (Stopped("time is up", 14), ["preempting", 142]),
        (ValueError("unforeseen"), [1]),
        (KeyboardInterrupt(), [1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_run_ends_is_told(fault: BaseException, ended: list[Any], package: SimpleNamespace, folder: Path):
    with pytest.raises(type(fault)), loggers.opened(SHOWN, folder, {}):
        raise fault
    assert package.runs[0].ended == ended


class Abandoned(Exception):
    """As the package's HandleAbandonedError, MailboxClosedError, ServerResponseError: none derives from wandb.Error."""


@pytest.mark.parametrize(
    "fault", [Failing("gone\nfar"), ConnectionResetError("gone"), OSError(28, "gone"), Abandoned("gone")]
)
def test_what_fails_later_is_one_warning(
    fault: Exception, package: SimpleNamespace, folder: Path, log: pytest.LogCaptureFixture
):
    log.clear()
    with loggers.opened(SHOWN, folder, {}) as shown:
        shown.row({"step": 2, "loss": 1.0})
        package.runs[0].fault = fault
        progress = trained(shown)
        assert shown.every is None
    assert progress.step == 12
    (warning,) = [r.getMessage() for r in log.records if r.levelname == "WARNING" and r.name == "lodarepro.loggers"]
    assert warning.startswith("logger=wandb: ") and warning.endswith("gone; the run goes on without")
    assert package.runs[0].logged == [{"step": 2, "train/loss": 1.0}]


@pytest.mark.parametrize("fault", [Failing("no\nmore"), OSError("no"), Failing()])
def test_a_run_that_cannot_be_begun_is_one_line(fault: Exception, package: SimpleNamespace, folder: Path):
    package.fault, before = fault, (sys.excepthook, sys.exit)
    said = "Failing" if not str(fault) else "no"
    with pytest.raises(BadInput) as e, loggers.opened(SHOWN, folder, {}):
        pass
    assert e.value.faults == (
        f"logger=wandb: the run can't be begun there ({said}); give logger.mode=offline (`wandb sync` sends it later) "
        "or logger=csv",
    )
    assert (sys.excepthook, sys.exit) == before


def scored(record: Record) -> loggers.ValuesOf:
    values: dict[str, dict[str, list[float]]] = {e.hypotheses: {"meteor": [0.1, 0.2, 0.3]} for e in record.evaluations}
    return lambda file: values[file]


def test_a_record_is_shown_by_checkpoint_and_subset(package: SimpleNamespace, folder: Path):
    """Of WebNLG's form; `last` is an epoch of its own."""
    decoded = [Decoded(f"c{i}", ("r", "s"), f"h{i}", s, -1.0, i == 1) for i, s in enumerate(["seen", "unseen", "seen"])]
    evaluations = []
    for number, name in enumerate(("last", "best")):
        records.write_decoded(folder / f"evaluations/{name}-test.jsonl", decoded)
        for add, subset in enumerate(("all", "seen", "unseen")):
            score = Score("bleu", number + add / 10, "fraction", True, "x")
            evaluations.append(
                Evaluation(name, {}, "test", subset, f"evaluations/{name}-test.jsonl", 3, {"bleu": score}, 1.0)
            )
    record = Record("id", {}, {}, {"code": "here"}, {"total": 3}, {}, tuple(evaluations))
    with loggers.opened(SHOWN, folder, {}) as log:
        log.record(record, scored(record))
    (run,) = package.runs
    assert run.config == {"provenance": {"code": "here"}, "parameters": {"total": 3}}
    assert run.summary == {
        "test/last/bleu": 0,
        "test/last/seen/bleu": 0.1,
        "test/last/unseen/bleu": 0.2,
        "test/best/bleu": 1,
        "test/best/seen/bleu": 1.1,
        "test/best/unseen/bleu": 1.2,
    }
    assert [[*row] for row in run.logged] == [["hypotheses/last-test"], ["hypotheses/best-test"]]
    table = run.logged[0]["hypotheses/last-test"]
    assert table["columns"] == ["segment", "subset", "context", "references", "hypothesis", "finished", "meteor"]
    assert table["data"] == [
        [1, "seen", "c0", "r\ns", "h0", False, 0.1],
        [2, "unseen", "c1", "r\ns", "h1", True, 0.2],
        [3, "seen", "c2", "r\ns", "h2", False, 0.3],
    ]


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        (None, None, "online"),
        (None, "offline", "offline"),
        (None, "disabled", "disabled"),
        ("online", "offline", "online"),
    ],
)
def test_the_mode_is_the_settings_else_the_environments(
    mode: Any, environment: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert loggers._mode(config.Logger("wandb", mode=mode)) == expected


@pytest.mark.parametrize("name", ["none", "csv"])
def test_other_loggers_need_no_package(name: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    loggers.check(config.Logger(name))


def test_a_missing_package_names_the_ways_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match=r"pip install 'lodarepro\[wandb\]', or give logger=csv$"):
        loggers.check(SHOWN)


# whether a server answers -----------------------------------------------------------------------


class Teapot(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(418)

    def log_message(self, format: str, *arguments: Any) -> None: ...


def test_any_answer_is_one():
    with http.server.HTTPServer(("127.0.0.1", 0), Teapot) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert unreachable(f"http://127.0.0.1:{server.server_port}/x") is None
        thread.join()


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:9/a", "127.0.0.1: Connection refused"), ("nonsense", "nonsense: unknown url type: 'nonsense'")],
)
def test_no_answer_has_a_reason(url: str, reason: str):
    assert unreachable(url) == reason
