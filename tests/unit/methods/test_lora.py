"""LoRA's kin against `peft`, what merges, and who trains at which rate."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lodarepro import compose, config
from lodarepro.config import Base, Lora
from lodarepro.cost import count
from lodarepro.data.tokenise import Encoded
from lodarepro.errors import BadInput
from lodarepro.methods import attach, merge, mergeable, param_groups, trained
from lodarepro.methods.lora import LoraDelta
from lodarepro.model import GPT2, Sizes
from lodarepro.train.loop import train

SIZES = Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=60, n_positions=40)
TOKENS = torch.randint(SIZES.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
TARGETS: tuple[config.Target, ...] = ("q", "k", "v", "o", "up", "down")


def random_gpt2() -> GPT2LMHeadModel:
    """transformers' GPT-2 without dropout, every parameter away from its start."""
    described = GPT2Config(
        n_layer=SIZES.n_layer,
        n_head=SIZES.n_head,
        n_embd=SIZES.n_embd,
        vocab_size=SIZES.vocab_size,
        n_positions=SIZES.n_positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    theirs = GPT2LMHeadModel(described)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
    disturb(theirs.parameters(), seed=0)
    return theirs.eval()


def disturb(parameters: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.empty(p.shape).normal_(0.0, 0.2, generator=generator))


def ours_of(theirs: GPT2LMHeadModel) -> GPT2:
    net = GPT2(SIZES)
    net.load_state_dict({name: p.detach().clone() for name, p in theirs.transformer.named_parameters()})
    return net.eval()


def disturbed(method: Any) -> GPT2:
    """A random model with the method attached and everything it trains away from its start."""
    net = ours_of(random_gpt2())
    attach(net, method, torch.Generator().manual_seed(1))
    disturb(trained(net).values(), seed=2)
    return net.eval()


def logits(net: GPT2) -> Tensor:
    with torch.no_grad():
        return net.logits(net(TOKENS))


# against peft -----------------------------------------------------------------------------------

MODULES = {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}  # of one slice, as peft adapts whole ones


@pytest.mark.parametrize("train_mode", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"rslora": True}, {"dora": True}, {"dora": True, "rslora": True}, {"ranks": {"down": 5}, "dora": True}],
    ids=str,
)
def test_outputs_and_gradients_are_pefts(changes: dict[str, Any], train_mode: bool):
    """On layers of one slice, where peft's adapter and ours are the same."""
    method = Lora(rank=3, alpha=6.0, targets=("o", "up", "down"), dropout=0.0, **changes)
    base = random_gpt2()
    ours = ours_of(base)
    attach(ours, method, torch.Generator().manual_seed(1))
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        lora_alpha=6,
        lora_dropout=0.0,
        target_modules=list(MODULES.values()),
        rank_pattern={MODULES[target]: rank for target, rank in method.ranks.items() if rank is not None},
        fan_in_fan_out=True,
        use_rslora=method.rslora,
        use_dora=method.dora,
    )
    theirs = get_peft_model(base, settings)
    theirs.train(train_mode)
    ours.train(train_mode)
    twins = {}
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            layer, _, kind = name.removeprefix("base_model.model.transformer.").partition(".lora_")
            (target,) = (t for t, module in MODULES.items() if layer.endswith(module))
            matrix = {"A": "A", "B": "B", "m": "magnitude"}[kind[0]]
            twins[f"{layer}.deltas.{target}.{matrix}"] = p
    assert twins.keys() == trained(ours).keys()
    disturb(twins.values(), seed=2)
    with torch.no_grad():
        for name, own in trained(ours).items():
            own.copy_(twins[name] if name.endswith("magnitude") else twins[name].t())

    found, expected = ours.logits(ours(TOKENS)), theirs(TOKENS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for output in (found, expected):
        output.log_softmax(-1)[..., :7].mean().backward()
    for name, own in trained(ours).items():
        gradient = twins[name].grad
        assert own.grad is not None and gradient is not None
        assert gradient.abs().max() > 1e-4
        gradient = gradient if name.endswith("magnitude") else gradient.t()
        torch.testing.assert_close(own.grad, gradient, atol=1e-5, rtol=1e-5)


def test_dora_drops_the_inputs_that_peft_drops():
    """In training all of DoRA's delta sees the dropped input, the frozen product the whole."""
    net = disturbed(Lora(dora=True, targets=("o",), dropout=0.5)).train()
    (dense, *_) = net.denses("o")
    delta = dense.deltas["o"]
    x = torch.ones(1, SIZES.n_embd)
    torch.manual_seed(5)
    found = dense(x)
    torch.manual_seed(5)
    kept = nn.functional.dropout(x, 0.5)
    assert 0 < int((kept == 0).sum()) < SIZES.n_embd
    with torch.no_grad():
        change = delta.merged(dense.weight) - dense.weight  # type: ignore[operator]
        torch.testing.assert_close(found, x @ dense.weight + dense.bias + kept @ change, atol=1e-5, rtol=1e-5)


# the variants -----------------------------------------------------------------------------------


def test_a_target_has_a_rank_and_a_scale_of_its_own():
    net = disturbed(Lora(rank=2, alpha=8.0, targets=("q", "v", "down"), ranks={"v": 4}))
    found = {target: dense.deltas[target] for target in ("q", "v", "down") for dense in net.denses(target)}
    shapes = {}
    for target, delta in found.items():
        assert isinstance(delta, LoraDelta)
        shapes[target] = (tuple(delta.A.shape), tuple(delta.B.shape), delta.scale)
    assert shapes == {
        "q": ((32, 2), (2, 32), 4.0),
        "v": ((32, 4), (4, 32), 2.0),
        "down": ((128, 2), (2, 32), 4.0),
    }


def test_rslora_scales_by_the_square_root():
    net = disturbed(Lora(rank=4, alpha=8.0, rslora=True, ranks={"v": 9}))
    (q, *_), (v, *_) = ([dense.deltas[target] for dense in net.denses(target)] for target in ("q", "v"))
    assert (q.scale, v.scale) == (4.0, 8.0 / 3)


@pytest.mark.parametrize("targets", [("q", "v"), TARGETS], ids="-".join)
def test_dora_starts_as_a_no_op_to_the_bit(targets: Any):
    net = ours_of(random_gpt2())
    before = logits(net)
    attach(net, Lora(dora=True, targets=targets), torch.Generator())
    torch.testing.assert_close(logits(net), before, atol=0, rtol=0)
    for target in targets:
        for dense in net.denses(target):
            expected = torch.linalg.vector_norm(dense.weight[:, dense.slices[target]], dim=0)
            torch.testing.assert_close(dense.deltas[target].magnitude.data, expected)


def test_dora_survives_a_copy_of_the_model():
    net = disturbed(Lora(dora=True))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for dense in net.denses("q"):
            dense.weight.zero_()  # the copy must not look at the other's weights
    assert torch.equal(logits(twin), logits(disturbed(Lora(dora=True))))
    assert twin.state_dict().keys() == disturbed(Lora(dora=True)).state_dict().keys()


MEDIUM = config.Model("gpt2-medium", n_layer=24, n_head=16, n_embd=1024, vocab_size=50257, n_positions=1024)


@pytest.mark.parametrize(
    ("method", "trainable", "macs"),
    [
        (Lora(), 393_216, 75_497_472 + 393_216),
        (Lora(rslora=True, lr_ratio=16.0), 393_216, 75_497_472 + 393_216),
        (Lora(ranks={"v": 8}), 24 * 2 * 1024 * (4 + 8), 75_497_472 + 24 * 2 * 1024 * (4 + 8)),
        (Lora(dora=True), 393_216 + 24 * 2 * 1024, 75_497_472 + 393_216 + 24 * 2 * 1024**2),
        (Lora(targets=("up",), ranks={"up": 1}), 24 * 5 * 1024, 75_497_472),
    ],
    ids=["lora", "rslora", "ranks", "dora", "up"],
)
def test_counts(method: Lora, trainable: int, macs: int):
    counted = count(MEDIUM, method)
    assert (counted.trainable, counted.qkv_macs) == (trainable, macs)


@pytest.mark.parametrize(("name", "macs"), [("r-lora", 29_491_200), ("s-lora", 30_198_984)])
def test_on_an_approximated_projection_only_the_deltas_train(name: str, macs: int):
    """LoDA Table 2: 4 R d L and s 3 d^2 L multiply-accumulates a token, and LoRA's."""
    (cell,) = compose.cells(["model=gpt2-medium", f"method={name}", "method.rank=4"])
    counted = count(cell.run.model, cell.run.method)
    assert counted.trainable == 393_216
    assert counted.qkv_macs == pytest.approx(macs + 393_216, rel=1e-6)
    net = disturbed(replace(cell.run.method, base=small(cell.run.method.base)))
    assert all(".deltas." in name for name in trained(net))
    assert (logits(net) - logits(ours_of(random_gpt2()))).abs().max() > 0.1


def small(base: Base) -> Base:
    return replace(base, rank=8) if base.kind == "low-rank" else base


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("method.ranks={up:2}", 'method.ranks.up=2: not among targets=["q", "v"]'),
        ("method.ranks.up=2", 'method.ranks.up=2: not among targets=["q", "v"]'),
        ("method.ranks.v=4096", "method.ranks.v=4096 exceeds the width 128 of gpt2-nano; give 128 or less"),
        ("method.rank=129", "method.rank=129 exceeds the width 128 of gpt2-nano; give 128 or less"),
    ],
)
def test_ranks_that_do_not_fit(override: str, fault: str):
    with pytest.raises(BadInput) as e:
        compose.cells(["model=gpt2-nano", "dataset=mini", "method=lora", override])
    assert e.value.faults == (fault,)


