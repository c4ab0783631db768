"""The typed, closed configuration of one run.

A field is followed by one line: what it is, in which unit, and where its default comes from. The
YAML files in `configs/` hold only what differs from these defaults. Nothing here imports torch, so
that composing and checking hundreds of cells stays cheap.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Discriminator, Field, Tag

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # part of a folder's name
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
_T = TypeVar("_T")
TAG = "="
"""start of what pydantic calls the forms of a field that has several; no part of a field's name"""
EachOrAll = Annotated[
    Annotated[_T, Tag(f"{TAG}all")] | Annotated[tuple[_T, ...], Tag(f"{TAG}each")],
    Discriminator(lambda value: f"{TAG}each" if isinstance(value, list | tuple) else f"{TAG}all"),
]
"""one value for all blocks, or a list of one for each, the lowest first"""
Precision = Literal["fp32", "tf32", "bf16"]
"""fp32: the reference; tf32: matrix products of GPUs at reduced precision; bf16: autocast, weights in fp32"""
WandbMode = Literal["online", "offline", "disabled"]
CHECKPOINT = r"last|best|epoch-[1-9]\d*"
"""names of checkpoints"""

LORA_CODE = (
    "https://raw.githubusercontent.com/microsoft/LoRA/c4593f060e6a368d7bb5af5273b8e42810cdef90/examples/NLG/data"
)


@dataclass(frozen=True)
class Model:
    """A GPT-2: where its weights are, and the sizes they must have."""

    name: Name
    """the option's name; part of the run id"""
    n_layer: Positive
    """number of blocks"""
    n_head: Positive
    """attention heads a block"""
    n_embd: Positive
    """width d"""
    vocab_size: Positive
    """entries of the vocabulary"""
    n_positions: Positive
    """longest sequence, tokens"""
    hub: str | None = None
    """Hugging Face repository; None for an embedded model"""
    revision: str | None = None
    """commit of that repository"""
    path: str | None = None
    """a local folder in Hugging Face layout to use instead of the hub"""


@dataclass(frozen=True)
class Files:
    """File names of the splits: below the dataset's folder of `data.root`, or absolute."""

    train: str
    """file of the training pairs"""
    valid: str
    """file of the validation pairs"""
    test: str
    """file of the test contexts and references"""


@dataclass(frozen=True)
class Limit:
    """Use only the first pairs (train, valid) or distinct contexts (test); for quick trials."""

    train: Positive | None = None
    """pairs"""
    valid: Positive | None = None
    """pairs"""
    test: Positive | None = None
    """distinct contexts"""


@dataclass(frozen=True)
class Pin:
    """The one content a file may have to count as the papers' data."""

    blob: str
    """git blob id: SHA-1 of `blob <size>\\0` and the content"""
    examples: Positive
    """pairs (context, completion) in it"""
    contexts: Positive | None = None
    """distinct contexts in it, where known"""
    tokens: Positive | None = None
    """GPT-2 tokens of all pairs, both end tokens included; for `lodarepro plan`, as what follows"""
    completion_tokens: Positive | None = None
    """of these, tokens that carry loss"""
    context_tokens: Positive | None = None
    """tokens of the distinct contexts, their separators included"""
    longest: Positive | None = None
    """tokens of the longest pair"""


@dataclass(frozen=True)
class Dataset:
    """A data-to-text corpus: how to read it, where it comes from, how it is scored."""

    name: Name
    """the option's name; part of the run id"""
    format: Literal["e2e", "dart", "webnlg"]
    """the parser: lodarepro/data/<format>.py"""
    suite: Literal["e2e", "dart", "webnlg"]
    """the metrics: lodarepro/metrics/suites.py"""
    files: Files
    """file names of the splits"""
    remote: str | None = None
    """folder below `data.base_url`; None for a dataset that the package carries"""
    pins: dict[str, Pin] = field(default_factory=dict)
    """file name to the pinned content"""
    limit: Limit = field(default_factory=Limit)
    """use only the first pairs or contexts"""
    hold_out: Positive | None = None
    """so many distinct contexts at the end of the training file, which the validation file is then, are validated on"""

    def __post_init__(self) -> None:
        """Refuse held-out contexts of one file beside a validation file of another name."""
        if self.hold_out and self.files.valid != self.files.train:
            raise ValueError(
                f"hold_out={self.hold_out}: validates on a part of the training file; give "
                f"dataset.files.valid={self.files.train} too, or dataset.hold_out=null"
            )


