"""Our GPT-2 against `transformers`, in fp32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from lodarepro.model import GPT2, Cache, Sizes
from lodarepro.model.gpt2 import Packing
from lodarepro.model.weights import hub_name

SHAPES = [
    Sizes(n_layer=2, n_head=4, n_embd=64, vocab_size=97, n_positions=64),
    Sizes(n_layer=3, n_head=1, n_embd=32, vocab_size=50, n_positions=40),
    Sizes(n_layer=1, n_head=6, n_embd=96, vocab_size=300, n_positions=128),
]
TOLERANCE = 1e-5


def pair(sizes: Sizes) -> tuple[GPT2, GPT2LMHeadModel]:
    """The same random weights in both implementations, biases and LayerNorms random too."""
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(
        GPT2Config(
            n_layer=sizes.n_layer,
            n_head=sizes.n_head,
            n_embd=sizes.n_embd,
            vocab_size=sizes.vocab_size,
            n_positions=sizes.n_positions,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).eval()
    with torch.no_grad():
        for name, p in reference.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.1)
    ours = GPT2(sizes).eval()
    state = reference.state_dict()
    ours.load_state_dict({name: state[hub_name(name)] for name in ours.state_dict()})
    return ours, reference


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 40), (5, 17)])
def test_logits_equal_transformers(sizes: Sizes, rows: int, length: int):
    ours, reference = pair(sizes)
    tokens = torch.randint(sizes.vocab_size, (rows, length))
    with torch.no_grad():
        expected = reference(tokens).logits
        actual = ours.logits(ours(tokens))
    assert expected.abs().max() > 0.5  # not a comparison of zeros
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("sizes", SHAPES)
def test_right_padding_changes_nothing(sizes: Sizes):
    ours, reference = pair(sizes)
    lengths = [3, 11, 7]
    tokens = torch.randint(sizes.vocab_size, (3, 11))
    mask = torch.tensor([[i < n for i in range(11)] for n in lengths])
    with torch.no_grad():
        expected = reference(tokens, attention_mask=mask.long()).logits
        actual = ours.logits(ours(tokens))
    for row, n in enumerate(lengths):
        torch.testing.assert_close(actual[row, :n], expected[row, :n], atol=TOLERANCE, rtol=0)


def packing_of(lengths: list[int]) -> Packing:
    """Of rows padded on the right."""
    width = max(lengths)
    return Packing(torch.tensor([row * width + i for row, n in enumerate(lengths) for i in range(n)]), 3, width)


@pytest.mark.parametrize("sizes", SHAPES)
def test_a_packed_batch_equals_the_padded_one(sizes: Sizes):
    ours, _ = pair(sizes)
    lengths = [3, 11, 7]
    packing = packing_of(lengths)
    padded = torch.randint(sizes.vocab_size, (3, 11))
    tokens = padded.flatten()[packing.slots]
    with torch.no_grad():
        whole = ours(padded)
        packed = ours(tokens, packing=packing)
        assert packed.shape == (21, sizes.n_embd)
        torch.testing.assert_close(packed, whole.flatten(0, 1)[packing.slots], atol=TOLERANCE, rtol=0)
        # Of some of the tokens, in any order; and of a padded batch likewise.
        keep = torch.tensor([20, 0, 4, 5])
        torch.testing.assert_close(ours(tokens, packing=packing, keep=keep), packed[keep], atol=TOLERANCE, rtol=0)
        kept = ours(padded, keep=packing.slots[keep])
        torch.testing.assert_close(kept, packed[keep], atol=TOLERANCE, rtol=0)
        shifted = ours(tokens, positions=torch.full((21,), 2), packing=packing)
        assert (shifted - packed).abs().max() > 1e-3


def test_only_attention_sees_padding_and_the_last_mlp_only_what_is_kept():
    sizes = SHAPES[1]
    ours, _ = pair(sizes)
    packing = packing_of([3, 11, 7])
    seen: list[int] = []
    for block in ours.h:
        for dense in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc):  # type: ignore[union-attr]
            dense.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))  # type: ignore[union-attr]
        parts = block.attn.c_attn.parts  # type: ignore[union-attr]
        block.attn.c_attn.parts = lambda x, parts=parts: (seen.append(len(x)), parts(x))[1]  # type: ignore
    with torch.no_grad():
        ours(torch.zeros(21, dtype=torch.long), packing=packing, keep=torch.tensor([2, 20]))
    assert seen == [21, 21, 21] * (sizes.n_layer - 1) + [21, 2, 2]


def extended(rows: dict[tuple[int, int], list[int]], parents: Tensor) -> dict[tuple[int, int], list[int]]:
    """The tokens of each prompt's beams after each went on from one of the beams before."""
    return {(p, k): rows[p, int(parents[p, k])] for p, k in rows}


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_cache_equals_a_forward_pass_without_one(sizes: Sizes, packed: bool):
    """Prompts of unlike length, beams that go on from others, beams and a prompt that leave midway."""
    ours, reference = pair(sizes)
    P, K, steps = 3, 4, 5
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([4, 9, 6])
    prompts = torch.randint(sizes.vocab_size, (P, 9), generator=generator)
    rows = {(p, k): prompts[p, : lengths[p]].tolist() for p in range(P) for k in range(K)}
    cache = Cache(ours, lengths, width=9, beams=K, steps=steps)
    compared = 0
    with torch.no_grad():
        if packed:
            packing = packing_of(lengths.tolist())
            ours(prompts.flatten()[packing.slots], packing=packing, cache=cache)
        else:
            ours(prompts, cache=cache)
        alive = torch.ones(P, K, dtype=torch.bool)
        for step in range(steps):
            if step > 0:  # only what the model was run on has children
                parents = torch.multinomial(alive.double() + 1e-12, K, replacement=True, generator=generator)
                rows = extended(rows, parents)
                alive = torch.rand(P, K, generator=generator) < 0.7
                alive[:, 1] = True
            cache.grow(parents if step > 0 else None)
            if step == 3:  # the second prompt leaves
                stay = torch.tensor([0, 2])
                cache.select(stay)
                lengths, alive, P = lengths[stay], alive[stay], 2
                rows = {(p, k): rows[int(stay[p]), k] for p in range(P) for k in range(K)}
            places = alive.flatten().nonzero().flatten()
            tokens = torch.randint(sizes.vocab_size, (len(places),), generator=generator)
            positions = lengths[places // K] + step
            hidden = ours(tokens, positions=positions, packing=Packing(places, P, K), cache=cache)
            actual = ours.logits(hidden)
            assert actual.shape == (len(places), sizes.vocab_size)
            for place, token, found in zip(places.tolist(), tokens.tolist(), actual, strict=True):
                beam = divmod(place, K)
                rows[beam] = [*rows[beam], token]
                expected = reference(torch.tensor([rows[beam]])).logits[0, -1]
                torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
                compared += 1
    assert compared > 35


@pytest.mark.parametrize("columns", [[0, 1, 2], [2, 0]])
def test_selected_prompts_have_the_keys_and_values_that_they_had(columns: list[int]):
    ours, _ = pair(SHAPES[0])
    lengths = torch.tensor([4, 9, 6])
    cache = Cache(ours, lengths, width=9, beams=2, steps=1)
    with torch.no_grad():
        ours(torch.randint(97, (3, 9)), cache=cache)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    past = cache.past.clone()
    cache.select(torch.tensor(columns))
    assert torch.equal(cache.past, past[columns])
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys[..., :9, :], keys[columns][..., :9, :])
        assert torch.equal(layer.values[..., :9, :], values[columns][..., :9, :])


