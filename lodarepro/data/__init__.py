"""From a dataset's name to its examples: find or download a split's file, check it, parse it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lodarepro.config import Data, Dataset, Pin
from lodarepro.data import dart, e2e, webnlg
from lodarepro.data.sources import MEND, Source, locate
from lodarepro.data.types import Example, Segment, segments
from lodarepro.errors import BadInput, RunFailed

PARSERS: dict[str, Callable[[Path], list[Example]]] = {
    "e2e": e2e.parse,
    "dart": dart.parse,
    "webnlg": webnlg.parse,
}
"""registry: `Dataset.format` to the function that reads a file of it"""

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """A split of a dataset: its pairs in the file's order, and the file they come from."""

    name: str
    source: Source
    examples: list[Example]

    @property
    def segments(self) -> list[Segment]:
        """The distinct contexts with their references: what is decoded and scored."""
        return segments(self.examples)


def load(dataset: Dataset, data: Data, split: str) -> Split:
    """Find (or download) and read a split, and cut it by `dataset.hold_out` and `dataset.limit`.

    Held-out contexts are the last distinct ones of the file that train and valid share, with all their pairs: train
    lacks them, and valid is nothing else. A limit N keeps the first N pairs of train and valid, and all pairs of the
    first N distinct contexts of test, so that the kept contexts keep all their references.

    Args:
        dataset: what to read.
        data: where to look.
        split: one of `SPLITS`.

    Raises:
        BadInput: the file is missing, can't be downloaded, or is malformed.
        RunFailed: a file with the papers' content is not read as the papers count it.
    """
    source = locate(dataset, data, split)
    try:
        examples = PARSERS[dataset.format](source.path)
    except BadInput as error:
        if source.pinned:
            raise RunFailed(_wrong_parser(dataset, str(error).removesuffix(f"; {MEND}"))) from error
        raise
    if source.pinned:
        _check_counts(dataset, source.path, examples)
    if not examples:
        raise BadInput(f"{source.path}: expected examples, found none; {MEND}")
    if dataset.hold_out and split != "test":
        examples = _divided(examples, split, held_out=dataset.hold_out, path=source.path)
    return Split(split, source, _limited(examples, split, limit=getattr(dataset.limit, split)))


def prepare(dataset: Dataset, data: Data) -> list[Split]:
    """Find or download all splits of a dataset and read each once.

    Raises:
        BadInput: one line for each split that is missing or malformed.
        RunFailed: as `load`.
    """
    splits: list[Split] = []
    faults: list[str] = []
    for split in SPLITS:
        try:
            splits.append(load(dataset, data, split))
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(faults)
    return splits


def check_held_out(held_out: int, contexts: int, file: str) -> None:
    """Refuse to hold out all contexts of a file.

    Raises:
        BadInput: it has no more than those.
    """
    if held_out >= contexts:
        most = f"{contexts - 1} or less" if contexts > 1 else "none"
        raise BadInput(f"dataset.hold_out={held_out}: {file} has {contexts} distinct contexts; hold out {most}")


def _divided(examples: list[Example], split: str, *, held_out: int, path: Path) -> list[Example]:
    contexts = list(dict.fromkeys(example.context for example in examples))
    check_held_out(held_out, len(contexts), str(path))
    held = set(contexts[-held_out:])
    return [example for example in examples if (example.context in held) == (split == "valid")]


def _limited(examples: list[Example], split: str, *, limit: int | None) -> list[Example]:
    if limit is None:
        return examples
    if split != "test":
        return examples[:limit]
    kept = {segment.context for segment in segments(examples)[:limit]}
    return [example for example in examples if example.context in kept]


def _check_counts(dataset: Dataset, path: Path, examples: list[Example]) -> None:
    pin: Pin = dataset.pins[path.name]
    contexts = len({example.context for example in examples})
    if (len(examples), contexts) != (pin.examples, pin.contexts or contexts):
        expected = f"{pin.examples} pairs" + (f" of {pin.contexts} contexts" if pin.contexts else "")
        found = f"{len(examples)} pairs of {contexts} contexts"
        raise RunFailed(_wrong_parser(dataset, f"{path}: expected {expected}, read {found}"))


def _wrong_parser(dataset: Dataset, fault: str) -> str:
    return (
        f"{fault}; the content is the pinned one, so the parser '{dataset.format}' or the pin of "
        f"dataset '{dataset.name}' is wrong: please report this"
    )
