"""Files as the official scorers read them (expectations are what those gave for the same bytes), and every fault."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lodarepro.errors import BadInput
from lodarepro.metrics.reading import read_e2e, read_labels, read_parallel
from lodarepro.metrics.segments import Segments
from lodarepro.metrics.suites import padded, split_words

Content = str | bytes
E2E = tuple[list[str], list[list[str]]]


def write(path: Path, content: Content) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def e2e(folder: Path, hypotheses: Content, references: Content, hyp: str = "hyp.txt", ref: str = "ref.txt") -> E2E:
    return read_e2e(write(folder / hyp, hypotheses), write(folder / ref, references))


def parallel(folder: Path, hypotheses: Content, *references: Content, raw: bool = True) -> E2E:
    for i, content in enumerate(references):
        write(folder / f"ref{i}", content)
    return read_parallel(write(folder / "hyp", hypotheses), folder / "ref", len(references), raw=raw)


def faults(call: Callable[[], object], folder: Path) -> list[str]:
    """The error lines of a call, without the folder."""
    with pytest.raises(BadInput) as caught:
        call()
    return [fault.replace(f"{folder}/", "") for fault in caught.value.faults]


# E2E, plain text


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \n\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_blank_lines_part_references(tmp_path: Path, newline: str, end: str) -> None:
    references = f"a 1\n a 2\t\n\nb{end}".replace("\n", newline)
    assert e2e(tmp_path, f"x{newline} y ", references) == (["x", "y"], [["a 1", "a 2"], ["b"]])


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_without_blank_lines_each_reference_is_a_segment(tmp_path: Path, end: str) -> None:
    assert e2e(tmp_path, "x\ny\n", f"a\nb{end}") == (["x", "y"], [["a"], ["b"]])


def test_blank_lines_are_empty_hypotheses(tmp_path: Path) -> None:
    assert e2e(tmp_path, "\nx\n \n", "a\nb\nc\n")[0] == ["", "x", ""]


def test_plain_text_is_not_repaired(tmp_path: Path) -> None:
    assert e2e(tmp_path, "\ufeffÂ£ Ł\n", "\ufeffÃ©\n") == (["\ufeffÂ£ Ł"], [["\ufeffÃ©"]])


def test_a_rare_line_break_at_the_very_end_adds_nothing(tmp_path: Path) -> None:
    assert e2e(tmp_path, "x\ny\x0c", "a\nb\u2028") == (["x", "y"], [["a"], ["b"]])


# E2E, tables


@pytest.mark.parametrize(
    ("name", "delimiter"), [("ref.tsv", "\t"), ("ref.csv", ","), ("ref.TSV", "\t"), ("ref.csv", "\t"), ("ref.tsv", ",")]
)
def test_references_follow_the_sources_of_the_hypotheses(tmp_path: Path, name: str, delimiter: str) -> None:
    references = 'mr;ref\n"a";a1\nb;b1\nc;c1\na;"a2 ""x"""\n'.replace(";", delimiter)
    assert e2e(tmp_path, "MR\toutput\nb\ty\na\tx\nb\tz\n", references, "hyp.tsv", name) == (
        ["y", "x", "z"],
        [["b1"], ["a1", 'a2 "x"'], ["b1"]],
    )


@pytest.mark.parametrize(
    ("hypotheses", "name"),
    [("x\ny\nz\n", "hyp.txt"), ('src\tout\n""\tx\n""\ty\n""\tz\n', "hyp.tsv"), ("x\ny\nz\n", "hyp.tsv.txt")],
)
def test_without_sources_consecutive_rows_are_a_segment(tmp_path: Path, hypotheses: str, name: str) -> None:
    references = "mr,ref\na,a1\na,a2\nb,b1\na,a3\n"
    assert e2e(tmp_path, hypotheses, references, name, "ref.csv") == (
        ["x", "y", "z"],
        [["a1", "a2"], ["b1"], ["a3"]],
    )


