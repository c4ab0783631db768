"""Pretraining in small: resumes to the same bits, and writes what `transformers` loads."""

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lodarepro.distributed import Processes
from lodarepro.model.gpt2 import Sizes
from tests.script import SCRIPTS, script


@pytest.fixture(scope="module")
def pretrain_nano() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))  # it imports its neighbour
    yield script("pretrain_nano")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module", autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "books.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for i in range(120):
            file.write(f"It was the night of the {i}th, and the old man sat by the sea and said nothing.\n")
    return path


@pytest.fixture
def small(pretrain_nano: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pretrain_nano, "TOKENIZER_DOCUMENTS", 200)
    monkeypatch.setattr(pretrain_nano, "EVAL_STEPS", 1)
    monkeypatch.setattr(pretrain_nano, "EVAL_PROMPTS", 6)
    sizes = Sizes(n_layer=1, n_head=2, n_embd=16, vocab_size=400, n_positions=256)
    return pretrain_nano.Settings(steps=6, seed=5, sizes=sizes, book_rows=1, kv_tokens=600, warmup=2, bf16=False)


def run(module: ModuleType, settings: Any, *, corpus: Path, folder: Path) -> Path:
    out = folder / "out"
    module.pretrain(settings, corpus=corpus, out=out, work=folder / "work", every=2)
    return out


def test_interrupted_run_ends_with_the_same_bits(
    pretrain_nano: ModuleType, small: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(pretrain_nano, small, corpus=corpus, folder=tmp_path / "whole")

    def interrupted(step: int, settings: Any) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return learning_rate(step, settings)

    learning_rate = pretrain_nano.learning_rate
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain_nano, "learning_rate", interrupted)
        run(pretrain_nano, small, corpus=corpus, folder=tmp_path / "parts")
    resumed = run(pretrain_nano, small, corpus=corpus, folder=tmp_path / "parts")
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    log = [json.loads(line) for line in (tmp_path / "parts" / "work" / "log.jsonl").open()]
    assert [entry["step"] for entry in log] == [2, 4, 6]
    assert {"train", "books", "texts", "tokens_per_second"} <= log[0].keys()


def test_batches_are_functions_of_their_names(pretrain_nano: ModuleType, small: Any, corpus: Path) -> None:
    paragraphs, _ = pretrain_nano.read_books(corpus)
    tokenizer = pretrain_nano.train_tokenizer(paragraphs, small)
    one, other = (pretrain_nano.Batches(tokenizer, paragraphs=paragraphs, settings=small) for _ in range(2))
    batches = [one.records("5", step) for step in range(20)]
    assert len({batch.inputs.numpy().tobytes() for batch in batches}) == 20
    for step in (17, 3):  # as after an interruption
        assert torch.equal(other.records("5", step).inputs, batches[step].inputs)
        assert torch.equal(other.books(f"5/{step}").inputs, one.books(f"5/{step}").inputs)
    assert not torch.equal(one.books("5/3").inputs, one.books("5/4").inputs)

    end = pretrain_nano.end_of(tokenizer)
    for batch in batches:
        for tokens, counts in zip(batch.targets.tolist(), batch.mask.tolist(), strict=True):
            text = [token for token, counted in zip(tokens, counts, strict=True) if counted]
            assert text.count(end) == 1 and text[-1] == end  # a text with its end mark, and nothing of the context
            context = tokens[: counts.index(True)]
            assert context.count(end) == 1 and " : " in tokenizer.decode(context)
    filled = sum(len(batch.slots) for batch in batches)
    assert 0.7 * 20 * small.kv_tokens < filled < 1.3 * 20 * small.kv_tokens
    assert filled > 0.75 * sum(batch.inputs.numel() for batch in batches)  # rows of a batch are alike
    books = one.books("x")
    assert books.inputs.shape == (1, 128) and books.mask.sum() == 127


