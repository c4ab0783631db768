"""Plans: sizes of data that are here or only pinned, operations and memory, rates stated and measured, the report."""

import functools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from lodarepro import compose, config, plan
from lodarepro.config import Ft, FtQv, FtTop, Lora, OneShot, Pin
from lodarepro.cost import count, training_step
from lodarepro.data import PARSERS
from lodarepro.errors import BadInput
from lodarepro.model import weights
from lodarepro.plan import Asked, Estimate, Planned, Rate, Sizes, estimate, measured, sizes, stated

PACKAGE = Path(plan.__file__).parent
NANO = ("model=gpt2-nano", "dataset=mini", "runtime.device=cpu")
MEDIUM = ("model=gpt2-medium",)


pytestmark = pytest.mark.usefixtures("own_caches")


@functools.cache
def one(*overrides: str) -> config.Run:
    (cell,) = compose.cells(overrides)
    return cell.run


def nano(method: str = "lora") -> config.Run:
    return one(*NANO, f"method={method}")


def base_of(run: config.Run) -> weights.Checkpoint:
    base = weights.find(run.model, download=False)
    assert base is not None
    return base


def faults(call: Any, *arguments: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(BadInput) as e:
        call(*arguments, **options)
    return e.value.faults


def near(value: Any) -> Any:
    """For a field of a dataclass that is compared as a whole."""
    return pytest.approx(value, rel=1e-9)


# sizes without data -----------------------------------------------------------------------------

PINNED = {
    "e2e": Sizes((42061, 4672), (2225000, 276370), (1043000, 129327), 133, 630, 22957, counted=False),
    "webnlg": Sizes((18025, 2258), (1380376, 178443), (516691, 66937), 259, 1862, 86480, counted=False),
    "dart": Sizes((62659, 6980), (3960000, 485252), (1590000, 196051), 229, 4159, 174847, counted=False),
}


@pytest.mark.parametrize("name", PINNED)
@pytest.mark.parametrize("model", ["gpt2-medium", "gpt2-nano"])
def test_without_data_the_pinned_sizes_are_known(name: str, model: str):
    run = one(f"model={model}", f"dataset={name}")
    assert sizes(run, weights.find(run.model, download=False)) == PINNED[name]


def test_the_hubs_models_are_not_here():
    assert weights.find(one(*MEDIUM).model, download=False) is None


def test_a_limit_scales_the_pinned_sizes():
    run = one(*MEDIUM, "dataset=webnlg", "dataset.limit={train: 3605, valid: 1129, test: 186}")
    train, valid, test = 3605 / 18025, 1129 / 2258, 186 / 1862  # a fifth, a half, about a tenth
    assert sizes(run, None) == Sizes(
        pairs=(3605, 1129),
        tokens=near((train * 1380376, valid * 178443)),
        completion_tokens=near((train * 516691, valid * 66937)),
        longest=259,
        contexts=186,
        context_tokens=near(test * 86480),
        counted=False,
    )


def test_held_out_contexts_take_their_share_of_the_pinned_sizes():
    run = one(*MEDIUM, "dataset=e2e-small", "dataset.limit.valid=100")  # 47 of 547 contexts
    train, valid = 500 / 547, 100 / 4672
    assert sizes(run, None) == Sizes(
        pairs=(round(train * 4672), 100),
        tokens=near((train * 276370, valid * 276370)),
        completion_tokens=near((train * 129327, valid * 129327)),
        longest=125,
        contexts=630,
        context_tokens=22957,
        counted=False,
    )
    assert faults(sizes, one(*MEDIUM, "dataset=e2e-small", "dataset.hold_out=547"), None) == (
        "dataset.hold_out=547: valid.txt has 547 distinct contexts; hold out 546 or less",
    )
    uncounted = one(*MEDIUM, "dataset=e2e", "dataset.hold_out=47", "dataset.files.valid=train.txt")
    assert faults(sizes, uncounted, None) == (
        "dataset 'e2e': nobody counted the contexts of train.txt, of which dataset.hold_out=47 takes some; give "
        "data.root=FOLDER",
    )


def test_a_limit_of_one_split_leaves_the_others():
    found = sizes(one(*MEDIUM, "dataset=e2e", "dataset.limit.test=63"), None)
    assert found == replace(PINNED["e2e"], contexts=63, context_tokens=near(2295.7))


def test_a_limit_beyond_the_data_changes_nothing():
    limits = "dataset.limit={train: 99999, valid: 99999, test: 99999}"
    assert sizes(one(*MEDIUM, "dataset=dart", limits), None) == PINNED["dart"]


def test_a_dataset_without_pins_and_without_data_is_one_fault():
    pinless = replace(one(*MEDIUM, "dataset=e2e").dataset, name="mine", pins={})
    for run in (replace(one(*MEDIUM), dataset=pinless), replace(nano(), dataset=pinless)):
        (fault,) = faults(plan.plan, [Asked("x", run, 1, 0)], gpu="a100")
        assert fault.startswith("dataset 'mine': ") and "data.root=FOLDER" in fault and "\n" not in fault
    assert faults(sizes, replace(one(*MEDIUM), dataset=pinless), None) == (
        "dataset 'mine': 'train.txt' (train split) has no pinned content, so it can't be downloaded (valid: none); "
        "give a folder that holds it with data.root=FOLDER",
    )


@pytest.mark.parametrize("lacking", ["contexts", "tokens", "completion_tokens", "context_tokens", "longest"])
def test_pins_that_state_some_sizes_only_are_one_fault(lacking: str):
    run = one(*MEDIUM, "dataset=webnlg")
    pins = {name: Pin(**{**asdict(pin), lacking: None}) for name, pin in run.dataset.pins.items()}
    (fault,) = faults(sizes, replace(run, dataset=replace(run.dataset, pins=pins)), None)
    assert fault.startswith("dataset 'webnlg': ") and "no pinned sizes" in fault


def test_data_that_are_here_need_a_tokenizer_that_is_here():
    (fault,) = faults(sizes, one(*MEDIUM, "dataset=mini"), None)
    assert "its files are not on this machine" not in fault
    assert "gpt2-medium" in fault


@pytest.mark.needs_mount
@pytest.mark.parametrize("name", PINNED)
def test_pinned_contexts_are_those_of_the_files(name: str, shared: Path):
    dataset = one(*MEDIUM, f"dataset={name}").dataset
    held = {file: shared / "data" / name / file for file in dataset.pins}
    held = {file: path for file, path in held.items() if path.is_file()}
    assert len(held) >= 2
    for file, path in held.items():
        pin, examples = dataset.pins[file], PARSERS[dataset.format](path)
        assert (len(examples), len({e.context for e in examples})) == (pin.examples, pin.contexts), file


@pytest.mark.parametrize("name", PINNED)
def test_pins_are_possible(name: str):
    """An end token each, a context no longer than what is not completion; the longest no shorter than the mean."""
    for file, pin in one(*MEDIUM, f"dataset={name}").dataset.pins.items():
        assert pin.tokens and pin.completion_tokens and pin.longest, file
        assert 2 * pin.examples < pin.completion_tokens + pin.examples < pin.tokens, file
        assert pin.tokens / pin.examples < pin.longest <= 512, file
        if pin.contexts:
            assert pin.context_tokens and pin.contexts < pin.context_tokens <= pin.tokens - pin.completion_tokens, file


# sizes of data that are here --------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(PACKAGE / "model" / "gpt2-nano" / "tokenizer.json"))


def pairs(split: str) -> list[tuple[str, str]]:
    """The embedded data, read as its README says."""
    lines = (PACKAGE / "data" / "mini" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    return [(context, completion) for context, _, completion in (line.partition("||") for line in lines)]


def lengths(tokenizer: Tokenizer, split: str) -> list[tuple[int, int]]:
    """Tokens of each pair's context and completion, each with its end token."""

    def of(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids) + 1

    return [(of(context), of(f" {completion}")) for context, completion in pairs(split)]


def test_data_that_are_here_are_counted(tokenizer: Tokenizer):
    train, valid, test = (lengths(tokenizer, split) for split in ("train", "valid", "test"))
    contexts = {context: n for (context, _), (n, _) in zip(pairs("test"), test, strict=True)}
    assert len(contexts) < len(test)
    assert sizes(nano(), base_of(nano())) == Sizes(
        pairs=(2000, 200),
        tokens=(sum(a + b for a, b in train), sum(a + b for a, b in valid)),
        completion_tokens=(sum(b for _, b in train), sum(b for _, b in valid)),
        longest=max(a + b for a, b in train),
        contexts=len(contexts),
        context_tokens=sum(contexts.values()),
        counted=True,
    )


SMALL = "dataset.limit={train: 40, valid: 10, test: 7}"


def test_a_limit_cuts_the_data_that_are_here(tokenizer: Tokenizer):
    train, valid = lengths(tokenizer, "train")[:40], lengths(tokenizer, "valid")[:10]
    run = one(*NANO, SMALL)
    found = sizes(run, base_of(run))
    assert (found.pairs, found.contexts) == ((40, 10), 7)
    assert found.tokens == (sum(a + b for a, b in train), sum(a + b for a, b in valid))
    assert found.longest == max(a + b for a, b in train)
    first = list(dict.fromkeys(context for context, _ in pairs("test")))[:7]
    assert found.context_tokens == sum(len(tokenizer.encode(text).ids) + 1 for text in first)


def test_a_methods_own_tokens_are_counted(tokenizer: Tokenizer):
    run = one(*NANO, SMALL)
    plain = sizes(run, base_of(run))
    prefix = one(*NANO, SMALL, "method=prefix-embed", "method.length=7", "method.infix=2")
    assert sizes(prefix, base_of(run)) == replace(
        plain,
        tokens=(plain.tokens[0] + 40 * 9, plain.tokens[1] + 10 * 9),
        longest=plain.longest + 9,
        context_tokens=plain.context_tokens + 7 * 9,
    )


def test_a_methods_prompt_is_counted(tokenizer: Tokenizer):
    run = one(*NANO, SMALL)
    plain = sizes(run, base_of(run))
    shot = one(*NANO, SMALL, "method=one-shot", "method.prompt='Say it: '", "method.after='. In words:'")
    found = sizes(shot, base_of(run))
    first = list(dict.fromkeys(context for context, _ in pairs("test")))[:7]
    asked = [tokenizer.encode(f"Say it: {text}. In words:", add_special_tokens=False).ids for text in first]
    assert found.context_tokens == sum(map(len, asked)) > plain.context_tokens
    assert found.completion_tokens == plain.completion_tokens
    assert found.contexts == 7


def test_tokens_that_are_cut_do_not_go_through_training(tokenizer: Tokenizer):
    run = one(*NANO, SMALL, "protocol.max_length=60", "decode.max_new_tokens=20", "train.epochs=3")
    kept = sum(min(60, a + b) for a, b in lengths(tokenizer, "train")[:40])
    assert estimate(run, sizes(run, base_of(run))).train_tokens == 3 * kept


# operations -------------------------------------------------------------------------------------

# The figures of E2E in the issue: pairs of 59 tokens, 27.6 of which carry loss; 12.4 million tokens in 5 epochs.
E2E = Sizes((42_061, 1), (12.4e6 / 5, 59), (27.6 * 42_061, 27.6), 133, 630, 22957, counted=True)


def e2e() -> config.Run:
    return one(*MEDIUM, "dataset=e2e", "method=lora")


@functools.cache
def on_e2e(method: type) -> Estimate:
    return estimate(with_method(e2e(), method()), E2E)


def with_method(run: config.Run, method: Any, **train: Any) -> config.Run:
    return replace(run, method=method, train=replace(run.train, **train))


def test_lora_on_gpt2_medium_takes_the_operations_of_the_issue():
    assert (e2e().method, e2e().train.epochs, Lora().rank) == (Lora(), 5, 4)
    found = on_e2e(Lora)
    assert found.train_tokens == pytest.approx(12.4e6 * 42_064 / 42_061)  # the last batch is filled
    assert 0.9 * 1.5e16 < found.train_flops < 1.1 * 1.7e16
    # Two a multiply-accumulate; forward, and backward for the inputs: 24 blocks of 12 d^2 and, for the tokens that
    # carry loss, the output layer. Attention twice that backward, as both its factors have gradients.
    d, tokens = 1024, 12.4e6
    products = 4 * tokens * (24 * 12 * d**2 + 27.6 / 59 * 50_257 * d)
    attention = 6 * tokens * 24 * 2 * 59 * d
    deltas = 6 * tokens * 393_216
    assert found.train_flops == pytest.approx(products + attention + deltas, rel=0.02)


def test_what_methods_cost_beside_lora():
    lora, ft, top, nothing = map(on_e2e, (Lora, Ft, FtTop, OneShot))
    assert ft.train_flops / lora.train_flops == pytest.approx(1.5, abs=0.06)
    assert top.train_flops < 0.75 * lora.train_flops
    assert nothing.train_tokens == 0
    # Its validation loss alone: one forward pass of 59 tokens, a five-hundred-thousandth of LoRA's training.
    assert 0 < nothing.train_flops < lora.train_flops / 200_000
    # The best and the last checkpoint are decoded; of what trains nothing there is one.
    assert ft.decode_flops == top.decode_flops == 2 * nothing.decode_flops
    # Each of LoRA's parameters is multiplied with each token.
    new = 10 * 64 * 630
    assert lora.decode_flops - ft.decode_flops == pytest.approx(2 * 2 * 393_216 * (new + 22_957))


FLAT = Sizes((80, 8), (80 * 30, 8 * 30), (80 * 10, 8 * 10), longest=40, contexts=6, context_tokens=6 * 12, counted=True)
"""pairs of 30 tokens, 10 of which carry loss; contexts of 12"""


def test_training_is_its_steps_and_the_validation_after_each_epoch():
    run = with_method(nano("ft"), Ft(), epochs=3, batch_size=8)
    step = training_step(run.model, Ft(), rows=8, width=30, targets=80).flops
    d, L, V = 128, 4, 2048
    valid = 2 * (240 * L * (12 * d * d + 2 * 15 * d) + 80 * V * d)  # a token attends to half of its sequence
    assert estimate(run, FLAT).train_flops == pytest.approx(3 * (10 * step + valid), rel=1e-9)
    rounded_up = replace(FLAT, pairs=(75, 8), tokens=(75 * 30, 240), completion_tokens=(750, 80))
    assert estimate(run, rounded_up).train_flops == estimate(run, FLAT).train_flops
    assert estimate(run, rounded_up).train_tokens == 3 * 80 * 30


def test_padding_costs_nothing():
    """Longer sequences of the same sum: attention aside, which sees rows, operations follow from tokens alone."""
    longer = replace(FLAT, longest=400)
    assert estimate(nano(), longer).train_flops == estimate(nano(), FLAT).train_flops


@pytest.mark.parametrize(("steps", "epochs"), [(15, 2), (20, 2), (31, 4), (5, 1)])
def test_steps_in_place_of_epochs(steps: int, epochs: int):
    run = with_method(nano("ft"), Ft(), epochs=7, max_steps=steps, batch_size=8)
    found = estimate(run, FLAT)
    assert found.train_tokens == steps * 8 * 30
    step = training_step(run.model, Ft(), rows=8, width=30, targets=80).flops
    one = estimate(with_method(run, Ft(), epochs=1, max_steps=None), FLAT).train_flops - 10 * step
    assert found.train_flops == pytest.approx(steps * step + epochs * one, rel=1e-9)


@pytest.mark.parametrize(
    ("beam", "new", "contexts"), [(10, 64, 6), (1, 64, 6), (20, 64, 6), (10, 128, 6), (10, 64, 600)]
)
@pytest.mark.parametrize("keep", [("last",), ("best", "last"), ("last", "epoch-2", "epoch-1")])
def test_decoding_is_the_prompts_and_every_step_of_every_beam_of_every_checkpoint(
    beam: int, new: int, contexts: int, keep: tuple[str, ...]
):
    run = with_method(nano("ft"), Ft(), keep=keep)
    run = replace(run, decode=replace(run.decode, beam=beam, max_new_tokens=new))
    d, L, V = 128, 4, 2048
    block, between = 12 * d * d, 2 * d  # a token; and for each token that it attends to
    prompts = contexts * (12 * L * (block + between * 12 / 2) + V * d)  # of a prompt the last token alone has logits
    generated = contexts * beam * new * (L * (block + between * (12 + new / 2)) + V * d)
    found = estimate(run, replace(FLAT, contexts=contexts, context_tokens=contexts * 12))
    assert found.decode_flops == pytest.approx(len(keep) * 2 * (prompts + generated), rel=1e-9)


def test_other_choices_change_no_operations_of_the_search():
    run = nano()
    for other in (with_method(run, run.method, epochs=1), replace(run, runtime=config.Runtime(decode_batch=1))):
        assert estimate(other, FLAT).decode_flops == estimate(run, FLAT).decode_flops


# memory -----------------------------------------------------------------------------------------


def test_a_parameter_that_trains_takes_its_gradient_and_two_moments():
    """12 bytes each beside the weights, which are those of the same model."""
    one_prompt = replace(nano(), runtime=config.Runtime(decode_batch=1))  # so that training needs the most
    without_activations = []
    for method in (Ft(), FtQv()):
        run = with_method(one_prompt, method, batch_size=9)
        kept = training_step(run.model, method, rows=9, width=40, targets=120).activation_bytes
        without_activations.append(estimate(run, FLAT).memory - kept)
    d, L = 128, 4
    model = L * (12 * d * d + 13 * d) + 2 * d + (2048 + 512) * d  # the blocks' weights and biases; embeddings
    assert without_activations[0] - without_activations[1] == 12 * (model - L * 2 * d * d)


def test_training_takes_weights_what_trains_activations_and_logits():
    run = with_method(nano("ft"), Ft(), batch_size=16)
    wide = training_step(run.model, Ft(), rows=16, width=40, targets=213)  # 16 of the longest, a third of it with loss
    parameters = count(run.model, Ft()).total
    found = estimate(replace(run, runtime=config.Runtime(decode_batch=1)), FLAT)
    assert found.memory == 4 * parameters + 12 * parameters + wide.activation_bytes + 2 * 4 * 213 * 2048


def test_decoding_takes_the_keys_and_values_and_the_logits_of_all_beams():
    run = replace(nano("one-shot"), runtime=config.Runtime(decode_batch=4), decode=config.Decode())
    parameters = count(run.model, run.method).total
    cache = 2 * 4 * 4 * 128 * 4 * (12 + 10 * 64)  # fp32 keys and values, L, d; 4 prompts of 12 tokens and 10 beams each
    logits = 3 * 4 * 4 * 10 * 2048
    assert estimate(run, FLAT).memory == 4 * parameters + cache + logits
    few = replace(FLAT, contexts=2, context_tokens=24)  # no more prompts than there are
    assert estimate(run, few).memory == 4 * parameters + (cache + logits) / 2
    many = replace(FLAT, contexts=100, context_tokens=100 * 12)
    usual = estimate(replace(run, runtime=config.Runtime()), many).memory  # 64 prompts, as on a GPU
    assert usual == 4 * parameters + 64 / 4 * (cache + logits)


def test_memory_is_that_of_the_larger_of_training_and_decoding():
    run = nano()
    of = {
        (rows, prompts): estimate(
            replace(with_method(run, Lora(), batch_size=rows), runtime=config.Runtime(decode_batch=prompts)), FLAT
        ).memory
        for rows in (1, 500)
        for prompts in (1, 6)
    }
    assert of[500, 1] == of[500, 6] > of[1, 6] > of[1, 1]


def test_a_batch_is_no_wider_than_a_sequence_may_be():
    run = replace(nano("ft"), runtime=config.Runtime(decode_batch=1))
    cut = replace(run, protocol=replace(run.protocol, max_length=35))
    longest, as_long = replace(FLAT, longest=400), replace(FLAT, longest=35)
    assert estimate(cut, longest).memory == estimate(cut, as_long).memory < estimate(run, longest).memory


# stated rates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "precision", "peak", "memory"),
    [
        ("a100", "fp32", 19.5e12, 80),
        ("a100", "tf32", 156e12, 80),
        ("a100", "bf16", 312e12, 80),
        ("h100", "bf16", 989.4e12, 80),
        ("t4", "fp32", 8.1e12, 16),
        ("h200", "fp32", 66.9e12, 141),
    ],
)
def test_a_stated_rate_is_a_share_of_the_peak(gpu: str, precision: str, peak: float, memory: int):
    found = stated(gpu, 0.25, precision)
    fp32 = {"a100": 19.5e12, "h100": 66.9e12, "h200": 66.9e12, "t4": 8.1e12}[gpu]  # as the search runs
    assert (found.train, found.decode) == pytest.approx((0.25 * peak, 0.25 * fp32))
    assert found.memory == memory * 1024**3
    text = f"stated: 25 % of the {peak / 1e12:.1f} TFLOP/s ({precision}) of one {gpu}"
    text += "" if precision == "fp32" else f", decoding at the {fp32 / 1e12:.1f} of fp32"
    assert found.source == text


def test_training_and_decoding_have_peaks_of_their_own():
    found = stated("a100", 0.5, "fp32", "tf32")
    assert (found.train, found.decode) == (0.5 * 19.5e12, 0.5 * 156e12)
    assert found.source == "stated: 50 % of the 19.5 TFLOP/s (fp32) of one a100, decoding at the 156.0 of tf32"
    same = stated("a100", 0.5, "bf16", "bf16")
    assert (same.train, same.decode) == (0.5 * 312e12, 0.5 * 312e12)
    assert same.source == "stated: 50 % of the 312.0 TFLOP/s (bf16) of one a100"
    assert faults(stated, "t4", 0.5, "fp32", "tf32") == (
        "--gpu t4: it has no units for decode.precision=tf32; plan with fp32",
    )


def test_the_whole_peak_may_be_stated():
    assert stated("v100", 1.0, "fp32").train == 15.7e12


NAMES = ", ".join(sorted(plan.GPUS))


@pytest.mark.parametrize(
    ("gpu", "utilisation", "precision", "fault"),
    [
        ("a1000", 0.3, "fp32", f"--gpu a1000: no such GPU; did you mean 'a100'? (valid: {NAMES})"),
        ("", 0.3, "fp32", f"--gpu : no such GPU (valid: {NAMES})"),
        ("a100", 0, "fp32", "--utilisation 0: give a share of the peak, above 0 and at most 1"),
        ("a100", 2.0, "fp32", "--utilisation 2.0: give a share of the peak, above 0 and at most 1"),
        ("a100", -0.5, "fp32", "--utilisation -0.5: give a share of the peak, above 0 and at most 1"),
        ("a100", math.nan, "fp32", "--utilisation nan: give a share of the peak, above 0 and at most 1"),
        ("t4", 0.3, "bf16", "--gpu t4: it has no units for train.precision=bf16; plan with fp32"),
        ("v100", 0.3, "bf16", "--gpu v100: it has no units for train.precision=bf16; plan with fp32"),
        ("v100", 0.3, "tf32", "--gpu v100: it has no units for train.precision=tf32; plan with fp32"),
    ],
)
def test_faults_of_a_stated_rate(gpu: str, utilisation: float, precision: str, fault: str):
    assert faults(stated, gpu, utilisation, precision) == (fault,)


def test_names_and_peaks_of_gpus():
    assert {name: gpu.name for name, gpu in plan.GPUS.items()} == {name: name for name in plan.GPUS}
    for gpu in plan.GPUS.values():
        assert (gpu.tf32 is None) == (gpu.bf16 is None)
        assert gpu.tf32 is None or gpu.bf16 is None or gpu.fp32 <= gpu.tf32 < gpu.bf16


# measured rates ---------------------------------------------------------------------------------


def brief(method: str) -> config.Run:
    run = nano(method)
    return replace(run, decode=replace(run.decode, beam=2), train=replace(run.train, batch_size=4))


@pytest.mark.parametrize("method", ["ft", "lora", "prefix-embed", "prefix-layer", "r-lora", "adapter-h"])
def test_a_measured_rate_is_a_number(method: str):
    found = measured(brief(method), FLAT)
    for rate in (found.train, found.decode):
        assert 1e6 < rate < 1e15
    assert found.memory is None
    n = torch.get_num_threads()
    threads = f"{n} thread{'s' if n > 1 else ''}"
    assert found.source == f"measured on this CPU (fp32, {threads}), a few steps of {method} on gpt2-nano"


def test_a_method_that_trains_nothing_validates_at_the_rate_of_decoding():
    found = measured(brief("one-shot"), FLAT)
    assert found.train == found.decode and math.isfinite(found.decode)
    known = Estimate(train_tokens=0, train_flops=found.decode, decode_flops=3 * found.decode, memory=0, counted=True)
    assert found.seconds(known) == pytest.approx(4)


def test_a_rate_in_bf16_says_so():
    run = brief("lora")
    found = measured(replace(run, train=replace(run.train, precision="bf16")), FLAT)
    assert "(bf16, " in found.source and found.train > 0


def test_a_rate_is_measured_with_the_threads_of_the_run():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert "(fp32, 1 thread)" in measured(brief("lora"), FLAT).source  # as any run of a model this small
        run = replace(brief("lora"), runtime=config.Runtime(device="cpu", threads=2))
        assert "(fp32, 2 threads)" in measured(run, FLAT).source
    finally:
        torch.set_num_threads(before)


def test_a_rate_is_operations_over_time(monkeypatch: pytest.MonkeyPatch):
    """A clock that goes on by a second at each look: whatever is timed takes one."""
    looks = iter(range(1000))
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))
    run = brief("ft")
    found = measured(run, FLAT)
    assert found.train == training_step(run.model, Ft(), rows=4, width=30, targets=40).flops
    d, L, V = 128, 4, 2048
    prompts = 6 * (12 * L * (12 * d * d + 2 * d * 12 / 2) + V * d)
    steps = 6 * 2 * (plan.PROBE_TOKENS - 1)  # 6 prompts, 2 beams; the prompts' own pass gives the first token
    generated = steps * (L * (12 * d * d + 2 * d * (12 + plan.PROBE_TOKENS / 2)) + V * d)
    assert found.decode == pytest.approx(2 * (prompts + generated), rel=1e-9)