# the model's own dropout ------------------------------------------------------------------------


def test_dropout_is_off_unless_it_is_set_and_in_eval_mode():
    ours, _ = pair(SHAPES[0])
    tokens = batch(SHAPES[0])
    plain = ours(tokens)
    assert torch.equal(ours.train()(tokens), plain)
    ours.set_dropout(0.1)
    assert torch.equal(ours.eval()(tokens), plain)
    ours.train()
    torch.manual_seed(0)
    one, two = ours(tokens), ours(tokens)
    torch.manual_seed(0)
    assert torch.equal(ours(tokens), one)
    assert (one - two).abs().max() > 1e-3 and (one - plain).abs().max() > 1e-3
    ours.set_dropout(0.0)
    assert torch.equal(ours(tokens), plain)


def test_dropout_is_where_gpt2_has_it():
    """On the embeddings, and in every block on the attention's weights and both sub-layers' outputs."""
    sizes = SHAPES[1]
    ours, _ = pair(sizes)
    ours.train()
    tokens = batch(sizes)
    parts: list[Any] = [ours, *(part for block in ours.h for part in (block.attn, block.mlp))]
    for part in parts:
        part.dropout = 0.5
        assert not torch.equal(ours(tokens), ours(tokens)), type(part)
        part.dropout = 0.0
    ours.set_dropout(0.25)
    assert [part.dropout for part in parts] == [0.25] * len(parts)


