"""The mteval-v13a tokenizer and its n-grams."""

from collections import Counter

import pytest
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from lodarepro.metrics import mteval


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's 3.5, isn't it?", "it's 3.5 , isn't it ?"),
        ("(£20-25)", "( £20 - 25 )"),
        ("well-known U.S. pub, 1,203.5 m.", "well-known u . s . pub , 1,203.5 m ."),
        ("a &amp; b &lt;c&gt; &quot;d&quot;", 'a & b < c > " d "'),
        ("two\nlines, hyphen-\nated <skipped>", "two lines , hyphenated"),
        ("ÉTÉ  Straße", "été straße"),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert mteval.tokenize(text) == tokens.split()
    assert Tokenizer13a()(text).lower().split() == tokens.split()


def test_an_empty_text_is_one_empty_token() -> None:
    assert mteval.tokenize("") == mteval.tokenize(" \n ") == [""]


def test_ngrams_and_their_highest_counts() -> None:
    assert mteval.ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert mteval.ngrams(["a"], 2) == {}
    counts: list[Counter[mteval.Ngram]] = [Counter({("a",): 2, ("b",): 1}), Counter({("a",): 1, ("b",): 3})]
    assert mteval.merged(counts) == {("a",): 2, ("b",): 3}