@dataclass(frozen=True)
class Data:
    """Where data files are found; not part of a run's identity (their checksums are)."""

    root: str | None = None
    """local folder holding <dataset>/<file>, <remote>/<file> or <file>; None: download to the cache"""
    cache: str = "~/.cache/lodarepro"
    """downloaded and tokenised data; $LODAREPRO_CACHE in configs/run.yaml"""
    base_url: str = LORA_CODE
    """where files are downloaded from: the LoRA authors' repository at a fixed commit"""


@dataclass(frozen=True)
class Protocol:
    """How a pair becomes tokens (protocol of the LoRA paper's code, its `gpt2_ft.py` data path)."""

    name: Name
    """the option's name; part of the run id"""
    max_length: Positive = 512
    """longest training sequence, tokens; what is beyond is cut"""
    context_start: str = ""
    """text put before the context"""
    context_after: str = ""
    """text put after the context, before its end token"""
    context_end: str = "<|endoftext|>"
    """one token after the context"""
    completion_start: str = " "
    """text put before the completion"""
    completion_after: str = ""
    """text put after the completion, before its end token"""
    completion_end: str = "<|endoftext|>"
    """one token after the completion; trained and, as an end token, decoded"""
    loss_on: Literal["completion", "all"] = "completion"
    """tokens that the loss covers (`all` is the original's `joint_lm`)"""


@dataclass(frozen=True)
class Train:
    """Optimisation. Defaults: LoRA paper, Table 11, E2E column, and its code."""

    epochs: Positive = 5
    """passes over the training split"""
    max_steps: Positive | None = None
    """steps of the whole training, in place of `epochs`, over as many passes as they take"""
    batch_size: Positive = 8
    """pairs a step"""
    valid_batch_size: Positive = 4
    """pairs a batch of the validation loss, which is a mean of batch means (the LoRA README's 4)"""
    accumulate: Positive = 1
    """steps whose gradients are averaged into one update; the schedule counts steps"""
    lr: Rate = 2e-4
    """peak learning rate"""
    schedule: Literal["linear", "constant"] = "linear"
    """after warm-up: linearly to 0 at the last step, or constant"""
    warmup_steps: NotNegative = 500
    """steps of linear warm-up from 0"""
    optimizer: Literal["lora", "pytorch"] = "lora"
    """the LoRA code's AdamW (eps added before bias correction, decay after the update) or PyTorch's"""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """decay of AdamW's first and second moments"""
    eps: Rate = 1e-6
    """AdamW's epsilon"""
    bias_correction: bool = True
    """AdamW's bias correction (`lora` only; the original's `--correct_bias`)"""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """decoupled weight decay of all trained parameters"""
    label_smoothing: Fraction = 0.1
    """mass spread over the whole vocabulary"""
    loss: Literal["tokens", "pairs"] = "tokens"
    """of a batch: mean over its tokens (the LoRA code), or mean over its pairs of sums over tokens (Li & Liang's)"""
    model_dropout: Fraction = 0.0
    """GPT-2's own, on embeddings, attention weights and sub-layers' outputs (the LoRA code has none)"""
    clip: Rate | None = None
    """largest norm of all gradients together; None: no clipping"""
    shuffle: bool = True
    """a new random order each epoch"""
    fill_last_batch: bool = True
    """round the split up to whole batches with random rows, as the original does"""
    precision: Precision = "fp32"
    """arithmetic of forward and backward passes; weights that train and their updates are fp32"""
    keep: tuple[str, ...] = ("best", "last")
    """checkpoints that are kept and evaluated: last, best (lowest validation loss, at an epoch's end), epoch-N"""
    time_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """minutes after which a checkpoint is written and the run stops, to go on later; not part of a run's identity"""

    def __post_init__(self) -> None:
        """Refuse checkpoints that are none."""
        for name in self.keep:
            if not re.fullmatch(CHECKPOINT, name):
                raise ValueError(f"keep={json.dumps(self.keep)}: {name} is none of last, best and epoch-N")
        if not self.keep or len(set(self.keep)) < len(self.keep):
            raise ValueError(f"keep={json.dumps(self.keep)}: name at least one checkpoint, each once")


