"""WebNLG challenge 2017 (Gardent et al. 2017): DBpedia triples with texts for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from lodarepro.data.sources import read_json
from lodarepro.data.types import Example

SEEN = frozenset(
    {
        "Airport",
        "Astronaut",
        "Building",
        "City",
        "ComicsCharacter",
        "Food",
        "Monument",
        "SportsTeam",
        "University",
        "WrittenWork",
    }
)
"""categories of the training split; every other one is unseen (protocol section 1)"""


@dataclass(frozen=True, slots=True)
class Triple:
    """One fact of the modified triple set."""

    subject: str
    property: str
    object: str


@dataclass(frozen=True, slots=True)
class Lexicalisation:
    """A text for a set of triples and the annotators' verdict on it (`good` or `toFix`)."""

    lex: str
    comment: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A set of triples with all its texts."""

    category: str
    modifiedtripleset: list[Triple]
    lexicalisations: list[Lexicalisation]


@dataclass(frozen=True, slots=True)
class File:
    """A split: each entry stands alone under its running number."""

    entries: list[Annotated[dict[str, Entry], Field(min_length=1, max_length=1)]]


_FILE = TypeAdapter(File)


def parse(path: Path) -> list[Example]:
    """Read one pair for each good lexicalisation, in the file's order (protocol section 1).

    The context is `subject : property : object | ...` with its spelling kept; the subset is `seen`
    or `unseen` by the entry's category. An entry without a good lexicalisation gives no pair.

    Raises:
        BadInput: the file is unreadable, empty, not UTF-8, not JSON or not in WebNLG's form.
    """
    examples = []
    for entry in _entries(path):
        subset = "seen" if entry.category in SEEN else "unseen"
        context = _context(entry)
        examples += [Example(context, text.lex, subset) for text in entry.lexicalisations if text.comment == "good"]
    return examples


def categories(path: Path) -> dict[str, str]:
    """Context to category, of a split's file; of equal contexts the first's, as with subsets."""
    found: dict[str, str] = {}
    for entry in _entries(path):
        found.setdefault(_context(entry), entry.category)
    return found


def _entries(path: Path) -> Iterator[Entry]:
    for numbered in read_json(path, _FILE).entries:
        yield from numbered.values()


def _context(entry: Entry) -> str:
    return " | ".join(f"{t.subject} : {t.property} : {t.object}" for t in entry.modifiedtripleset)
