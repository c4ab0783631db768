"""The real files hold what the protocol says, and parse to the goldens' contexts and references."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from lodarepro.config import Data, Dataset
from lodarepro.data import Split, load

pytestmark = pytest.mark.needs_mount

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("LODAREPRO_SHARED", REPOSITORY.parent / "shared"))

# paper/protocol.md section 1; contexts after the formatting. `pinned`: the bytes that the pin names, else
# the same content rebuilt from the official XML.
COUNTS = {
    ("e2e", "valid"): {"pairs": 4672, "contexts": 547, "pinned": True},
    ("e2e", "test"): {"pairs": 4693, "contexts": 630, "pinned": True},
    ("e2e-small", "train"): {"pairs": 4279, "contexts": 500, "pinned": True},
    ("e2e-small", "valid"): {"pairs": 393, "contexts": 47, "pinned": True},
    ("e2e-small", "test"): {"pairs": 4693, "contexts": 630, "pinned": True},
    ("dart", "valid"): {"pairs": 6980, "contexts": 2721, "pinned": True},
    ("dart", "test"): {"pairs": 12552, "contexts": 4159, "pinned": False},
    ("webnlg", "train"): {"pairs": 18025, "contexts": 6888, "pinned": False},
    ("webnlg", "valid"): {"pairs": 2258, "contexts": 870, "pinned": True},
    ("webnlg", "test"): {"pairs": 4928, "contexts": 1862, "pinned": False},
}
# entries, with and without a pair: webnlg has some of which no text is good
ENTRIES = {
    ("dart", "valid"): 2768,
    ("dart", "test"): 5097,
    ("webnlg", "train"): 6940,
    ("webnlg", "valid"): 872,
    ("webnlg", "test"): 1862,
}


@pytest.fixture(autouse=True)
def _mounted() -> None:
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no reference material at {SHARED} (LODAREPRO_SHARED names another folder)")


def shipped(name: str) -> Dataset:
    """The dataset as `configs/dataset` has it."""
    fields: Any = OmegaConf.to_container(OmegaConf.load(REPOSITORY / f"configs/dataset/{name}.yaml"))
    fields.pop("defaults")
    return TypeAdapter(Dataset).validate_python(fields)


def read(name: str, split: str) -> Split:
    return load(shipped(name), Data(root=str(SHARED / "data")), split)


@pytest.mark.parametrize(("name", "split"), COUNTS, ids=map("-".join, COUNTS))
def test_counts(name: str, split: str) -> None:
    got = read(name, split)
    expected = COUNTS[name, split]
    assert got.source.pinned == expected["pinned"]
    assert got.source.origin == "local"
    assert len(got.examples) == expected["pairs"]
    assert len(got.segments) == expected["contexts"]


@pytest.mark.parametrize(("name", "split"), COUNTS, ids=map("-".join, COUNTS))
def test_pins_state_the_same_counts(name: str, split: str) -> None:
    dataset = shipped(name)
    pin = dataset.pins[getattr(dataset.files, split)]
    divided = dataset.hold_out is not None and split != "test"
    counts = COUNTS["e2e", "valid"] if divided else COUNTS[name, split]
    assert pin.examples == counts["pairs"]
    assert pin.contexts in (None, counts["contexts"])


@pytest.mark.parametrize(("name", "split"), ENTRIES, ids=map("-".join, ENTRIES))
def test_entries(name: str, split: str) -> None:
    dataset = shipped(name)
    content = json.loads((SHARED / "data" / name / getattr(dataset.files, split)).read_text(encoding="utf-8"))
    assert len(content["entries"] if name == "webnlg" else content) == ENTRIES[name, split]


@pytest.mark.parametrize("name", ["webnlg", "dart"])
def test_segments_are_those_of_the_golden_systems(name: str) -> None:
    with gzip.open(SHARED / "golden" / "metrics" / name / "system.jsonl.gz", "rt", encoding="utf-8") as lines:
        golden = [json.loads(line) for line in lines]
    got = read(name, "test").segments
    assert [segment.context for segment in got] == [line["context"] for line in golden]
    # the golden references are raw; a segment's are stripped, as the original's are before scoring
    assert [list(segment.references) for segment in got] == [
        [reference.strip() for reference in line["references"]] for line in golden
    ]
    if name == "webnlg":
        assert [segment.subset == "seen" for segment in got] == [line["seen"] for line in golden]


def test_dart_keeps_the_one_empty_text() -> None:
    empty = [example for example in read("dart", "test").examples if not example.completion.strip()]
    assert len(empty) == 1