@dataclass(frozen=True)
class Decode:
    """Beam search as the LoRA paper's code does it (`gpt2_beam.py`). Defaults: its README."""

    search: Literal["lora", "transformers-3"] = "lora"
    """whose rules: the LoRA code's, or transformers 3.2.0's, which Li & Liang's code decodes with"""
    beam: Positive = 10
    """beams a prompt"""
    length_penalty: Annotated[float, Field(allow_inf_nan=False)] = 0.8
    """score = log p / length ** length_penalty"""
    no_repeat_ngram: NotNegative = 4
    """n-grams of this size are generated once only; 0: no block"""
    max_new_tokens: Positive = 64
    """steps of the search; a prompt keeps its last `protocol.max_length` minus this many tokens"""
    min_length: NotNegative = 0
    """end tokens are barred while there are fewer tokens than this, the prompt counted by transformers-3 alone"""
    end_tokens: tuple[str, ...] = ("<|endoftext|>", "\n\n")
    """texts of one token each that end a hypothesis"""
    banned_tokens: tuple[str, ...] = ()
    """texts of one token each that are never generated"""
    clean_up: bool = False
    """write punctuation and contractions without the spaces before them, as transformers did by default"""
    precision: Precision = "fp32"
    """arithmetic of the search; the output layer's is fp32 with bf16 too"""


@dataclass(frozen=True)
class Results:
    """Where records go; not part of a run's identity."""

    root: str = "results"
    """runs are kept in <root>/runs/<run id>"""


@dataclass(frozen=True)
class Runtime:
    """How this machine does the work; not part of a run's identity."""

    device: str = "auto"
    """auto: a CUDA device that no other run holds, else the CPU; cuda: the same, but never the CPU; cpu; cuda:N"""
    threads: Positive | None = None
    """CPU threads of torch; None: one for a tiny model (d <= 256), else torch's choice"""
    micro_batch: Positive | None = None
    """pairs that go through the model at once, to one update; None: a step's, and fewer where a GPU's memory ends"""
    decode_batch: Positive | None = None
    """prompts searched at once; None: 16 on a CPU, 64 on a GPU, and fewer where its memory ends"""
    compile: bool = False
    """compile the training's forward and backward passes (torch.compile; on a GPU as CUDA graphs)"""
    checkpoint_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    """minutes between checkpoints within an epoch (the first whole update from its end on has one)"""
    retry: bool = False
    """in a sweep or table, try cells again that failed before; a single run always does"""

    def __post_init__(self) -> None:
        """Refuse what names no device."""
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device={self.device}: give auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class Logger:
    """Where the course of a run is shown while it goes on, besides its record; not part of a run's identity."""

    name: Literal["none", "csv", "wandb"] = "none"
    """none; csv: log.csv in the run's folder; wandb: Weights & Biases"""
    every: Positive = 10
    """steps from one logged training loss, which is the mean of them, to the next"""
    project: Name = "lodarepro"
    """of Weights & Biases, as all that follows"""
    entity: str | None = None
    """team or user; None: the account's own"""
    group: str | None = None
    """runs shown together; None: those of one dataset, model, method, rank and protocol"""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    """by which runs are found; up to 64 characters each"""
    mode: WandbMode | None = None
    """offline: kept below the run's folder until `wandb sync` sends it; disabled; None: WANDB_MODE, else online"""


Target = Literal["q", "k", "v", "o", "up", "down"]
"""a dense layer of a block: parts of the fused projection, the attention's output, the MLP's two"""


@dataclass(frozen=True)
class Ft:
    """Full fine-tuning: every parameter trains, the tied embeddings once."""

    name: str = "ft"
    """the option's name; part of the run id"""


@dataclass(frozen=True)
class FtTop:
    """Fine-tuning of the highest blocks."""

    name: str = "ft-top2"
    """the option's name; part of the run id"""
    blocks: Positive = 2
    """number of blocks that train (Li & Liang 2021: 2)"""
    final_norm: bool = False
    """the final LayerNorm trains too (as in Li & Liang's code; their count has it not)"""

    def faults(self, run: Run) -> list[str]:
        """What does not fit the rest of the run."""
        model = run.model
        if self.blocks > model.n_layer:
            return [
                f"blocks={self.blocks} exceeds the {model.n_layer} blocks of {model.name}; give {model.n_layer} or less"
            ]
        return []