def test_contexts_beyond_the_models_positions_are_cut_where_they_are_tried():
    long = replace(FLAT, contexts=2, context_tokens=2 * 600)
    assert measured(brief("lora"), long).decode > 0


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = replace(brief("lora"), runtime=config.Runtime(device="cuda"))
    assert faults(measured, run, FLAT) == (
        "runtime.device=cuda: torch sees no CUDA device here; see `lodarepro doctor`",
    )


def test_seconds_are_those_of_training_and_decoding():
    known = Estimate(train_tokens=1, train_flops=600, decode_flops=50, memory=1, counted=True)
    assert Rate(200, 10, None, "x").seconds(known) == 3 + 5


# plans ------------------------------------------------------------------------------------------


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[config.Run]:
    """The runs that the machine is measured with, in place of measuring."""
    found: list[config.Run] = []

    def fake(run: config.Run, known: Sizes) -> Rate:
        assert known.counted
        found.append(run)
        return Rate(1e9, 1e9, None, f"measured with {run.method.name}")

    monkeypatch.setattr(plan, "measured", fake)
    return found


def asked(method: str, *overrides: str, todo: int = 1, done: int = 0) -> Asked:
    return Asked(method, one(*NANO, SMALL, f"method={method}", *overrides), todo, done)


def test_what_is_done_is_left_out_of_the_sum(tried: list[config.Run]):
    all_, some, none = plan.plan([asked("lora", todo=3), asked("ft", todo=1, done=2), asked("bitfit", todo=0, done=3)])
    for cell, todo in ((all_, 3), (some, 1)):
        each = (cell.estimate.train_flops + cell.estimate.decode_flops) / 1e9
        assert cell.seconds == pytest.approx(todo * each) and each > 0
    assert none.seconds == 0 and none.estimate.train_flops > 0
    assert [cell.asked.label for cell in (all_, some, none)] == ["lora", "ft", "bitfit"]


