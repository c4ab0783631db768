"""Our GPT-2 against `transformers`, in fp32."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

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
