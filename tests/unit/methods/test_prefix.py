"""Prefixes: their layouts, what trains and what is kept, the MLP between them, and decoding with them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lodarepro import compose, config
from lodarepro.config import PrefixEmbed, PrefixLayer
from lodarepro.data.batch import collate, prompt
from lodarepro.data.tokenise import Encoded, encode, encode_contexts
from lodarepro.data.types import Example
from lodarepro.decode.beam import block_ngrams, search
from lodarepro.errors import BadInput
from lodarepro.methods import attach, finalize, layout, load_adapter, save_adapter, trained
from lodarepro.methods.prefix import around
from lodarepro.model import GPT2, Sizes
from lodarepro.train.loop import train
from lodarepro.train.step import batch_loss

SIZES = Sizes(n_layer=3, n_head=2, n_embd=32, vocab_size=60, n_positions=64)
MEDIUM = Sizes(n_layer=24, n_head=16, n_embd=1024, vocab_size=50257, n_positions=1024)
PROTOCOL = config.Protocol(name="lora", max_length=32)
BASE = {"base": "gpt2-tiny", "base_sha256": "a" * 64}
KEYS_VALUES = PrefixLayer(length=4, hidden=8)
HIDDEN_STATES = PrefixLayer(form="hidden-states", length=3, infix=2, hidden=8)
EMBED = PrefixEmbed(length=3, infix=2, hidden=8)
FORMS: dict[str, PrefixLayer | PrefixEmbed] = {
    "keys-values-mlp": KEYS_VALUES,
    "keys-values-direct": replace(KEYS_VALUES, hidden=None),
    "hidden-states-mlp": HIDDEN_STATES,
    "hidden-states-direct": replace(HIDDEN_STATES, hidden=None),
    "embed-mlp": EMBED,
    "embed-direct": replace(EMBED, hidden=None),
}
every_form = pytest.mark.parametrize("method", FORMS.values(), ids=FORMS)


def base(seed: int = 0) -> Any:
    """A random model, biases and LayerNorms random too; a `GPT2`, whose sites hold some module to the types."""
    net = GPT2(SIZES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return net.eval()


def attached(method: Any, seed: int = 1) -> Any:
    net = base()
    attach(net, method, torch.Generator().manual_seed(seed))
    return net


def disturbed(method: Any) -> Any:
    """With the method attached and everything it trains away from its start."""
    net = attached(method)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained(net).values():
            p.add_(torch.empty(p.shape).normal_(0.0, 0.5, generator=generator))
    return net


def laid_out(method: Any, context: Sequence[int]) -> list[int]:
    laid = layout(method, None)  # type: ignore[arg-type]  # no prefix asks the tokenizer
    return list(context) if laid is None else laid.apply(list(context))


CONTEXTS = [[7, 8, 9, 1], [20, 21, 1], [30, 31, 32, 33, 34, 35, 1]]


def tokens_of(method: Any) -> Tensor:
    """The contexts and completions of two tokens, padded on the right."""
    rows = [[*laid_out(method, context), 40, 41] for context in CONTEXTS]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def logits(net: GPT2, method: Any) -> Tensor:
    with torch.no_grad():
        return net.logits(net(tokens_of(method)))


# layouts ----------------------------------------------------------------------------------------


def test_virtual_tokens_stand_before_the_context_and_after_its_separator():
    assert around(2, 0).apply([5, 6, 1]) == [-1, -2, 5, 6, 1]
    assert around(0, 2).apply([5, 6, 1]) == [5, 6, 1, -1, -2]
    assert around(2, 3).apply([5, 6, 1]) == [-1, -2, 5, 6, 1, -3, -4, -5]
    assert around(2, 3).key != around(3, 2).key


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (PrefixEmbed(length=1, infix=1), [-1, 5, 1, -2]),
        (PrefixLayer(form="hidden-states", length=1, infix=1), [-1, 5, 1, -2]),
        (PrefixLayer(length=3), [5, 1]),
    ],
)
def test_the_layout_of_each_form(method: Any, expected: list[int]):
    assert laid_out(method, [5, 1]) == expected


def test_the_cache_of_tokens_keeps_virtual_ones(tiny_tokenizer, tmp_path):
    examples = [Example("a : b", "b ."), Example("c : d", "d .")]
    plain = encode(examples, tiny_tokenizer, PROTOCOL, cache=None)
    laid = layout(EMBED, tiny_tokenizer)
    made, read = (encode(examples, tiny_tokenizer, PROTOCOL, cache=tmp_path, layout=laid) for _ in range(2))
    for data in (made, read):
        assert data.tokens.dtype == plain.tokens.dtype
        for row in range(2):
            n = int(plain.contexts[row])
            context, completion = plain.sequence(row)[:n].tolist(), plain.sequence(row)[n:].tolist()
            assert data.sequence(row).tolist() == [-1, -2, -3, *context, -4, -5, *completion]
            assert data.contexts[row] == n + 5
    prompts = encode_contexts([e.context for e in examples], tiny_tokenizer, PROTOCOL, layout=laid)
    assert prompts == [made.sequence(row)[: made.contexts[row]].tolist() for row in range(2)]


@pytest.mark.parametrize(("loss_on", "counted"), [("completion", [40, 41]), ("all", [5, 6, 1, 40, 41])])
def test_virtual_tokens_are_no_targets(loss_on: str, counted: list[int]):
    data = Encoded.of([(around(2, 2).apply([5, 6, 1]), [40, 41])])
    batch = collate(data, [0], max_length=32, loss_on=loss_on)
    assert batch.inputs.tolist() == [[-1, -2, 5, 6, 1, -3, -4, 40, 41]]
    assert batch.targets[batch.mask].tolist() == counted


def test_a_prompt_is_cut_after_the_tokens_before_its_context():
    def cut(context: list[int], room: int) -> list[int]:
        return prompt(context, max_length=room + 10, max_new_tokens=10)

    context = around(2, 1).apply([5, 6, 7, 8, 1])  # eight tokens
    assert cut(context, 9) == cut(context, 8) == context
    assert cut(context, 7) == [-1, -2, 6, 7, 8, 1, -3]
    assert cut(context, 4) == [-1, -2, 1, -3]
    assert cut([5, 6, 7, 8, 1], 3) == [7, 8, 1]  # without virtual tokens: the last ones


def test_a_training_sequence_keeps_the_tokens_before_its_context():
    data = Encoded.of([(around(2, 1).apply([5, 6, 1]), [40, 41])])
    batch = collate(data, [0], max_length=7)
    assert batch.inputs.tolist() == [[-1, -2, 5, 6, 1, -3, 40]]
    assert batch.targets[batch.mask].tolist() == [40]


# counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (PrefixLayer(length=5), 245_760),
        (PrefixLayer(length=7), 344_064),  # nearest to the papers' label 0.35M
        (PrefixLayer(length=10), 491_520),
        (PrefixLayer(length=10, hidden=None), 491_520),
        (PrefixLayer(form="hidden-states", length=14), 344_064),
        (PrefixLayer(form="hidden-states", length=10, infix=4), 344_064),
        (PrefixEmbed(length=10), 10_240),
        (PrefixEmbed(length=10, infix=2), 12_288),
    ],
)
def test_kept_parameters_on_medium_without_memory(method: Any, kept: int):
    with torch.device("meta"):
        net = GPT2(MEDIUM)
        attach(net, method, torch.Generator())
        finalize(net, method)
    assert sum(p.numel() for p in trained(net).values()) == kept
    assert all(p.is_meta for p in net.parameters())


@pytest.mark.parametrize(
    ("method", "positions", "outputs"),
    [
        (KEYS_VALUES, 4, 2 * 3 * 32),
        (HIDDEN_STATES, 5, 3 * 32),
        (EMBED, 5, 32),
    ],
)
def test_trained_parameters_of_the_mlp(method: Any, positions: int, outputs: int):
    """Li & Liang 2021, section 4.3: P' (l, d), d -> hidden, hidden -> all activations of a position."""
    count = sum(p.numel() for p in trained(attached(method)).values())
    assert count == positions * 32 + (32 + 1) * 8 + (8 + 1) * outputs