@pytest.mark.parametrize("gpu", [None, "a100"])
def test_where_nothing_is_left_nothing_is_measured(gpu: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan, "measured", lambda *_: pytest.fail("measured"))
    found = plan.plan([asked("lora", todo=0, done=3), asked("one-shot", todo=0)], gpu=gpu)
    assert [(cell.rate, cell.seconds, cell.fits) for cell in found] == [(None, 0, True)] * 2


def test_a_machine_is_measured_once_for_a_model_and_a_precision(tried: list[config.Run], tiny_model: Path):
    described = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    keys = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")
    tiny = ["model.name=tiny", f"model.path={tiny_model}", *(f"model.{key}={described[key]}" for key in keys)]
    bf16 = "train.precision=bf16"
    found = plan.plan(
        [
            asked("ft"),
            asked("lora"),
            asked("lora", "seed=2", "decode.beam=3"),
            asked("bitfit", bf16),
            asked("ft", bf16),
            asked("lora", bf16, "decode.precision=bf16"),
            asked("lora", *tiny),
            asked("lora", *tiny, bf16, todo=0, done=1),
        ]
    )
    machines = [(run.model.name, run.train.precision, run.decode.precision) for run in tried]
    assert sorted(machines) == [
        ("gpt2-nano", "bf16", "bf16"),
        ("gpt2-nano", "bf16", "fp32"),
        ("gpt2-nano", "fp32", "fp32"),
        ("tiny", "fp32", "fp32"),
    ]
    assert found[0].rate is found[1].rate is found[2].rate is not None
    assert found[3].rate is found[4].rate is not found[0].rate
    assert found[5].rate is not None and found[5].rate is not found[3].rate
    assert found[7].rate is None