@dataclass(frozen=True)
class FtQv:
    """Fine-tuning of slices of the fused q/k/v weight, without its bias (LoDA Table 1, FT^{Wq,Wv})."""

    name: str = "ft-qv"
    """the option's name; part of the run id"""
    targets: tuple[Literal["q", "k", "v"], ...] = ("q", "v")
    """slices that train"""

    def __post_init__(self) -> None:
        """Refuse a list of targets that is empty or names one twice."""
        _check_targets(self.targets)


@dataclass(frozen=True)
class BitFit:
    """BitFit (Ben Zaken et al. 2022): only biases train."""

    name: str = "bitfit"
    """the option's name; part of the run id"""
    layer_norm: bool = True
    """the biases of LayerNorms train too"""


@dataclass(frozen=True)
class OneShot:
    """The frozen model with a task description and one example before each context; trains nothing."""

    name: str = "one-shot"
    """the option's name; part of the run id"""
    prompt: str = (
        "Generate a restaurant description from the table. Here is an example: name: The Eagle | Type: coffee shop | "
        "food: Japanese | price: less than £20 | customer rating: low | area: riverside | family friendly: yes | "
        "near: Burger King. The generated description is like: The Eagle is a low rated coffee shop near Burger King "
        "and the riverside that is family friendly and is less than £20 for Japanese food. Now generate description "
        "for this table: "
    )
    """text before the context (LoDA paper, footnote 4, for E2E; other datasets' in configs/tuned/method_dataset)"""
    after: str = ". The generated description is like:"
    """text after the context, in place of the separator (ours: as in the prompt's example; the paper's ends before)"""


@dataclass(frozen=True)
class Adapter:
    """Sequential bottleneck adapters: h + Up(act(Down(h))), biases in both (Houlsby et al. 2019 and its kin)."""

    name: str = "adapter-h"
    """the option's name; part of the run id"""
    bottleneck: Positive = 112
    """m, width between Down and Up"""
    sites: tuple[Literal["attn", "mlp", "block"], ...] = ("attn", "mlp")
    """after the attention's and the MLP's output projection, before the residual sum; or after the block"""
    layer_norm: bool = False
    """a trained LayerNorm of its own before Down"""
    activation: Literal["relu", "gelu"] = "relu"
    """act (Li & Liang's code: ReLU)"""
    init: Literal["zero", "near-zero"] = "zero"
    """Up starts at 0, an exact no-op; or at N(0, 0.01), cut at two deviations, as Down (Houlsby et al. 2019)"""
    drop: NotNegative = 0
    """the lowest blocks that go without (AdapterDrop, Rückle et al. 2021)"""

    def __post_init__(self) -> None:
        """Refuse a list of sites that is empty or names one twice."""
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites={json.dumps(self.sites)}: name at least one site, each once")

    def faults(self, run: Run) -> list[str]:
        """What does not fit the rest of the run."""
        model = run.model
        if self.drop >= model.n_layer:
            return [
                f"drop={self.drop} leaves no adapter in the {model.n_layer} blocks of {model.name}; "
                f"give {model.n_layer - 1} or less"
            ]
        return []


@dataclass(frozen=True)
class PrefixEmbed:
    """Trained embeddings before the context and between context and completion (LoRA paper, PreEmbed)."""

    name: str = "prefix-embed"
    """the option's name; part of the run id"""
    length: NotNegative = 10
    """l_p, embeddings before the context (Li & Liang 2021: 10 was the best of 1, 10, 20 on E2E)"""
    infix: NotNegative = 0
    """l_i, embeddings between the separator and the completion"""
    hidden: Positive | None = 512
    """width of the MLP that the embeddings come from in training (Li & Liang 2021); None: they train themselves"""

    def __post_init__(self) -> None:
        """Refuse a method of no embedding."""
        if not self.length + self.infix:
            raise ValueError("length=0: with infix=0 nothing would train; give one of them")

    def faults(self, run: Run) -> list[str]:
        """What does not fit the rest of the run."""
        return _virtual_faults(self.length, self.infix, run)


