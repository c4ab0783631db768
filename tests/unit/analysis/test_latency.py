"""What is timed: models that share a memory and compute what they should, and sleeps that are found again."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lodarepro import compose, config, cost
from lodarepro.analysis import latency as subject
from lodarepro.analysis import projection, timing
from lodarepro.analysis.latency import Asked
from lodarepro.analysis.projection import Csr, Kernel, LaidOut, Projection, TwoOfFour
from lodarepro.analysis.timing import Timer, Times
from lodarepro.analysis.variants import Variant, merged, own, own_tokens, pack, random, sized
from lodarepro.analysis.variants import variants as made
from lodarepro.decode.beam import search
from lodarepro.errors import BadInput, RunFailed
from lodarepro.findings import Findings, Grid, HeatMap
from lodarepro.methods import approx
from lodarepro.model import GPT2
from lodarepro.precision import Arithmetic

CPU = torch.device("cpu")
D = 32
QUICK = Asked(parts=("forward",), methods=("lora",), batch_sizes=(1,), lengths=(8,), trials=2, warmup=1)
FITTING = {
    **dict.fromkeys(("r-lora", "r-loda", "r-loda-plus"), "method.base.rank=8"),
    "adapter-drop": "method.drop=1",
}
"""settings of methods whose own are too large for the tiny model"""
MERGEABLE = {"lora"}
SLEEP_MS = 3.0
SLEEPER = f'''\
"""Takes a planted time after the MLP of each block."""

import time
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Sleeper:
    name: str = "sleeper"


class Sleep(nn.Module):
    def forward(self, x):
        time.sleep({SLEEP_MS} / 1e3)
        return x

    def macs(self):
        return 0


def attach(model, config, generator):
    for block in model.h:
        block.after_mlp = Sleep()
'''


@cache
def composed_once(overrides: tuple[str, ...], own: compose.OwnMethod | None) -> list[compose.Cell]:
    return CELLS(overrides, own=own)


CELLS = compose.cells
SHORT = subject.Decoding(prompt=3, new_tokens=4, beams=[1])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing takes longer than all else here, and searches are as good short."""
    monkeypatch.setattr(compose, "cells", lambda overrides, own=None: composed_once(tuple(overrides), own))
    read = subject.settings.read
    monkeypatch.setattr(subject.settings, "read", lambda name, wanted: replace(read(name, wanted), decoding=SHORT))


@pytest.fixture
def cell(tiny: list[str]) -> list[str]:
    return [*tiny, "dataset=mini", "runtime.decode_batch=2"]


@dataclass(frozen=True)
class Prepared:
    """A cell, and methods on its model."""

    cell: list[str]

    @property
    def run(self) -> config.Run:
        return compose.cells(self.cell)[0].run

    def method(self, name: str, *more: str) -> Any:
        return compose.cells([*self.cell, f"method={name}", *more])[0].run.method

    def bare(self) -> GPT2:
        return random(self.run.model, CPU, torch.float32)


@pytest.fixture
def variants(cell: list[str]) -> Callable[..., list[Variant]]:
    def make(*names: str, sizes: tuple[int, ...] | None = None, more: tuple[str, ...] = ()) -> list[Variant]:
        what = Prepared([*cell, *more])
        return made(what.bare(), sized(what.method, names, sizes))

    return make


def latency(overrides: list[str], asked: Asked, own: compose.OwnMethod | None = None) -> Findings:
    (cell,) = compose.cells(overrides, own=own)
    return subject.latency(cell, asked, own=own)


def grid(found: Findings, key: str) -> Grid:
    return next(one for one in found.grids if one.key == key)


def rows(found: Findings, key: str) -> list[dict[str, Any]]:
    of = grid(found, key)
    return [dict(zip((column.key for column in of.columns), row, strict=True)) for row in of.rows]