def test_texts_begin_at_any_position(pretrain_nano: ModuleType, small: Any) -> None:
    """Half of them at 0, as in fine-tuning; the others wherever they still end within the positions."""
    starts = [pretrain_nano.start_of(f"{i}", width=200, settings=small) for i in range(2000)]
    assert min(starts) == 0 and max(starts) == 256 - 200
    assert 0.45 < sum(start == 0 for start in starts) / 2000 < 0.57
    assert all(pretrain_nano.start_of(f"{i}", width=256, settings=small) == 0 for i in range(50))


def test_transformers_loads_the_result(pretrain_nano: ModuleType, small: Any, corpus: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = run(pretrain_nano, small, corpus=corpus, folder=tmp_path)
    net = transformers.GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert net.config.resid_pdrop == net.config.embd_pdrop == net.config.attn_pdrop == 0.0
    assert len(tokenizer) == net.config.vocab_size == small.sizes.vocab_size
    assert net.config.eos_token_id == net.config.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|endoftext|>"
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    text = "ship : Ovenna Tal | crew size : 212\n\nÆther — 'tis done ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    with torch.no_grad():
        assert net(torch.tensor([tokenizer(text)["input_ids"]])).logits.isfinite().all()
    assert "seed | 5" in (out / "README.md").read_text()


def test_missing_corpus_is_one_line(
    pretrain_nano: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.txt.gz"
    status = pretrain_nano.main(["--corpus", str(missing), "--out", str(tmp_path / "out")])
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(missing) in error and "No such file" in error


@pytest.mark.parametrize("rank", [0, 3])
def test_more_processes_than_rows_are_refused_once(
    rank: int, pretrain_nano: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(pretrain_nano, "joined", lambda backend: nullcontext(Processes(rank, 7)))
    monkeypatch.setenv("RANK", str(rank))
    assert pretrain_nano.main(["--corpus", str(tmp_path / "none.txt.gz"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    rows = pretrain_nano.Settings.book_rows
    assert f"give --nproc-per-node {rows} or less" in said if rank == 0 else said == ""


def test_checkpoint_of_other_settings_is_refused(
    pretrain_nano: ModuleType, small: Any, corpus: Path, tmp_path: Path
) -> None:
    run(pretrain_nano, small, corpus=corpus, folder=tmp_path)
    other = pretrain_nano.dataclasses.replace(small, seed=6)
    with pytest.raises(pretrain_nano.BadInput, match="other settings"):
        run(pretrain_nano, other, corpus=corpus, folder=tmp_path)


def test_two_processes_have_the_gradient_of_one(
    pretrain_nano: ModuleType, small: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its share of a batch, however unequal the shares' numbers of tokens are."""
    settings = pretrain_nano.dataclasses.replace(small, book_rows=3)
    paragraphs, _ = pretrain_nano.read_books(corpus)
    tokenizer = pretrain_nano.train_tokenizer(paragraphs, settings)
    batches = pretrain_nano.Batches(tokenizer, paragraphs=paragraphs, settings=settings)
    net = pretrain_nano.GPT2(settings.sizes)
    net.initialise(torch.Generator().manual_seed(1))
    monkeypatch.setattr(pretrain_nano, "start_of", lambda *_, **__: 7)
    first: list[torch.Tensor] = []

    class Two(Processes):
        def sum(self, tensors: Sequence[torch.Tensor]) -> None:
            if self.rank == 0:
                first.extend(t.clone() for t in tensors)
            else:
                for t, other in zip(tensors, first, strict=True):
                    t += other

    def found(processes: Processes) -> tuple[float, int, torch.Tensor]:
        net.zero_grad()
        drawn = [batches.books("x", processes), batches.records("5", 3, processes)]
        loss, tokens = pretrain_nano.gradients(net, drawn, name="x", settings=settings, processes=processes)
        return loss, tokens, torch.cat([p.grad.flatten() for p in net.parameters()])

    loss, tokens, gradient = found(Processes())
    found(Two(0, 2))
    loss_of_two, tokens_of_two, gradient_of_two = found(Two(1, 2))
    assert tokens_of_two == tokens and loss_of_two == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(gradient_of_two, gradient, rtol=1e-4, atol=1e-6)
    assert net.offset == 0
