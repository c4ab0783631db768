"""The Penn Treebank tokenizer of the COCO caption tools (Stanford CoreNLP 3.4.1, a jar)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from lodarepro.metrics import java
from lodarepro.metrics.segments import Segments

VERSION = "ptb-corenlp-3.4.1"

# Tokens that the COCO caption tools drop (tylin/coco-caption, ptbtokenizer.py). Their list also has the
# bracket tokens -LRB- etc. in capitals, which never match since the output is lower-cased: brackets stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# The tokenizer writes what fills its buffers (8,192 characters each in three layers) and keeps the rest until
# its input ends, which it never does here: lines after the last text push that out.
_FILLER = ("x" * 120,) * 250

# How a text ends that is tokenized alike before a line feed and at the end of a file; ":-)" is not.
_PLAIN_END = re.compile(r"(^|\s)\w*[.!?]?\s*$")

_calls = itertools.count()
_program = java.Program(
    "the PTB tokenizer",
    lambda: (
        "-cp",
        java.jar("tokenizer/stanford-corenlp-3.4.1.jar"),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ),
)


def tokenize(segments: Segments) -> Segments:
    """The segments in PTB tokens, lower-cased, without punctuation, joined by single spaces.

    Line breaks inside a text count as spaces. References and hypotheses are tokenized apart, as in the
    official scorer: the tokenizer looks past the end of a line.

    Raises:
        BadInput: no Java runtime, or no jar.
        RunFailed: the tokenizer failed.
    """
    texts = [java.one_line(text) for text in segments.texts()]
    first = len(texts) - len(segments)
    return segments.replace(_tokenized(texts[:first]) + _tokenized(texts[first:]))


def _tokenized(texts: list[str]) -> list[str]:
    """The tokens of texts as the tokenizer has them that reads these texts alone, from a file."""
    # The capital makes of the line after the last text what the end of a file is: the end of a sentence.
    call = next(_calls)
    begin, end = f"Begin{call}Texts", f"End{call}Texts"

    def read(answers: Iterator[str]) -> list[str]:
        for line in answers:  # filler of the last call comes first
            if line == begin.lower():
                break
        found = list(itertools.takewhile(lambda line: line != end.lower(), answers))
        if len(found) != len(texts):
            raise java.Broken(f"gave {len(found)} lines for {len(texts)}")
        return found

    # The empty line ends what a call that was answered early may have left of its last line.
    tokens = _program.ask(["", begin, *texts, end, *_FILLER], read)
    if texts and not _PLAIN_END.search(texts[-1]):
        tokens[-1] = _program.run_to_end(texts[-1])
    return [_without_punctuation(line) for line in tokens]


def _without_punctuation(line: str) -> str:
    # Split at the space alone: a token such as "1 1/2" holds a no-break space.
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
