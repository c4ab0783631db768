"""`mini`: the committed files are what the generator writes, and each text is true to its context."""

import itertools
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "lodarepro" / "data" / "mini"


def pairs(split: str) -> list[tuple[str, str]]:
    lines = (FOLDER / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        context, text = line.split("||")
        found.append((context, text))
    return found


def record(context: str) -> dict[str, str]:
    fields = [field.split(" : ") for field in context.split(" | ")]
    assert all(len(field) == 2 for field in fields), context
    return dict(fields)


def names(split: str) -> set[str]:
    return {record(context)["name"].removeprefix("The ") for context, _ in pairs(split)}


def test_generator_writes_the_committed_bytes(make_mini: ModuleType, tmp_path: Path) -> None:
    make_mini.main(["--out", str(tmp_path)])
    for split in ("train", "valid", "test"):
        assert (tmp_path / f"{split}.txt").read_bytes() == (FOLDER / f"{split}.txt").read_bytes()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_fact_is_in_the_text(make_mini: ModuleType, split: str) -> None:
    for context, text in pairs(split):
        for key, value in record(context).items():
            forms = make_mini.realisations(key, value)
            assert any(form.casefold() in text.casefold() for form in forms), (key, value, text)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_form_of_the_lines(make_mini: ModuleType, split: str) -> None:
    for context, text in pairs(split):
        keys = list(record(context))
        assert 3 <= len(keys) <= 7
        assert keys == [key for key in make_mini.KEYS if key in keys]
        assert text.endswith(" .") and text[0].isupper()
        assert "{" not in text and "  " not in text and ".." not in text


def test_counts() -> None:
    assert len(pairs("train")) == 2000
    assert len(pairs("valid")) == 200
    references = Counter(context for context, _ in pairs("test"))
    assert len(references) == 150
    assert set(references.values()) == {2, 3, 4, 5}
    assert set(Counter(context for context, _ in pairs("train")).values()) == {1, 2, 3}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_lines_of_one_context_are_together_and_differ(split: str) -> None:
    found = pairs(split)
    runs = [context for context, _ in itertools.groupby(found, key=lambda pair: pair[0])]
    assert len(runs) == len(set(runs))
    assert len(set(found)) == len(found)


def test_no_name_is_shared_between_splits() -> None:
    train, valid, test = names("train"), names("valid"), names("test")
    assert not train & test
    assert not train & valid
    assert not valid & test
