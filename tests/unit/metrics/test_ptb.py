"""The PTB tokenizer, kept running, against one that reads a file to its end."""

import random
import subprocess
from pathlib import Path

from lodarepro.metrics import java, ptb
from lodarepro.metrics.ptb import tokenize
from lodarepro.metrics.segments import Segments


def test_tokens() -> None:
    raw = Segments(
        hypotheses=(
            "",
            'The "Blue Kiwi" (cheap) isn\'t far; it costs £20-25.',
            "two\nlines\u2028and\x85on",
        ),
        references=(
            ("Café ZOË!", "\n"),
            ("It's 3.5, e.g. at 1 1/2 km -- or so...",),
            ("unclosed <b", "last"),
        ),
    )
    assert tokenize(raw) == Segments(
        hypotheses=("", "the blue kiwi -lrb- cheap -rrb- is n't far it costs # 20-25", "two lines and on"),
        references=(("café zoë", ""), ("it 's 3.5 e.g. at 1\xa01/2 km or so",), ("unclosed < b", "last")),
    )


ODD = (
    *("etc.", "U.S.", "e.g.", "No.", "Inc.", "Mr.", "3.", "...", ".", "-", "--", "'", "''", '"', "``", "`", "?!", "%"),
    *("<b", "<b>", "</b>", "<!-- x", "-->", "&amp;", "&lt", "|||", "|", "\\", "/", "1/2", "1 1/2", "$5", "£20", "€3"),
    *(
        "isn't",
        "can't",
        "cannot",
        "gonna",
        "it's",
        "o'clock",
        "'90s",
        "rock'n'roll",
        "a-b",
        "10-20",
        "1,000",
        "http://a.b/c",
    ),
    *(
        "a@b.cd",
        "#tag",
        "@name",
        ":-)",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "é",
        "東京",
        "😀",
        "\xa0",
        "\u200b",
        "\x00",
        "\x1a",
    ),
    *(
        "\ufeff",
        "\ud800",
        "\x7f",
        "…",
        "–",
        "—",
        "‘",
        "’",
        "“",
        "”",
        "½",
        "ﬁ",
        "A.B.C.",
        "a.b",
        "Ph.D.",
        "The",
        "the",
        "5",
    ),
)


def odd_texts(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [chance.choice(("", " ")).join(chance.choices(ODD, k=chance.randrange(6))) for _ in range(count)]


def official(texts: list[str]) -> list[str]:
    """The tokens of texts as the official scorer has them: one start of the tokenizer, from a file."""
    jar = java.jar("tokenizer/stanford-corenlp-3.4.1.jar")
    command: list[str | Path] = [
        java.runtime(),
        "-cp",
        jar,
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ]
    sent = "\n".join(java.one_line(text) for text in texts).encode(errors="replace")
    done = subprocess.run([*command, "-encoding", "utf-8"], input=sent, capture_output=True, check=True)
    found = done.stdout.decode().split("\n")
    return [ptb._without_punctuation(line) for line in found[: len(texts)]]


def test_a_tokenizer_kept_running_gives_what_one_start_for_each_file_gives() -> None:
    texts = odd_texts(3000, seed=1)
    assert ptb._tokenized(texts) == official(texts)


def test_the_last_text_is_tokenized_as_at_the_end_of_a_file() -> None:
    # What ends in an abbreviation depends on what follows: an end, a capital, a small letter.
    for text in ("etc.", "U.S.", "No.", 'He said "etc.', "x <b", "fun :-)", "Inc.é", "a :-) "):
        assert ptb._tokenized([text]) == official([text])


def test_calls_do_not_mix() -> None:
    assert ptb._tokenized([]) == []
    for i in range(20):
        texts = odd_texts(i, seed=i)
        assert len(ptb._tokenized(texts)) == i
    assert ptb._tokenized(["a b"]) == ["a b"]