def test_what_trains_least_is_tried(tried: list[config.Run]):
    for methods, with_ in [
        (["ft", "lora", "ft-qv"], "lora"),
        (["one-shot", "ft"], "ft"),  # what trains nothing says nothing about training
        (["one-shot"], "one-shot"),
    ]:
        tried.clear()
        plan.plan([asked(method) for method in methods])
        assert [run.method.name for run in tried] == [with_]


def test_what_is_done_is_not_tried(tried: list[config.Run]):
    plan.plan([asked("lora", todo=0, done=1), asked("ft")])
    assert [run.method.name for run in tried] == ["ft"]


def test_a_stated_rate_is_not_measured(tried: list[config.Run]):
    found = plan.plan([asked("lora"), asked("lora", "train.precision=bf16")], gpu="a100", utilisation=0.5)
    assert [cell.rate and cell.rate.train for cell in found] == [0.5 * 19.5e12, 0.5 * 312e12]
    (decodes,) = plan.plan([asked("lora", "decode.precision=bf16")], gpu="a100", utilisation=0.5)
    assert decodes.rate and (decodes.rate.train, decodes.rate.decode) == (0.5 * 19.5e12, 0.5 * 312e12)
    assert tried == []
    (usual,) = plan.plan([asked("lora")], gpu="a100")
    assert usual.rate is not None and usual.rate.source.startswith("stated: 30 % of the 19.5 TFLOP/s")