def test_one_source_is_enough_to_go_by_sources(tmp_path: Path) -> None:
    hypotheses = 'mr,out\nb,y\n"",x\n'
    assert e2e(tmp_path, hypotheses, 'mr,ref\n"",1\nb,2\n"",3\n', "hyp.csv", "ref.csv")[1] == [["2"], ["1", "3"]]


def test_a_table_of_hypotheses_with_plain_references(tmp_path: Path) -> None:
    hypotheses = "id,Reference,Source\n1,x,s\n2,y,r\n"
    assert e2e(tmp_path, hypotheses, "a\n\nb\n", "hyp.csv") == (["x", "y"], [["a"], ["b"]])


SOURCES = ["mr", "MRs", "src", "Source text", "meaning_representation", "da", "dialogue act", "dial-acts", "date"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("output", ["out", "Output", "ref", "References", "sys", "system-output"])
def test_headers_of_hypotheses(tmp_path: Path, source: str, output: str) -> None:
    assert e2e(tmp_path, f"{output}\tx\t{source}\no\tx\ts\n", "a", "hyp.tsv")[0] == ["o"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("reference", ["trg", "tgts", "Target", "reference", "human", "human-ref"])
def test_headers_of_references(tmp_path: Path, source: str, reference: str) -> None:
    assert e2e(tmp_path, "x", f"{reference}\tx\t{source}\nr\tx\ts\n", ref="ref.tsv")[1] == [["r"]]


@pytest.mark.parametrize("header", ["dialogueact", "dial:act", "xsource", " mr", "input"])
def test_other_headers_are_none(tmp_path: Path, header: str) -> None:
    assert faults(lambda: e2e(tmp_path, f"x,{header},out\nx,s,o\n", "a", "hyp.csv"), tmp_path) == [
        "hyp.csv: line 1: 0 of 3 columns headed as source and 1 as output: head one as 'source' and one as 'output', "
        "or give two columns without headers"
    ]


def test_tables_without_headers(tmp_path: Path) -> None:
    """The official reader means to take them, and stops; systems of the E2E challenge were submitted so."""
    hypotheses = '\ufeff"name[A], food[x]"\tIt is A.\n"name[B]"\tIt is B.\n'
    references = '"name[B]",B it is.\n"name[A], food[x]",A it is.\n'
    assert e2e(tmp_path, hypotheses, references, "hyp.tsv", "ref.csv") == (
        ["It is A.", "It is B."],
        [["A it is."], ["B it is."]],
    )


def test_tables_are_repaired(tmp_path: Path) -> None:
    hypotheses = "\ufeffmr\tout\n\r\r\n  A Ł\tŁ Â£ ÂŁ \r\nb\tÃ© ã© \ufeff\n"
    assert e2e(tmp_path, hypotheses, "mr,ref\n\nb,1\nA £,2\n", "hyp.tsv", "ref.csv") == (
        ["£ £ £", "é é \ufeff"],
        [["2"], ["1"]],
    )


def test_quotes_within_cells(tmp_path: Path) -> None:
    hypotheses = 'mr\tout\na\t"foo" bar\nb\tfoo "bar"\nc\t""\nd\t"a\tb"\n'
    assert e2e(tmp_path, hypotheses, "1\n2\n3\n4\n", "hyp.tsv")[0] == ["foo bar", 'foo "bar"', "", "a\tb"]


# E2E, faults


def test_both_files_are_missing(tmp_path: Path) -> None:
    (tmp_path / "ref").mkdir()
    assert faults(lambda: read_e2e(tmp_path / "hyp.tsv", tmp_path / "ref"), tmp_path) == [
        "hyp.tsv: no such file: check the path",
        "ref: a folder: name a file in it",
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "hyp: an empty file: give one text a line"),
        (b"ab\nc\xe9d\n", "hyp: line 2: not UTF-8 text: 0xe9 at byte 4: convert it to UTF-8"),
        ("ab".encode("utf-16"), "hyp: line 1: not UTF-8 text: 0xff at byte 0: convert it to UTF-8"),
        ("a\nb".encode("utf-16-le"), "hyp: line 1: not UTF-8 text: 0x00 at byte 1: convert it to UTF-8"),
    ],
)
@pytest.mark.parametrize("reader", ["e2e", "parallel", "labels"])
def test_not_text(tmp_path: Path, reader: str, content: bytes, fault: str) -> None:
    readers: dict[str, Callable[[], object]] = {
        "e2e": lambda: e2e(tmp_path, content, "a", "hyp"),
        "parallel": lambda: parallel(tmp_path, content, "a"),
        "labels": lambda: read_labels(write(tmp_path / "hyp", content)),
    }
    assert faults(readers[reader], tmp_path) == [fault]


