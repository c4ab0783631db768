"""What the methods attach, what trains, and the adapter files."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from lodarepro import compose, config
from lodarepro.config import Ft, Lora
from lodarepro.cost import count, count_parameters
from lodarepro.data import load
from lodarepro.data.batch import collate
from lodarepro.data.tokenise import Encoded, encode
from lodarepro.data.types import Example
from lodarepro.errors import BadInput
from lodarepro.methods import (
    REGISTRY,
    attach,
    finalize,
    layout,
    load_adapter,
    param_groups,
    save_adapter,
    trained,
)
from lodarepro.methods.base import FORMAT
from lodarepro.methods.lora import LoraDelta
from lodarepro.model import GPT2, Sizes, weights
from lodarepro.model.weights import save_tensors
from lodarepro.train.loop import train, validation_loss
from lodarepro.train.step import batch_loss

SIZES = Sizes(n_layer=3, n_head=2, n_embd=32, vocab_size=299, n_positions=64)
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

SMALL = {
    "adapter": ["method.bottleneck=4"],
    "adapter-drop": ["method.bottleneck=4", "method.drop=1"],
    "one-shot": ["method.prompt='Example: a : b . '", "method.after=' ->'"],
    "prefix-embed": ["method.length=3", "method.infix=2", "method.hidden=16"],
    "prefix-layer": ["method.length=3", "method.hidden=16", "protocol.max_length=256"],
    "r": ["method.base.rank=24"],
}
"""a method, or all those whose names start so, to what makes its YAML fit a narrow model of three blocks"""
TRAINS_NOTHING = {"one-shot"}
STARTS_ELSEWHERE = ("prefix-", "r-", "s-")  # they add positions, or stand on an approximation
DRAWS_NOTHING = {"ft", "ft-top2", "ft-qv", "bitfit", "one-shot"}
PROTOCOL = config.Protocol(name="lora", max_length=48)
EXAMPLES = [
    Example("name : The Mill | type : pub", "The Mill is a pub ."),
    Example("name : Ovenna Tal | food : Thai", "Ovenna Tal is a Thai place ."),
    Example("near : The Mill", "near The Mill"),
    Example("area : riverside | food : Thai", "Thai food by the riverside ."),
]

every_method = pytest.mark.parametrize("name", REGISTRY)
every_training_method = pytest.mark.parametrize("name", [name for name in REGISTRY if name not in TRAINS_NOTHING])


@cache
def small(name: str) -> Any:
    """The method as its YAML describes it, but small."""
    overrides = SMALL.get(name, SMALL.get(name.split("-")[0], []))
    (cell,) = compose.cells(["model=gpt2-nano", "dataset=mini", f"method={name}", *overrides])
    return cell.run.method


def data(method: Any, tokenizer: Tokenizer) -> Encoded:
    return encode(EXAMPLES, tokenizer, PROTOCOL, cache=None, layout=layout(method, tokenizer))


def stepped(method: Any, pairs: Encoded) -> GPT2:
    """After one step of training, from which on nothing is held at zero by the start of something else."""
    net = attached(method)
    settings = config.Train(epochs=1, batch_size=len(pairs), lr=1e-2, warmup_steps=0, schedule="constant")
    train(net, pairs, pairs, settings, protocol=PROTOCOL, seed=1, groups=param_groups(net, method))
    return net.eval()


def tensors(net: GPT2) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


@every_method
def test_a_method_starts_as_a_no_op(name: str):
    if name.startswith(STARTS_ELSEWHERE):
        return
    expected = logits(base())
    assert expected.abs().max() > 0.5  # not a comparison of zeros
    torch.testing.assert_close(logits(attached(small(name))), expected, atol=1e-5, rtol=0)


@every_method
def test_only_what_should_train_changes(name: str, tiny_tokenizer: Tokenizer):
    method = small(name)
    before = tensors(attached(method))
    net = stepped(method, data(method, tiny_tokenizer))
    changed = {key for key, t in tensors(net).items() if not torch.equal(t, before[key])}
    assert changed <= trained(net).keys()
    assert bool(changed) is (name not in TRAINS_NOTHING)
    assert all(p.grad is None for key, p in net.named_parameters() if key not in trained(net))


@every_training_method
def test_all_that_trains_gets_a_gradient(name: str, tiny_tokenizer: Tokenizer):
    method = small(name)
    pairs = data(method, tiny_tokenizer)
    net = stepped(method, pairs)
    batch_loss(net, collate(pairs, range(len(pairs)), max_length=48), label_smoothing=0.1).backward()
    for key, p in trained(net).items():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), key


@every_method
def test_the_same_generator_gives_the_same_start(name: str):
    one, two, other = (trained(attached(small(name), seed)) for seed in (1, 1, 2))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    assert all(torch.equal(one[n], other[n]) for n in one) is (name in DRAWS_NOTHING)


@every_method
def test_an_adapter_survives_to_the_bit(name: str, tiny_tokenizer: Tokenizer, tmp_path: Path):
    method = small(name)
    pairs = data(method, tiny_tokenizer)
    net = stepped(method, pairs)
    finalize(net, method)
    path = tmp_path / "adapter.safetensors"
    save_adapter(net, path, method=method, **BASE)
    stored = load_file(path)
    assert stored.keys() == trained(net).keys()
    assert all(torch.equal(p, stored[key]) for key, p in trained(net).items())
    fresh = attached(method, seed=9)
    finalize(fresh, method)
    load_adapter(fresh, path, method=method, **BASE)
    assert all(torch.equal(p, trained(net)[key]) for key, p in trained(fresh).items())
    inputs = collate(pairs, range(len(pairs)), max_length=48).inputs
    with torch.no_grad():
        assert torch.equal(fresh(inputs), net(inputs))
    assert [p.name for p in tmp_path.iterdir()] == ["adapter.safetensors"]


@every_method
def test_a_count_needs_no_weights(name: str):
    net = attached(small(name))
    finalize(net, small(name))
    assert count(config.Model("tiny", **asdict(SIZES)), small(name)) == count_parameters(net)


@pytest.fixture(scope="module")
def nano() -> tuple[config.Run, list[Example], list[Example]]:
    """A run of the embedded model on the embedded set, and some pairs to train on and to validate with."""
    (cell,) = compose.cells(
        ["model=gpt2-nano", "dataset=mini", "method=ft", "dataset.limit.train=200", "dataset.limit.valid=16"]
    )
    train_split, valid_split = (load(cell.run.dataset, cell.run.data, split) for split in ("train", "valid"))
    return cell.run, train_split.examples, valid_split.examples


@pytest.mark.slow
@every_training_method
def test_a_method_learns_on_the_embedded_model(name: str, nano: tuple[config.Run, list[Example], list[Example]]):
    """100 steps on real pairs lower the loss on others."""
    method = small(name)
    run, *splits = nano
    found = weights.find(run.model)
    assert found is not None
    net, tokenizer = weights.load(found, run.model), weights.load_tokenizer(found)
    attach(net, method, torch.Generator().manual_seed(1))
    protocol = config.Protocol(name="lora", max_length=256)
    laid = layout(method, tokenizer)
    pairs, others = (encode(examples, tokenizer, protocol, cache=None, layout=laid) for examples in splits)
    settings = config.Train(epochs=1, batch_size=2, lr=2e-3, warmup_steps=10)
    before = validation_loss(net, others, settings, protocol)
    done = train(net, pairs, others, settings, protocol=protocol, seed=1, groups=param_groups(net, method))
    assert done.step == 100
    assert done.epochs[-1]["val_loss"] < before - (0.3 if name == "prefix-embed" else 1)  # of 4 to 8 at the start


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
