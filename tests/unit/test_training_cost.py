"""The cost of a training step and of a forward pass, against closed forms and against a real model.

Letters, as in the model: L blocks, d width, V vocabulary; N tokens that go through the blocks, t that carry loss.
"""

import functools
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lodarepro import compose, config
from lodarepro.config import Adapter, Base, BitFit, Ft, FtQv, FtTop, Loda, Lora, OneShot, PrefixEmbed, PrefixLayer
from lodarepro.cost import StepCost, count, forward_flops, training_step
from lodarepro.methods import attach, finalize
from lodarepro.model import GPT2
from lodarepro.model.weights import sizes_of

L, D, V = 3, 32, 50
ROWS, WIDTH, TARGETS = 4, 16, 20
N = ROWS * WIDTH

BLOCK = 12 * D * D  # multiply-accumulates a token: 3 d^2 + d^2 in attention, 8 d^2 in the MLP
BETWEEN = 2 * WIDTH * D  # likewise, of a block's attention: scores, and the sum that they weigh, over all the tokens
OUTPUT = TARGETS * V * D


def tiny(n_layer: int = L) -> config.Model:
    return config.Model("tiny", n_layer=n_layer, n_head=2, n_embd=D, vocab_size=V, n_positions=64)


def step(method: object, *, n_layer: int = L, rows: int = ROWS, width: int = WIDTH, targets: int = TARGETS) -> StepCost:
    return training_step(tiny(n_layer), method, rows=rows, width=width, targets=targets)


def forward(n_layer: int = L) -> int:
    return 2 * (N * n_layer * (BLOCK + BETWEEN) + OUTPUT)


# a step of training -----------------------------------------------------------------------------


def test_full_fine_tuning_takes_three_forward_passes():
    """One forward; backward, each product once more for its input and once for its weight."""
    blocks = 6 * N * L * BLOCK
    assert step(Ft()).flops == pytest.approx(blocks + 6 * N * L * BETWEEN + 6 * OUTPUT, rel=0.01)


def test_a_method_that_trains_nothing_takes_a_forward_pass():
    assert step(OneShot()) == StepCost(flops=forward(), activation_bytes=0)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_loras_backward_pass_leaves_out_the_weights(rank: int):
    """Four of the six shares of full fine-tuning, and the deltas; below the first delta nothing has a gradient."""
    frozen = N * (L * BLOCK - 3 * D * D) + OUTPUT  # for the inputs; the first q/k/v product's input needs none
    attention = N * L * 2 * BETWEEN  # both products have two inputs with gradients
    delta = 2 * D * rank  # x A and (x A) B
    deltas = N * (L * 2 * 3 * delta - 2 * D * rank)  # q and v; three products for one; the lowest x needs none
    assert step(Lora(rank=rank)).flops == pytest.approx(forward() + 2 * (frozen + attention + deltas), rel=0.01)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_backward_pass_stops_at_the_lowest_block_that_trains(blocks: int):
    backward = 2 * (N * blocks * 2 * (BLOCK + BETWEEN) + OUTPUT)  # the embedding is frozen: one product for the output
    assert step(FtTop(blocks=blocks)).flops == pytest.approx(forward() + backward, rel=0.01)


def test_more_blocks_below_those_that_train_are_gone_through_once_and_keep_nothing():
    low, high = step(FtTop()), step(FtTop(), n_layer=2 * L)
    assert high.flops - low.flops == forward(2 * L) - forward(L)
    assert high.activation_bytes == low.activation_bytes > 0


def test_methods_in_the_order_of_what_they_train():
    flops = [step(method).flops for method in (OneShot(), FtTop(blocks=1), BitFit(), FtQv(), Ft())]
    assert flops == sorted(set(flops))


@pytest.mark.parametrize("method", [Ft(), Lora(), FtTop(), Adapter(bottleneck=8), PrefixLayer(length=3, hidden=None)])
def test_what_is_kept_for_the_backward_pass_grows_with_the_rows(method: object):
    of_2, of_4, of_8 = (step(method, rows=rows, targets=5 * rows).activation_bytes for rows in (2, 4, 8))
    assert of_8 - of_4 == 2 * (of_4 - of_2) > 0
    assert of_8 == pytest.approx(4 * of_2, rel=0.01)  # what does not grow is next to nothing


def test_what_is_kept_is_at_least_the_inputs_of_all_products():
    """Of full fine-tuning, fp32: x of q/k/v, of o and of up, d each, of down 4 d, and of the output layer."""
    inputs = 4 * (L * N * 7 * D + TARGETS * D)
    assert inputs < step(Ft()).activation_bytes < 6 * inputs


