"""From test segments to texts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from lodarepro import config
from lodarepro.data.batch import prompt
from lodarepro.data.tokenise import Layout, encode_contexts, token_id
from lodarepro.data.types import Segment
from lodarepro.decode.beam import Hypothesis, search
from lodarepro.errors import Stopped
from lodarepro.model import GPT2
from lodarepro.records import Decoded

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOGS = 15


def decode(
    model: GPT2,
    tokenizer: Tokenizer,
    segments: Sequence[Segment],
    settings: config.Decode,
    *,
    protocol: config.Protocol,
    batch: int,
    layout: Layout | None = None,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> list[Decoded]:
    """Decode every segment's context.

    Args:
        model: in eval mode, on its device.
        tokenizer: the model's.
        segments: distinct contexts with references.
        settings: the search.
        protocol: separator and longest sequence.
        batch: prompts searched at once; the texts do not depend on it.
        layout: what the method does to each context.
        stop_signal: asked after each batch.

    Raises:
        Stopped: `stop_signal` answered; nothing is kept of this stage.
    """
    end_ids = [token_id(tokenizer, text, "decode.end_tokens") for text in settings.end_tokens]
    prompts = [
        prompt(ids, max_length=protocol.max_length, max_new_tokens=settings.max_new_tokens)
        for ids in encode_contexts([s.context for s in segments], tokenizer, protocol, layout=layout)
    ]
    # Prompts of like length together: less padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Hypothesis] = {}
    logged = time.monotonic()
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        hypotheses = search(model, [prompts[i] for i in rows], settings, end_ids=end_ids)
        found |= zip(rows, hypotheses, strict=True)
        if time.monotonic() - logged > SECONDS_BETWEEN_LOGS:
            logger.info("decoded %d of %d contexts", len(found), len(prompts))
            logged = time.monotonic()
        if (number := stop_signal()) is not None:
            raise Stopped("stopped while decoding; the same command decodes again", number)
    return [
        Decoded(
            context=segment.context,
            references=segment.references,
            hypothesis=text_of(found[i].tokens, tokenizer, end=protocol.completion_end),
            subset=segment.subset,
            log_score=found[i].score,
            finished=found[i].finished,
        )
        for i, segment in enumerate(segments)
    ]


def text_of(tokens: Sequence[int], tokenizer: Tokenizer, *, end: str) -> str:
    """Tokens as text, cut at the end mark, then at the first blank line, and stripped (section 3)."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=False)
    return str(text).split(end)[0].split("\n\n")[0].strip()
