"""The runs below a results folder, found by what decides their numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodarepro import compose, config, records
from lodarepro.errors import BadInput
from lodarepro.provenance import canonical_json
from lodarepro.records import Evaluation, Failure, Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A finished run with its evaluations under one setting of the search.

    Attributes:
        record: of the run.
        evaluations: those of them with the settings that were asked for.
    """

    record: Record
    evaluations: tuple[Evaluation, ...]


class Archive:
    """All finished and failed runs below a results folder."""

    def __init__(self, root: Path) -> None:
        """Read every run's record once.

        Args:
            root: the results folder (`results.root`); need not be there.

        Raises:
            BadInput: a record is corrupt, or of another schema.
        """
        self.finished: list[Record] = []
        """all finished runs whose numbers count, in the order of their ids"""
        self.failures: list[Failure] = []
        """why others failed, in the same order"""
        self._finished: dict[str, list[Record]] = {}
        self._failed: dict[str, Failure] = {}
        for folder in records.runs(root):
            if (record := records.read(folder)) is not None:
                if record.identity.get("protocol_version") == compose.PROTOCOL_VERSION:
                    self.finished.append(record)
                    self._finished.setdefault(_key_of(record.config, record.identity), []).append(record)
                else:
                    logger.warning(
                        "%s was made by PROTOCOL_VERSION %s, this is %s: its numbers are left out",
                        record.id,
                        record.identity.get("protocol_version"),
                        compose.PROTOCOL_VERSION,
                    )
            elif (failure := records.read_failure(folder)) is not None and _of_this_version(failure):
                self.failures.append(failure)
                self._failed[_key_of(failure.config, failure.identity, decode=True)] = failure

    def find(self, run: config.Run) -> list[Found]:
        """The finished runs of a cell, on whatever data and weights, that were decoded as it says.

        A run that was decoded otherwise at first counts too if it was decoded so later; one whose own settings those
        are comes first.
        """
        tree = compose.identity(run, {})
        decode = tree["decode"]
        found = [
            Found(record, evaluations)
            for record in self._finished.get(_key(tree), [])
            if (evaluations := tuple(e for e in record.evaluations if _same(e.decode, decode)))
        ]
        return sorted(found, key=lambda f: (not _same(f.record.identity["decode"], decode), f.record.id))

    def failure(self, run: config.Run) -> Failure | None:
        """Why a cell failed, where it did and was not finished since."""
        return None if self.find(run) else self._failed.get(_key(compose.identity(run, {}), decode=True))


def _of_this_version(failure: Failure) -> bool:
    """Whether it would be the same run now; another version's has another id and may be tried."""
    return bool(failure.identity.get("protocol_version", compose.PROTOCOL_VERSION) == compose.PROTOCOL_VERSION)


def _same(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a search was set so; settings that came later than a record had their defaults when it was made."""
    return {**compose.plain_defaults("decode"), **recorded} == wanted


def _key_of(described: Mapping[str, Any], otherwise: Mapping[str, Any], *, decode: bool = False) -> str:
    """The key of a recorded configuration.

    It is built anew, so that settings that came after it have their defaults. Where it can't be, and for a user's own
    method, whose file need not be executed for this, what was recorded has to do.
    """
    if described.get("method_file"):
        return _key(otherwise, decode=decode)
    try:
        return _key(compose.identity(compose.from_plain(described), {}), decode=decode)
    except BadInput:
        return _key(otherwise, decode=decode)


def _key(identity: Mapping[str, Any], *, decode: bool = False) -> str:
    """All that a training is decided by but for the files that it read; with `decode` the search too."""
    left_out = {"checksums", "protocol_version", *([] if decode else ["decode"])}
    return canonical_json({key: value for key, value in identity.items() if key not in left_out})
