"""Records and hypotheses: what is written is what is read, and a failure loses nothing."""

import csv
import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lodarepro import records
from lodarepro.errors import BadInput, Busy
from lodarepro.records import Decoded, Evaluation, Failure, Record
from lodarepro.scores import Score

BLEU = Score("bleu", 0.123456789012345, "fraction", True, "metric:bleu|version:1")
TER = Score("ter", 0.7, "fraction", False, "metric:ter", segments=(0.1, 0.2, math.pi))


def evaluation(**changes: Any) -> Evaluation:
    made = Evaluation(
        checkpoint="last",
        decode={"beam": 10, "end_tokens": ["\n\n"]},
        split="test",
        subset="all",
        hypotheses="evaluations/last-test.jsonl",
        segments=3,
        scores={"bleu": BLEU, "ter": TER},
        val_loss=1.25,
    )
    return replace(made, **changes)


RECORD = Record(
    id="mini_gpt2-nano_lora-r4_lora_s1_0123456789ab",
    config={"seed": 1, "model": {"path": None}, "end": ["<|endoftext|>", "\n\n"]},
    identity={"protocol_version": 1},
    provenance={"argv": ["run", "name='Ø \u2028'"]},
    parameters={"trainable": 1, "total": 2},
    training={"steps": 3, "epochs": [{"epoch": 1, "step": 3, "val_loss": 0.5}], "seconds": {"train": 0.1}},
    evaluations=(evaluation(), evaluation(subset="seen", segments=2)),
)

TEXTS = [
    "plain",
    "a\nb\r\nc\rd",
    "line\u2028separator, paragraph\u2029, next\x85line, form\x0cfeed, file\x1cseparator",
    "quotes \" and ' and \\ and \\n",
    "tab\t and nul \x00 and blank ",
    "Café Ø 中文 🙂",
    "",
]


def fails(number: int) -> Any:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    return fsync


# record.json ------------------------------------------------------------------------------------


def test_a_record_survives(tmp_path: Path):
    records.write(tmp_path, RECORD)
    assert records.read(tmp_path) == RECORD
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_record_is_readable_json_with_its_schema(tmp_path: Path):
    records.write(tmp_path, RECORD)
    text = (tmp_path / "record.json").read_text(encoding="utf-8")
    tree = json.loads(text)
    assert tree["schema"] == records.SCHEMA
    assert tree["evaluations"][0]["scores"]["bleu"]["value"] == BLEU.value
    assert "Ø" in text and text.endswith("}\n")


def test_no_record_means_not_finished(tmp_path: Path):
    assert records.read(tmp_path) is None
    assert records.read(tmp_path / "none") is None


def test_a_number_that_is_none_is_not_written(tmp_path: Path):
    records.write(tmp_path, RECORD)
    with pytest.raises(ValueError, match="JSON compliant"):
        records.write(tmp_path, replace(RECORD, evaluations=(evaluation(val_loss=math.nan),)))
    assert records.read(tmp_path) == RECORD


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    records.write(tmp_path, RECORD)
    monkeypatch.setattr(os, "fsync", fails(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        records.write(tmp_path, replace(RECORD, id="new"))
    assert records.read(tmp_path) == RECORD
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_reader_of_the_old_record_sees_all_of_it(tmp_path: Path):
    """A new file takes the old one's place; the old one is not written into."""
    records.write(tmp_path, RECORD)
    with (tmp_path / "record.json").open("rb", buffering=0) as file:
        half = file.read(100)
        records.write(tmp_path, replace(RECORD, id="new"))
        assert json.loads(half + file.read())["id"] == RECORD.id
    found = records.read(tmp_path)
    assert found is not None and found.id == "new"


def test_a_failed_first_write_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        records.write(tmp_path, RECORD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"id": "x"}', '{"schema": 1}', '{"schema": 1, "evaluations": 3}', "\xff"]
)
def test_a_corrupt_record_is_one_line_with_the_way_out(tmp_path: Path, content: str):
    path = tmp_path / "record.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput) as e:
        records.read(tmp_path)
    (fault,) = e.value.faults
    assert fault.startswith(f"{path} is not a record (") and "\n" not in fault
    assert fault.endswith("delete it to run again")


def test_fields_of_another_version(tmp_path: Path):
    tree = asdict(RECORD)
    tree["evaluations"][0]["scores"]["bleu"]["unlike"] = 1
    (tmp_path / "record.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(BadInput, match=r"record.json is not a record \(.*unlike"):
        records.read(tmp_path)


@pytest.mark.parametrize("schema", [0, 2, "1"])
def test_another_schema(tmp_path: Path, schema: object):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**asdict(RECORD), "schema": schema}), encoding="utf-8")
    with pytest.raises(BadInput) as e:
        records.read(tmp_path)
    assert e.value.faults == (f"{path} has schema {schema}, this version reads 1; use the version that wrote it",)


