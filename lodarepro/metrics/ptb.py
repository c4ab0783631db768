"""The Penn Treebank tokenizer of the COCO caption tools (Stanford CoreNLP 3.4.1, a jar)."""

from __future__ import annotations

from lodarepro.metrics import java
from lodarepro.metrics.segments import Segments

VERSION = "ptb-corenlp-3.4.1"

# Tokens that the COCO caption tools drop (tylin/coco-caption, ptbtokenizer.py). Their list also has the
# bracket tokens -LRB- etc. in capitals, which never match since the output is lower-cased: brackets stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])


def tokenize(segments: Segments) -> Segments:
    """The segments in PTB tokens, lower-cased, without punctuation, joined by single spaces.

    Line breaks inside a text count as spaces. One Java process tokenizes all texts.

    Raises:
        BadInput: no Java runtime, or no jar.
        RunFailed: the tokenizer failed.
    """
    arguments = (
        "-cp",
        java.jar("tokenizer/stanford-corenlp-3.4.1.jar"),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    )
    lines = java.filter_lines("the PTB tokenizer", arguments, map(java.one_line, segments.texts()))
    return segments.replace([_without_punctuation(line) for line in lines])


def _without_punctuation(line: str) -> str:
    # Split at the space alone: a token such as "1 1/2" holds a no-break space.
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