def test_unreadable(tmp_path: Path) -> None:
    write(tmp_path / "file", "seen")
    assert faults(lambda: read_labels(tmp_path / "file" / "labels"), tmp_path) == [
        "file/labels: can't be read (Not a directory): make it readable or give another"
    ]


@pytest.mark.parametrize(
    ("hypotheses", "references", "name", "fault"),
    [
        (
            "x\n",
            "a\nb\n",
            "ref.txt",
            "hyp.txt has 1 hypotheses but ref.txt references for 2 segments "
            "(each line is a segment, as there is no blank line): give one hypothesis for each segment",
        ),
        (
            "x\n\n\n",
            "a\nb\n\nc",
            "ref.txt",
            "hyp.txt has 3 hypotheses (2 of them blank at its end) but ref.txt references for 2 segments "
            "(blank lines part the segments): give one hypothesis for each segment",
        ),
        (
            "x\ny",
            "mr,ref\na,1\na,2\n",
            "ref.csv",
            "hyp.txt has 2 hypotheses but ref.csv references for 1 segments "
            "(consecutive rows with one source are a segment): give one hypothesis for each segment",
        ),
        ("x", "\n \n", "ref.txt", "ref.txt: only blank lines: give one reference a line"),
        ("x", "\n \n", "ref.csv", "ref.csv: only blank lines: give a table with a source and a text column"),
        (
            "x",
            "\na\n\nb\n\n\n\nc\n\n\n\nd",
            "ref.txt",
            "ref.txt: lines 1, 6, 7 and 2 more: a blank line with no reference before it makes a segment without "
            "references: delete it, one blank line parts two segments",
        ),
    ],
)
def test_segments_that_do_not_fit(tmp_path: Path, hypotheses: str, references: str, name: str, fault: str) -> None:
    assert faults(lambda: e2e(tmp_path, hypotheses, references, ref=name), tmp_path) == [fault]


@pytest.mark.parametrize("char", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r"])
def test_breaks_that_would_shift_segments(tmp_path: Path, char: str) -> None:
    """With as many in both files the official reader scores texts against others' references."""
    assert faults(lambda: e2e(tmp_path, f"x{char}y\nz\n", f"a\n\nb\n\nc{char}d\n"), tmp_path) == [
        f"hyp.txt: line 1: {char!r} would end the line there and so add a text: put a space in its place",
        f"ref.txt: line 5: {char!r} would end the line there and so add a text: put a space in its place",
    ]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (
            "mr\tout\tsource\na\tb\tc\n",
            "line 1: 2 of 3 columns headed as source and 1 as output: head one as 'source' and one as 'output', "
            "or give two columns without headers",
        ),
        (
            "\n\nmr\tprediction\na\tb\n",
            "line 3: 1 of 2 columns headed as source and 0 as output: head one as 'source' and one as 'output', "
            "or give two columns without headers",
        ),
        (
            "a\tb\tc\n",
            "line 1: 0 of 3 columns headed as source and 0 as output: head one as 'source' and one as 'output', "
            "or give two columns without headers",
        ),
        (
            "only text\n",
            "line 1: 0 of 1 columns headed as source and 0 as output: head one as 'source' and one as 'output', "
            "or give two columns without headers",
        ),
        ("mr\tout\n", "line 1: no rows below the header: give one for each text"),
        (
            "mr\tout\n\na\t\nb\tx\nc\tx\ty\n",
            "lines 3, 5: not 2 columns as in line 1: mend the row; an empty cell at the start or end of a line needs "
            'quotes, ""',
        ),
        ("mr,out\na,b,c\n", "line 2: not 2 columns as in line 1: mend the row"),
        (
            'mr\tout\na\t"x\nb\ty\nc\t"z\n',
            "lines 2, 4: a quoted cell goes on past the end of the line: close its quotes, and write line breaks in "
            "cells as spaces",
        ),
        (
            'mr,out\n"a\nb",x\n',
            "line 2: a quoted cell goes on past the end of the line: close its quotes, and write line breaks in cells "
            "as spaces",
        ),
        (
            f"mr,out\na,{'x' * (csv.field_size_limit() + 1)}\n",
            f"line 2: field larger than field limit ({csv.field_size_limit()}): shorten the cell",
        ),
    ],
)
def test_tables_that_make_no_sense(tmp_path: Path, table: str, fault: str) -> None:
    assert faults(lambda: e2e(tmp_path, table, "a\n", "hyp.tsv"), tmp_path) == [f"hyp.tsv: {fault}"]


