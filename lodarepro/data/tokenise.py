"""Pairs to tokens, once: cached by a fingerprint of everything the tokens depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from lodarepro import config
from lodarepro.data.types import Example
from lodarepro.errors import BadInput

logger = logging.getLogger(__name__)

TOKENISE_VERSION = 1  # raised when the same text would become other tokens


@dataclass(frozen=True)
class Encoded:
    """Tokenised pairs, flat.

    Attributes:
        tokens: all sequences one after another, context first, end tokens included.
        starts: (n + 1,) where each sequence starts in `tokens`; the last entry is their total.
        contexts: (n,) tokens of each context with its separator.
    """

    tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    contexts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.contexts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) tokens of each whole sequence."""
        return self.starts[1:] - self.starts[:-1]

    def sequence(self, row: int) -> npt.NDArray[np.int64]:
        """The whole sequence of one pair."""
        return self.tokens[self.starts[row] : self.starts[row + 1]]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Encoded:
        """Pack (context ids, completion ids), end tokens included."""
        lengths = [len(context) + len(completion) for context, completion in pairs]
        return cls(
            tokens=np.array([t for pair in pairs for part in pair for t in part], dtype=np.int64),
            starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            contexts=np.array([len(context) for context, _ in pairs], dtype=np.int64),
        )


@dataclass(frozen=True)
class Layout:
    """What a method does to the ids of every context.

    Attributes:
        key: all that `apply` depends on, as text: part of the cache's fingerprint.
        apply: from a context's ids, its separator included, to those that the model sees.
    """

    key: str
    apply: Callable[[list[int]], list[int]]


def token_id(tokenizer: Tokenizer, text: str, where: str) -> int:
    """The one token that is `text`.

    Raises:
        BadInput: the tokenizer needs more than one; `where` names the setting.
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise BadInput(
            f"{where}: {text!r} is {len(ids)} tokens in this model's tokenizer, not one; give a text of one token"
        )
    return int(ids[0])


def encode_contexts(
    texts: Sequence[str], tokenizer: Tokenizer, protocol: config.Protocol, *, layout: Layout | None = None
) -> list[list[int]]:
    """Contexts with their separator, `BPE(context) + [context_end]`, as the method lays them out."""
    end = token_id(tokenizer, protocol.context_end, "protocol.context_end")
    whole = [protocol.context_start + text + protocol.context_after for text in texts]
    contexts = [[*e.ids, end] for e in tokenizer.encode_batch(whole, add_special_tokens=False)]
    return contexts if layout is None else [layout.apply(context) for context in contexts]


def encode(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    protocol: config.Protocol,
    *,
    cache: Path | None,
    layout: Layout | None = None,
) -> Encoded:
    """Tokenise pairs as `BPE(context) + [end]`, `BPE(" " + completion) + [end]` (protocol section 1).

    Args:
        examples: the pairs, in order.
        tokenizer: the model's.
        protocol: separator, prefix and end mark.
        cache: folder of the cache; None: no cache.
        layout: what the method does to each context.
    """
    from datasets import Dataset, disable_progress_bars

    fingerprint = _fingerprint(examples, tokenizer, protocol, layout)
    stored = None if cache is None else cache.expanduser() / "tokenised" / fingerprint
    if stored is not None and (found := _stored(stored)) is not None:
        return found

    disable_progress_bars()
    end = token_id(tokenizer, protocol.completion_end, "protocol.completion_end")

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[object]]:
        contexts = encode_contexts(batch["context"], tokenizer, protocol, layout=layout)
        completions = tokenizer.encode_batch(
            [protocol.completion_start + text + protocol.completion_after for text in batch["completion"]],
            add_special_tokens=False,
        )
        return {
            "tokens": [[*c, *e.ids, end] for c, e in zip(contexts, completions, strict=True)],
            "context_length": [len(c) for c in contexts],
        }

    texts = Dataset.from_dict(
        {"context": [e.context for e in examples], "completion": [e.completion for e in examples]}
    )
    tokenised = texts.map(tokenise, batched=True, remove_columns=["context", "completion"], new_fingerprint=fingerprint)
    if stored is not None:
        _store(tokenised, stored)
    return _flat(tokenised)


def _stored(folder: Path) -> Encoded | None:
    """What the cache holds; a damaged entry is removed and counts as none."""
    from datasets import load_from_disk

    if not folder.is_dir():
        return None
    try:
        return _flat(load_from_disk(str(folder)))
    except Exception as e:  # whatever a damaged file makes the library raise
        logger.warning("%s is damaged (%s): it is made again", folder, type(e).__name__)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _fingerprint(
    examples: Sequence[Example], tokenizer: Tokenizer, protocol: config.Protocol, layout: Layout | None
) -> str:
    described = json.dumps(
        [
            TOKENISE_VERSION,
            hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
            [protocol.context_start, protocol.context_after, protocol.context_end],
            [protocol.completion_start, protocol.completion_after, protocol.completion_end],
            None if layout is None else layout.key,
            [[e.context, e.completion] for e in examples],
        ]
    )
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def _store(tokenised: object, folder: Path) -> None:
    """Write the data set beside its place and move it there; a cache that can't be written is no fault."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            tokenised.save_to_disk(str(partial))  # type: ignore[attr-defined]
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as e:
        if not folder.is_dir():  # else another process has just stored the same
            logger.warning("tokenised data are not cached in %s: %s", folder.parent, e)


def _flat(tokenised: object) -> Encoded:
    table = tokenised.data.table.combine_chunks()  # type: ignore[attr-defined]
    lists = table.column("tokens").chunk(0)
    starts = lists.offsets.to_numpy().astype(np.int64)
    return Encoded(
        tokens=lists.values.to_numpy().astype(np.int64)[starts[0] : starts[-1]],
        starts=starts - starts[0],
        contexts=table.column("context_length").chunk(0).to_numpy().astype(np.int64),
    )
