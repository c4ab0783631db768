"""Our GPT-2 against `transformers`, in fp32."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from lodarepro.model import GPT2, Cache, Sizes
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


@pytest.mark.parametrize("sizes", SHAPES)
def test_cache_equals_a_forward_pass_without_one(sizes: Sizes):
    """Prompts of unlike length, several beams each, reordered, and one prompt leaving midway."""
    ours, reference = pair(sizes)
    beams = 3
    lengths = torch.tensor([4, 9, 6])
    prompts = torch.randint(sizes.vocab_size, (3, 9))
    rows = [prompts[i, : lengths[i]].tolist() for i in range(3) for _ in range(beams)]
    cache = Cache(ours, lengths, beams=beams)
    kept = torch.arange(3)
    with torch.no_grad():
        ours(prompts, cache=cache)
        for step in range(5):
            new = torch.randint(sizes.vocab_size, (len(rows), 1))
            positions = (lengths[kept].repeat_interleave(beams) + step)[:, None]
            actual = ours.logits(ours(new, positions=positions, cache=cache))[:, 0]
            rows = [[*row, int(t)] for row, t in zip(rows, new, strict=True)]
            for i, row in enumerate(rows):
                expected = reference(torch.tensor([row])).logits[0, -1]
                torch.testing.assert_close(actual[i], expected, atol=TOLERANCE, rtol=0)
            # New order within each prompt; after the third step the second prompt leaves.
            order = torch.cat([i * beams + torch.randperm(beams) for i in range(len(kept))])
            stay = torch.arange(len(kept))
            if step == 2:
                stay = torch.tensor([0, 2])
                order = order.view(-1, beams)[stay].flatten()
            cache.select(order, stay if step == 2 else None)
            rows = [rows[i] for i in order.tolist()]
            kept = kept[stay]


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


@pytest.mark.parametrize("site", ["prefix", "virtual"])
def test_the_cache_of_a_prefixed_prompt_equals_a_forward_pass_without_one(site: str):
    """And the prefix is asked for by the prompts alone."""
    sizes, beams = SHAPES[0], 3
    ours, _ = pair(sizes)
    if site == "prefix":
        modules, prompts = with_prefix(ours, 4), batch(sizes)
    else:
        modules, prompts = [Given(torch.randn(2, 5, sizes.n_embd))], batch(sizes, virtual=5)
        (ours.virtual,) = modules
    lengths = torch.tensor(LENGTHS)
    rows = [prompts[i, : lengths[i]].tolist() for i in range(3) for _ in range(beams)]
    cache = Cache(ours, lengths, beams=beams)
    with torch.no_grad():
        ours(prompts, cache=cache)
        for step in range(4):
            new = torch.randint(sizes.vocab_size, (len(rows), 1))
            positions = (lengths.repeat_interleave(beams) + step)[:, None]
            before = [module.calls for module in modules]
            actual = ours.logits(ours(new, positions=positions, cache=cache))[:, 0]
            assert [module.calls for module in modules] == before
            rows = [[*row, int(t)] for row, t in zip(rows, new, strict=True)]
            for i, row in enumerate(rows):
                expected = ours.logits(ours(torch.tensor([row])))[0, -1]
                torch.testing.assert_close(actual[i], expected, atol=TOLERANCE, rtol=0)
            order = torch.cat([i * beams + torch.randperm(beams) for i in range(3)])
            cache.select(order)
            rows = [rows[i] for i in order.tolist()]


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