def test_cells_that_run_elsewhere_are_not_measured_here(tried: list[config.Run]):
    cells = [asked("lora", todo=3), asked("ft", todo=0, done=1)]
    found = plan.plan(cells, measure=False)
    assert [(cell.rate, cell.seconds, cell.fits) for cell in found] == [(None, 0, True)] * 2
    assert found[0].estimate == plan.plan(cells[:1])[0].estimate
    assert len(tried) == 1
    (on_gpu,) = plan.plan(cells[:1], gpu="a100", measure=False)
    assert on_gpu.rate is not None and on_gpu.rate.source.startswith("stated: ")


def test_faults_of_a_plan():
    for todo in (1, 0):
        (fault,) = faults(plan.plan, [asked("lora", todo=todo)], gpu="a1000")
        assert fault.startswith("--gpu a1000: no such GPU; did you mean 'a100'?")
        (fault,) = faults(plan.plan, [asked("lora", todo=todo)], gpu="a100", utilisation=30)
        assert fault == "--utilisation 30: give a share of the peak, above 0 and at most 1"
    assert faults(plan.plan, [asked("lora", "train.precision=bf16")], gpu="t4") == (
        "--gpu t4: it has no units for train.precision=bf16; plan with fp32",
    )


def test_data_are_counted_once_for_cells_that_share_them(tried: list[config.Run], monkeypatch: pytest.MonkeyPatch):
    counts: list[str] = []

    def counted(run: config.Run, base: Any) -> Sizes:
        counts.append(run.method.name)
        return sizes(run, base)

    monkeypatch.setattr(plan, "sizes", counted)
    found = plan.plan([asked("lora"), asked("ft", "train.lr=1e-3"), asked("prefix-embed"), asked("lora", "seed=2")])
    assert counts == ["lora", "prefix-embed"]  # the second has tokens of its own
    assert found[2].estimate.train_tokens == found[0].estimate.train_tokens + found[2].asked.run.train.epochs * 40 * 10