def test_dropout_is_that_of_transformers():
    """The same masks where each is drawn in the same order; of attention weights the mean over many masks."""
    sizes = SHAPES[2]
    ours, reference = pair(sizes)
    tokens = torch.randint(sizes.vocab_size, (4, 12))
    ours.set_dropout(0.2)
    for module in reference.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    ours.train()
    reference.train()
    with torch.no_grad():
        many = torch.stack([ours(tokens) for _ in range(300)])
        others = torch.stack([reference.transformer(tokens).last_hidden_state for _ in range(300)])
    spread = many.std(0).mean()
    assert spread > 0.05
    assert abs(spread / others.std(0).mean() - 1) < 0.05
    assert (many.mean(0) - others.mean(0)).abs().mean() < 3 * spread * (2 / 300) ** 0.5


def test_macs_are_those_of_the_weights():
    model = GPT2(SHAPES[0])
    d = SHAPES[0].n_embd
    assert sum(dense.macs() for dense in model.denses("q")) == 2 * 3 * d * d
    assert sum(dense.macs() for dense in model.denses("up")) == 2 * 4 * d * d


# sites of prefixes ------------------------------------------------------------------------------


class Given(nn.Module):
    """Gives what it holds, and counts how often."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = nn.Parameter(states)
        self.calls = 0

    def forward(self) -> Tensor:
        self.calls += 1
        return self.states


LENGTHS = [3, 11, 7]  # of the rows of a batch, virtual tokens included


def batch(sizes: Sizes, virtual: int = 0) -> Tensor:
    """Rows padded on the right; with virtual tokens, two at the start and the others before each row's last two."""
    tokens = torch.randint(sizes.vocab_size, (3, max(LENGTHS)))
    for row, n in enumerate(LENGTHS):
        tokens[row, n:] = 0
    if virtual:
        tokens[0, :2] = tokens[1, :2] = tokens[2, :2] = torch.tensor([-1, -2])
        for row, n in enumerate(LENGTHS[1:], start=1):
            tokens[row, n - virtual : n - 2] = -3 - torch.arange(virtual - 2)
    return tokens


