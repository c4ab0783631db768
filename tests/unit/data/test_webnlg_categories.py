"""The categories of WebNLG's contexts."""

import json
from pathlib import Path
from typing import Any

import pytest

from lodarepro.data.webnlg import categories, parse
from lodarepro.errors import BadInput


def entry(category: str, *triples: str, comment: str = "good") -> dict[str, Any]:
    named = [dict(zip(("subject", "property", "object"), triple.split(" : "), strict=True)) for triple in triples]
    texts = [{"lex": f"A text of {category}.", "comment": comment}]
    return {"category": category, "modifiedtripleset": named, "lexicalisations": texts}


def write(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "entries.json"
    path.write_text(json.dumps({"entries": [{str(i): e} for i, e in enumerate(entries, 1)]}), encoding="utf-8")
    return path


ENTRIES = [
    entry("Food", "Pea_Soup : madeOf : Peas"),
    entry("Artist", "A : b : C", "C : d : É"),
    entry("City", "Pea_Soup : madeOf : Peas"),  # the same facts elsewhere
    entry("Astronaut", "X : y : Z", comment="toFix"),  # no pair, but a category
]


def test_each_context_has_its_category_and_of_equal_ones_the_first(tmp_path: Path):
    assert categories(write(tmp_path, *ENTRIES)) == {
        "Pea_Soup : madeOf : Peas": "Food",
        "A : b : C | C : d : É": "Artist",
        "X : y : Z": "Astronaut",
    }


def test_contexts_are_those_of_the_pairs(tmp_path: Path):
    path = write(tmp_path, *ENTRIES)
    assert {example.context for example in parse(path)} <= categories(path).keys()


@pytest.mark.parametrize("content", ["", "{", '{"entries": [{"1": {}}]}'])
def test_a_file_that_is_none(content: str, tmp_path: Path):
    path = tmp_path / "entries.json"
    path.write_text(content)
    with pytest.raises(BadInput) as e:
        categories(path)
    assert len(e.value.faults) == 1
    assert str(path) in e.value.faults[0]
