"""E2E NLG (Novikova et al. 2017) in the LoRA authors' form: a line is `context||completion`."""

from __future__ import annotations

import io
from pathlib import Path

from lodarepro.data.sources import MEND, read_text
from lodarepro.data.types import Example
from lodarepro.errors import BadInput


def parse(path: Path) -> list[Example]:
    """Read pairs, one a line, in the file's order (protocol section 1).

    As in the original's `format_converting_e2e.py`, white space around a line falls away and the
    context keeps its spelling. The line is split at its first `||`; the papers' files that we hold
    have exactly one a line.

    Raises:
        BadInput: the file is unreadable, empty or not UTF-8, or a line has no `||`.
    """
    examples = []
    # StringIO ends lines where the original's text mode does; str.splitlines knows more line ends
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        context, separator, completion = line.strip().partition("||")
        if not separator:
            found = f"no '||' in it: '{context[:40]}'" if context else "an empty line"
            raise BadInput(f"{path}: line {number}: expected 'context||completion', found {found}; {MEND}")
        examples.append(Example(context, completion))
    return examples
