"""Pairs to tokens, and their cache."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from lodarepro.config import Protocol
from lodarepro.data import tokenise
from lodarepro.data.tokenise import Encoded, encode, encode_contexts, token_id
from lodarepro.data.types import Example
from lodarepro.errors import BadInput

PROTOCOL = Protocol(name="lora")
EXAMPLES = [Example("name : Ö | a : b", "Ö is b ."), Example("name : c", "c ."), Example("name : c", "Also c .")]


def bytes_tokenizer() -> Tokenizer:
    """One token a byte, and GPT-2's end mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    return bytes_tokenizer()


def equal(one: Encoded, other: Encoded) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Encoded))


def test_a_pair_is_context_end_space_completion_end(tokenizer):
    data = encode(EXAMPLES, tokenizer, PROTOCOL, cache=None)
    assert len(data) == 3
    for row, example in enumerate(EXAMPLES):
        text = tokenizer.decode(data.sequence(row).tolist(), skip_special_tokens=False)
        assert text == f"{example.context}<|endoftext|> {example.completion}<|endoftext|>"
        context = tokenizer.decode(data.sequence(row)[: data.contexts[row]].tolist(), skip_special_tokens=False)
        assert context == f"{example.context}<|endoftext|>"
    assert data.starts[-1] == len(data.tokens)


def test_contexts_for_decoding_are_those_of_training(tokenizer):
    data = encode(EXAMPLES, tokenizer, PROTOCOL, cache=None)
    prompts = encode_contexts([e.context for e in EXAMPLES], tokenizer, PROTOCOL)
    assert prompts == [data.sequence(row)[: data.contexts[row]].tolist() for row in range(3)]


def test_packing_equals_tokenising(tokenizer):
    data = encode(EXAMPLES, tokenizer, PROTOCOL, cache=None)
    pairs = [
        (data.sequence(row)[: data.contexts[row]].tolist(), data.sequence(row)[data.contexts[row] :].tolist())
        for row in range(3)
    ]
    assert equal(Encoded.of(pairs), data)


def test_the_cache_is_used(tokenizer, tmp_path, monkeypatch):
    first = encode(EXAMPLES, tokenizer, PROTOCOL, cache=tmp_path)
    assert equal(first, encode(EXAMPLES, tokenizer, PROTOCOL, cache=None))
    (folder,) = (tmp_path / "tokenised").iterdir()  # nothing partial beside it
    assert len(folder.name) == 32

    def never(*_: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokenise, "encode_contexts", never)
    assert equal(encode(EXAMPLES, tokenizer, PROTOCOL, cache=tmp_path), first)


@pytest.mark.parametrize("what", ["text", "order", "tokenizer", "protocol"])
def test_whatever_changes_the_tokens_is_another_entry_of_the_cache(what, tokenizer, tmp_path):
    encode(EXAMPLES, tokenizer, PROTOCOL, cache=tmp_path)
    examples, protocol = EXAMPLES, PROTOCOL
    if what == "text":
        examples = [*EXAMPLES[:2], Example("name : c", "Also c !")]
    elif what == "order":
        examples = EXAMPLES[::-1]
    elif what == "tokenizer":
        tokenizer.add_tokens(["name"])
    else:
        protocol = dataclasses.replace(PROTOCOL, completion_start="")
    changed = encode(examples, tokenizer, protocol, cache=tmp_path)
    assert equal(changed, encode(examples, tokenizer, protocol, cache=None))
    assert len(list((tmp_path / "tokenised").iterdir())) == 2


def test_a_setting_that_does_not_change_the_tokens_shares_the_entry(tokenizer, tmp_path):
    encode(EXAMPLES, tokenizer, PROTOCOL, cache=tmp_path)
    encode(EXAMPLES, tokenizer, dataclasses.replace(PROTOCOL, max_length=64), cache=tmp_path)
    assert len(list((tmp_path / "tokenised").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_no_fault(tokenizer, tmp_path, caplog):
    (tmp_path / "tokenised").write_text("a file is in the way")
    with caplog.at_level(logging.WARNING):
        data = encode(EXAMPLES, tokenizer, PROTOCOL, cache=tmp_path)
    assert len(data) == 3
    assert "tokenised data are not cached" in caplog.text


def test_an_end_mark_of_several_tokens_is_refused(tokenizer):
    with pytest.raises(BadInput) as e:
        token_id(tokenizer, "\n\n", "decode.end_tokens")
    assert e.value.faults == (
        "decode.end_tokens: '\\n\\n' is 2 tokens in this model's tokenizer, not one; give a text of one token",
    )


def test_importing_it_does_not_import_datasets() -> None:
    """The library takes a second to import, which only tokenising should pay."""
    import subprocess
    import sys

    code = "import sys, lodarepro.data.tokenise; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_cache_folder_may_name_the_home_folder(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    encode(EXAMPLES, tokenizer, PROTOCOL, cache=Path("~/.cache/lodarepro"))
    assert (tmp_path / ".cache" / "lodarepro" / "tokenised").is_dir()