# start, training, what is kept ------------------------------------------------------------------


@torch.no_grad()
def test_the_mlp_starts_as_pytorchs_modules_do():
    net = attached(PrefixLayer(length=50, hidden=16))
    inner = net.h[0].attn.prefix.inner
    assert inner.P.mean().abs() < 0.1 and 0.9 < inner.P.std() < 1.1
    for p, fan_in in [
        (inner.dense.weight, 32),
        (inner.dense.bias, 32),
        *((p, 16) for block in net.h for p in block.attn.prefix.out.parameters()),
    ]:
        assert 0.7 * fan_in**-0.5 < p.abs().max() <= fan_in**-0.5
    first, second = (block.attn.prefix.out.weight for block in net.h[:2])
    assert not torch.equal(first, second)


def test_direct_activations_start_as_embeddings_do():
    net = attached(PrefixLayer(length=50, hidden=None))
    for block in net.h:
        assert 0.018 < block.attn.prefix.states.std() < 0.022


@every_form
def test_a_start_depends_on_the_given_generator_alone(method: Any):
    net = base()
    state = torch.get_rng_state()
    attach(net, method, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)  # drawn from no other
    one, two, other = trained(net), trained(attached(method, seed=5)), trained(attached(method, seed=6))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    assert all(not torch.equal(one[n], other[n]) for n in one)


