"""How far a sweep is: the counts, the time that is left, the live table, the lines in a log, the files behind them."""

import io
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lodarepro.launch import progress, shown
from lodarepro.launch.progress import counted, left, live_table
from lodarepro.launch.status import FILE, State, Status, clear_statuses, read_statuses, write_status
from lodarepro.report.summary import duration

NOW = 10_000.0


def cell(state: State, *overrides: str, ago: float = 0, took: float = 0, found: bool = False) -> Status:
    """A status of a job that started some seconds ago."""
    return Status(overrides, state, 0, started=NOW - ago, seconds=took, found=found)


# counts and times -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "total", "text"),
    [
        ([], 5, "cells: 0 of 5 done"),
        ([], None, "cells: 0 of 0 done"),
        (["finished"], None, "cells: 1 of 1 done"),
        (["running", "finished", "running"], 9, "cells: 1 of 9 done, 2 at work"),
        (["finished", "failed", "failed"], 3, "cells: 1 of 3 done, 2 failed"),
        (
            ["busy", "stopped", "failed", "running", "finished"],
            6,
            "cells: 1 of 6 done, 1 at work, 1 failed, 1 stopped, 1 elsewhere",
        ),
    ],
)
def test_cells_are_counted_by_state(states: list[State], total: int | None, text: str):
    assert counted([cell(state, f"seed={i}") for i, state in enumerate(states)], total) == text


def test_what_was_done_before_is_told_apart():
    found = [cell("finished", "seed=1", found=True), cell("finished", "seed=2"), cell("running", "seed=3")]
    assert counted(found, 4) == "cells: 2 of 4 done (1 before), 1 at work"


def test_the_rest_takes_as_long_as_what_was_done():
    """Two ended after 60 s and 140 s, 100 s on average; two at work; six not started, three for each of the two.

    The slower of those at work has 90 s to go.
    """
    found = [
        cell("finished", "seed=1", took=60),
        cell("failed", "seed=2", took=140),
        cell("running", "seed=3", ago=10),
        cell("running", "seed=4", ago=50),
    ]
    assert left(found, 10, now=NOW) == f"; about {duration(3 * 100 + 90)} left" == "; about 6 min left"


def test_what_takes_longer_than_usual_is_about_to_end():
    found = [cell("finished", "seed=1", took=60), cell("running", "seed=2", ago=500)]
    assert left(found, 2, now=NOW) == "; about 0 s left"


def test_what_was_found_or_ended_otherwise_says_nothing_of_the_time():
    usual = [cell("finished", "seed=1", took=40), cell("running", "seed=2", ago=0)]
    others = [
        cell("finished", "seed=3", took=9000, found=True),
        cell("stopped", "seed=4", took=9000),
        cell("busy", "seed=5", took=9000),
        cell("finished", "seed=6", took=0),
    ]
    assert left(usual, 2, now=NOW) == left([*usual, *others], 6, now=NOW) == "; about 40 s left"
    assert left([*others, usual[1]], 9, now=NOW) == ""


@pytest.mark.parametrize(
    ("found", "total"),
    [
        ([], 4),
        ([cell("running", "seed=1", ago=10)], 4),
        ([cell("finished", "seed=1", took=10)], 4),
        ([cell("finished", "seed=1", took=10), cell("running", "seed=2")], None),
    ],
    ids=["nothing", "none ended", "none at work", "no total"],
)
def test_without_anything_to_go_by_no_time_is_told(found: list[Status], total: int | None):
    assert left(found, total, now=NOW) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (89, "89 s"),
        (90, "2 min"),
        (12 * 60 + 10, "12 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (3 * 3600 + 20 * 60, "3 h 20 min"),
        (3 * 3600 + 5 * 60, "3 h 05 min"),
        (47 * 3600 + 59 * 60, "47 h 59 min"),
        (48 * 3600, "2 d 0 h"),
        (52 * 3600, "2 d 4 h"),
        (71.6 * 3600, "3 d 0 h"),
        (400 * 24 * 3600, "400 d 0 h"),
    ],
)
def test_times_for_people(seconds: float, text: str):
    assert duration(seconds) == text


