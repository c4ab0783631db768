"""The mteval-v13a tokenizer."""

import string

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
        ("wait... what.,?!", "wait . . . what . , ? !"),
        ("a ..5 .5. 5.", "a . .5 . 5 . 5 ."),
        ("no\u00a0break\u2028line", "no break line"),
        ("ÉTÉ  Straße", "été straße"),
        # A capital sigma is lower-cased by where it stands in its own token.
        ("ΟΔΟΣ' ΣΑΣ", "οδος' σας"),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert mteval.tokenize(text) == tokens
    assert [token.lower() for token in Tokenizer13a()(text).split()] == tokens.split(" ")


@pytest.mark.parametrize("character", sorted(set(string.printable + "\x1c\x85\u00a0\u2028\u200b“·€¿")))
def test_each_character(character: str) -> None:
    text = "".join(f"a{left}{character}{right}b " for left in ("", "5", ",") for right in ("", "5", "."))
    assert mteval.tokenize(text) == Tokenizer13a()(text).lower()


def test_an_empty_text_is_one_empty_token() -> None:
    assert mteval.tokenize("").split(" ") == mteval.tokenize(" \n ").split(" ") == [""]