@every_form
def test_all_of_a_prefix_gets_a_gradient_and_nothing_else(method: Any):
    net = attached(method).train()
    net.logits(net(tokens_of(method))).square().mean().backward()
    names = trained(net).keys()
    assert names
    for name, p in net.named_parameters():
        assert (p.grad is not None) == (name in names), name
        if p.grad is not None:
            assert p.grad.isfinite().all() and p.grad.abs().max() > 0, name


@every_form
def test_training_moves_all_of_a_prefix_and_nothing_else(method: Any):
    pairs = [(laid_out(method, [i, 5, 6, 1]), [8, 9, i]) for i in range(2, 18)]
    data = Encoded.of(pairs)
    net = attached(method)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    settings = config.Train(epochs=8, batch_size=8, warmup_steps=0, lr=1e-2)
    progress = train(net, data, data, settings, protocol=PROTOCOL, seed=1)
    losses = [epoch["val_loss"] for epoch in progress.epochs]
    assert losses[-1] < losses[0] - 0.1
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) is (not p.requires_grad), name


@every_form
def test_the_kept_prefix_computes_what_the_trained_one_did(method: Any):
    net = disturbed(method)
    expected = logits(net, method)
    finalize(net, method)
    names = {"virtual.states"} if net.virtual is not None else {f"h.{i}.attn.prefix.states" for i in range(3)}
    assert trained(net).keys() == names
    actual = logits(net, method)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    assert (actual - logits(attached(method), method)).abs().max() > 1e-2  # the trained one, not its start
    loss = net.logits(net(tokens_of(method))).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained(net).values())


def test_keys_and_values_are_the_columns_of_one_mlp():
    """Against Li & Liang's formula, P' W1 + b1 -> tanh -> W2 + b2, its output cut as they cut it."""
    net = disturbed(KEYS_VALUES)
    inner = net.h[0].attn.prefix.inner
    W2 = torch.cat([block.attn.prefix.out.weight for block in net.h])  # (2 L d, hidden)
    b2 = torch.cat([block.attn.prefix.out.bias for block in net.h])
    rows = torch.tanh(inner.P @ inner.dense.weight.T + inner.dense.bias) @ W2.T + b2  # (l, 2 L d)
    expected = rows.view(4, 2 * 3, 2, 16).permute(1, 2, 0, 3)  # (2 L, H, l, Dh)
    finalize(net, KEYS_VALUES)
    for i, block in enumerate(net.h):
        keys, values = block.attn.prefix()
        torch.testing.assert_close(keys, expected[2 * i], atol=1e-6, rtol=0)
        torch.testing.assert_close(values, expected[2 * i + 1], atol=1e-6, rtol=0)
    assert all(other.attn.prefix is not net.h[0].attn.prefix for other in net.h[1:])