@pytest.mark.parametrize("override", ["method.ranks={v:8}", "method.ranks.v=8"])
def test_the_command_line_sets_the_rank_of_one_target(override: str):
    (cell,) = compose.cells(["model=gpt2-nano", "dataset=mini", "method=lora", "method.rank=2", override])
    assert count(cell.run.model, cell.run.method).trainable == 4 * 2 * 128 * (2 + 8)


def test_dora_needs_a_dense_weight():
    with pytest.raises(BadInput) as e:
        compose.cells(["model=gpt2-nano", "dataset=mini", "method=r-lora", "method.base.rank=8", "method.dora=true"])
    (fault,) = e.value.faults
    assert "dora=true: the magnitudes are of a dense weight; not with base.kind=low-rank" in fault


# LoRA+ ------------------------------------------------------------------------------------------


def test_one_group_without_a_ratio():
    net = disturbed(Lora())
    (group,) = param_groups(net, Lora())
    assert [id(p) for p in group["params"]] == [id(p) for p in trained(net).values()]
    assert group["lr_scale"] == 1.0


def test_both_matrices_train_at_their_own_rate():
    """One step of Adam changes a parameter by its rate, whatever the size of its gradient."""
    method = Lora(lr_ratio=16.0, dora=True, dropout=0.0)
    net = disturbed(method)
    before = {name: p.detach().clone() for name, p in trained(net).items()}
    settings = config.Train(
        epochs=1, batch_size=8, valid_batch_size=8, lr=1e-4, warmup_steps=0, weight_decay=0.0, schedule="constant"
    )
    data = Encoded.of([([i, 5, 6, 7], [8, 9, i]) for i in range(8)])
    groups = param_groups(net, method)
    train(net, data, data, settings, protocol=config.Protocol(name="lora", max_length=16), seed=1, groups=groups)
    changes = {name: float((p.detach() - before[name]).abs().max()) for name, p in trained(net).items()}
    assert {name.rpartition(".")[2] for name in changes} == {"A", "B", "magnitude"}
    for name, change in changes.items():
        assert change == pytest.approx(16e-4 if name.endswith(".B") else 1e-4, rel=0.02), name