@pytest.mark.parametrize("table", ["mr\tout\r\r\na\tx\u2028\r\nb\r\n", "mr\tout\ra\tx\rb"])
def test_lines_are_counted_as_editors_do(tmp_path: Path, table: str) -> None:
    assert faults(lambda: e2e(tmp_path, table, "a", "hyp.tsv"), tmp_path)[0].startswith(
        "hyp.tsv: line 3: not 2 columns"
    )


def test_faults_of_both_files_come_together(tmp_path: Path) -> None:
    assert faults(lambda: e2e(tmp_path, "mr\tout\n", "mr,target\n", "hyp.tsv", "ref.csv"), tmp_path) == [
        "hyp.tsv: line 1: no rows below the header: give one for each text",
        "ref.csv: line 1: no rows below the header: give one for each text",
    ]


def test_sources_without_references(tmp_path: Path) -> None:
    hypotheses = "mr\tout\n" + "".join(f"{source}\tx\n" for source in "abcdea")
    assert faults(lambda: e2e(tmp_path, hypotheses, "mr,ref\na,1\n", "hyp.tsv", "ref.csv"), tmp_path) == [
        "hyp.tsv: lines 3, 4, 5 and 1 more: source not in ref.csv: 'b': spell sources as there"
    ]


# GenerationEval


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("ends", [("", "", ""), ("\n", "\n", "\n"), ("\n", "", "\n"), ("", "\n", "")])
def test_parallel_files(tmp_path: Path, ends: tuple[str, str, str], newline: str) -> None:
    contents = ["X \n\nZ", "A1\nB1\nC1", "\n B2\u2028\x85b\nC2"]
    files = [(content + end).replace("\n", newline) for content, end in zip(contents, ends, strict=True)]
    assert parallel(tmp_path, *files) == (["X", "", "Z"], [["A1"], ["B1", "B2\u2028\x85b"], ["C1", "C2"]])


def test_an_empty_last_text_of_lines_that_are_joined(tmp_path: Path) -> None:
    """As in GenerationEval's README, where the last line of a file of references is empty."""
    assert parallel(tmp_path, "x\n", "a\nb", "a2\n") == (["x", ""], [["a", "a2"], ["b"]])


def test_a_newline_at_the_end_is_no_empty_text(tmp_path: Path) -> None:
    assert faults(lambda: parallel(tmp_path, "x\n", "a\nb\n"), tmp_path) == [
        "different numbers of lines: hyp has 1, ref0 has 2: give one line for each segment in every file"
    ]
    assert faults(lambda: parallel(tmp_path, "x\ny\n\n", "a\nb\n", "c"), tmp_path) == [
        "different numbers of lines: hyp has 3, ref0 has 2, ref1 has 1: give one line for each segment in every file"
    ]


@pytest.mark.parametrize("end", ["", "\n"])
def test_blank_lines_in_processed_files_are_empty_references(tmp_path: Path, end: str) -> None:
    """GenerationEval scores them; DART has an empty reference, which the LoRA paper's code writes so."""
    files = [f"x .{end}", f"a{end}", "\n" if end else " "]
    assert parallel(tmp_path, *files, raw=False) == (["x ."], [["a", ""]])
    assert parallel(tmp_path, *files, raw=True) == (["x ."], [["a"]])


