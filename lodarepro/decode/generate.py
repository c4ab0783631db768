"""From test segments to texts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer

from lodarepro import config
from lodarepro.bar import bar
from lodarepro.data.batch import prompt
from lodarepro.data.tokenise import Layout, encode_contexts, token_id
from lodarepro.data.types import Segment
from lodarepro.decode.beam import Hypothesis, search
from lodarepro.distributed import ALONE, Processes
from lodarepro.errors import RunFailed, Stopped
from lodarepro.model import GPT2
from lodarepro.precision import Arithmetic
from lodarepro.records import Decoded

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOGS = 15
SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # in the order of transformers' clean-up
BATCH = {"cpu": 16, "cuda": 64}  # prompts searched at once where `runtime.decode_batch` does not say


def decode(
    model: GPT2,
    tokenizer: Tokenizer,
    segments: Sequence[Segment],
    settings: config.Decode,
    *,
    protocol: config.Protocol,
    batch: int | None = None,
    layout: Layout | None = None,
    stop_signal: Callable[[], int | None] = lambda: None,
    processes: Processes = ALONE,
    show_bar: bool = False,
) -> list[Decoded]:
    """Decode every segment's context.

    Args:
        model: in eval mode, on its device.
        tokenizer: the model's.
        segments: distinct contexts with references.
        settings: the search.
        protocol: separator and longest sequence.
        batch: prompts searched at once, fewer where memory ends; the texts do not depend on it.
        layout: what the method does to each context.
        stop_signal: asked after each batch.
        processes: that share the contexts.
        show_bar: show a progress bar if there is a terminal.

    Raises:
        Stopped: `stop_signal` answered; nothing is kept of this stage.
        RunFailed: there is no memory for one prompt.
    """
    device = model.wte.weight.device
    end_ids = [token_id(tokenizer, text, "decode.end_tokens") for text in settings.end_tokens]
    banned_ids = [token_id(tokenizer, text, "decode.banned_tokens") for text in settings.banned_tokens]
    prompts = [
        prompt(ids, max_length=protocol.max_length, max_new_tokens=settings.max_new_tokens)
        for ids in encode_contexts([s.context for s in segments], tokenizer, protocol, layout=layout)
    ]
    # Prompts of like length together: less padding.
    order = processes.share(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
    batch = batch or BATCH[device.type]
    arithmetic = Arithmetic(settings.precision, device)
    model.pack(arithmetic.dtype, training=False)
    found: dict[int, Hypothesis] = {}
    logged = time.monotonic()
    with bar("decoding", len(order), shown=show_bar and processes.main) as tick:
        while len(found) < len(order):
            rows = order[len(found) : len(found) + batch]
            try:
                with arithmetic():
                    hypotheses = search(
                        model, [prompts[i] for i in rows], settings, end_ids=end_ids, banned_ids=banned_ids
                    )
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise RunFailed("not even one prompt fits into the device's memory; lower decode.beam") from None
                hypotheses = []
            if not hypotheses:
                batch = -(-len(rows) // 2)
                logger.warning("out of memory: going on with %d prompts at once, to the same texts", batch)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            found |= zip(rows, hypotheses, strict=False)
            if tick is not None:
                tick(len(found), "")
            elif time.monotonic() - logged > SECONDS_BETWEEN_LOGS:
                logger.info("decoded %d of %d contexts", len(found), len(order))
                logged = time.monotonic()
            if (number := stop_signal()) is not None:
                raise Stopped("stopped while decoding; the same command decodes again", number)
    model.unpack()
    found = {i: hypothesis for share in processes.gather(found) for i, hypothesis in share.items()}
    return [
        Decoded(
            context=segment.context,
            references=segment.references,
            hypothesis=text_of(found[i].tokens, tokenizer, end=protocol.completion_end, clean_up=settings.clean_up),
            subset=segment.subset,
            log_score=found[i].score,
            finished=found[i].finished,
        )
        for i, segment in enumerate(segments)
    ]


def text_of(tokens: Sequence[int], tokenizer: Tokenizer, *, end: str, clean_up: bool = False) -> str:
    """Tokens as text, cut at the end mark, then at the first blank line, and stripped (section 3)."""
    text = str(tokenizer.decode(list(tokens), skip_special_tokens=False))
    for spaced in SPACED if clean_up else ():
        text = text.replace(spaced, spaced.replace(" ", ""))
    return text.split(end)[0].split("\n\n")[0].strip()