# hypotheses -------------------------------------------------------------------------------------


def decoded(text: str) -> Decoded:
    return Decoded(
        context=text, references=(text, f"{text}!"), hypothesis=text, subset=None, log_score=-1.5, finished=True
    )


def test_every_character_survives(tmp_path: Path):
    path = tmp_path / "evaluations" / "last-test.jsonl"
    written = [decoded(text) for text in TEXTS]
    written.append(Decoded("c", (), "h", "unseen", -math.pi, False))
    records.write_decoded(path, written)
    assert records.read_decoded(path) == written


def test_a_segment_is_a_line(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    records.write_decoded(path, [decoded(text) for text in TEXTS])
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == len(TEXTS) + 1 and lines[-1] == b""
    assert [json.loads(line)["hypothesis"] for line in lines[:-1]] == TEXTS


def test_no_segments(tmp_path: Path):
    records.write_decoded(tmp_path / "x.jsonl", [])
    assert records.read_decoded(tmp_path / "x.jsonl") == []


def test_missing_hypotheses(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(BadInput) as e:
        records.read_decoded(path)
    assert e.value.faults == (f"{path} can't be read (No such file or directory); decode the run again",)


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"context": "c"}', "", '{"references": 3}'])
def test_a_corrupt_line_is_named(tmp_path: Path, line: str):
    path = tmp_path / "x.jsonl"
    records.write_decoded(path, [decoded("a")])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(BadInput) as e:
        records.read_decoded(path)
    (fault,) = e.value.faults
    assert fault.startswith(f"{path}, line 2 is not a decoded segment (") and "\n" not in fault
    assert fault.endswith("); decode the run again")


def test_a_file_cut_off_within_a_line(tmp_path: Path):
    """The last line has no end: half a segment is a fault, not one segment less."""
    path = tmp_path / "x.jsonl"
    records.write_decoded(path, [decoded("a"), decoded("b")])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput, match="line 2 is not a decoded segment"):
        records.read_decoded(path)


def test_bytes_that_are_no_text(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"context": "\xff"}\n')
    with pytest.raises(BadInput) as e:
        records.read_decoded(path)
    (fault,) = e.value.faults
    assert str(path) in fault and fault.endswith("decode the run again")


# steps.csv --------------------------------------------------------------------------------------


def test_steps(tmp_path: Path):
    path = tmp_path / "steps.csv"
    records.write_steps(path, [0.0, 1e-4, 2e-4], [3.5, 1 / 3, 123456.789])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [float(row["lr"]) for row in rows] == [0.0, 1e-4, 2e-4]
    assert [float(row["loss"]) for row in rows] == pytest.approx([3.5, 1 / 3, 123456.789], rel=1e-8)


def test_steps_and_losses_are_as_many(tmp_path: Path):
    with pytest.raises(ValueError, match="shorter"):
        records.write_steps(tmp_path / "steps.csv", [0.1, 0.2], [1.0])


# failure.json -----------------------------------------------------------------------------------

FAILED = Failure(
    id="mini_gpt2-nano_lora-r4_lora_s1_0123456789ab",
    config={"seed": 1, "model": {"path": None}, "end": ["<|endoftext|>", "\n\n"]},
    identity={"seed": 1},
    faults=("the loss is not a number at step 3", "Ø \u2028"),
    provenance={"argv": ["run"], "torch": "2"},
)


