"""What all tests share: one torch thread, the reference material beside the repository, a tiny model."""

import os

# Before torch is imported, and inherited by the commands that tests start: on a busy machine two
# threads are many times slower than one on models this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from tests.script import script

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent

TEXT = """\
name : Ovenna Tal | food : Thai | area : riverside | near : Café Lune
Ovenna Tal is a Thai place by the riverside, near Café Lune.
name : The Mill | type : pub | price range : cheap
The Mill is a cheap pub.
"""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material (real data, corpora); the test is skipped where it is not."""
    folder = Path(os.environ.get("LODAREPRO_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the reference material in {folder} (or in $LODAREPRO_SHARED)")
    return folder


@pytest.fixture(scope="module")
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's caches, or reaches beyond this machine."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LODAREPRO_CACHE", str(folder / "cache"))
        patch.setenv("HF_HOME", str(folder / "hub"))
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        yield


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the package logs, and it alone, from INFO on; commands run before may have kept it from others."""
    logger, own = logging.getLogger("lodarepro"), logging.Filter("lodarepro")
    before, logger.propagate = logger.propagate, True
    caplog.handler.addFilter(own)
    with caplog.at_level(logging.INFO, logger="lodarepro"):
        yield caplog
    caplog.handler.removeFilter(own)
    logger.propagate = before


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout: a random GPT-2 of two blocks and a byte-level BPE of 299 entries.

    Its weights are those of GPT-2's initialisation; all end tokens of the protocols are one token.
    Session-wide: copy it before changing anything.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from lodarepro.model import GPT2, Sizes
    from lodarepro.model.weights import save

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=298,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.add_tokens(["\n\n"])
    net = GPT2(Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=tokenizer.get_vocab_size(), n_positions=512))
    net.initialise(torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("models") / "gpt2-tiny"
    save(net, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model: Path) -> "Tokenizer":
    """The tokenizer of `tiny_model`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tiny_model / "tokenizer.json"))


@pytest.fixture(scope="session")
def make_mini() -> ModuleType:
    """The script that writes the embedded data, as a module."""
    return script("make_mini")
