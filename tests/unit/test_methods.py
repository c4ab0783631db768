"""What the methods attach, what trains, and the adapter files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lodarepro import config
from lodarepro.config import Ft, Lora
from lodarepro.errors import BadInput
from lodarepro.methods import attach, load_adapter, save_adapter, trained
from lodarepro.methods.base import FORMAT
from lodarepro.methods.lora import LoraDelta
from lodarepro.model import GPT2, Sizes
from lodarepro.model.weights import save_tensors

SIZES = Sizes(n_layer=3, n_head=2, n_embd=32, vocab_size=60, n_positions=40)
TARGETS = ("q", "k", "v", "o", "up", "down")
BASE = {"base": "gpt2-tiny", "base_sha256": "a" * 64}


def base(seed: int = 0) -> GPT2:
    """A random model, biases and LayerNorms random too."""
    net = GPT2(SIZES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return net.eval()


def attached(method: Any, seed: int = 1) -> GPT2:
    net = base()
    attach(net, method, torch.Generator().manual_seed(seed))
    return net.eval()


def disturbed(method: Any) -> GPT2:
    """With the method attached and everything it trains away from its start."""
    net = attached(method)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained(net).values():
            p.add_(torch.empty(p.shape).normal_(0.0, 0.2, generator=generator))
    return net


TOKENS = torch.randint(SIZES.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))


def logits(net: GPT2) -> Tensor:
    with torch.no_grad():
        return net.logits(net(TOKENS))


def deltas(net: GPT2, target: str) -> list[LoraDelta]:
    found = [dense.deltas[target] for dense in net.denses(target)]
    assert all(isinstance(delta, LoraDelta) for delta in found)
    return found  # type: ignore[return-value]


# what every method does -------------------------------------------------------------------------

SMALLEST = {name: method() for name, method in config.METHODS.items()}


@pytest.mark.parametrize("method", SMALLEST.values(), ids=SMALLEST)
def test_a_method_starts_as_a_no_op(method: Any):
    expected = logits(base())
    assert expected.abs().max() > 0.5  # not a comparison of zeros
    torch.testing.assert_close(logits(attached(method)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", SMALLEST.values(), ids=SMALLEST)
def test_all_that_trains_gets_a_gradient_and_nothing_else(method: Any):
    net = disturbed(method)
    net.logits(net(TOKENS)).square().mean().backward()
    names = trained(net).keys()
    assert names
    for name, p in net.named_parameters():
        if name in names:
            assert p.grad is not None and p.grad.abs().max() > 0, name
        else:
            assert p.grad is None, name


@pytest.mark.parametrize("method", SMALLEST.values(), ids=SMALLEST)
def test_the_same_generator_gives_the_same_start(method: Any):
    one, two, other = (trained(attached(method, seed)) for seed in (1, 1, 2))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    if method.name != "ft":
        assert any(not torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("method", SMALLEST.values(), ids=SMALLEST)
def test_an_adapter_survives_to_the_bit(method: Any, tmp_path: Path):
    net = disturbed(method)
    path = tmp_path / "adapter.safetensors"
    save_adapter(net, path, method=method, **BASE)
    fresh = attached(method, seed=9)
    load_adapter(fresh, path, method=method, **BASE)
    assert all(torch.equal(p, trained(net)[name]) for name, p in trained(fresh).items())
    assert torch.equal(logits(fresh), logits(net))
    assert [p.name for p in tmp_path.iterdir()] == ["adapter.safetensors"]


# full fine-tuning -------------------------------------------------------------------------------


def test_ft_trains_everything_once():
    net = attached(Ft())
    assert trained(net).keys() == dict(net.named_parameters()).keys() == net.state_dict().keys()
    assert len({p.data_ptr() for p in trained(net).values()}) == len(trained(net))
    assert sum(p.numel() for p in trained(net).values()) == sum(t.numel() for t in net.state_dict().values())


# LoRA -------------------------------------------------------------------------------------------


def test_lora_trains_its_deltas_alone():
    net = attached(Lora(rank=2))
    expected = {
        f"h.{i}.attn.c_attn.deltas.{target}.{matrix}" for i in range(3) for target in ("q", "v") for matrix in "AB"
    }
    assert trained(net).keys() == expected
    assert all(not p.requires_grad for name, p in net.named_parameters() if "deltas" not in name)
    for target in ("q", "v"):
        for delta in deltas(net, target):
            assert (delta.A.shape, delta.B.shape) == ((32, 2), (2, 32))
            assert not delta.B.any()
            # Kaiming-uniform with a = sqrt(5): within 1 / sqrt(d)
            assert 0.5 * 32**-0.5 < delta.A.abs().max() <= 32**-0.5


def test_q_and_v_have_a_first_matrix_of_their_own():
    net = attached(Lora())
    for q, v in zip(deltas(net, "q"), deltas(net, "v"), strict=True):
        assert not torch.equal(q.A, v.A)


@pytest.mark.parametrize("same", [True, False])
def test_all_blocks_start_from_one_matrix_or_each_from_its_own(same: bool):
    net = attached(Lora(same_init=same))
    for target in ("q", "v"):
        first, *others = deltas(net, target)
        for other in others:
            assert torch.equal(other.A, first.A) is same
            assert other.A.data_ptr() != first.A.data_ptr()  # equal at the start, trained apart


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_changes_the_output_and_learns(target: str):
    method = Lora(rank=2, targets=(target,), dropout=0.0)  # type: ignore[arg-type]
    net = disturbed(method)
    assert (logits(net) - logits(base())).abs().max() > 1e-2
    net.logits(net(TOKENS)).square().mean().backward()
    for delta in deltas(net, target):
        for matrix in (delta.A, delta.B):
            assert matrix.grad is not None and matrix.grad.abs().max() > 0


@pytest.mark.parametrize("targets", [*((t,) for t in TARGETS), ("q", "v"), TARGETS], ids="-".join)
def test_merged_by_hand_the_forward_pass_is_the_same(targets: Any):
    method = Lora(rank=3, alpha=6.0, targets=targets)
    net = disturbed(method)
    merged = base()
    with torch.no_grad():
        for target in targets:
            for dense, delta in zip(merged.denses(target), deltas(net, target), strict=True):
                dense.weight[:, dense.slices[target]] += (6.0 / 3) * delta.A @ delta.B
    torch.testing.assert_close(logits(net), logits(merged), atol=1e-4, rtol=1e-5)
    assert (logits(merged) - logits(base())).abs().max() > 0.1


def dropped(method: Lora) -> tuple[Tensor, Tensor]:
    """What q's and v's deltas of the first block make of ones in training, with A and B the identity."""
    net = attached(method).train()
    (dense, *_) = net.denses("q")
    x = torch.ones(64, 32)
    with torch.no_grad():
        for target in ("q", "v"):
            delta = deltas(net, target)[0]
            delta.A.copy_(torch.eye(32)[:, : method.rank])
            delta.B.copy_(torch.eye(32)[: method.rank])
        torch.manual_seed(0)
        change = dense(x) - (x @ dense.weight + dense.bias)
    q, k, v = change.split(32, dim=-1)
    assert k.abs().max() < 1e-4
    return q[:, : method.rank], v[:, : method.rank]


@pytest.mark.parametrize("same", [True, False])
def test_one_dropout_mask_or_two(same: bool):
    q, v = dropped(Lora(rank=16, alpha=16.0, dropout=0.5, same_mask=same))
    for part in (q, v):
        kept = part.abs() > 1e-3
        assert 0.4 < kept.float().mean() < 0.6
        torch.testing.assert_close(part[kept], torch.full_like(part[kept], 2.0), atol=1e-4, rtol=0)
    assert torch.equal(q.abs() > 1e-3, v.abs() > 1e-3) is same


@pytest.mark.parametrize("same", [True, False])
def test_no_dropout_in_evaluation(same: bool):
    net = disturbed(Lora(dropout=0.5, same_mask=same))
    assert torch.equal(logits(net), logits(net))
    net.train()
    assert not torch.equal(logits(net), logits(net))


# adapter files ----------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_adapter(disturbed(Lora()), path, method=Lora(), **BASE)
    return path


def fault(path: Path, method: Any = None, **changes: str) -> str:
    method = method or Lora()
    net = attached(method)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(BadInput) as e:
        load_adapter(net, path, method=method, **{**BASE, **changes})
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters()), "half an adapter was loaded"
    (line,) = e.value.faults
    assert "\n" not in line
    return line


def description(adapter: Path) -> dict[str, Any]:
    with safe_open(adapter, framework="pt") as file:
        described = json.loads(file.metadata()[FORMAT])
    assert isinstance(described, dict)
    return described


def test_an_adapter_says_what_it_is(adapter: Path):
    described = description(adapter)
    assert (described["base"], described["base_sha256"]) == ("gpt2-tiny", "a" * 64)
    assert described["method"]["rank"] == 4


def test_equal_adapters_are_equal_files(adapter: Path):
    before = adapter.read_bytes()
    save_adapter(disturbed(Lora()), adapter, method=Lora(), **BASE)
    assert adapter.read_bytes() == before


@pytest.mark.parametrize("lacking", ["base", "base_sha256"])
def test_an_adapter_without_a_base_is_refused(adapter: Path, lacking: str):
    described = {key: value for key, value in description(adapter).items() if key != lacking}
    save_tensors(adapter, trained(disturbed(Lora())), metadata={FORMAT: json.dumps(described)})
    refused_for_its_base(adapter)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_a_file_of_tensors_alone_is_refused(adapter: Path, metadata: dict[str, str]):
    save_tensors(adapter, trained(disturbed(Lora())), metadata=metadata)
    refused_for_its_base(adapter)


def test_an_adapter_without_a_method_is_refused(adapter: Path):
    described = {key: value for key, value in description(adapter).items() if key != "method"}
    save_tensors(adapter, trained(disturbed(Lora())), metadata={FORMAT: json.dumps(described)})
    assert fault(adapter).startswith(f"adapter {adapter} holds null, but the run's method is {{")


def refused_for_its_base(adapter: Path) -> None:
    assert fault(adapter) == (
        f"adapter {adapter} does not name its base model and that model's weight hash, so it can't be "
        "used: on another base it would decode noise; train it again with lodarepro"
    )


def test_an_adapter_on_a_base_of_another_hash_is_refused(adapter: Path):
    assert fault(adapter, base_sha256="b" * 64) == (
        f"adapter {adapter} was trained on gpt2-tiny (weights sha256 aaaaaaaaaaaa), "
        "but the model given is gpt2-tiny (sha256 bbbbbbbbbbbb); give that base model (model=, model.path=)"
    )


def test_an_adapter_on_a_base_of_another_name_is_refused(adapter: Path):
    assert "was trained on gpt2-tiny" in fault(adapter, base="gpt2-other")


@pytest.mark.parametrize("method", [Ft(), Lora(rank=8), Lora(alpha=16.0), Lora(targets=("v", "q"))])
def test_an_adapter_of_another_method_is_refused(adapter: Path, method: Any):
    line = fault(adapter, method)
    assert line.startswith(f'adapter {adapter} holds {{"alpha":32.0,')
    assert line.endswith("give the adapter's own method and options")


def test_tensors_that_do_not_fit(adapter: Path):
    metadata = {FORMAT: json.dumps(description(adapter))}
    tensors = trained(disturbed(Lora()))
    tensors["h.0.attn.c_attn.deltas.q.A"] = torch.zeros(32, 3)
    del tensors["h.1.attn.c_attn.deltas.v.B"]
    save_tensors(adapter, tensors, metadata=metadata)
    assert fault(adapter) == (
        f"adapter {adapter} does not fit: h.0.attn.c_attn.deltas.q.A has shape (32, 3), expected (32, 4) "
        "(2 such tensors); train it again"
    )


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_corrupt_or_missing_adapter(adapter: Path, content: bytes | None):
    if content is None:
        adapter.unlink()
    else:
        adapter.write_bytes(content)
    line = fault(adapter)
    assert line.startswith(f"adapter {adapter} can't be read (") and line.endswith("; train it again")


def test_a_truncated_adapter(adapter: Path):
    adapter.write_bytes(adapter.read_bytes()[:-100])
    assert "can't be read" in fault(adapter)


def test_metadata_that_are_not_json(adapter: Path):
    save_tensors(adapter, trained(disturbed(Lora())), metadata={FORMAT: "lora"})
    assert fault(adapter).startswith(f"adapter {adapter} can't be read (")
