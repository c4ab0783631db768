"""The WebNLG parser: numbered entries with categories and judged lexicalisations."""

import json
from pathlib import Path
from typing import Any

import pytest

from lodarepro.data.sources import MEND
from lodarepro.data.types import Example
from lodarepro.data.webnlg import parse
from lodarepro.errors import BadInput


def entry(category: str, *triples: tuple[str, str, str], texts: dict[str, str]) -> dict[str, Any]:
    return {
        "category": category,
        "size": str(len(triples)),
        "originaltriplesets": {"originaltripleset": []},
        "modifiedtripleset": [{"object": o, "property": p, "subject": s} for s, p, o in triples],
        "lexicalisations": [{"lex": lex, "comment": comment, "lang": ""} for lex, comment in texts.items()],
    }


def write(tmp_path: Path, *entries: Any) -> Path:
    path = tmp_path / "entries.json"
    path.write_text(json.dumps({"entries": [{str(i): e} for i, e in enumerate(entries, start=1)]}))
    return path


def fault(path: Path) -> str:
    with pytest.raises(BadInput) as error:
        parse(path)
    (line,) = error.value.faults
    assert "\n" not in line
    return line


SOUP = entry("Food", ("Pea_Soup", "madeOf", '"Peas"'), texts={"Of peas.": "good"})


def test_contexts_keep_their_spelling_and_categories_tell_the_subset(tmp_path: Path) -> None:
    comet = entry("CelestialBody", ("X", "isA", "Y"), ("Y", "hasZ", "1.0"), texts={"a": "good", "b": "good"})
    assert parse(write(tmp_path, SOUP, comet)) == [
        Example('Pea_Soup : madeOf : "Peas"', "Of peas.", "seen"),
        Example("X : isA : Y | Y : hasZ : 1.0", "a", "unseen"),
        Example("X : isA : Y | Y : hasZ : 1.0", "b", "unseen"),
    ]


def test_only_good_lexicalisations_are_pairs(tmp_path: Path) -> None:
    mixed = entry("City", ("A", "b", "C"), texts={"bad": "toFix", "fine": "good", "other": ""})
    nothing = entry("City", ("D", "e", "F"), texts={"bad": "toFix"})
    assert parse(write(tmp_path, mixed, nothing)) == [Example("A : b : C", "fine", "seen")]


@pytest.mark.parametrize("key", ["category", "modifiedtripleset", "lexicalisations"])
def test_an_entry_that_lacks_a_key(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, SOUP, {k: v for k, v in SOUP.items() if k != key})
    assert fault(path) == f"{path}: at entries[1].2.{key} (counted from 0): Field required; {MEND}"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"modifiedtripleset": [{"subject": "A", "object": "C"}]}, "modifiedtripleset[0].property"),
        ({"lexicalisations": [{"lex": "A"}]}, "lexicalisations[0].comment"),
        ({"lexicalisations": [{"comment": "good"}]}, "lexicalisations[0].lex"),
    ],
)
def test_a_triple_or_text_that_lacks_a_key(tmp_path: Path, broken: dict[str, Any], said: str) -> None:
    path = write(tmp_path, SOUP | broken)
    assert fault(path) == f"{path}: at entries[0].1.{said} (counted from 0): Field required; {MEND}"


def test_an_entry_must_have_one_number(tmp_path: Path) -> None:
    path = tmp_path / "entries.json"
    path.write_text(json.dumps({"entries": [{"1": SOUP, "2": SOUP}]}))
    assert fault(path).startswith(f"{path}: at entries[0] (counted from 0): Dictionary should have at most 1 item")


def test_a_file_without_entries_key(tmp_path: Path) -> None:
    path = tmp_path / "entries.json"
    path.write_text("{}")
    assert fault(path) == f"{path}: at entries (counted from 0): Field required; {MEND}"


def test_not_json_and_empty(tmp_path: Path) -> None:
    path = tmp_path / "entries.json"
    path.write_text("A : b : C")
    assert fault(path) == f"{path}: line 1: expected JSON: Expecting value; {MEND}"
    path.write_text("")
    assert fault(path) == f"{path}: expected data, found an empty file; {MEND}"
