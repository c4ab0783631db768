"""Models to time: the bare one, and with each method; what a method leaves alone is the bare model's own memory.

Weights are random, as time hardly depends on them. What a method adds and starts from zero is filled with random
numbers: products with zeros take a GPU less power, and so less time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lodarepro import config
from lodarepro.errors import BadInput
from lodarepro.methods import approx, attach, finalize, merge, mergeable, trained
from lodarepro.model import GPT2
from lodarepro.model.products import Product
from lodarepro.model.weights import sizes_of

SIZES = ("rank", "bottleneck", "length")  # the setting that is a method's size, whichever it has
FILL_STD = 0.02

Compose = Callable[..., Any]
"""(name, *overrides) -> a method's configuration, checked against the model"""


@dataclass(frozen=True)
class Sized:
    """A method at one size; None: it has none."""

    name: str
    size: int | None
    method: Any


@dataclass(frozen=True, eq=False)
class Variant:
    """A model to time.

    Attributes:
        method: its name; None: the bare model.
        size: of the method; None: it has none, or merged, when all sizes are one.
        form: `merged`, `unmerged`, or nothing where there is nothing to merge.
        model: on its device.
        trainable: parameters; of a merged one, of the least size.
    """

    method: str | None
    size: int | None
    form: str
    model: GPT2
    trainable: int

    @property
    def label(self) -> str:
        """As tables name it."""
        if self.method is None:
            return "bare"
        size = "" if self.size is None else f" {self.size}"
        return f"{self.method}{size}" + (f" ({self.form})" if self.form else "")


def sized(
    compose: Compose, methods: Sequence[str], sizes: Sequence[int] | None, more: Sequence[tuple[str, int]] = ()
) -> list[Sized]:
    """Each method at each size, all checked against the model.

    Args:
        compose: makes a configuration.
        methods: names.
        sizes: of those that have one; None: each its own.
        more: further sizes of single methods.
    """
    found = []
    for name in methods:
        default = compose(name)
        key = next((key for key in SIZES if hasattr(default, key)), None)
        if key is None:
            found.append(Sized(name, None, default))
            continue
        own = {getattr(default, key)} if sizes is None else {*sizes}
        own |= {size for of, size in more if of == name}
        found += [Sized(name, size, compose(name, f"method.{key}={size}")) for size in sorted(own)]
    return found


def variants(bare: GPT2, wanted: Sequence[Sized]) -> list[Variant]:
    """The bare model, and the model with each method at each size, merged too where that can be."""
    found = [Variant(None, None, "", bare, 0)]
    for one in wanted:
        model = with_method(bare, one.method)
        trainable = sum(p.numel() for p in trained(model).values())
        merges = any(len(dense.deltas) for dense in model.denses()) and mergeable(model) is None
        if merges and one.name not in {variant.method for variant in found}:
            found.append(Variant(one.name, None, "merged", merged(bare, one.method), trainable))
        found.append(Variant(one.name, one.size, "unmerged" if merges else "", model, trainable))
    return found


def random(model: config.Model, device: torch.device, dtype: torch.dtype) -> GPT2:
    """A model of random weights."""
    net = GPT2(sizes_of(model))
    net.initialise(torch.Generator().manual_seed(1))
    return net.to(device, dtype).requires_grad_(False).eval()


def twin(bare: GPT2) -> GPT2:
    """A model of its own whose parameters are the bare model's."""
    with torch.device("meta"):
        net = GPT2(bare.sizes)
    net.load_state_dict(bare.state_dict(), assign=True)
    return net.requires_grad_(False).eval()


def with_method(bare: GPT2, method: Any) -> GPT2:
    """A twin of the bare model with a method."""
    net = twin(bare)
    generator = torch.Generator().manual_seed(1)
    with _quiet():
        attach(net, method, generator)
    finalize(net, method)
    shared = {p.data_ptr() for p in bare.parameters()}
    with torch.no_grad():
        for p in trained(net).values():
            if p.data_ptr() not in shared and not p.any():
                p.copy_(torch.empty(p.shape).normal_(0.0, FILL_STD, generator=generator))
    return net.to(bare.wte.weight.dtype).eval()


def with_base(bare: GPT2, base: config.Base) -> GPT2:
    """A twin of the bare model on an approximation of its projections, without a method."""
    net = twin(bare)
    with _quiet():
        approx.attach(net, base)
    return net


def merged(bare: GPT2, method: Any) -> GPT2:
    """A twin with a method whose deltas are folded into weights of its own.

    Raises:
        BadInput: what a user's own delta calls merging fails.
    """
    net = with_method(bare, method)
    for dense in net.denses():
        if dense.deltas and dense.base is None:
            dense.weight = nn.Parameter(dense.weight.clone(), requires_grad=False)
    try:
        merge(net)
    except RuntimeError as e:
        raise BadInput(f"method={method.name}: merging its deltas fails ({str(e).splitlines()[0]})") from None
    return net


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what approximating says of the energy of weights, which are random here."""
    noisy = logging.getLogger(approx.__name__)
    before = noisy.level
    noisy.setLevel(logging.WARNING)
    try:
        yield
    finally:
        noisy.setLevel(before)


def ahead(model: GPT2) -> int:
    """Positions that a method takes before a context: tokens of its own, or keys and values."""
    return own(model) + model.offset


def own(model: GPT2) -> int:
    """Tokens of a method's own before the others."""
    return 0 if model.virtual is None else int(model.virtual().shape[1])


def own_tokens(model: GPT2, tokens: Tensor) -> Tensor:
    """Tokens (B, T) with the l of the method before them, (B, l + T)."""
    ids = -1 - torch.arange(own(model), device=tokens.device)
    return torch.cat([ids.expand(len(tokens), -1), tokens], dim=1)


def pack(found: Sequence[Variant], dtype: torch.dtype) -> None:
    """Lay frozen matrices out as a search does, each once for all models that have it."""
    bare = found[0].model
    bare.pack(dtype, training=False)
    for variant in found[1:]:
        for ours, theirs in zip(variant.model.denses(), bare.denses(), strict=True):
            if ours.base is not None:
                continue
            if ours.weight.data_ptr() == theirs.weight.data_ptr():
                ours.product = theirs.product
            elif theirs.product is not None:
                ours.product = Product(ours.weight, dtype, gradient=False)
        variant.model.output = bare.output
