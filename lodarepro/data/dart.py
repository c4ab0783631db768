"""DART 1.1.1 (Nan et al. 2021): triples from tables and ontologies with texts for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lodarepro.data.sources import read_json
from lodarepro.data.types import Example


@dataclass(frozen=True, slots=True)
class Annotation:
    """A text for a set of triples."""

    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A set of triples (subject, relation, object) with all its texts."""

    tripleset: list[tuple[str, str, str]]
    annotations: list[Annotation]


_FILE = TypeAdapter(list[Entry])


def parse(path: Path) -> list[Example]:
    """Read one pair for each annotation text, in the file's order (protocol section 1).

    The context is `subject : relation : object | ...` with the relation in lower case. A text may
    be empty: the test split has one such, and it counts among the papers' pairs.

    Raises:
        BadInput: the file is unreadable, empty, not UTF-8, not JSON or not in DART's form.
    """
    examples = []
    for entry in read_json(path, _FILE):
        context = " | ".join(f"{s} : {relation.lower()} : {o}" for s, relation, o in entry.tripleset)
        examples += [Example(context, annotation.text) for annotation in entry.annotations]
    return examples
