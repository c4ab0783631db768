"""One seed a run, many generators: no two of them share a stream."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one purpose of a run (`init`, `order`, `dropout`), at one index (an epoch)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
