"""Sequential adapters: what one computes, where it stands, how it starts, how many parameters it has."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lodarepro import compose, config
from lodarepro.config import Adapter
from lodarepro.cost import count
from lodarepro.errors import BadInput
from lodarepro.methods import attach, trained
from lodarepro.methods.adapter import BottleneckAdapter
from lodarepro.model import GPT2, Sizes

SIZES = Sizes(n_layer=3, n_head=2, n_embd=32, vocab_size=60, n_positions=40)
TOKENS = torch.randint(SIZES.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
SITES = ("attn", "mlp", "block")


def method(name: str, *overrides: str, model: str = "gpt2-medium") -> Any:
    (cell,) = compose.cells([f"model={model}", f"method={name}", *overrides])
    return cell.run.method


def attached(settings: Adapter) -> GPT2:
    net = GPT2(SIZES)
    net.initialise(torch.Generator().manual_seed(0))
    attach(net, settings, torch.Generator().manual_seed(1))
    return net.eval()


def adapters(net: GPT2) -> list[tuple[int, str]]:
    return [(i, site) for i, b in enumerate(net.h) for site in SITES if getattr(b, f"after_{site}") is not None]


def disturbed(settings: Adapter) -> GPT2:
    net = attached(settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained(net).values():
            p.add_(torch.empty(p.shape).normal_(0.0, 0.3, generator=generator))
    return net


@pytest.mark.parametrize(
    ("name", "overrides", "model", "trainable"),
    [
        ("adapter-h", [], "gpt2-medium", 11_064_576),  # printed 11.09M, which no m gives
        ("adapter-l", [], "gpt2-medium", 368_784),  # LoRA paper, Table 3: 0.37M
        ("adapter-l", ["method.bottleneck=224"], "gpt2-medium", 11_089_152),  # 11.09M
        ("adapter-l", ["method.bottleneck=8"], "gpt2-large", 875_808),  # 0.88M
        ("adapter-l", ["method.bottleneck=248"], "gpt2-large", 23_002_848),  # 23.00M
        ("adapter-p", [], "gpt2-medium", 24 * (2 * 1024 * 64 + 64 + 1024)),
        ("adapter-drop", [], "gpt2-medium", 19 * (2 * 1024 * 64 + 64 + 1024)),
    ],
)
def test_trainable_parameters(name: str, overrides: list[str], model: str, trainable: int):
    (cell,) = compose.cells([f"model={model}", f"method={name}", *overrides])
    counted = count(cell.run.model, cell.run.method)
    assert counted.trainable == trainable
    assert counted.total == count(cell.run.model, config.Ft()).total + trainable


@pytest.mark.parametrize(
    ("name", "sites"), [("adapter-h", {"attn", "mlp"}), ("adapter-l", {"block"}), ("adapter-p", {"block"})]
)
def test_where_adapters_stand(name: str, sites: set[str]):
    settings = replace(method(name), bottleneck=4)
    net = attached(settings)
    assert set(adapters(net)) == {(i, site) for i in range(3) for site in sites}
    assert all(f".after_{site}." in "".join(trained(net)) for site in sites)
    assert all(".after_" in key for key in trained(net))
    assert any("norm" in key for key in trained(net)) is (name == "adapter-l")


def test_the_lowest_blocks_go_without():
    settings = replace(method("adapter-drop"), bottleneck=4, drop=2)
    assert adapters(attached(settings)) == [(2, "block")]
    assert replace(settings, name="adapter-p", drop=0) == replace(method("adapter-p"), bottleneck=4)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_what_an_adapter_computes(layer_norm: bool, activation: Any):
    settings = Adapter(bottleneck=5, sites=("mlp",), layer_norm=layer_norm, activation=activation)
    adapter = disturbed(settings).h[1].after_mlp
    assert isinstance(adapter, BottleneckAdapter)
    h = torch.empty(2, 7, 32).normal_(3.0, 2.0, generator=torch.Generator().manual_seed(5))
    x = h
    if adapter.norm is not None:
        x = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * adapter.norm.weight + adapter.norm.bias
    narrow = x @ adapter.down + adapter.down_bias
    narrow = narrow.clamp(min=0) if activation == "relu" else F.gelu(narrow)
    expected = h + (narrow @ adapter.up + adapter.up_bias)
    torch.testing.assert_close(adapter(h), expected, atol=1e-5, rtol=1e-5)
    assert (adapter(h) - h).abs().max() > 0.1
    assert adapter.macs() == 2 * 32 * 5


@pytest.mark.parametrize("site", SITES)
def test_a_site_changes_the_output_and_costs(site: Any):
    settings = Adapter(bottleneck=4, sites=(site,))
    plain, net = GPT2(SIZES), disturbed(settings)
    plain.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (net(TOKENS) - plain(TOKENS)).abs().max() > 0.1
    assert net.macs() == plain.macs() + 3 * 2 * 32 * 4


def first(settings: Adapter) -> tuple[Tensor, Tensor]:
    adapter = attached(settings).h[0].after_attn
    assert isinstance(adapter, BottleneckAdapter)
    assert not adapter.down_bias.any() and not adapter.up_bias.any()
    return adapter.down.detach(), adapter.up.detach()


@pytest.mark.parametrize("init", ["zero", "near-zero"])
def test_the_start(init: Any):
    down, up = first(Adapter(bottleneck=112, init=init))
    for drawn in (down,) if init == "zero" else (down, up):
        assert 0.019 < drawn.abs().max() <= 0.02
        assert drawn.std().item() == pytest.approx(0.0088, rel=0.05)  # of a normal cut at two deviations
        assert abs(drawn.mean().item()) < 5e-4
    assert bool(up.any()) is (init == "near-zero")


def test_a_start_near_zero_is_nearly_a_no_op():
    plain, net = attached(Adapter()), attached(Adapter(init="near-zero"))
    with torch.no_grad():
        difference = (net(TOKENS) - plain(TOKENS)).abs().max()
    assert 0 < difference < 1e-2


def test_every_adapter_has_a_start_of_its_own():
    net = attached(Adapter(bottleneck=4))
    found = [p for key, p in trained(net).items() if key.endswith(".down")]
    assert len(found) == 6
    assert len({tuple(p.flatten().tolist()) for p in found}) == 6


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["method.sites=[]"], "method.sites=[]: name at least one site, each once"),
        (["method.sites=[mlp,mlp]"], 'method.sites=["mlp", "mlp"]: name at least one site, each once'),
        (["method.drop=24"], "method.drop=24 leaves no adapter in the 24 blocks of gpt2-medium; give 23 or less"),
    ],
)
def test_settings_that_fit_nothing(overrides: list[str], fault: str):
    with pytest.raises(BadInput) as e:
        method("adapter-h", *overrides)
    assert e.value.faults == (fault,)
