"""The tokenizer of mteval-v13a as `tuetschek/e2e-metrics` (1b9c4d87, `pymteval.py`) defines it."""

from __future__ import annotations

import re

VERSION = "e2e-metrics-1b9c4d8"

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_RULES = (
    (re.compile(r"([{-~\[-`!-&(-+:-@/])"), r" \1 "),  # ASCII punctuation, except ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # period and comma, unless after a digit
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # ... unless before a digit
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash after a digit
)


def tokenize(text: str) -> str:
    """The tokens of a text, lower-cased, joined by single spaces.

    `split(" ")` gives the official scorer's tokens back: one empty token for an empty text.
    """
    text = text.replace("<skipped>", "").replace("-\n", "")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    # Lower-cased last: the rules look at ASCII alone, and a few capitals have a lower case of two characters.
    return " ".join(text.split()).lower()
