"""From a dataset to its examples: dispatch, pinned counts, limits, all splits at once."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lodarepro.config import Data, Dataset, Files, Limit, Pin
from lodarepro.data import PARSERS, load, prepare
from lodarepro.data.types import Example, Segment
from lodarepro.errors import BadInput, RunFailed

# context b comes back after c: a limit on contexts must keep its late pair
TEXT = "a||1\nb||2\na||3\nc||4\nb||5\n"


def pin(examples: int, contexts: int | None = None, *, text: str = TEXT) -> Pin:
    content = text.encode()
    return Pin(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), examples, contexts)


DATASET = Dataset(
    name="letters",
    format="e2e",
    suite="e2e",
    files=Files(train="train.txt", valid="valid.txt", test="test.txt"),
    remote="letters",
)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text(TEXT)
    return Data(root=str(tmp_path), cache=str(tmp_path / "cache"))


def test_a_split_has_examples_segments_and_its_source(data: Data, tmp_path: Path) -> None:
    split = load(DATASET, data, "valid")
    assert (split.name, split.source.path) == ("valid", tmp_path / "valid.txt")
    assert split.examples == [Example(line[0], line[3]) for line in TEXT.splitlines()]
    assert split.segments == [Segment("a", ("1", "3")), Segment("b", ("2", "5")), Segment("c", ("4",))]


def test_the_format_chooses_the_parser(tmp_path: Path) -> None:
    triples: Any = [{"tripleset": [["A", "B", "C"]], "annotations": [{"text": "x"}]}]
    (tmp_path / "train.txt").write_text(json.dumps(triples))
    dataset = replace(DATASET, format="dart")
    assert load(dataset, Data(root=str(tmp_path)), "train").examples == [Example("A : b : C", "x")]
    assert sorted(PARSERS) == ["dart", "e2e", "webnlg"]


@pytest.mark.parametrize(
    ("split", "limit", "kept"),
    [
        ("train", 3, "123"),
        ("valid", 3, "123"),
        ("test", 1, "13"),
        ("test", 2, "1235"),
        ("train", 99, "12345"),
        ("test", 99, "12345"),
    ],
)
def test_a_limit_keeps_pairs_or_whole_contexts(data: Data, split: str, limit: int, kept: str) -> None:
    dataset = replace(DATASET, limit=Limit(**{split: limit}))
    assert "".join(example.completion for example in load(dataset, data, split).examples) == kept
    for other in {"train", "valid", "test"} - {split}:
        assert len(load(dataset, data, other).examples) == 5


def test_held_out_contexts_are_validated_on_and_not_trained_on(data: Data, tmp_path: Path) -> None:
    shared = Files(train="train.txt", valid="train.txt", test="test.txt")
    # pinned counts are those of the whole file
    dataset = replace(DATASET, hold_out=2, files=shared, pins={"train.txt": pin(5, 3)})
    kept = {name: [e.completion for e in load(dataset, data, name).examples] for name in ("train", "valid", "test")}
    assert kept == {"train": ["1", "3"], "valid": ["2", "4", "5"], "test": ["1", "2", "3", "4", "5"]}
    assert load(dataset, data, "valid").source.path == tmp_path / "train.txt"
    limited = replace(dataset, limit=Limit(train=1, valid=2))
    assert [len(load(limited, data, name).examples) for name in ("train", "valid")] == [1, 2]


def test_not_all_contexts_can_be_held_out(data: Data, tmp_path: Path) -> None:
    shared = Files(train="train.txt", valid="train.txt", test="test.txt")
    with pytest.raises(BadInput) as error:
        load(replace(DATASET, hold_out=3, files=shared), data, "train")
    assert error.value.faults == (
        f"dataset.hold_out=3: {tmp_path}/train.txt has 3 distinct contexts; hold out 2 or less",
    )


@pytest.mark.parametrize("right", [pin(5, 3), pin(5)])
def test_pinned_content_with_the_pinned_counts(data: Data, right: Pin) -> None:
    # the limit is applied behind the check
    dataset = replace(DATASET, pins={"train.txt": right}, limit=Limit(train=1))
    split = load(dataset, data, "train")
    assert split.source.pinned
    assert len(split.examples) == 1


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [(pin(6), "6 pairs"), (pin(5, 4), "5 pairs of 4 contexts"), (pin(4, 3), "4 pairs of 3 contexts")],
)
def test_pinned_content_with_other_counts_is_our_fault(data: Data, tmp_path: Path, wrong: Pin, expected: str) -> None:
    with pytest.raises(RunFailed) as error:
        load(replace(DATASET, pins={"train.txt": wrong}), data, "train")
    assert error.value.exit_code == 1
    assert error.value.faults == (
        f"{tmp_path}/train.txt: expected {expected}, read 5 pairs of 3 contexts; the content is the pinned "
        f"one, so the parser 'e2e' or the pin of dataset 'letters' is wrong: please report this",
    )


def test_pinned_content_that_the_parser_refuses_is_our_fault(data: Data, tmp_path: Path) -> None:
    dataset = replace(DATASET, format="dart", pins={"train.txt": pin(5)})
    with pytest.raises(RunFailed) as error:
        load(dataset, data, "train")
    assert error.value.faults == (
        f"{tmp_path}/train.txt: line 1: expected JSON: Expecting value; the content is the pinned one, "
        f"so the parser 'dart' or the pin of dataset 'letters' is wrong: please report this",
    )


def test_other_content_has_no_counts_to_keep(data: Data, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a||1\n")
    assert len(load(replace(DATASET, pins={"train.txt": pin(5, 3)}), data, "train").examples) == 1


@pytest.mark.parametrize(("format", "text"), [("dart", "[]"), ("webnlg", '{"entries": []}')])
def test_a_file_without_examples(data: Data, tmp_path: Path, format: str, text: str) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path}/train.txt: expected examples, found none; ")):
        load(replace(DATASET, format=format), data, "train")  # type: ignore[arg-type]


def test_prepare_reads_all_splits(data: Data, tmp_path: Path) -> None:
    assert [split.source.path.name for split in prepare(DATASET, data)] == ["train.txt", "valid.txt", "test.txt"]


def test_prepare_reports_all_faults_at_once(data: Data, tmp_path: Path) -> None:
    (tmp_path / "train.txt").unlink()
    (tmp_path / "test.txt").write_text("no separator\n")
    with pytest.raises(BadInput) as error:
        prepare(DATASET, data)
    missing, malformed = error.value.faults
    assert missing.startswith("dataset 'letters': no file 'train.txt' for its train split: looked for ")
    assert malformed.startswith(f"{tmp_path}/test.txt: line 1: expected 'context||completion'")


def test_importing_brings_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "datasets", "numpy", "hydra"}
    code = f"import sys, lodarepro.data; sys.exit(', '.join({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