@dataclass(frozen=True)
class PrefixLayer:
    """Trained activations in every block: keys and values (Li & Liang 2021) or hidden states (LoRA paper)."""

    name: str = "prefix-layer"
    """the option's name; part of the run id"""
    form: Literal["keys-values", "hidden-states"] = "keys-values"
    """keys and values before all others in every block, or hidden states of virtual tokens"""
    length: NotNegative = 5
    """l or l_p, positions before the context (Li & Liang 2021, Table 6: 5; 10 on DART)"""
    infix: NotNegative = 0
    """l_i, positions between the separator and the completion; hidden states only"""
    hidden: Positive | None = 512
    """width of the MLP that they come from in training (Li & Liang 2021); None: they train themselves"""

    def __post_init__(self) -> None:
        """Refuse a method of no position, and keys and values after the context."""
        if not self.length + self.infix:
            raise ValueError("length=0: with infix=0 nothing would train; give one of them")
        if self.infix and self.form == "keys-values":
            raise ValueError(f"infix={self.infix}: keys and values stand before the context only; set infix=0")

    def faults(self, run: Run) -> list[str]:
        """What does not fit the rest of the run."""
        if self.form == "hidden-states":
            return _virtual_faults(self.length, self.infix, run)
        room = run.model.n_positions - run.protocol.max_length
        if self.length > room:
            return [
                f"length={self.length}: tokens stand after the prefix, and protocol.max_length="
                f"{run.protocol.max_length} leaves {room} of the {run.model.n_positions} positions of "
                f"{run.model.name}; set protocol.max_length={run.model.n_positions - self.length} or less"
            ]
        return []


@dataclass(frozen=True)
class Base:
    """What stands for the frozen projection W_proj = [Wq, Wk, Wv] under parallel deltas (LoDA paper, R- and S-)."""

    kind: Literal["dense", "low-rank", "sparse"] = "dense"
    """as it is; truncated SVD executed as two products; the entries of largest magnitude"""
    rank: EachOrAll[Positive] | None = None
    """R, of low-rank; a list has one for each block, lowest first (lodarepro analyze energy suggests some)"""
    keep: EachOrAll[Share] | None = None
    """s, the fraction of entries that sparse keeps; a list has one for each block, lowest first"""
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    """of sparse: anywhere, or two of each four consecutive inputs of a column, for hardware that gains from it"""

    def __post_init__(self) -> None:
        """Refuse settings that the kind lacks or has no use for."""
        wanted = {"rank"} if self.kind == "low-rank" else {"keep"} if self.kind == "sparse" else set()
        if self.kind == "sparse" and self.pattern == "2:4":
            wanted = set()  # which keeps half by its name
        for key in ("rank", "keep"):
            value = getattr(self, key)
            if value is None and key in wanted:
                raise ValueError(f"{key}: a value is needed for kind={self.kind}")
            if value is not None and key not in wanted:
                what = f"kind={self.kind}" + (f" of pattern={self.pattern}" if self.kind == "sparse" else "")
                raise ValueError(f"{key}={json.dumps(value)}: means nothing for {what}; leave it out")
        if self.pattern != "unstructured" and self.kind != "sparse":
            raise ValueError(f"pattern={self.pattern}: means nothing for kind={self.kind}; leave it out")

    def of_block(self, block: int) -> Base:
        """What stands for the projection of one block, counted from 0: without lists."""
        return replace(self, **{key: value[block] for key, value in self._lists().items()})

    def _lists(self) -> dict[str, tuple[Any, ...]]:
        values = {"rank": self.rank, "keep": self.keep}
        return {key: value for key, value in values.items() if isinstance(value, tuple)}

    def faults(self, model: Model) -> list[str]:
        """What does not fit the model."""
        for key, values in self._lists().items():
            if len(values) != model.n_layer:
                return [
                    f"base.{key}: a list of {len(values)}, but {model.name} has {model.n_layer} blocks; give one value "
                    "for each, or one number for all"
                ]
        if self._lists():
            faults = [fault for block in range(model.n_layer) for fault in self.of_block(block).faults(model)]
            return list(dict.fromkeys(faults))
        if isinstance(self.rank, int) and self.rank > model.n_embd:
            return [
                f"base.rank={self.rank} exceeds the rank {model.n_embd} of W_proj in {model.name}; "
                f"give {model.n_embd} or less"
            ]
        if isinstance(self.keep, float) and not round(self.keep * 3 * model.n_embd**2):
            return [f"base.keep={self.keep} keeps none of the {3 * model.n_embd**2} entries of W_proj in {model.name}"]
        if self.kind == "sparse" and self.pattern == "2:4" and model.n_embd % 4:
            return [
                f"base.pattern=2:4: the width {model.n_embd} of {model.name} is no multiple of 4; "
                "use pattern=unstructured"
            ]
        return []


