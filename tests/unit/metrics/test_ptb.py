"""The PTB tokenizer; one start of Java for all texts."""

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
