"""The DART parser: sets of triples with annotation texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from lodarepro.data.dart import parse
from lodarepro.data.sources import MEND
from lodarepro.data.types import Example, Segment, segments
from lodarepro.errors import BadInput


def entry(*triples: list[str], texts: tuple[str, ...]) -> dict[str, Any]:
    annotations = [{"source": "ours", "text": text} for text in texts]
    return {"tripleset": list(triples), "subtree_was_extended": False, "annotations": annotations}


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "triples.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def fault(path: Path) -> str:
    with pytest.raises(BadInput) as error:
        parse(path)
    (line,) = error.value.faults
    assert "\n" not in line
    return line


OWL = entry(["The Owl", "LOCATED_IN", "Old Town"], ["Old Town", "[TITLE]", "Part"], texts=("One.", "Two. "))


def test_one_pair_for_each_text_and_the_relation_in_lower_case(tmp_path: Path) -> None:
    context = "The Owl : located_in : Old Town | Old Town : [title] : Part"
    assert parse(write(tmp_path, [OWL, entry(["A", "B", "C"], texts=("Three.",))])) == [
        Example(context, "One."),
        Example(context, "Two. "),
        Example("A : b : C", "Three."),
    ]


def test_an_empty_text_is_a_pair_and_an_entry_without_texts_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(["A", "b", "C"], texts=("",)), entry(["D", "e", "F"], texts=())])
    assert parse(path) == [Example("A : b : C", "")]


def test_entries_with_one_context_are_one_segment_with_stripped_references(tmp_path: Path) -> None:
    path = write(tmp_path, [OWL, entry(["A", "B", "C"], texts=("Three.",)), OWL])
    assert segments(parse(path)) == [
        Segment("The Owl : located_in : Old Town | Old Town : [title] : Part", ("One.", "Two.") * 2),
        Segment("A : b : C", ("Three.",)),
    ]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"tripleset": []}, "[1].annotations (counted from 0): Field required"),
        ({"annotations": [{"text": "x"}]}, "[1].tripleset (counted from 0): Field required"),
        (
            {"tripleset": [["A", "b"]], "annotations": []},
            "[1].tripleset[0][2] (counted from 0): Field required",
        ),
        (
            {"tripleset": [["A", 3, "C"]], "annotations": []},
            "[1].tripleset[0][1] (counted from 0): Input should be a valid string",
        ),
        (
            {"tripleset": [], "annotations": [{"text": "x"}, {"source": "x"}]},
            "[1].annotations[1].text (counted from 0): Field required",
        ),
    ],
)
def test_an_entry_in_another_form(tmp_path: Path, broken: dict[str, Any], said: str) -> None:
    path = write(tmp_path, [OWL, broken])
    assert fault(path) == f"{path}: at {said}; {MEND}"


def test_a_file_of_another_dataset(tmp_path: Path) -> None:
    path = write(tmp_path, {"entries": []})
    assert fault(path) == f"{path}: at the top (counted from 0): Input should be a valid list; {MEND}"


def test_not_json(tmp_path: Path) -> None:
    path = write(tmp_path, '[\n{"tripleset": [],\n')
    assert fault(path).startswith(f"{path}: line 3: expected JSON: Expecting property name")
    assert fault(path).endswith(f"; {MEND}")


def test_an_empty_file(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert fault(path) == f"{path}: expected data, found an empty file; {MEND}"