def test_hidden_states_are_the_columns_of_one_mlp():
    net = disturbed(HIDDEN_STATES)
    inner, out = net.virtual.inner, net.virtual.out
    expected = out(inner.dense(inner.P).tanh()).view(5, 3, 32)  # (l, L, d)
    finalize(net, HIDDEN_STATES)
    for i in range(3):
        torch.testing.assert_close(net.virtual()[i], expected[:, i], atol=1e-6, rtol=0)


# against the definitions ------------------------------------------------------------------------


def embedded(net: GPT2, states: Tensor, tokens: list[int]) -> Tensor:
    """One row's (1, T, d), each virtual token's embedding looked up by hand, with positions."""
    vectors = [states[-1 - t] if t < 0 else net.wte.weight[t] for t in tokens]
    return torch.stack([v + net.wpe.weight[i] for i, v in enumerate(vectors)])[None]


@torch.no_grad()
def test_embeddings_stand_where_the_layout_puts_them():
    net = disturbed(EMBED)
    actual = logits(net, EMBED)
    bare = base()
    for row, context in enumerate(CONTEXTS):
        tokens = [-1, -2, -3, *context, -4, -5, 40, 41]
        x = embedded(bare, net.virtual()[0], tokens)
        for block in bare.h:
            x = block(x)
        expected = bare.logits(bare.ln_f(x))[0]
        torch.testing.assert_close(actual[row, : len(tokens)], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_hidden_states_are_replaced_before_every_block():
    net = disturbed(HIDDEN_STATES)
    actual = logits(net, HIDDEN_STATES)
    bare, states = base(), net.virtual()
    for row, context in enumerate(CONTEXTS):
        tokens = [-1, -2, -3, *context, -4, -5, 40, 41]
        x = embedded(bare, states[0], tokens)
        for i, block in enumerate(bare.h):
            for place, token in enumerate(tokens):
                if token < 0 and i > 0:
                    x[0, place] = states[i, -1 - token]
            x = block(x)
        expected = bare.logits(bare.ln_f(x))[0]
        torch.testing.assert_close(actual[row, : len(tokens)], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_attend_to_the_keys_and_values_and_stand_after_them():
    net = disturbed(KEYS_VALUES)
    actual = logits(net, KEYS_VALUES)
    bare = base()
    for row, context in enumerate(CONTEXTS):
        tokens = [*context, 40, 41]
        x = torch.stack([bare.wte.weight[t] + bare.wpe.weight[4 + i] for i, t in enumerate(tokens)])  # (T, d)
        for block, prefixed in zip(bare.h, net.h, strict=True):
            keys, values = prefixed.attn.prefix()  # (H, 4, 16)
            q, k, v = block.attn.c_attn(block.ln_1(x)).split(32, dim=-1)
            heads = []
            for h in range(2):
                part = slice(16 * h, 16 * h + 16)
                K, V = torch.cat([keys[h], k[:, part]]), torch.cat([values[h], v[:, part]])
                seen = [q[i, part] @ K[: 4 + i + 1].T / math.sqrt(16) for i in range(len(tokens))]
                heads.append(torch.stack([s.softmax(0) @ V[: len(s)] for s in seen]))
            x = x + block.attn.c_proj(torch.cat(heads, dim=-1))
            x = x + block.mlp(block.ln_2(x))
        torch.testing.assert_close(actual[row, : len(tokens)], bare.logits(bare.ln_f(x)), atol=1e-5, rtol=0)


# decoding ---------------------------------------------------------------------------------------

DECODE = config.Decode(beam=4, max_new_tokens=9, no_repeat_ngram=2, length_penalty=0.8)
END = 1


@torch.no_grad()
def by_brute_force(net: GPT2, tokens: list[int]) -> tuple[list[int], float]:
    """The search with a forward pass over the whole sequence for each beam at each step."""
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    best: tuple[list[int], float] = ([], -math.inf)
    for length in range(1, DECODE.max_new_tokens + 1):
        candidates = []
        for generated, total in beams:
            scores = net.logits(net(torch.tensor([[*tokens, *generated]])))[:, -1]
            block_ngrams(scores, torch.tensor([generated], dtype=torch.long), DECODE.no_repeat_ngram)
            log_p = F.log_softmax(scores[0], dim=-1).tolist()
            candidates += [([*generated, token], total + p) for token, p in enumerate(log_p)]
        beams = sorted(candidates, key=lambda candidate: -candidate[1])[: DECODE.beam]
        for generated, total in beams:
            score = total / length**DECODE.length_penalty
            if (generated[-1] == END or length == DECODE.max_new_tokens) and score > best[1]:
                best = (generated, score)
        beams = [beam for beam in beams if beam[0][-1] != END]
    return best


@every_form
def test_decoding_equals_brute_force(method: Any):
    net = disturbed(method)
    prompts = [laid_out(method, context) for context in CONTEXTS]
    expected = [by_brute_force(net, tokens) for tokens in prompts]
    assert len({tuple(tokens) for tokens, _ in expected}) > 1
    finalize(net, method)
    together = search(net, prompts, DECODE, end_ids=[END])
    alone = [search(net, [tokens], DECODE, end_ids=[END])[0] for tokens in prompts]
    for found in (together, alone):
        assert [hypothesis.tokens for hypothesis in found] == [tokens for tokens, _ in expected]
        assert [hypothesis.score for hypothesis in found] == pytest.approx([s for _, s in expected], abs=1e-5)
    plain = search(base(), CONTEXTS, DECODE, end_ids=[END])
    assert [h.tokens for h in plain] != [h.tokens for h in together]


@every_form
def test_a_loaded_prefix_decodes_to_the_same_bits(method: Any, tmp_path: Path):
    net = disturbed(method)
    finalize(net, method)
    save_adapter(net, tmp_path / "adapter.safetensors", method=method, **BASE)
    fresh = base()
    attach(fresh, method, torch.Generator())
    finalize(fresh, method)
    load_adapter(fresh, tmp_path / "adapter.safetensors", method=method, **BASE)
    assert torch.equal(logits(fresh, method), logits(net, method))
    prompts = [laid_out(method, context) for context in CONTEXTS]
    assert search(fresh, prompts, DECODE, end_ids=[END]) == search(net, prompts, DECODE, end_ids=[END])


@every_form
def test_half_precision_trains_a_prefix(method: Any):
    net = attached(method).train()
    data = Encoded.of([(laid_out(method, context), [40, 41]) for context in CONTEXTS])
    batch = collate(data, [0, 1, 2], max_length=32)
    exact = batch_loss(net, batch, label_smoothing=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_loss(net, batch, label_smoothing=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained(net).values())


# what does not fit ------------------------------------------------------------------------------

NANO = ("model=gpt2-nano", "dataset=mini", "protocol.max_length=500", "decode.max_new_tokens=64")


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ["method=prefix-embed", "method.length=440", "method.infix=8"],
            "method.length=440 and infix=8 leave nothing for a context in the 436 tokens of a prompt "
            "(protocol.max_length - decode.max_new_tokens); set them to 435 or less together",
        ),
        (
            ["method=prefix-layer", "method.form=hidden-states", "method.length=500"],
            "method.length=500 and infix=0 leave nothing for a context in the 436 tokens of a prompt "
            "(protocol.max_length - decode.max_new_tokens); set them to 435 or less together",
        ),
        (
            ["method=prefix-layer", "method.length=13"],
            "method.length=13: tokens stand after the prefix, and protocol.max_length=500 leaves 12 of the 512 "
            "positions of gpt2-nano; set protocol.max_length=499 or less",
        ),
    ],
)
def test_a_prefix_that_leaves_no_room_is_refused(overrides: list[str], fault: str):
    with pytest.raises(BadInput) as e:
        compose.cells([*NANO, *overrides])
    assert e.value.faults == (fault,)


def test_the_longest_virtual_tokens_compose():
    (cell,) = compose.cells([*NANO, "method=prefix-embed", "method.length=435"])
    assert cell.run.method.length == 435