# merging ----------------------------------------------------------------------------------------

LINEAR = [
    Lora(),
    Lora(rslora=True, targets=TARGETS),
    Lora(dora=True),
    Lora(dora=True, targets=TARGETS, ranks={"v": 2, "down": 7}),
    Lora(lr_ratio=16.0, same_mask=False),
]


@pytest.mark.parametrize("method", LINEAR, ids=["lora", "rslora", "dora", "ranks", "two masks"])
def test_merged_a_model_is_a_plain_one_of_the_same_logits(method: Lora):
    net = disturbed(method)
    plain = ours_of(random_gpt2())
    expected = logits(net)
    assert (expected - logits(plain)).abs().max() > 0.1
    assert mergeable(net) is None
    merge(net)
    assert net.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(net.state_dict())  # so that nothing but the weights computes
    torch.testing.assert_close(logits(plain), expected, atol=1e-4, rtol=0)
    net.train()
    torch.testing.assert_close(logits(net), expected, atol=1e-4, rtol=0)  # and no dropout is left
    assert net.macs() == plain.macs()


class Curved(LoraDelta):
    unmergeable = "its map is curved"

    @property
    def merged(self) -> Any:
        raise AttributeError("as if it had none")


def refused(net: GPT2) -> str:
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(BadInput) as e:
        merge(net)
    assert {name for name, _ in net.named_parameters()} == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    (line,) = e.value.faults
    assert line == f"the method can't be merged: {mergeable(net)}"
    return str(mergeable(net))


