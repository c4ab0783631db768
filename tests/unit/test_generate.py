"""From contexts to texts: memory that ends, processes' shares, what is told on the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from lodarepro.config import Decode, Protocol
from lodarepro.data.types import Segment
from lodarepro.decode import generate as module
from lodarepro.decode.beam import search
from lodarepro.decode.generate import decode, text_of
from lodarepro.distributed import Processes
from lodarepro.errors import BadInput, RunFailed, Stopped
from lodarepro.model import GPT2, Sizes
from lodarepro.records import Decoded

SETTINGS = Decode(beam=3, max_new_tokens=8, min_length=3)
PROTOCOL = Protocol("x", max_length=64)
SEGMENTS = [Segment("name : " + "Ovenna " * (n * 7 % 10), ("a", "b"), subset=None) for n in range(11)]


@pytest.fixture(scope="module")
def model() -> GPT2:
    """Of the tiny tokenizer's vocabulary, with weights large enough that texts differ."""
    net = GPT2(Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=299, n_positions=512)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.4, generator=generator)
    return net


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Lets memory end above a number of prompts; the sizes of the searches then."""
    seen: list[int] = []

    def limited(fits: int) -> list[int]:
        def short(net: GPT2, prompts: Any, *arguments: Any, **options: Any) -> Any:
            seen.append(len(prompts))
            if len(prompts) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return search(net, prompts, *arguments, **options)

        monkeypatch.setattr(module, "search", short)
        return seen

    yield limited


def go(net: GPT2, tokenizer: Tokenizer, settings: Decode = SETTINGS, **options: Any) -> list[Decoded]:
    return decode(net, tokenizer, SEGMENTS, settings, protocol=PROTOCOL, **options)


def same(found: list[Decoded], expected: list[Decoded]) -> None:
    assert [(d.context, d.hypothesis, d.finished) for d in found] == [
        (d.context, d.hypothesis, d.finished) for d in expected
    ]
    assert [d.log_score for d in found] == pytest.approx([d.log_score for d in expected], abs=1e-5)


def test_texts_stand_in_the_order_of_their_segments(model, tiny_tokenizer):
    found = go(model, tiny_tokenizer)
    assert [d.context for d in found] == [s.context for s in SEGMENTS]
    assert len({d.hypothesis for d in found}) > 3
    for segment, expected in zip(SEGMENTS, found, strict=True):
        (alone,) = decode(model, tiny_tokenizer, [segment], SETTINGS, protocol=PROTOCOL)
        same([alone], [expected])


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_texts_do_not_depend_on_how_many_are_searched_at_once(batch: int, model, tiny_tokenizer):
    same(go(model, tiny_tokenizer, batch=batch), go(model, tiny_tokenizer))


@pytest.mark.parametrize(
    ("fits", "tries", "told"), [(6, [11, 6, 5], [6]), (2, [11, 6, 3, 2, 2, 2, 2, 2, 1], [6, 3, 2])]
)
def test_where_memory_ends_fewer_are_searched_at_once(
    fits: int, tries: list[int], told: list[int], sizes, model, tiny_tokenizer, log
):
    expected = go(model, tiny_tokenizer)
    seen = sizes(fits)
    same(go(model, tiny_tokenizer), expected)
    assert seen == tries
    assert log.messages == [f"out of memory: going on with {n} prompts at once, to the same texts" for n in told]


def test_a_prompt_for_which_there_is_no_memory_ends_the_run(sizes, model, tiny_tokenizer):
    sizes(0)
    with pytest.raises(RunFailed, match=r"not even one prompt fits into the device's memory; lower decode\.beam"):
        go(model, tiny_tokenizer)


def test_processes_share_the_contexts_and_have_all_texts(model, tiny_tokenizer, sizes):
    expected = go(model, tiny_tokenizer)
    shares: list[Any] = []

    class Noted(Processes):
        def gather(self, item: Any) -> list[Any]:
            shares.append(item)
            return shares

    seen = sizes(100)
    with pytest.raises(KeyError):  # of the first alone there are not all
        go(model, tiny_tokenizer, processes=Noted(0, 2))
    same(go(model, tiny_tokenizer, processes=Noted(1, 2)), expected)
    assert seen == [6, 5] and not shares[0].keys() & shares[1].keys()


def test_tokens_that_are_banned_are_not_generated(model, tiny_tokenizer):
    letters = {c for d in go(model, tiny_tokenizer) for c in d.hypothesis if c.isascii() and c.isalpha()}
    assert letters
    settings = replace(SETTINGS, banned_tokens=tuple(sorted(letters)))
    found = go(model, tiny_tokenizer, settings)
    ids = {tiny_tokenizer.token_to_id(c) for c in letters}
    for d in found:
        assert not ids & set(tiny_tokenizer.encode(d.hypothesis).ids)
    with pytest.raises(BadInput, match=r"decode\.banned_tokens"):
        go(model, tiny_tokenizer, replace(SETTINGS, banned_tokens=("no token",)))


def test_bf16_rounds_the_model_and_leaves_it_unpacked(model, tiny_tokenizer):
    exact, rounded = go(model, tiny_tokenizer), go(model, tiny_tokenizer, replace(SETTINGS, precision="bf16"))
    assert [d.log_score for d in rounded] != [d.log_score for d in exact]
    assert [d.log_score for d in rounded] == pytest.approx([d.log_score for d in exact], rel=0.15)
    assert model.output is None and all(dense.product is None for dense in model.denses("q"))


def test_a_stop_is_asked_for_after_each_batch(model, tiny_tokenizer, sizes):
    seen = sizes(100)
    asked = iter([None, 15])
    with pytest.raises(Stopped, match="stopped while decoding; the same command decodes again") as e:
        go(model, tiny_tokenizer, batch=4, stop_signal=lambda: next(asked))
    assert e.value.exit_code == 143 and seen == [4, 4]


@pytest.mark.parametrize("shown", [True, False])
def test_how_far_it_is_is_shown_or_told(shown: bool, model, tiny_tokenizer, log, monkeypatch: pytest.MonkeyPatch):
    ticks: list[int] = []

    @contextmanager
    def bar(what: str, total: int, *, shown: bool) -> Iterator[Any]:
        assert (what, total) == ("decoding", 11)
        yield (lambda done, note: ticks.append(done)) if shown else None

    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr(module, "bar", bar)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    go(model, tiny_tokenizer, batch=2, show_bar=shown)
    assert ticks == ([2, 4, 6, 8, 10, 11] if shown else [])
    assert log.messages == ([] if shown else [f"decoded {n} of 11 contexts" for n in (4, 8, 11)])


@pytest.mark.parametrize(
    ("text", "plain", "cleaned"),
    [
        (" It 's a place , is n't it ?\n\nAnd more .", "It 's a place , is n't it ?", "It's a place, isn't it?"),
        ("One .<|endoftext|> Two .", "One .", "One."),
        ("They 've come .  ", "They 've come .", "They've come."),
    ],
)
def test_a_text_ends_at_its_mark_and_may_be_cleaned_up(text: str, plain: str, cleaned: str, tiny_tokenizer):
    tokens = tiny_tokenizer.encode(text, add_special_tokens=False).ids
    assert text_of(tokens, tiny_tokenizer, end="<|endoftext|>") == plain
    assert text_of(tokens, tiny_tokenizer, end="<|endoftext|>", clean_up=True) == cleaned