def test_a_real_plan_from_start_to_end():
    (cell,) = plan.plan([Asked("x", brief_cell(), 2, 1)])
    assert cell.rate is not None and cell.rate.source.startswith("measured on this CPU")
    assert cell.seconds == pytest.approx(2 * cell.rate.seconds(cell.estimate)) and cell.seconds > 0
    assert cell.fits


def brief_cell() -> config.Run:
    return one(*NANO, SMALL, "decode.beam=2", "train.epochs=1")


# what is told -----------------------------------------------------------------------------------


def planned(
    label: str, todo: int, done: int, found: Estimate, rate: Rate | None, *, run: config.Run | None = None
) -> Planned:
    return Planned(Asked(label, run or nano(), todo, done), found, rate)


GPU = Rate(1e12, 1e11, 16 * 2**30, "stated: 30 % of something")
CPU = Rate(1e9, 1e9, None, "measured on this CPU")
# 1000 s and 200 s on GPU
LARGE = Estimate(train_tokens=12.4e6, train_flops=1e15, decode_flops=2e13, memory=20 * 2**30, counted=False)
SMALLER = Estimate(train_tokens=60e3, train_flops=3e10, decode_flops=1e10, memory=0.25 * 2**30, counted=True)


NOTE = (
    "FLOP as if every search ran to its last step and every checkpoint were another epoch's; without loading and "
    "scoring; memory at fp32."
)