def test_a_delta_that_is_not_linear_says_why():
    net = disturbed(Lora(targets=("q", "up")))
    *_, last = net.denses("up")
    last.deltas["up"] = Curved(torch.ones(32, 1), 128, scale=1.0, dropout=None)
    assert refused(net) == "its map is curved"


@pytest.mark.parametrize("base", [Base("low-rank", rank=8), Base("sparse", keep=0.4)], ids=str)
def test_an_approximated_projection_is_not_made_dense(base: Base):
    net = disturbed(Lora(base=base, targets=("q", "down")))
    assert refused(net) == "what stands for the q/k/v weight is no dense weight, and merging would make it one again"


@pytest.mark.parametrize("site", ["after_attn", "after_mlp", "after_block"])
def test_modules_between_the_layers(site: str):
    net = ours_of(random_gpt2())
    setattr(net.h[1], site, nn.Identity())
    assert refused(net) == "its modules stand between the layers, where there is no weight to merge them into"


def test_prefixes():
    beside = "its prefix stands beside the tokens, where there is no weight to merge it into"
    net = ours_of(random_gpt2())
    net.virtual = nn.Identity()
    assert refused(net) == beside
    net = ours_of(random_gpt2())
    net.h[0].attn.prefix = nn.Identity()  # type: ignore[union-attr]
    assert refused(net) == beside


class Halves(nn.Module):
    """A weight kept as its two halves, in the place of W."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(half.clone()) for half in weight.detach().chunk(2, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x @ self.left, x @ self.right], dim=-1)

    def macs(self) -> int:
        return self.left.numel() + self.right.numel()

    def merged(self) -> Tensor:
        return torch.cat([self.left, self.right], dim=1)


def test_what_stands_for_a_weight_merges_if_it_can():
    net = disturbed(Lora())
    expected = logits(net)
    for dense in net.denses("q"):
        dense.replace(Halves(dense.weight))
    merge(net)
    assert net.state_dict().keys() == ours_of(random_gpt2()).state_dict().keys()
    torch.testing.assert_close(logits(net), expected, atol=1e-4, rtol=0)


def test_full_fine_tuning_is_merged_already():
    net = disturbed(config.Ft())
    before = logits(net)
    merge(net)
    assert torch.equal(logits(net), before)


def test_what_merges_is_known_without_weights():
    with torch.device("meta"):
        net = GPT2(SIZES)
        attach(net, Lora(dora=True), torch.Generator())
        assert mergeable(net) is None
        assert math.prod(net.h[0].attn.c_attn.weight.shape) == 3 * 32**2  # type: ignore[union-attr,arg-type]