# the live table ---------------------------------------------------------------------------------


def rendered(found: list[Status], total: int | None) -> list[str]:
    console = Console(file=io.StringIO(), width=100, force_terminal=False, color_system=None, record=True)
    console.print(live_table(found, total, now=NOW))
    return [line.rstrip() for line in console.export_text().splitlines()]


def laid_out(rows: list[tuple[str, str, str]]) -> list[str]:
    """Lines of 100 characters: times at the right, before them the states, each as wide as its widest."""
    state, took = (max(len(row[i]) for row in rows) for i in (1, 2))
    label = 100 - 2 * 1 - 2 * 2 - state - took  # one blank at each edge, two between columns
    return [f" {row[0]:<{label}}  {row[1]:<{state}}  {row[2]:>{took}}" for row in rows]


def test_the_table_has_what_is_at_work_then_what_ended_last():
    failed = replace(cell("failed", "method=ft", "seed=1", ago=300, took=30), faults=("disk full", "and more"))
    found = [
        cell("finished", "method=lora", "seed=1", ago=500, took=100),
        failed,
        cell("finished", "method=lora", "seed=2", ago=400, took=250),
        cell("running", "method=ft", "seed=3", ago=5),
        cell("running", "method=ft", "seed=2", ago=75),
    ]
    # 126.7 s on average: (100 + 30 + 250) / 3. One cell waits for one of two; the younger of them has 121.7 s to go.
    assert rendered(found, 6) == [
        "cells: 2 of 6 done, 2 at work, 1 failed; about 3 min left",
        *laid_out(
            [
                ("cell", "state", "time"),
                ("method=ft seed=3", "at work", "5 s"),
                ("method=ft seed=2", "at work", "75 s"),
                ("method=lora seed=2", "done", "4 min"),
                ("method=ft seed=1", "failed: disk full", "30 s"),
                ("method=lora seed=1", "done", "2 min"),
            ]
        ),
    ]


def test_what_all_cells_have_in_common_is_left_out_of_the_table():
    common = ("dataset=mini", "model=gpt2-nano")
    found = [cell("running", *common, "seed=1"), cell("stopped", *common, "seed=2"), cell("busy", *common)]
    assert rendered(found, None) == [
        "cells: 0 of 3 done, 1 at work, 1 stopped, 1 elsewhere",
        *laid_out(
            [
                ("cell", "state", "time"),
                ("seed=1", "at work", "0 s"),
                ("seed=2", "stopped", "0 s"),
                ("dataset=mini model=gpt2-nano", "elsewhere", "0 s"),
            ]
        ),
    ]
    (_, _, line) = rendered(found[:1], None)  # one cell has everything in common with itself
    assert line.split("  ")[0].strip() == "dataset=mini model=gpt2-nano seed=1"


def test_a_table_of_many_cells_is_no_longer_than_a_screen():
    at_work = [cell("running", f"seed={i}", ago=10) for i in range(5)]
    ended = [cell("finished", f"seed={i}", ago=1000 - i, took=10) for i in range(100, 200)]
    lines = rendered([*ended, *at_work], 105)
    labels = [line.split()[0] for line in lines[2:]]
    assert labels == [f"seed={i}" for i in [*range(5), *range(199, 192, -1)]]


def test_what_looks_like_markup_is_shown_as_it_is():
    (_, _, line) = rendered([cell("running", "method.targets=[q,v]", "data.root='[red]x'")], 1)
    assert line.startswith(" method.targets=[q,v] data.root='[red]x'  ")


def test_a_long_label_is_cut_and_a_line_stays_a_line():
    lines = rendered([cell("running", f"data.root={'x' * 200}", ago=3)], 1)
    assert len(lines) == 3 and max(map(len, lines)) <= 100
    assert lines[2].startswith(f" data.root={'x' * 50}") and lines[2].endswith("x…  at work   3 s")