@dataclass(frozen=True)
class Lora:
    """LoRA (Hu et al. 2021): h = x W + (alpha / rank) dropout(x) A B on chosen dense layers."""

    name: str = "lora"
    """the option's name; part of the run id"""
    rank: Positive = 4
    """r, columns of A and rows of B"""
    alpha: Rate = 32.0
    """the output is scaled by alpha / rank (Table 11)"""
    dropout: Fraction = 0.1
    """on the branch's input (Table 11)"""
    targets: tuple[Target, ...] = ("q", "v")
    """dense layers that get a delta; each has its own A and B"""
    ranks: dict[Target, Positive | None] = field(default_factory=lambda: dict.fromkeys(get_args(Target)))
    """ranks of single targets; None: `rank`"""
    rslora: bool = False
    """scale by alpha / sqrt(rank) (Kalajdzievski 2023)"""
    dora: bool = False
    """train magnitude and direction apart (Liu et al. 2024)"""
    lr_ratio: Rate = 1.0
    """learning rate of B over that of A (LoRA+, Hayou et al. 2024: 16)"""
    same_init: bool = True
    """all blocks start from the same A (the original copies one block)"""
    same_mask: bool = True
    """one dropout mask for all deltas of one fused projection, as in the original"""
    base: Base = field(default_factory=Base)
    """what stands for the frozen q/k/v projection"""

    def __post_init__(self) -> None:
        """Refuse targets that are none, ranks of others, and DoRA without a dense weight."""
        _check_targets(self.targets)
        own = {target for target, rank in self.ranks.items() if rank is not None}
        if odd := sorted(own - set(self.targets)):
            raise ValueError(f"ranks.{odd[0]}={self.ranks[odd[0]]}: not among targets={json.dumps(self.targets)}")
        if self.dora and self.base.kind != "dense":
            raise ValueError(f"dora=true: the magnitudes are of a dense weight; not with base.kind={self.base.kind}")

    def faults(self, run: Run) -> list[str]:
        """What does not fit the rest of the run."""
        model = run.model
        ranks = {"rank": self.rank}
        ranks |= {f"ranks.{target}": rank for target, rank in self.ranks.items() if rank is not None}
        return _rank_faults(ranks, model) + self.base.faults(model)


@dataclass(frozen=True)
class F1:
    """f1 of LoDA: `depth` times the steps of `order` on r numbers."""

    depth: NotNegative = 2
    """how often; 0: f1 = 0, which is LoRA"""
    order: tuple[Literal["linear", "activation", "norm"], ...] = ("linear", "activation", "norm")
    """r x r product without bias, element-wise activation, LayerNorm without parameters"""
    activation: Literal["leaky-relu", "relu", "gelu", "tanh"] = "leaky-relu"
    """of f1 and f2"""
    slope: Rate = 0.8
    """of leaky-relu below zero (LoDA paper)"""

    def __post_init__(self) -> None:
        """Refuse an f1 of no step, which would pass on what it is given."""
        if not self.order:
            raise ValueError("order=[]: name at least one step; depth=0 leaves f1 out")