def logits(variant: Variant) -> Tensor:
    tokens = torch.randint(299, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return subject._pass(variant.model, own_tokens(variant.model, tokens))


def bits(model: GPT2) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# variants ---------------------------------------------------------------------------------------


ONE_OF_EACH_KIND = ("bitfit", "adapter-h", "prefix-embed", "prefix-layer", "lora", "loda-plus", "s-loda")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ONE_OF_EACH_KIND else pytest.mark.slow) for name in config.METHODS],
)
def test_every_method_can_be_timed(name: str, cell: list[str]):
    fitting = [f"method={name}", FITTING[name]] if name in FITTING else []
    what = Prepared([*cell, *fitting])
    bare, *found = made(what.bare(), sized(what.method, [name], None))
    assert (bare.label, bare.trainable) == ("bare", 0)
    assert [one.form for one in found] == (["merged", "unmerged"] if name in MERGEABLE else [""])
    counted = cost.count(what.run.model, what.method(name))
    virtual = own(found[-1].model)
    for one in found:
        out = logits(one)
        assert out.shape == (2, 9 + virtual, 299)
        assert bool(out.isfinite().all())
        assert one.trainable == counted.trainable
        assert one.model.macs() == (bare.model.macs() if one.form == "merged" else counted.macs)
        assert not one.model.training
    assert virtual == (10 if name == "prefix-embed" else 0)


@pytest.mark.parametrize("name", ["lora", "loda", "adapter-l", "prefix-layer", "s-loda", "ft", "bitfit", "ft-qv"])
def test_what_a_method_left_alone_is_the_bare_models_own(name: str, variants: Callable[..., list[Variant]]):
    bare, *found = variants(name)
    own = {key: p.data_ptr() for key, p in bare.model.named_parameters()}
    for one in found:
        theirs = {key: p.data_ptr() for key, p in one.model.named_parameters()}
        both = own.keys() & theirs.keys()
        merged_into = {f"h.{i}.attn.c_attn.weight" for i in range(2)} if one.form == "merged" else set()
        assert {key for key in both if own[key] != theirs[key]} == merged_into
        assert len(both) >= len(own) - 2  # the projections that something stands for


def test_merging_touches_no_bit_of_the_bare_model(cell: list[str]):
    what = Prepared(cell)
    bare = what.bare()
    before = bits(bare)
    folded = merged(bare, what.method("lora"))
    assert all(torch.equal(p, before[name]) for name, p in bare.named_parameters())
    changed = {name for name, p in folded.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"h.{i}.attn.c_attn.weight" for i in range(2)}
    shared = {p.data_ptr() for p in bare.parameters()}
    assert {name for name, p in folded.named_parameters() if p.data_ptr() not in shared} == changed


@pytest.mark.parametrize(
    "more", [(), ("method=lora", "method.targets=[q,k,v,o,up,down]"), ("method=lora", "method.dora=true")]
)
def test_merged_computes_what_unmerged_does(more: tuple[str, ...], variants: Callable[..., list[Variant]]):
    bare, merged, unmerged = variants("lora", more=more)
    torch.testing.assert_close(logits(merged), logits(unmerged), atol=1e-5, rtol=0)
    assert (logits(merged) - logits(bare)).abs().max() > 1e-3
    assert merged.label == "lora (merged)"
    assert unmerged.label == "lora 4 (unmerged)"
    assert merged.model.macs() == bare.model.macs() < unmerged.model.macs()


@pytest.mark.parametrize("name", ["lora", "loda", "loda-plus", "adapter-l", "adapter-h"])
def test_what_starts_from_zero_is_filled(name: str, variants: Callable[..., list[Variant]]):
    bare, *_, one = variants(name)
    own = {p.data_ptr() for p in bare.model.parameters()}
    added = [p for p in one.model.parameters() if p.data_ptr() not in own]
    assert added
    assert all(bool(p.any()) for p in added)
    assert (logits(one) - logits(bare)).abs().max() > 1e-4


def test_biases_of_zero_stay_where_they_are_the_models_own(variants: Callable[..., list[Variant]]):
    bare, one = variants("bitfit")
    assert torch.equal(logits(one), logits(bare))
    assert one.trainable > 0


def test_sizes_are_ranks_bottlenecks_and_lengths(variants: Callable[..., list[Variant]]):
    found = variants("lora", "adapter-l", "prefix-embed", "bitfit", sizes=(2, 6))
    assert [one.label for one in found] == [
        *("bare", "lora (merged)", "lora 2 (unmerged)", "lora 6 (unmerged)", "adapter-l 2", "adapter-l 6"),
        *("prefix-embed 2", "prefix-embed 6", "bitfit"),
    ]
    assert [own(one.model) for one in found][-3:-1] == [2, 6]
    ranks = {one.label: one.trainable for one in found}
    assert ranks["lora 6 (unmerged)"] == 3 * ranks["lora 2 (unmerged)"] == 6 * 2 * 2 * 2 * D