def test_a_long_fault_leaves_room_for_the_cell_and_the_time():
    fault = "runtime.device=cuda: torch sees no CUDA device here; see `lodarepro doctor`; and more that may be said"
    found = [replace(cell("failed", "seed=1", took=30), faults=(fault,)), cell("running", "seed=2", ago=75)]
    lines = rendered(found, 2)
    assert len(lines) == 4
    for line, label, state, took in zip(
        lines[2:], ("seed=2", "seed=1"), ("at work", "failed: runtime.device=cuda"), ("75 s", "30 s"), strict=True
    ):
        assert line.startswith(f" {label} ") and state in line and line.endswith(f" {took}")


def test_an_empty_table():
    assert rendered([], 6) == ["cells: 0 of 6 done", *laid_out([("cell", "state", "time")])]


# files ------------------------------------------------------------------------------------------

STATUS = Status(
    overrides=("method=lora", "name='Ø \u2028'"),
    state="failed",
    number=3,
    faults=("a fault", "another"),
    exit_code=2,
    folder="/somewhere/run",
    started=1234.5,
    seconds=6.7,
    found=True,
)


def write(sweep: Path, number: int, status: Status) -> Path:
    folder = sweep / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    write_status(folder, replace(status, number=number))
    return folder / FILE


def test_a_status_survives(tmp_path: Path):
    write(tmp_path, 3, STATUS)
    (found,) = read_statuses(tmp_path)
    assert found == STATUS
    assert (found.started, found.seconds) == (1234.5, 6.7)  # which do not decide equality


def test_a_status_takes_the_place_of_the_older_one(tmp_path: Path):
    path = write(tmp_path, 0, cell("running", "seed=1"))
    write(tmp_path, 0, cell("finished", "seed=1"))
    assert [status.state for status in read_statuses(tmp_path)] == ["finished"]
    assert [p.name for p in path.parent.iterdir()] == [FILE]


def test_the_statuses_are_in_the_order_of_their_jobs(tmp_path: Path):
    for number in (10, 2, 0, 7):
        write(tmp_path, number, cell("running", f"seed={number}"))
    assert [status.number for status in read_statuses(tmp_path)] == [0, 2, 7, 10]


def test_the_last_job_of_a_cell_has_the_word(tmp_path: Path):
    write(tmp_path, 12, cell("finished", "seed=1"))
    write(tmp_path, 0, cell("busy", "seed=1"))
    write(tmp_path, 3, cell("failed", "seed=1"))
    write(tmp_path, 1, cell("stopped", "seed=2"))
    assert {s.overrides: (s.state, s.number) for s in read_statuses(tmp_path)} == {
        ("seed=1",): ("finished", 12),
        ("seed=2",): ("stopped", 1),
    }


def test_a_folder_without_statuses_has_none(tmp_path: Path):
    assert read_statuses(tmp_path) == read_statuses(tmp_path / "none") == []


def test_statuses_are_cleared_and_nothing_else(tmp_path: Path):
    for number in (0, 1):
        (write(tmp_path, number, STATUS).parent / "log.txt").write_text("x", encoding="utf-8")
    clear_statuses(tmp_path)
    assert read_statuses(tmp_path) == []
    assert [(tmp_path / str(number) / "log.txt").is_file() for number in (0, 1)] == [True, True]
    clear_statuses(tmp_path / "none")


# while a sweep goes -----------------------------------------------------------------------------