@dataclass(frozen=True)
class Loda:
    """LoDA (MERL TR2025-130): dh = s (x A B + f1(x A) B), or with f2: dh = s (x A B + f2(f1(x A) B))."""

    name: str = "loda"
    """the option's name; part of the run id"""
    rank: Positive = 4
    """r, columns of A and rows of B"""
    alpha: Rate = 32.0
    """the output is scaled by s = alpha / rank, as in LoRA, which LoDA follows untuned"""
    dropout: Fraction = 0.1
    """on the branch's input (LoRA Table 11)"""
    targets: tuple[Target, ...] = ("q", "v")
    """dense layers that get a delta; each has its own A, B and f1"""
    f1: F1 = field(default_factory=F1)
    """the non-linear map between A and B"""
    f2: tuple[Literal["activation", "norm"], ...] = ()
    """LoDA+: steps after B, element-wise activation and LayerNorm without parameters; empty: LoDA"""
    same_init: bool = True
    """all blocks start from the same A (and f1), as in the LoRA code"""
    same_mask: bool = True
    """one dropout mask for all deltas of one fused projection, as in the LoRA code"""
    base: Base = field(default_factory=Base)
    """what stands for the frozen q/k/v projection"""

    def __post_init__(self) -> None:
        """Refuse targets that are none, and a LayerNorm of one number, which is 0 whatever the number."""
        _check_targets(self.targets)
        if self.rank == 1 and self.f1.depth and "norm" in self.f1.order:
            raise ValueError("rank=1: f1's norm of one number is 0; give rank=2 or more, or an f1.order without norm")

    def faults(self, run: Run) -> list[str]:
        """What does not fit the rest of the run."""
        return _rank_faults({"rank": self.rank}, run.model) + self.base.faults(run.model)


def _check_targets(targets: tuple[str, ...]) -> None:
    if not targets or len(set(targets)) < len(targets):
        raise ValueError(f"targets={json.dumps(targets)}: name at least one target, each once")


def _rank_faults(ranks: dict[str, int], model: Model) -> list[str]:
    return [
        f"{key}={rank} exceeds the width {model.n_embd} of {model.name}; give {model.n_embd} or less"
        for key, rank in ranks.items()
        if rank > model.n_embd
    ]


def _virtual_faults(length: int, infix: int, run: Run) -> list[str]:
    room = run.protocol.max_length - run.decode.max_new_tokens
    if 0 < room <= length + infix:
        return [
            f"length={length} and infix={infix} leave nothing for a context in the {room} tokens of a prompt "
            f"(protocol.max_length - decode.max_new_tokens); set them to {room - 1} or less together"
        ]
    return []


METHODS: dict[str, type] = {
    "ft": Ft,
    "ft-top2": FtTop,
    "ft-qv": FtQv,
    "bitfit": BitFit,
    "one-shot": OneShot,
    "adapter-h": Adapter,
    "adapter-l": Adapter,
    "adapter-l-wide": Adapter,
    "adapter-p": Adapter,
    "adapter-drop": Adapter,
    "prefix-embed": PrefixEmbed,
    "prefix-layer": PrefixLayer,
    "lora": Lora,
    "r-lora": Lora,
    "s-lora": Lora,
    "loda": Loda,
    "r-loda": Loda,
    "s-loda": Loda,
    "loda-plus": Loda,
    "r-loda-plus": Loda,
    "s-loda-plus": Loda,
}
"""registry of configs: the name in `configs/method/` to its dataclass, which may have a method `faults(run)`
giving one line, without `method.`, for each setting that does not fit the rest of the run"""

SECTIONS: dict[str, type] = {
    "model": Model,
    "dataset": Dataset,
    "protocol": Protocol,
    "train": Train,
    "decode": Decode,
    "data": Data,
    "results": Results,
    "runtime": Runtime,
    "logger": Logger,
}
"""the sections of a run other than `method`, whose type depends on its name"""


@dataclass(frozen=True)
class MethodFile:
    """The file of a user's own method."""

    path: str
    """where it was when the run was composed; not part of a run's identity"""
    sha256: str
    """of its content"""


@dataclass(frozen=True)
class Run:
    """One cell of a table: everything that decides its numbers, and where and how it runs."""

    model: Model
    """what is fine-tuned"""
    method: Any
    """one of the dataclasses of `METHODS`, or a user's own: what trains"""
    dataset: Dataset
    """what it is trained and tested on"""
    protocol: Protocol
    """how a pair becomes tokens"""
    train: Train
    """the optimisation"""
    decode: Decode
    """the search"""
    data: Data
    """where data files are found"""
    results: Results
    """where the record goes"""
    runtime: Runtime
    """how this machine does the work"""
    logger: Logger = field(default_factory=Logger)
    """where its course is shown"""
    seed: int = 1
    """seeds initialisation, data order, filler rows and dropout"""
    method_file: MethodFile | None = None
    """what defines the method, if it is the user's own; then `method` is that file's dataclass"""