# projections ------------------------------------------------------------------------------------


def tiny_projections(base: config.Base) -> tuple[GPT2, Tensor]:
    from lodarepro.model import Sizes

    net = GPT2(Sizes(n_layer=1, n_head=2, n_embd=D, vocab_size=20, n_positions=8))
    net.initialise(torch.Generator().manual_seed(1))
    net.requires_grad_(False)
    approx.attach(net, base)
    return net, torch.randn(2, 5, D, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("base", [config.Base("sparse", keep=0.4), config.Base("sparse", keep=0.01),
                                  config.Base("sparse", pattern="2:4"), config.Base("sparse", keep=1.0)])  # fmt: skip
def test_compressed_rows_compute_the_same_product(base: config.Base):
    net, x = tiny_projections(base)
    (dense,) = net.denses("q")
    stand_in = dense.base
    assert isinstance(stand_in, approx.Sparse)
    rows_ = Csr(stand_in.weight)
    torch.testing.assert_close(rows_(x), stand_in(x), atol=1e-5, rtol=0)
    assert rows_(x).shape == (2, 5, 3 * D)
    assert rows_.macs() == stand_in.macs() == int((stand_in.weight != 0).sum())


def test_laid_out_matrices_compute_the_same_product():
    net, x = tiny_projections(config.Base("low-rank", rank=7))
    (dense,) = net.denses("q")
    stand_in = dense.base
    assert isinstance(stand_in, approx.LowRank)
    laid_out = LaidOut([stand_in.W_A, stand_in.W_B], torch.float32)
    torch.testing.assert_close(laid_out(x), stand_in(x), atol=1e-5, rtol=0)
    assert laid_out.macs() == stand_in.macs() == 7 * 4 * D
    wide = torch.randn(400, 400, generator=torch.Generator().manual_seed(3))  # large enough for oneDNN
    y = torch.randn(6, 400, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(LaidOut([wide], torch.float32)(y), y @ wide, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_units_for_two_of_four_compute_the_same_product():
    weight = torch.randn(512, 1536, generator=torch.Generator().manual_seed(1))
    kept = weight * approx._two_of_four(weight.abs())
    units = TwoOfFour(kept.cuda())
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    wanted = x.bfloat16().double() @ kept.bfloat16().double()
    found = units(x.cuda()).double().cpu()
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert units.macs() == 512 * 1536 // 2


def kernels(cell: list[str]) -> list[Kernel]:
    wanted = Projection(delta="loda", width=1024, ranks=[256, 512, 513], keeps=[0.4])
    what = Prepared(cell)
    timer = Timer(CPU, Arithmetic("fp32", CPU), trials=1, warmup=1)
    return list(projection._kernels(what.run, what.method, timer, wanted))


def test_all_forms_of_the_projection_are_timed_with_and_without_a_delta(cell: list[str]):
    found = kernels(cell)
    forms = ["dense", "rank 8", "rank 16", "keep 40 %", "keep 40 %, CSR", "2:4", "2:4, CSR"]
    assert [(one.label, one.delta) for one in found] == [*((f, None) for f in forms), *((f, "loda") for f in forms)]
    dense = 3 * D * D
    macs = {(one.label, one.delta): one.dense.macs() for one in found}
    assert macs["dense", None] == dense
    assert macs["rank 8", None] == 8 * 4 * D
    assert macs["keep 40 %", None] == macs["keep 40 %, CSR", None] == round(0.4 * dense)
    assert macs["2:4", None] == macs["2:4, CSR", None] == dense // 2
    delta = {macs[form, "loda"] - macs[form, None] for form in forms}
    assert delta == {2 * (2 * 4 * D + 2 * 16)}  # of q and v: 2 d r + 2 r^2


def test_kernels_of_one_matrix_compute_one_product(cell: list[str]):
    """The same weights in all forms, and the deltas are none that is zero."""
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found = {(one.label, one.delta): torch.cat(one.dense.parts(x), -1) for one in kernels(cell)}
    for delta in (None, "loda"):
        for form in ("keep 40 %", "2:4"):
            torch.testing.assert_close(found[f"{form}, CSR", delta], found[form, delta], atol=1e-5, rtol=0)
    for form in ("dense", "rank 8", "keep 40 %"):
        q, k, v = (found[form, "loda"] - found[form, None]).split(D, dim=-1)
        assert min(q.abs().max(), v.abs().max()) > 1e-4
        assert k.abs().max() < 1e-6


def test_the_printed_macs_of_loda_stand_beside_the_counted_ones():
    """All of LoDA's Table 2 with a delta, and the dense projection."""
    (plain,) = compose.cells(["model=gpt2-medium"])
    printed = projection._printed_macs(plain.run.model)

    def of(method: str, *more: str) -> str:
        (one,) = compose.cells(["model=gpt2-medium", f"method={method}", *more])
        return printed[projection._key(one.run.method)]

    assert printed[projection._key(None)] == "75.5M"
    assert [of("loda"), of("loda-plus")] == ["75.9M", "76.1M"]
    assert [of("loda", "method.base.kind=low-rank", f"method.base.rank={r}") for r in (500, 400, 300)] == [
        *("49.5M", "39.7M", "29.9M")
    ]
    assert [of("loda", "method.base.kind=sparse", f"method.base.keep={s}") for s in (0.6, 0.5)] == ["45.7M", "38.1M"]
    (small,) = compose.cells(["model=gpt2-nano", "dataset=mini"])
    assert projection._printed_macs(small.run.model) == {}


# whole measurements -----------------------------------------------------------------------------


def test_points_and_trials_are_as_asked(cell: list[str], monkeypatch: pytest.MonkeyPatch):
    timed: list[tuple[int, int, int]] = []
    real = timing.interleaved

    def counted(calls: Mapping[Any, Any], **given: Any) -> Any:
        timed.append((len(calls), given["trials"], given["warmup"]))
        return real(calls, **given)

    monkeypatch.setattr(timing, "interleaved", counted)
    asked = Asked(methods=("lora", "adapter-l"), batch_sizes=(1, 3), lengths=(4, 8), beams=(1, 2), trials=3, warmup=2)
    found = latency(cell, asked)
    variants_ = ["bare", "lora (merged)", "lora 4 (unmerged)", "adapter-l 6"]
    own_size = [row["method"] for row in rows(found, "forward")]
    assert [label.split(" ")[0] for label in own_size] == [label.split(" ")[0] for label in variants_]
    points = [(1, 4), (1, 8), (3, 4), (3, 8)]
    assert [(row["batch_size"], row["tokens"]) for row in rows(found, "forward-all")][::4] == points
    assert len(rows(found, "forward-all")) == 16
    assert [column.key for column in grid(found, "forward").columns][3:] == [f"slower_{b}x{t}" for b, t in points]
    assert {row["tokens"] for row in rows(found, "projection-all")} == {4, 12, 24}
    assert [column.key for column in grid(found, "decoding").columns] == [
        *("method", "tokens_per_second_1", "slower_1", "tokens_per_second_2", "slower_2")
    ]
    # Four points, three numbers of tokens, two beams, which are tried less.
    calls, *timed = timed  # a first look at how long it will take, by the bare model alone
    assert calls[0] == 1
    assert [trials for _, trials, _ in timed] == [3] * 7 + [2] * 2
    assert [warmup for _, _, warmup in timed] == [2] * 7 + [1] * 2
    assert found.settings["asked"]["batch_sizes"] == [1, 3]
    assert "3 trials of each, in turn, after 2 that don't count" in found.notes[0]


def test_figures_follow_from_the_times(cell: list[str], monkeypatch: pytest.MonkeyPatch):
    """With a timer that says 10 ms of the first call, 12 of the second, 14 of the third."""

    def told(calls: Mapping[Any, Any], **given: Any) -> dict[Any, Times]:
        return {key: Times((10.0 + 2 * i, 10.0 + 2 * i)) for i, key in enumerate(calls)}

    monkeypatch.setattr(timing, "interleaved", told)
    found = latency(cell, replace(QUICK, parts=subject.PARTS, beams=(2,)))
    bare, merged, unmerged = rows(found, "forward-all")
    assert [one["ms"] for one in (bare, merged, unmerged)] == [10.0, 12.0, 14.0]
    assert [one["slower_per_cent"] for one in (bare, merged, unmerged)] == pytest.approx([0.0, 20.0, 40.0])
    (plain,) = compose.cells([*cell, "method=lora"])
    counted = cost.count(plain.run.model, plain.run.method)
    assert (bare["macs_per_token"], unmerged["macs_per_token"]) == (merged["macs_per_token"], counted.macs)
    assert unmerged["macs_per_cent"] == pytest.approx(100 * counted.macs / bare["macs_per_token"])
    assert [row["slower_1x8"] for row in rows(found, "forward")] == ["10.00 ± 0.00 ms", "+20.0 ± 0.0", "+40.0 ± 0.0"]
    tokens = [row["tokens_per_second_2"] for row in rows(found, "decoding")]
    assert tokens == pytest.approx([1e3 * 2 * 4 / ms for ms in (10.0, 12.0, 14.0)])
    assert [row["slower_2"] for row in rows(found, "decoding")] == ["+0.0 ± 0.0", "+20.0 ± 0.0", "+40.0 ± 0.0"]
    dense, second, *_ = rows(found, "projection")
    assert (dense["time_8"], second["time_8"]) == ("100.0 ± 0.0", "120.0 ± 0.0")
    assert dense["macs_per_token_all_blocks"] == 2 * 3 * D * D  # of both blocks
    heat = next(plot for plot in found.plots if isinstance(plot, HeatMap))
    assert [panel.values for row in heat.panels for panel in row] == [((20.0,),), ((40.0,),)]


@pytest.fixture
def sleeper(tmp_path: Path) -> compose.OwnMethod:
    path = tmp_path / "sleeper.py"
    path.write_text(SLEEPER)
    return compose.own_method(path)


def test_a_planted_time_is_found(cell: list[str], sleeper: compose.OwnMethod):
    found = latency(cell, replace(QUICK, methods=("sleeper",), trials=6), own=sleeper)
    bare, ours = rows(found, "forward-all")
    planted = 2 * SLEEP_MS  # in each block
    assert ours["method"] == "sleeper"
    assert ours["ms_median"] - bare["ms_median"] >= planted - 0.5
    assert ours["ms_median"] - bare["ms_median"] < planted + 4
    assert ours["slower_per_cent"] >= 100 * (planted - 0.5) / bare["ms"] - 3 * ours["slower_error"]
    assert ours["macs_per_cent"] == pytest.approx(100.0)


def test_a_search_sees_the_planted_time_in_each_token(cell: list[str], sleeper: compose.OwnMethod):
    found = latency(
        cell, Asked(parts=("decoding",), methods=("sleeper",), lengths=(8,), trials=2, warmup=1), own=sleeper
    )
    bare, ours = (1e3 * 2 * 4 / row["tokens_per_second_1"] for row in rows(found, "decoding"))
    assert ours - bare >= 4 * 2 * SLEEP_MS - 2  # four tokens through two blocks
    assert [one.key for one in found.grids] == ["decoding"]


@pytest.mark.parametrize("part", subject.PARTS)
def test_a_part_can_be_had_alone(part: str, cell: list[str]):
    found = latency(cell, replace(QUICK, parts=(part,), beams=(1,)))
    assert {one.key.partition("-")[0] for one in found.grids} == {part}
    assert any(note.startswith(f"{part}: ") for note in found.notes)


def test_the_search_generates_what_it_does_without_the_shared_layout(
    cell: list[str], variants: Callable[..., list[Variant]]
):
    """Laying a matrix out once for all models gives each its own product."""
    found = variants("lora", "s-loda", "ft")
    packed: list[Any] = []
    plain = [search(one.model, [[5, 6, 7]] * 2, _decode(cell), end_ids=()) for one in found]
    pack(found, torch.float32)
    for one in found:
        packed.append(search(one.model, [[5, 6, 7]] * 2, _decode(cell), end_ids=()))
    assert packed == plain


def _decode(cell: list[str]) -> config.Decode:
    (plain,) = compose.cells(cell)
    return replace(plain.run.decode, beam=2, max_new_tokens=5, min_length=0)


def test_an_approximation_of_random_weights_says_nothing(cell: list[str], log: pytest.LogCaptureFixture):
    latency(cell, replace(QUICK, methods=("s-loda",)))
    assert not [r for r in log.records if r.name == approx.__name__]
    approx.attach(tiny_projections(config.Base())[0], config.Base("sparse", keep=0.5))
    assert [r for r in log.records if r.name == approx.__name__]  # and is heard again afterwards


def test_the_name_follows_from_what_was_asked(cell: list[str]):
    one, again, other = (latency(cell, replace(QUICK, trials=n)) for n in (2, 2, 3))
    assert one.name == again.name != other.name
    assert one.name.startswith("latency_gpt2-nano-cpu_")


# faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("lora", "600 tokens are more than the 512 positions of gpt2-nano; give smaller --lengths"),
        (
            "prefix-embed",
            "600 tokens are more than the 512 positions of gpt2-nano; give smaller --lengths",  # the bare model's
        ),
    ],
)
def test_more_tokens_than_positions(method: str, said: str, cell: list[str]):
    with pytest.raises(BadInput) as e:
        latency(cell, replace(QUICK, methods=(method,), lengths=(8, 600)))
    assert e.value.faults == (said,)


@pytest.mark.parametrize(("method", "size"), [("prefix-embed", 10), ("prefix-layer", 5)])
def test_room_for_a_prefix(method: str, size: int, cell: list[str]):
    label = f"{method} {size}"
    asked = replace(QUICK, methods=(method,), lengths=(512 - size + 1,))
    with pytest.raises(BadInput) as e:
        latency(cell, asked)
    assert e.value.faults == (
        f"{512 - size + 1} tokens beside the {size} of {label} are more than the 512 positions of gpt2-nano; give "
        "smaller --lengths",
    )
    assert len(rows(latency(cell, replace(asked, lengths=(512 - size,))), "forward-all")) == 2


def test_an_unknown_method(cell: list[str]):
    with pytest.raises(BadInput) as e:
        latency(cell, replace(QUICK, methods=("lorra",)))
    (fault,) = e.value.faults
    assert fault.startswith("method=lorra: no such method; did you mean 'lora'?")


def test_a_size_that_does_not_fit(cell: list[str]):
    with pytest.raises(BadInput) as e:
        latency(cell, replace(QUICK, sizes=(64,)))
    assert e.value.faults == ("method=lora: method.rank=64 exceeds the width 32 of gpt2-nano; give 32 or less",)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Limits how many tokens a forward pass may have."""
    real = subject._pass

    def limit(most: int) -> None:
        def run(model: GPT2, tokens: Tensor) -> Tensor:
            if tokens.numel() > most:
                raise torch.OutOfMemoryError("no memory")
            return real(model, tokens)

        monkeypatch.setattr(subject, "_pass", run)

    yield limit


def test_a_point_without_memory_is_left_out(
    cell: list[str], memory: Callable[[int], None], log: pytest.LogCaptureFixture
):
    memory(8)
    found = latency(cell, replace(QUICK, batch_sizes=(1, 4)))
    assert {(row["batch_size"], row["tokens"]) for row in rows(found, "forward-all")} == {(1, 8)}
    assert [record.getMessage() for record in log.records if record.levelno == logging.WARNING] == [
        "batch 4 x 8 tokens: no memory for it; left out"
    ]


def test_no_memory_for_any_point(cell: list[str], memory: Callable[[int], None]):
    memory(3)
    with pytest.raises(RunFailed) as e:
        latency(cell, QUICK)
    assert e.value.faults == (
        "there is no memory for any point; give smaller --batch-sizes and --lengths, or fewer --methods",
    )


@pytest.mark.parametrize("part", ["projection", "decoding"])
def test_no_memory_for_another_part(part: str, cell: list[str], monkeypatch: pytest.MonkeyPatch):
    """It is left out, or said in a line; not a traceback."""

    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(subject, "search", fails)
    monkeypatch.setattr("lodarepro.model.gpt2.Dense.parts", fails)
    with pytest.raises(RunFailed):
        latency(cell, replace(QUICK, parts=(part,), beams=(1,)))
