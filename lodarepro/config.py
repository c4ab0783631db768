"""The typed, closed configuration of one run.

A field is followed by one line: what it is, in which unit, and where its default comes from. The
YAML files in `configs/` hold only what differs from these defaults. Nothing here imports torch, so
that composing and checking hundreds of cells stays cheap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # part of a folder's name
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]

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


@dataclass(frozen=True)
class Data:
    """Where data files are found; not part of a run's identity (their checksums are)."""

    root: str | None = None
    """local folder holding <dataset>/<file> (or <file>); None: download to the cache"""
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
    context_end: str = "<|endoftext|>"
    """one token after the context"""
    completion_start: str = " "
    """text put before the completion"""
    completion_end: str = "<|endoftext|>"
    """one token after the completion; trained and, as an end token, decoded"""
    loss_on: Literal["completion", "all"] = "completion"
    """tokens that the loss covers (`all` is the original's `joint_lm`)"""


@dataclass(frozen=True)
class Train:
    """Optimisation. Defaults: LoRA paper, Table 11, E2E column, and its code."""

    epochs: Positive = 5
    """passes over the training split"""
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
    clip: Rate | None = None
    """largest norm of all gradients together; None: no clipping"""
    shuffle: bool = True
    """a new random order each epoch"""
    fill_last_batch: bool = True
    """round the split up to whole batches with random rows, as the original does"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """arithmetic of forward and backward passes; bf16: autocast, weights and updates in fp32"""


@dataclass(frozen=True)
class Decode:
    """Beam search as the LoRA paper's code does it (`gpt2_beam.py`). Defaults: its README."""

    beam: Positive = 10
    """beams a prompt"""
    length_penalty: Annotated[float, Field(allow_inf_nan=False)] = 0.8
    """score = log p / length ** length_penalty"""
    no_repeat_ngram: NotNegative = 4
    """n-grams of this size are generated once only; 0: no block"""
    max_new_tokens: Positive = 64
    """steps of the search; a prompt keeps its last `protocol.max_length` minus this many tokens"""
    min_length: NotNegative = 0
    """end tokens are barred while fewer tokens than this have been generated"""
    end_tokens: tuple[str, ...] = ("<|endoftext|>", "\n\n")
    """texts of one token each that end a hypothesis"""


@dataclass(frozen=True)
class Results:
    """Where records go; not part of a run's identity."""

    root: str = "results"
    """runs are kept in <root>/runs/<run id>"""


@dataclass(frozen=True)
class Runtime:
    """How this machine does the work; not part of a run's identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the first CUDA device, else the CPU"""
    threads: Positive | None = None
    """CPU threads of torch; None: one for a tiny model (d <= 256), else torch's choice"""
    decode_batch: Positive = 16
    """prompts searched at once"""
    checkpoint_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    """minutes between checkpoints within an epoch (the first whole update from its end on has one)"""


@dataclass(frozen=True)
class Ft:
    """Full fine-tuning: every parameter trains, the tied embeddings once."""

    name: str = "ft"
    """the option's name; part of the run id"""


@dataclass(frozen=True)
class Lora:
    """LoRA (Hu et al. 2021): h = x W + (alpha / rank) dropout(x) A B on chosen dense layers."""

    name: str = "lora"
    """the option's name; part of the run id"""
    rank: Positive = 4
    """r, columns of A and rows of B"""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    """the output is scaled by alpha / rank (Table 11)"""
    dropout: Fraction = 0.1
    """on the branch's input (Table 11)"""
    targets: tuple[Literal["q", "k", "v", "o", "up", "down"], ...] = ("q", "v")
    """dense layers that get a delta; each has its own A and B"""
    same_init: bool = True
    """all blocks start from the same A (the original copies one block)"""
    same_mask: bool = True
    """one dropout mask for all deltas of one fused projection, as in the original"""

    def __post_init__(self) -> None:
        """Refuse a list of targets that is empty or names one twice."""
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets={json.dumps(self.targets)}: name at least one target, each once")


METHODS: dict[str, type] = {"ft": Ft, "lora": Lora}
"""registry of configs: the name in `configs/method/` to its dataclass"""

SECTIONS: dict[str, type] = {
    "model": Model,
    "dataset": Dataset,
    "protocol": Protocol,
    "train": Train,
    "decode": Decode,
    "data": Data,
    "results": Results,
    "runtime": Runtime,
}
"""the sections of a run other than `method`, whose type depends on its name"""


@dataclass(frozen=True)
class Run:
    """One cell of a table: everything that decides its numbers, and where and how it runs."""

    model: Model
    """what is fine-tuned"""
    method: Any
    """one of the dataclasses of `METHODS`: what trains"""
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
    seed: int = 1
    """seeds initialisation, data order, filler rows and dropout"""