def test_a_report():
    cells = [
        planned("Medium | lora", 3, 0, LARGE, GPU),
        planned("ft", 1, 2, replace(LARGE, memory=3 * 2**30), GPU),
        planned("nano", 2, 0, SMALLER, CPU),
        planned("done here", 0, 3, LARGE, GPU),
        planned("done elsewhere", 0, 10, SMALLER, None),
    ]
    # 3 runs and 1 run of 1200 s, 2 of 40 s: 4880 s, 81 min
    assert plan.report(cells).splitlines() == [
        "| cell           | left | done | tokens a run | FLOP a run | memory       | a run  | all that is left |",
        "|----------------|-----:|-----:|--------------|------------|--------------|--------|------------------|",
        "| Medium \\| lora |    3 |    0 | 12.4M        | 1.0e+15    | 20.0 GiB (!) | 20 min | 60 min           |",
        "| ft             |    1 |    2 | 12.4M        | 1.0e+15    | 3.0 GiB      | 20 min | 20 min           |",
        "| nano           |    2 |    0 | 0.1M         | 4.0e+10    | 0.2 GiB      | 40 s   | 80 s             |",
        "| done here      |    0 |    3 | 12.4M        | 1.0e+15    | 20.0 GiB (!) | 20 min |                  |",
        "| done elsewhere |    0 |   10 | 0.1M         | 4.0e+10    | 0.2 GiB      |        |                  |",
        "",
        "6 runs left, 15 done; about 81 min on one device.",
        "Rate measured on this CPU.",
        "Rate stated: 30 % of something.",
        "Data that are not here are reckoned by their pinned sizes, in tokens of GPT-2, without what a method adds.",
        NOTE,
        "(!) more than the device has: a step is then split (runtime.micro_batch), or give a larger one.",
    ]


