"""METEOR's paraphrase table, cut to what the texts at hand can use.

METEOR takes most of its time to read the table: 5.3 million pairs of phrases. A pair plays a part only where one
phrase stands in the hypothesis and the other in a reference, so that METEOR gives the same figures, for any
hypotheses, from the few ten thousand pairs of which one phrase stands in a reference.
"""

from __future__ import annotations

import functools
import gzip
import os
import re
import zlib
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lodarepro.metrics import java
from lodarepro.metrics.beside import beside

LONGEST = 7  # words of the longest phrase in the table

# What METEOR's normalizer takes for parts of words. Whatever else stands in a text separates words, or is one.
_LETTERS = "0-9A-Za-zŠŽšžŸÀ-ÖØ-öø-žЀ-ӿԀ-ԧꙀ-ꙮ꙾-ꚗᴀ-ᵿ"
_WORD = re.compile(rf"[{_LETTERS}]+|[^\s\x00-\x7f]")
_DOTS = re.compile(r"\.{2,}")

_HASH_BITS = 24
_BLOCK = 1 << 18  # bytes or phrases worked on at once: about what a processor's cache holds


def phrases(texts: Iterable[str]) -> set[bytes]:
    """The phrases that occur in some texts, METEOR's way of seeing them included.

    METEOR normalizes texts before it looks for phrases. Seen from the words of the table (letters and digits
    alone, a few other characters each by itself), that only adds or drops what separates words; a period is
    dropped without separating ("U.S." is "us"), several of them separate. All sequences of words, each word
    a run of letters and digits once periods are dropped, thus contain the phrases that METEOR may find.
    """
    found: set[str] = set()
    for text in dict.fromkeys(texts):
        words = _WORD.findall(_DOTS.sub(" ", text.lower()).replace(".", ""))
        for length in range(1, LONGEST + 1):
            found.update(map(" ".join, zip(*(words[start:] for start in range(length)), strict=False)))
    return {phrase.encode("utf-8", errors="replace") for phrase in found}


class Table:
    """The whole table in memory, searchable by the phrases of its pairs.

    Args:
        path: the file as METEOR comes with it, gzip: three lines a pair, a probability (which METEOR 1.5 does
            not use) and two phrases of words between single spaces.
    """

    def __init__(self, path: Path) -> None:
        packed = path.read_bytes()
        self._data = zlib.decompress(packed, wbits=31, bufsize=int.from_bytes(packed[-4:], "little"))
        self._ends = _line_ends(self._data).astype(np.int32).reshape(-1, 3)  # of the three lines of each pair
        self._first = _hashes(self._data, self._ends[:, 0], self._ends[:, 1])
        self._second = _hashes(self._data, self._ends[:, 1], self._ends[:, 2])

    def pairs(self, phrases: Collection[bytes]) -> list[bytes]:
        """The pairs of which one phrase or both are among those given, as the table's lines, in its order.

        A few others are among them whose phrases only look alike (`_hashes`); they change no score.
        """
        joined = b"\n" * 16 + b"".join(phrase + b"\n" for phrase in phrases)
        ends = _line_ends(joined)[15:]
        wanted = np.zeros(1 << _HASH_BITS, dtype=bool)
        wanted[_hashes(joined, ends[:-1], ends[1:])] = True
        found = self._ends[wanted[self._first] | wanted[self._second]]
        return [self._data[before + 1 : end + 1] for before, _, end in found.tolist()]


def _line_ends(data: bytes) -> NDArray[np.int64]:
    """Places of the line feeds."""
    array = np.frombuffer(data, dtype=np.uint8)
    blocks = range(0, len(data), _BLOCK)
    return np.concatenate([np.flatnonzero(array[start : start + _BLOCK] == ord("\n")) + start for start in blocks])


def _hashes(data: bytes, before: NDArray[np.integer], ends: NDArray[np.integer]) -> NDArray[np.uint32]:
    """A number below 2 ** 24 for each phrase, from its last 16 bytes and its length.

    Args:
        data: phrases, each behind a line feed and before one; at least 16 bytes stand before the first's end.
        before: places of the line feeds before.
        ends: places of the line feeds after.
    """
    # All runs of eight bytes as integers, the last byte the most significant.
    runs = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))

    def block(start: int) -> NDArray[np.uint32]:
        end = ends[start : start + _BLOCK].astype(np.int64)
        length = end - before[start : start + _BLOCK] - 1
        mixed = length.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for skipped, factor in ((0, 0xC2B2AE3D27D4EB4F), (8, 0xD6E8FEB86659FD93)):
            count = np.clip(length - skipped, 0, 8)  # bytes of the run that are the phrase's: its high ones
            # In two steps, as a shift by all 64 bits would be no shift at all.
            shift = (4 * (8 - count)).astype(np.uint64)
            mixed ^= (runs[end - 8 - skipped] >> shift >> shift) * np.uint64(factor)
            mixed ^= mixed >> np.uint64(29)
        return ((mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _HASH_BITS)).astype(np.uint32)

    return np.concatenate([block(start) for start in range(0, max(1, len(ends)), _BLOCK)])


@functools.cache
def _loading() -> Future[Table]:
    return beside(lambda: Table(java.jar("meteor/data/paraphrase-en.gz")))


os.register_at_fork(after_in_child=_loading.cache_clear)  # the thread stays behind


def begin() -> None:
    """Starts reading METEOR's table beside what else is done; it takes about two seconds."""
    _loading()


def table() -> Table:
    """METEOR's table.

    Raises:
        BadInput: the package that it is part of is missing.
    """
    return _loading().result()


def write(path: Path, pairs: Iterable[bytes]) -> None:
    """Writes pairs in the form of the table, of which METEOR does not use the probabilities."""
    path.write_bytes(gzip.compress(b"".join(b"0\n" + pair for pair in pairs), compresslevel=1))