def test_raw_and_processed_files_are_one_to_the_suite(tmp_path: Path) -> None:
    """What the suite makes of raw texts, it leaves as it is in files that were made so."""
    raw = Segments(("It's X_1.", ""), (("ÉTÉ (b)", "c-D"), tuple("ABCDEF")))
    done = padded(raw.map(split_words))
    files = ["".join(f"{text}\n" for text in texts) for texts in (done.hypotheses, *zip(*done.references, strict=True))]
    hypotheses, references = parallel(tmp_path, *files, raw=False)
    assert padded(Segments(tuple(hypotheses), tuple(map(tuple, references))).map(split_words)) == done


def test_splitting_words_again_changes_nothing() -> None:
    characters = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x20000))))
    for text in (characters, " ".join(characters), "ΑΣ ΑΣ'Α Σ. İSTANBUL İ'Σ", "a\u0307\u00adB\x1c\x85c"):
        once = split_words(text)
        assert split_words(once) == once


def test_one_file_of_references(tmp_path: Path) -> None:
    hypotheses, prefix = write(tmp_path / "hyp", "x"), tmp_path / "ref"
    assert faults(lambda: read_parallel(hypotheses, prefix, 1, raw=True), tmp_path) == [
        "ref: no such file: check the path"
    ]
    write(tmp_path / "ref0", "numbered")
    assert read_parallel(hypotheses, prefix, 1, raw=True)[1] == [["numbered"]]
    write(prefix, "as in GenerationEval")
    assert read_parallel(hypotheses, prefix, 1, raw=True)[1] == [["as in GenerationEval"]]


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "ref1", "a")
    assert faults(lambda: read_parallel(tmp_path / "hyp", tmp_path / "ref", 3, raw=True), tmp_path) == [
        f"{name}: no such file: check the path" for name in ("hyp", "ref0", "ref2")
    ]


@pytest.mark.parametrize("raw", [True, False])
def test_first_references_that_are_blank(tmp_path: Path, raw: bool) -> None:
    assert faults(lambda: parallel(tmp_path, "x\ny\nz\n", "a\n \n\n", "b\nb\nb\n", raw=raw), tmp_path) == [
        "ref0: lines 2, 3: blank, but this file has the first reference of every segment: fill it in"
    ]


def test_numbers_of_files(tmp_path: Path) -> None:
    assert faults(lambda: read_parallel(tmp_path, tmp_path, 0, raw=True), tmp_path) == [
        "0 files of references: give 1 or more"
    ]
    assert faults(lambda: read_parallel(tmp_path, tmp_path, 7, raw=False), tmp_path) == [
        "7 files of processed references, but the protocol has 6 at most: give the first 6, or raw texts"
    ]
    assert parallel(tmp_path, "x", *"abcdefg")[1] == [list("abcdefg")]


def test_texts_that_are_not_processed(tmp_path: Path) -> None:
    assert faults(lambda: parallel(tmp_path, "x.\ny\n", "a .\nb\n", "A\n\n", raw=False), tmp_path) == [
        "hyp: line 1: not lower-cased and split at every non-word character: 'x.': process it so, "
        "or score the files as raw text",
        "ref1: line 1: not lower-cased and split at every non-word character: 'A': process it so, "
        "or score the files as raw text",
    ]


# labels


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_labels(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "labels", f"\ufeffseen\n\n unseen \r\n \nAll{end}")
    assert read_labels(path) == ["seen", None, "unseen", None, "All"]


def test_a_reserved_label(tmp_path: Path) -> None:
    path = write(tmp_path / "labels", "\ufeffall\nseen\nall \n")
    assert faults(lambda: read_labels(path), tmp_path) == [
        "labels: lines 1, 3: 'all' stands for all segments: give the subset another name"
    ]


def test_files_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    path = write(tmp_path / "labels", "gesehen – é\n")
    code = f"from lodarepro.metrics.reading import *; print(ascii(read_labels(Path({str(path)!r}))))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(["gesehen – é"])