def test_a_failure_survives(tmp_path: Path):
    records.write_failure(tmp_path, FAILED)
    assert records.read_failure(tmp_path) == FAILED
    assert [p.name for p in tmp_path.iterdir()] == ["failure.json"]
    assert records.read(tmp_path) is None


def test_no_failure(tmp_path: Path):
    assert records.read_failure(tmp_path) is None
    assert records.read_failure(tmp_path / "none") is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '"faults"', "{}", '{"id": "x"}', '{"faults": 3}', '{"faults": ["x"]}', "\xff"],
)
def test_a_damaged_failure_is_none_so_that_the_run_is_tried_again(tmp_path: Path, content: str):
    (tmp_path / "failure.json").write_bytes(content.encode("latin-1"))
    assert records.read_failure(tmp_path) is None


def test_a_failure_of_another_version_is_none(tmp_path: Path):
    tree = {**asdict(FAILED), "unlike": 1}
    (tmp_path / "failure.json").write_text(json.dumps(tree), encoding="utf-8")
    assert records.read_failure(tmp_path) is None


def test_a_failed_write_keeps_the_old_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records.write_failure(tmp_path, FAILED)
    monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        records.write_failure(tmp_path, replace(FAILED, id="new"))
    assert records.read_failure(tmp_path) == FAILED


# the runs of a results folder -------------------------------------------------------------------


def test_runs_are_the_folders_that_ended_in_the_order_of_their_names(tmp_path: Path):
    for name in ("c", "a", "b", "both", "unfinished"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("c", "a", "both"):
        records.write(tmp_path / "runs" / name, RECORD)
    for name in ("b", "both"):
        records.write_failure(tmp_path / "runs" / name, FAILED)
    (tmp_path / "runs" / "unfinished" / "other.json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs" / "unfinished" / "record.json.partial").write_text("{", encoding="utf-8")
    (tmp_path / "runs" / "unfinished" / "evaluations").mkdir()
    (tmp_path / "runs" / "unfinished" / "evaluations" / "record.json").write_text("{}", encoding="utf-8")
    records.write(tmp_path, RECORD)
    assert records.runs(tmp_path) == [tmp_path / "runs" / name for name in ("a", "b", "both", "c")]


def test_a_damaged_record_is_a_run_still(tmp_path: Path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{", encoding="utf-8")
    assert records.runs(tmp_path) == [folder]


def test_no_runs(tmp_path: Path):
    assert records.runs(tmp_path / "none") == records.runs(tmp_path) == []


# who is at work ---------------------------------------------------------------------------------

HOLDER = """
import fcntl, sys
with open(sys.argv[1], "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_a_run_is_held_as_long_as_a_process_is_at_work_on_it(tmp_path: Path, killed: bool):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    assert not records.held(tmp_path)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert records.held(tmp_path)
        assert records.held(tmp_path)  # asking changes nothing
        with pytest.raises(Busy) as e, records.locked(tmp_path):
            pytest.fail("another process holds it")
        if killed:
            process.kill()
        process.communicate()
    assert not records.held(tmp_path)
    assert e.value.folder == tmp_path
    assert e.value.faults == (f"another process is at work on {tmp_path}; try again when it has ended",)
    assert e.value.exit_code == 1


def test_a_run_is_held_by_another_handle_of_the_same_process(tmp_path: Path):
    with records.locked(tmp_path):
        assert records.held(tmp_path)
    assert not records.held(tmp_path)
    with pytest.raises(RuntimeError), records.locked(tmp_path):
        raise RuntimeError
    assert not records.held(tmp_path)


def test_what_is_held_says_nothing_of_other_runs(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with records.locked(tmp_path / "a"):
        assert (records.held(tmp_path / "a"), records.held(tmp_path / "b")) == (True, False)


def test_a_run_that_has_not_begun_is_not_held_and_not_made(tmp_path: Path):
    assert not records.held(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