def with_prefix(ours: GPT2, length: int) -> list[Given]:
    """Random keys and values in every block."""
    sizes = ours.sizes
    shape = (2, sizes.n_head, length, sizes.n_embd // sizes.n_head)
    prefixes = [Given(torch.randn(shape)) for _ in ours.h]
    for block, prefix in zip(ours.h, prefixes, strict=True):
        block.attn.prefix = prefix  # type: ignore[union-attr]
    ours.offset = length
    return prefixes


def past(prefixes: list[Given], rows: int) -> DynamicCache:
    """The same prefix as a cache of `transformers`."""
    cache = DynamicCache()
    for i, prefix in enumerate(prefixes):
        cache.update(*(part.expand(rows, -1, -1, -1) for part in prefix.states), i)
    return cache


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("length", [1, 6])
def test_keys_and_values_before_the_tokens_are_a_past_of_transformers(sizes: Sizes, length: int):
    ours, reference = pair(sizes)
    tokens = batch(sizes)
    seen = torch.tensor([[1] * length + [int(i < n) for i in range(max(LENGTHS))] for n in LENGTHS])
    with torch.no_grad():
        bare = ours.logits(ours(tokens))
        prefixes = with_prefix(ours, length)
        expected = reference(
            tokens,
            past_key_values=past(prefixes, rows=3),
            attention_mask=seen,
            position_ids=torch.arange(length, length + max(LENGTHS)).expand(3, -1),
        ).logits
        actual = ours.logits(ours(tokens))
    for row, n in enumerate(LENGTHS):
        torch.testing.assert_close(actual[row, :n], expected[row, :n], atol=TOLERANCE, rtol=0)
        assert (actual[row, :n] - bare[row, :n]).abs().amax(-1).min() > 1e-3  # every token attends to it


def by_hooks(reference: GPT2LMHeadModel, tokens: Tensor, states: Tensor) -> Tensor:
    """The logits of `transformers` where the virtual tokens' states (n, l, d) are put before each block."""
    own, ids = tokens < 0, (-1 - tokens).clamp(min=0)

    def put(state: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        return lambda _, inputs: (torch.where(own[..., None], state[ids], inputs[0]), *inputs[1:])

    blocks = reference.transformer.h
    hooks = [block.register_forward_pre_hook(put(s)) for block, s in zip(blocks[1:], states[1:], strict=False)]
    embedded = torch.where(own[..., None], states[0][ids], reference.transformer.wte(tokens.clamp(min=0)))
    try:
        return reference(inputs_embeds=embedded).logits
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("everywhere", [False, True], ids=["embeddings", "every block"])
def test_virtual_tokens_have_the_states_given_before_each_block(sizes: Sizes, everywhere: bool):
    ours, reference = pair(sizes)
    ours.virtual = given = Given(torch.randn(sizes.n_layer if everywhere else 1, 5, sizes.n_embd))
    tokens = batch(sizes, virtual=5)
    actual = ours.logits(ours(tokens))
    twin = given.states.detach().clone().requires_grad_()
    expected = by_hooks(reference, tokens, twin)
    places = [(row, i) for row, n in enumerate(LENGTHS) for i in range(n)]
    rows, columns = torch.tensor(places).T
    torch.testing.assert_close(actual[rows, columns], expected[rows, columns], atol=TOLERANCE, rtol=0)

    actual[rows, columns].square().mean().backward()
    expected[rows, columns].square().mean().backward()
    assert twin.grad is not None and twin.grad.abs().amax(-1).min() > 1e-6  # each state of each token counts
    torch.testing.assert_close(given.states.grad, twin.grad, atol=TOLERANCE, rtol=1e-4)


def test_a_batch_without_virtual_tokens_leaves_their_module_alone():
    ours, reference = pair(SHAPES[0])
    ours.virtual = Given(torch.randn(2, 5, SHAPES[0].n_embd))
    tokens = batch(SHAPES[0])
    torch.testing.assert_close(ours.logits(ours(tokens)), reference(tokens).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("site", ["prefix", "virtual"])
def test_the_cache_of_a_prefixed_prompt_equals_a_forward_pass_without_one(site: str, packed: bool):
    """And the prefix is asked for by the prompts alone."""
    sizes, beams = SHAPES[0], 3
    ours, _ = pair(sizes)
    if site == "prefix":
        modules, prompts = with_prefix(ours, 4), batch(sizes)
    else:
        modules, prompts = [Given(torch.randn(2, 5, sizes.n_embd))], batch(sizes, virtual=5)
        (ours.virtual,) = modules
    lengths = torch.tensor(LENGTHS)
    rows = {(p, k): prompts[p, : lengths[p]].tolist() for p in range(3) for k in range(beams)}
    cache = Cache(ours, lengths, width=max(LENGTHS), beams=beams, steps=4)
    with torch.no_grad():
        if packed:
            packing = packing_of(LENGTHS)
            ours(prompts.flatten()[packing.slots], packing=packing, cache=cache)
        else:
            ours(prompts, cache=cache)
        for step in range(4):
            parents = torch.randint(beams, (3, beams)) if step else None
            if parents is not None:
                rows = extended(rows, parents)
            cache.grow(parents)
            places = torch.arange(3 * beams)
            new = torch.randint(sizes.vocab_size, (len(places),))
            before = [module.calls for module in modules]
            positions = lengths[places // beams] + step
            actual = ours.logits(ours(new, positions=positions, packing=Packing(places, 3, beams), cache=cache))
            assert [module.calls for module in modules] == before
            for place, found in enumerate(actual):
                beam = divmod(place, beams)
                rows[beam] = [*rows[beam], int(new[place])]
                expected = ours.logits(ours(torch.tensor([rows[beam]])))[0, -1]
                torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("site", ["prefix", "virtual"])
def test_prefixes_take_part_in_half_precision(site: str):
    sizes = SHAPES[0]
    ours, _ = pair(sizes)
    if site == "prefix":
        module, tokens = with_prefix(ours, 4)[0], batch(sizes)
    else:
        ours.virtual = module = Given(torch.randn(2, 5, sizes.n_embd))
        tokens = batch(sizes, virtual=5)
    exact = ours(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = ours(tokens)
    rounded.square().mean().backward()
    assert module.states.grad is not None and module.states.grad.abs().max() > 0
    difference = (rounded - exact).abs().max()
    assert 0 < difference < 0.3 * exact.abs().max()