DAMAGED = ["", "{", "\xff", '"text"', "null", "[]", "{}", '{"overrides": 3, "faults": []}']


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log's lines; looks are quick, and stderr is no terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.005)
    found: list[str] = []
    monkeypatch.setattr(progress.logger, "info", lambda text, *parts: found.append(text % parts))
    return found


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def test_a_log_has_a_line_for_each_change(tmp_path: Path, lines: list[str]):
    with shown(2, lambda: tmp_path):
        time.sleep(0.05)
        assert lines == []  # nothing has started
        write(tmp_path, 0, cell("running", "seed=1"))
        until(lambda: len(lines) == 1)
        time.sleep(0.05)  # many looks at the same
        write(tmp_path, 0, cell("finished", "seed=1", took=5))
        until(lambda: len(lines) == 2)
        time.sleep(0.05)
        write(tmp_path, 1, cell("failed", "seed=2"))
    assert lines == [
        "cells: 0 of 2 done, 1 at work",
        "cells: 1 of 2 done",
        "cells: 1 of 2 done, 1 failed",
    ]


def test_the_last_change_is_told_however_seldom_the_looks_are(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "LOOK_SECONDS", 60.0)
    began = time.monotonic()
    with shown(1, lambda: tmp_path):
        write(tmp_path, 0, cell("finished", "seed=1"))
    assert lines == ["cells: 1 of 1 done"]
    assert time.monotonic() - began < 20  # nor is the next look waited for


def test_a_line_has_the_time_that_is_left(tmp_path: Path, lines: list[str]):
    write(tmp_path, 0, Status(("seed=1",), "finished", 0, started=time.time() - 4000, seconds=4000))
    write(tmp_path, 1, Status(("seed=2",), "running", 1, started=time.time()))
    with shown(3, lambda: tmp_path):
        until(lambda: len(lines) == 1)
    assert lines == ["cells: 1 of 3 done, 1 at work; about 2 h 13 min left"]  # twice 4000 s


def test_the_folder_may_be_known_later(tmp_path: Path, lines: list[str]):
    known: list[Path] = []
    with shown(None, lambda: known[0] if known else None):
        write(tmp_path, 0, cell("running", "seed=1"))
        time.sleep(0.05)
        assert lines == []
        known.append(tmp_path)
        until(lambda: len(lines) == 1)
    assert lines == ["cells: 0 of 1 done, 1 at work"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_status_is_no_fault_of_the_display(tmp_path: Path, lines: list[str], content: str):
    path = write(tmp_path, 0, cell("running", "seed=1"))
    with shown(1, lambda: tmp_path):
        until(lambda: len(lines) == 1)
        path.write_bytes(content.encode("latin-1"))
        time.sleep(0.05)
        write(tmp_path, 0, cell("finished", "seed=1"))
        until(lambda: len(lines) == 2)
        path.write_bytes(content.encode("latin-1"))
    assert lines == ["cells: 0 of 1 done, 1 at work", "cells: 1 of 1 done"]


def test_an_error_in_the_block_ends_the_display(tmp_path: Path, lines: list[str]):
    before = threading.active_count()
    with pytest.raises(RuntimeError, match=r"^of the sweep$"), shown(1, lambda: tmp_path):
        raise RuntimeError("of the sweep")
    assert threading.active_count() == before


@pytest.fixture
def terminal(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 characters that knows no colours is sent."""
    sent = io.StringIO()

    def console(**_: object) -> Console:
        return Console(file=sent, width=80, height=25, force_terminal=True, color_system=None, _environ={})

    monkeypatch.setattr(progress, "Console", console)
    monkeypatch.setattr(progress, "log_to_stderr", lambda: None)
    return sent


def test_a_terminal_has_the_table_as_it_is_at_the_end(tmp_path: Path, terminal: io.StringIO, lines: list[str]):
    with shown(2, lambda: tmp_path):
        write(tmp_path, 0, cell("running", "seed=1"))
        until(lambda: "at work" in terminal.getvalue())
        write(tmp_path, 0, cell("finished", "seed=1", took=3))
        write(tmp_path, 1, cell("failed", "seed=2", took=4))
    last = terminal.getvalue().rpartition("cells: ")[2]
    assert last.startswith("1 of 2 done, 1 failed")
    assert [line.split()[:2] for line in last.splitlines()[2:4]] == [["seed=2", "failed"], ["seed=1", "done"]]
    assert lines == []
