"""Tokenizer and n-grams of mteval-v13a as `tuetschek/e2e-metrics` (1b9c4d87, `pymteval.py`) defines them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

VERSION = "e2e-metrics-1b9c4d8"

Ngram = tuple[str, ...]

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_RULES = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),  # ASCII punctuation, except ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # period and comma, unless after a digit
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # ... unless before a digit
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash after a digit
)


def tokenize(text: str) -> list[str]:
    """Tokens of a text, lower-cased; one empty token for an empty text, as the official scorer has it."""
    text = text.replace("<skipped>", "").replace("-\n", "")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    # Lower-cased last: the rules look at ASCII alone, and a few capitals have a lower case of two characters.
    return [token.lower() for token in re.sub(r"\s+", " ", text).strip().split(" ")]


def ngrams(tokens: list[str], order: int) -> Counter[Ngram]:
    """How often each n-gram of one order occurs."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def merged(counts: Iterable[Counter[Ngram]]) -> Counter[Ngram]:
    """The highest count of each n-gram in any one reference, which clips the hypothesis' count."""
    highest: Counter[Ngram] = Counter()
    for reference in counts:
        highest |= reference
    return highest
