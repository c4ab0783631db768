"""The E2E parser: lines of `context||completion`."""

import re
from pathlib import Path

import pytest

from lodarepro.data.e2e import parse
from lodarepro.data.sources import MEND
from lodarepro.data.types import Example
from lodarepro.errors import BadInput


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "pairs.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault(path: Path) -> str:
    with pytest.raises(BadInput) as error:
        parse(path)
    assert error.value.exit_code == 2
    (line,) = error.value.faults
    assert "\n" not in line
    return line


def test_pairs_come_in_order_and_keep_their_spelling(tmp_path: Path) -> None:
    path = write(tmp_path, "name : Owl | Type : inn||The Owl is an inn . \nname : Café Élan||A café .\n")
    assert parse(path) == [
        Example("name : Owl | Type : inn", "The Owl is an inn ."),
        Example("name : Café Élan", "A café ."),
    ]


def test_only_the_first_separator_splits(tmp_path: Path) -> None:
    assert parse(write(tmp_path, "name : Owl||either || or\n")) == [Example("name : Owl", "either || or")]


def test_inner_white_space_and_an_empty_completion_stay(tmp_path: Path) -> None:
    assert parse(write(tmp_path, " a :  b || two  words\na||")) == [
        Example("a :  b ", " two  words"),
        Example("a", ""),
    ]


def test_lines_end_where_the_original_ends_them(tmp_path: Path) -> None:
    # U+2028 and U+0085 are line ends for str.splitlines, not for a text file
    path = write(tmp_path, "a||one\r\nb||two\u2028still two\u0085and still\rc||three")
    assert [example.completion for example in parse(path)] == [
        "one",
        "two\u2028still two\u0085and still",
        "three",
    ]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert parse(write(tmp_path, b"\xef\xbb\xbfa||one\n")) == [Example("a", "one")]


def test_a_line_without_separator(tmp_path: Path) -> None:
    path = write(tmp_path, "a||one\nname : Owl | the Owl\n")
    assert fault(path) == (
        f"{path}: line 2: expected 'context||completion', found no '||' in it: 'name : Owl | the Owl'; {MEND}"
    )


def test_an_empty_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a||one\n\nb||two\n")
    assert fault(path) == f"{path}: line 2: expected 'context||completion', found an empty line; {MEND}"


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    assert fault(path) == f"{path}: expected data, found an empty file; {MEND}"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_not_utf8(tmp_path: Path, mark: bytes) -> None:
    path = write(tmp_path, mark + b"a||one\nb||two\nc||caf\xe9\n")
    assert fault(path) == f"{path}: line 3: expected UTF-8 text, found other bytes; {MEND}"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert re.fullmatch(r".*: cannot be read: Is a directory; .* data\.root=FOLDER", fault(tmp_path))


def test_the_way_out_names_the_setting() -> None:
    assert "data.root=FOLDER" in MEND
    assert "download" in MEND