def test_the_output_layer_sees_the_tokens_that_carry_loss_alone():
    assert step(Ft(), targets=2 * TARGETS).flops - step(Ft()).flops == 6 * OUTPUT


def test_virtual_tokens_have_the_gradient_reach_the_first_block():
    """Nothing but the embeddings trains, yet every block is gone through backward."""
    frozen = forward() + 2 * (N * L * (BLOCK + 2 * BETWEEN) + OUTPUT)
    for method in (PrefixEmbed(length=3), PrefixLayer(form="hidden-states", length=3)):
        assert step(method).flops == pytest.approx(frozen, rel=0.01)


def test_a_step_of_a_wide_model_takes_no_memory():
    wide = config.Model("wide", n_layer=2, n_head=2, n_embd=1_280_000, vocab_size=V, n_positions=64)
    assert training_step(wide, Ft(), rows=1, width=2, targets=1).flops > 6 * 2 * 2 * 12 * 1_280_000**2


@functools.cache
def nano(method: str) -> config.Run:
    (cell,) = compose.cells(["model=gpt2-nano", "dataset=mini", f"method={method}"])
    return cell.run


@pytest.mark.parametrize("name", config.METHODS)
def test_every_method_can_be_counted(name: str):
    run = nano(name)
    found = training_step(run.model, run.method, rows=2, width=WIDTH, targets=TARGETS)
    passed = forward_flops(run.model, run.method, tokens=2 * WIDTH, targets=TARGETS, context=WIDTH)
    if count(run.model, run.method).trainable:
        assert passed < found.flops < 4 * passed
        assert found.activation_bytes > 0
    else:
        assert (found.flops, found.activation_bytes) == (pytest.approx(passed, rel=1e-9), 0)


# a forward pass ---------------------------------------------------------------------------------


def counted_on_a_real_pass(method: object) -> int:
    """FLOP that torch counts, attention as matrix products over all pairs of tokens."""
    net = GPT2(sizes_of(tiny()))
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, method, torch.Generator().manual_seed(0))
    finalize(net, method)
    net.eval()
    tokens = torch.randint(V, (ROWS, WIDTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net.logits(net(tokens).flatten(0, 1)[:TARGETS])
    return int(counter.get_total_flops())


REAL: list[Any] = [
    Ft(),
    FtQv(),
    BitFit(),
    Lora(),
    Lora(targets=("o", "up", "down"), rank=7),
    Lora(base=Base("low-rank", rank=8)),
    Loda(),
    Loda("loda-plus", f2=("activation",)),
    Adapter(bottleneck=8),
    Adapter("adapter-l", bottleneck=8, sites=("block",), layer_norm=True),
]


@pytest.mark.parametrize("method", REAL, ids=lambda m: f"{m.name}-{getattr(m, 'targets', '')}")
def test_a_forward_pass_takes_what_torch_counts(method: Any):
    expected = forward_flops(tiny(), method, tokens=N, targets=TARGETS, context=WIDTH)
    assert counted_on_a_real_pass(method) == pytest.approx(expected, rel=1e-9)


def test_a_prefix_of_keys_and_values_is_attended_to_beside_the_context():
    """As it is kept: what it is made from while it trains costs nothing then, whatever the number of tokens."""
    length = 5
    prefix = PrefixLayer(length=length)
    found = forward_flops(tiny(), prefix, tokens=N, targets=TARGETS, context=WIDTH)
    assert counted_on_a_real_pass(prefix) == pytest.approx(found, rel=1e-9)
    assert found == pytest.approx(forward() + 2 * N * L * 2 * length * D, rel=1e-9)


def test_what_a_pass_takes_once_is_not_taken_for_each_token():
    """The norms of DoRA: A B for q and v of each block, however many tokens there are."""
    dora = Lora(rank=4, dora=True)
    norms = 2 * L * 2 * D * 4 * D
    found = forward_flops(tiny(), dora, tokens=N, targets=TARGETS, context=WIDTH)
    assert counted_on_a_real_pass(dora) == pytest.approx(found + norms, rel=1e-9)


def test_a_sparse_base_takes_a_dense_ones_time():
    """Its zeros are multiplied by, too."""
    sparse = Lora(base=Base("sparse", keep=0.4))
    assert counted_on_a_real_pass(sparse) == counted_on_a_real_pass(Lora())
    found = forward_flops(tiny(), sparse, tokens=N, targets=TARGETS, context=WIDTH)
    assert found == pytest.approx(counted_on_a_real_pass(sparse), rel=1e-9)


def test_a_forward_pass_in_closed_form():
    expected = 2 * (1000 * L * (BLOCK + 2 * 7.5 * D) + 30 * V * D)
    assert forward_flops(tiny(), Ft(), tokens=1000, targets=30, context=7.5) == pytest.approx(expected, rel=1e-12)