def test_a_report_says_no_more_than_applies():
    assert plan.report([planned("nano", 1, 0, SMALLER, CPU)]).splitlines()[2:] == [
        "| nano |    1 |    0 | 0.1M         | 4.0e+10    | 0.2 GiB | 40 s  | 40 s             |",
        "",
        "1 run left, 0 done; about 40 s on one device.",
        "Rate measured on this CPU.",
        NOTE,
    ]


def test_a_report_without_times_says_how_to_have_them():
    assert plan.report([planned("nano", 2, 1, SMALLER, None)]).splitlines() == [
        "| cell | left | done | tokens a run | FLOP a run | memory  | a run | all that is left |",
        "|------|-----:|-----:|--------------|------------|---------|-------|------------------|",
        "| nano |    2 |    1 | 0.1M         | 4.0e+10    | 0.2 GiB |       |                  |",
        "",
        "2 runs left, 1 done; time: lodarepro plan NAME --gpu GPU.",
        NOTE,
    ]


@pytest.mark.parametrize(
    ("rate", "memory", "fits"),
    [(GPU, 16 * 2**30 - 1, True), (GPU, 16 * 2**30, False), (CPU, 1e15, True), (None, 1e15, True)],
)
def test_what_fits_as_far_as_is_known(rate: Rate | None, memory: float, fits: bool):
    cell = planned("x", 1, 0, replace(SMALLER, memory=memory), rate)
    assert cell.fits == fits
    assert ("(!)" in plan.report([cell])) == (not fits)


def test_a_plan_as_json():
    cells = [planned("lora Ø", 3, 1, LARGE, GPU), planned("done", 0, 2, SMALLER, None)]
    tree = plan.as_json(cells)
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert tree == [
        {
            "cell": "lora Ø",
            "left": 3,
            "done": 1,
            "train_tokens": 12.4e6,
            "train_flops": 1e15,
            "decode_flops": 2e13,
            "memory_bytes": 20 * 2**30,
            "sizes": "pinned",
            "rate": "stated: 30 % of something",
            "seconds_a_run": 1200.0,
            "seconds_left": 3600.0,
        },
        {
            "cell": "done",
            "left": 0,
            "done": 2,
            "train_tokens": 60e3,
            "train_flops": 3e10,
            "decode_flops": 1e10,
            "memory_bytes": 0.25 * 2**30,
            "sizes": "counted",
            "rate": None,
            "seconds_a_run": None,
            "seconds_left": 0.0,
        },
    ]


def test_a_plan_of_what_trains_nothing_is_json_too():
    (cell,) = plan.as_json([planned("one-shot", 1, 0, SMALLER, Rate(math.inf, 1e9, None, "x"))])
    assert json.loads(json.dumps(cell, allow_nan=False))["seconds_a_run"] == 10
