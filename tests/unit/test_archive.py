"""Runs are found by what decides their numbers, wherever and under whatever name they lie."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lodarepro import compose, records
from lodarepro.archive import Archive
from lodarepro.config import Run
from lodarepro.errors import BadInput
from lodarepro.records import Evaluation, Failure, Record
from lodarepro.scores import Score

CHECKSUMS = {"train": "1" * 64, "valid": "2" * 64, "test": "3" * 64, "model": "4" * 64, "tokenizer": "5" * 64}
METHOD = """\
from dataclasses import dataclass


@dataclass(frozen=True)
class Nothing:
    name: str = "archived"
    depth: int = 2


def attach(model, config, generator):
    pass
"""


@pytest.fixture(scope="module")
def run() -> Run:
    (cell,) = compose.cells(["model=gpt2-nano", "dataset=mini", "protocol=lora", "method=lora"])
    return cell.run


def evaluation(run: Run, file: str = "evaluations/last-test.jsonl") -> Evaluation:
    score = Score("bleu", 0.5, "fraction", True, "metric:bleu")
    return Evaluation("last", compose.plain(run)["decode"], "test", "all", file, 1, {"bleu": score}, 1.0)


def record(run: Run, *, name: str = "run", decoded: tuple[Run, ...] = (), **checksums: str) -> Record:
    """A finished run, decoded as it says and as others say."""
    return Record(
        id=name,
        config=compose.plain(run),
        identity=compose.identity(run, {**CHECKSUMS, **checksums}),
        provenance={},
        parameters={"trainable": 1, "total": 2},
        training={},
        evaluations=tuple(evaluation(one, f"evaluations/{i}.jsonl") for i, one in enumerate((run, *decoded))),
    )


def kept(root: Path, *found: Record) -> Archive:
    for one in found:
        folder = root / records.RUNS / one.id
        folder.mkdir(parents=True)
        records.write(folder, one)
    return Archive(root)


def failed(root: Path, run: Run, *, name: str = "failed", fault: str = "out of memory") -> Path:
    folder = root / records.RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    records.write_failure(folder, Failure(name, compose.plain(run), compose.identity(run, {}), (fault, "and more"), {}))
    return folder


def decoded_so(run: Run, **changes: Any) -> Run:
    return replace(run, decode=replace(run.decode, **changes))


def ids(archive: Archive, run: Run) -> list[str]:
    return [found.record.id for found in archive.find(run)]


# what decides -----------------------------------------------------------------------------------

UNLIKE: dict[str, Callable[[Run], Run]] = {
    "seed": lambda run: replace(run, seed=2),
    "protocol": lambda run: replace(run, protocol=replace(run.protocol, name="loda")),
    "layout": lambda run: replace(run, protocol=replace(run.protocol, max_length=256)),
    "training": lambda run: replace(run, train=replace(run.train, lr=run.train.lr * 2)),
    "rank": lambda run: replace(run, method=replace(run.method, rank=8)),
    "limit": lambda run: replace(run, dataset=replace(run.dataset, limit=replace(run.dataset.limit, test=3))),
    "held out": lambda run: replace(
        run, dataset=replace(run.dataset, hold_out=5, files=replace(run.dataset.files, valid=run.dataset.files.train))
    ),
    "sizes": lambda run: replace(run, model=replace(run.model, n_layer=2)),
    "decode": lambda run: decoded_so(run, beam=3),
}
ALIKE: dict[str, Callable[[Run], Run]] = {
    "data": lambda run: replace(run, data=replace(run.data, root="/elsewhere", cache="/cache")),
    "results": lambda run: replace(run, results=replace(run.results, root="/results")),
    "runtime": lambda run: replace(run, runtime=replace(run.runtime, device="cpu", threads=3, retry=True)),
    "weights": lambda run: replace(run, model=replace(run.model, path="/model", hub="x/y", revision="z")),
    "files": lambda run: replace(run, dataset=replace(run.dataset, remote="x", pins={})),
    "file": lambda run: replace(run, dataset=replace(run.dataset, files=replace(run.dataset.files, test="/t"))),
}


@pytest.mark.parametrize("change", UNLIKE.values(), ids=UNLIKE)
def test_a_run_of_another_cell_is_not_found(tmp_path: Path, run: Run, change: Callable[[Run], Run]):
    archive = kept(tmp_path, record(run))
    assert ids(archive, run) == ["run"]
    assert ids(archive, change(run)) == []


@pytest.mark.parametrize("change", ALIKE.values(), ids=ALIKE)
def test_a_run_from_another_place_is_found(tmp_path: Path, run: Run, change: Callable[[Run], Run]):
    assert ids(kept(tmp_path, record(change(run))), run) == ["run"]


def test_each_seed_finds_its_own(tmp_path: Path, run: Run):
    seeds = [replace(run, seed=seed) for seed in (1, 2, 3)]
    archive = kept(tmp_path, *(record(one, name=f"s{one.seed}") for one in seeds))
    assert [ids(archive, one) for one in seeds] == [["s1"], ["s2"], ["s3"]]


def test_runs_on_other_data_are_found_too_in_the_order_of_their_ids(tmp_path: Path, run: Run):
    other = record(run, name="a", test="9" * 64)
    assert ids(kept(tmp_path, record(run, name="b"), other), run) == ["a", "b"]


def test_the_folders_name_says_nothing(tmp_path: Path, run: Run):
    folder = tmp_path / records.RUNS / "any name"
    folder.mkdir(parents=True)
    records.write(folder, record(run))
    assert ids(Archive(tmp_path), run) == ["run"]


# decoding ---------------------------------------------------------------------------------------


def test_a_run_that_was_decoded_so_later_is_found_with_those_evaluations_alone(tmp_path: Path, run: Run):
    narrow = decoded_so(run, beam=1)
    archive = kept(tmp_path, record(run, decoded=(narrow, decoded_so(run, length_penalty=0.1))))
    (own,), (later,) = archive.find(run), archive.find(narrow)
    assert own.record == later.record
    assert [e.hypotheses for e in own.evaluations] == ["evaluations/0.jsonl"]
    assert [(e.hypotheses, e.decode["beam"]) for e in later.evaluations] == [("evaluations/1.jsonl", 1)]
    assert archive.find(decoded_so(run, beam=2)) == []


def test_the_run_whose_own_settings_are_asked_for_comes_first(tmp_path: Path, run: Run):
    narrow = decoded_so(run, beam=1)
    archive = kept(tmp_path, record(run, name="a", decoded=(narrow,)), record(narrow, name="b", decoded=(run,)))
    assert ids(archive, run) == ["a", "b"]
    assert ids(archive, narrow) == ["b", "a"]


def test_all_evaluations_of_one_search_come_together(tmp_path: Path, run: Run):
    one = record(run)
    parts = tuple(replace(e, subset=subset) for e in one.evaluations for subset in ("all", "seen", "unseen"))
    (found,) = kept(tmp_path, replace(one, evaluations=parts)).find(run)
    assert [e.subset for e in found.evaluations] == ["all", "seen", "unseen"]


# older records ----------------------------------------------------------------------------------


def test_numbers_of_another_protocol_version_are_left_out_and_named(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
):
    old = record(run, name="old")
    old = replace(old, identity={**old.identity, "protocol_version": 0})
    none = record(run, name="older")
    none = replace(none, identity={k: v for k, v in none.identity.items() if k != "protocol_version"})
    with caplog.at_level(logging.WARNING):
        archive = kept(tmp_path, old, none, record(run, name="new"))
    assert ids(archive, run) == ["new"]
    this = compose.PROTOCOL_VERSION
    assert caplog.messages == [
        f"old was made by PROTOCOL_VERSION 0, this is {this}: its numbers are left out",
        f"older was made by PROTOCOL_VERSION None, this is {this}: its numbers are left out",
    ]


LATER = [
    ("runtime", "retry"),
    ("decode", "min_length"),
    ("train", "valid_batch_size"),
    ("method", "dora"),
    ("dataset", "limit"),
    ("protocol", "loss_on"),
]


@pytest.mark.parametrize(("section", "key"), LATER)
def test_a_record_that_is_older_than_a_setting_is_still_found(tmp_path: Path, run: Run, section: str, key: str):
    """The setting had its default when the run was made."""
    one = record(run)
    tree = json.loads(json.dumps({"config": one.config, "identity": one.identity}))
    for part in tree.values():
        if section in part:
            del part[section][key]
    evaluations = tuple(
        replace(e, decode={k: v for k, v in e.decode.items() if (section, k) != ("decode", key)})
        for e in one.evaluations
    )
    archive = kept(tmp_path, replace(one, **tree, evaluations=evaluations))
    assert ids(archive, run) == ["run"]
    assert archive.find(replace(run, seed=5)) == []


def test_an_older_record_is_no_run_of_another_value_of_the_new_setting(tmp_path: Path, run: Run):
    one = record(run)
    for tree in (one.config, one.identity, *({"decode": e.decode} for e in one.evaluations)):
        del tree["decode"]["min_length"]
    del one.config["train"]["valid_batch_size"], one.identity["train"]["valid_batch_size"]
    archive = kept(tmp_path, one)
    assert ids(archive, run) == ["run"]
    assert ids(archive, decoded_so(run, min_length=5)) == []
    assert ids(archive, replace(run, train=replace(run.train, valid_batch_size=8))) == []


def test_a_run_of_a_users_method_is_found_without_its_file(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "nothing.py"
    file.write_text(METHOD, encoding="utf-8")
    own = compose.own_method(file)
    (cell,) = compose.cells(["model=gpt2-nano", "dataset=mini", "method=archived"], own=own)
    archive = kept(tmp_path, record(cell.run))
    assert ids(archive, cell.run) == ["run"]
    file.unlink()
    monkeypatch.delitem(sys.modules, f"lodarepro_method_{own.file.sha256}")
    assert ids(Archive(tmp_path), cell.run) == ["run"]


# failures ---------------------------------------------------------------------------------------


def test_a_failure_is_that_of_its_cell_alone(tmp_path: Path, run: Run):
    failed(tmp_path, run)
    archive = Archive(tmp_path)
    failure = archive.failure(ALIKE["runtime"](run))
    assert failure is not None and failure.faults == ("out of memory", "and more")
    assert [archive.failure(change(run)) for change in UNLIKE.values()] == [None] * len(UNLIKE)
    assert archive.find(run) == []


def test_a_failure_that_is_older_than_a_setting(tmp_path: Path, run: Run):
    folder = failed(tmp_path, run)
    tree = json.loads((folder / records.FAILURE).read_text(encoding="utf-8"))
    del tree["config"]["decode"]["min_length"], tree["config"]["runtime"]["retry"]
    (folder / records.FAILURE).write_text(json.dumps(tree), encoding="utf-8")
    assert Archive(tmp_path).failure(run) is not None


def test_a_cell_that_was_finished_since_has_not_failed(tmp_path: Path, run: Run):
    """In the same folder or, on other data, in another."""
    kept(tmp_path / "one", record(run, name="same"))
    failed(tmp_path / "one", run, name="same")
    kept(tmp_path / "two", record(run, name="later"))
    failed(tmp_path / "two", run)
    for root in (tmp_path / "one", tmp_path / "two"):
        archive = Archive(root)
        assert archive.failure(run) is None
        assert len(archive.find(run)) == 1


def test_a_failure_of_another_search_than_the_finished_ones(tmp_path: Path, run: Run):
    narrow = decoded_so(run, beam=1)
    kept(tmp_path, record(run))
    failed(tmp_path, narrow)
    archive = Archive(tmp_path)
    assert archive.failure(run) is None
    assert archive.failure(narrow) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"id": "x"}', '{"faults": null}', "\xff"])
def test_a_damaged_failure_is_none(tmp_path: Path, run: Run, content: str):
    folder = failed(tmp_path, run)
    (folder / records.FAILURE).write_bytes(content.encode("latin-1"))
    archive = Archive(tmp_path)
    assert archive.failure(run) is None and archive.find(run) == []


@pytest.mark.parametrize("part", ["config", "identity"])
@pytest.mark.parametrize("content", [None, 3, [], "text", {}, {"seed": 1}, {"model": None}])
def test_a_failure_of_another_form_does_not_keep_others_from_being_read(
    tmp_path: Path, run: Run, part: str, content: Any
):
    folder = failed(tmp_path, run)
    tree = json.loads((folder / records.FAILURE).read_text(encoding="utf-8"))
    (folder / records.FAILURE).write_text(json.dumps({**tree, part: content}), encoding="utf-8")
    if not isinstance(content, dict):
        assert Archive(tmp_path).failure(run) is None
    else:  # what it was is in the other
        assert Archive(tmp_path).failure(run) is not None
    tree |= {"config": content, "identity": content}
    (folder / records.FAILURE).write_text(json.dumps(tree), encoding="utf-8")
    assert Archive(tmp_path).failure(run) is None


# folders ----------------------------------------------------------------------------------------


def test_an_empty_or_missing_folder_has_no_runs(tmp_path: Path, run: Run):
    (tmp_path / "empty" / records.RUNS / "unfinished").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    for root in (tmp_path / "empty", tmp_path / "bare", tmp_path / "none"):
        archive = Archive(root)
        assert archive.find(run) == [] and archive.failure(run) is None
    assert not (tmp_path / "none").exists()


def test_a_damaged_record_is_not_passed_over(tmp_path: Path, run: Run):
    kept(tmp_path, record(run))
    path = tmp_path / records.RUNS / "run" / records.RECORD
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(BadInput, match=r"record.json is not a record \(.*; delete it to run again$"):
        Archive(tmp_path)


def test_a_failure_of_another_protocol_version_is_left_out(tmp_path: Path, run: Run):
    folder = failed(tmp_path, run)
    assert Archive(tmp_path).failure(run) is not None
    tree = json.loads((folder / records.FAILURE).read_text(encoding="utf-8"))
    tree["identity"]["protocol_version"] = compose.PROTOCOL_VERSION - 1
    (folder / records.FAILURE).write_text(json.dumps(tree), encoding="utf-8")
    assert Archive(tmp_path).failure(run) is None
