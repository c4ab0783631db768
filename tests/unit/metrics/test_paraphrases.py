"""The paraphrases that METEOR needs, against the whole table and METEOR's own normalizer."""

import gzip
import random
import re
import subprocess
from pathlib import Path

import pytest

from lodarepro.metrics import java, paraphrases
from lodarepro.metrics.paraphrases import LONGEST, Table, phrases

PAIRS = [
    ("a", "b"),
    ("a", "house at the end of the road"),
    ("café crème", "coffee"),
    ("coffee", "café crème"),
    ("m ²", "square metre"),
    ("house at the end of the road", "a"),
    ("xa", "b"),
    ("us", "america"),
]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    path = tmp_path / "table.gz"
    # The probabilities of the real table are of about this length.
    text = "".join(f"0.0154325948890{i}\n{first}\n{second}\n" for i, (first, second) in enumerate(PAIRS))
    path.write_bytes(gzip.compress(text.encode()))
    return Table(path)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], []),
        (["b"], [0, 6]),
        (["B.", "(XA)"], [0, 6]),
        (["x-xa"], [6]),
        (["the House-at the end of the road,"], [1, 5]),
        (["house at the end of", "the road"], []),
        (["CAFÉ  crème!"], [2, 3]),
        (["5 m²"], [4]),
        (["U.S."], [7]),
        (["US...x"], [7]),
        (["u s"], []),
    ],
)
def test_pairs_of_texts(table: Table, texts: list[str], found: list[int]) -> None:
    assert table.pairs(phrases(texts)) == [line(PAIRS[i]) for i in found]


def line(pair: tuple[str, str]) -> bytes:
    return "{}\n{}\n".format(*pair).encode()


def test_written_pairs_are_read_again(tmp_path: Path, table: Table) -> None:
    path = tmp_path / "cut.gz"
    paraphrases.write(path, table.pairs(phrases(["b"])))
    assert gzip.decompress(path.read_bytes()) == b"0\na\nb\n0\nxa\nb\n"


PIECES = (
    *(
        "U.S.",
        "e.g.",
        "A.B",
        "3.5",
        "1,000",
        "don't",
        "dogs'",
        "'tis",
        "a-b",
        "a.-b",
        "x..y",
        "...",
        "St.",
        "No.",
        "end.",
        "Ltd.",
    ),
    *(
        "“q”",
        "‘s’",
        "’s",
        "m²",
        "–",
        "—",
        "--",
        "|||",
        "&",
        "é",
        "ÉTÉ",
        "Žižek",
        "Ω",
        "東京",
        "😀",
        "\xa0",
        "\u200b",
        "İ",
        "ß",
        "_",
    ),
    *(
        "the",
        "of",
        "House",
        "us",
        "end",
        "I",
        "i.e.x",
        "J.R.R.",
        "said...then",
        ".",
        ",",
        "'",
        "`",
        "-",
        "/",
        "1990's",
        "\t",
    ),
)


def odd_texts(count: int) -> list[str]:
    chance = random.Random(1)
    return [chance.choice(("", " ", " ")).join(chance.choices(PIECES, k=chance.randrange(1, 9))) for _ in range(count)]


def test_phrases_hold_all_that_meteor_may_look_up() -> None:
    texts = odd_texts(4000)
    jar = java.jar("meteor/meteor-1.5.jar")
    command: list[str | Path] = [
        java.runtime(),
        *java.OPTIONS,
        "-Dstdout.encoding=UTF-8",
        "-cp",
        jar,
        "edu.cmu.meteor.util.Normalizer",
        "en",
        "true",
    ]
    done = subprocess.run(command, input="\n".join(texts).encode(), capture_output=True, check=True)
    normalized = done.stdout.decode().lower().split("\n")[:-1]
    assert len(normalized) == len(texts)
    vocabulary = {word for phrase in phrases(PIECES) for word in phrase.decode().split()}
    checked = 0
    for text, line in zip(texts, normalized, strict=True):
        found, words = phrases([text]), line.split()
        for start in range(len(words)):
            for end in range(start + 1, min(start + LONGEST, len(words)) + 1):
                # The table's words are letters and digits; no other sequence can be one of its phrases.
                if all(word.isalnum() and word in vocabulary for word in words[start:end]):
                    assert " ".join(words[start:end]).encode() in found, (text, line)
                    checked += 1
    assert checked > 10_000


def test_the_whole_table() -> None:
    pairs = paraphrases.table().pairs(phrases(["a cheap place in the middle of the town"]))
    assert line(("cheap", "inexpensive")) in pairs
    assert line(("in the middle of", "centre")) in pairs
    assert line(("centre", "middle")) in pairs
    assert line(("city centre", "centre")) not in pairs
    assert len(pairs) < 200_000


@pytest.mark.slow
def test_the_whole_table_is_what_the_search_presumes() -> None:
    lines = gzip.decompress(java.jar("meteor/data/paraphrase-en.gz").read_bytes()).decode().split("\n")
    assert lines.pop() == ""
    assert len(lines) % 3 == 0
    assert len(lines) // 3 == 5_274_084
    found = {*lines[1::3], *lines[2::3]}
    # Words between single spaces, as many as are looked for, each as a text's words are.
    assert {phrase.count(" ") + 1 for phrase in found} == set(range(1, LONGEST + 1))
    words = {word for phrase in found for word in phrase.split(" ")}
    assert len(words) > 17_000
    # METEOR finds no other word: its normalizer parts what is no letter of its own ("?c", "6º", "εu").
    unlike = {word for word in words if phrases([word]) != {word.encode()}}
    assert {word for word in unlike if not re.search("[?º\\u0370-\\u03ff]", word)} == set()
