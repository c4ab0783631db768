"""Invented pairs of tokens for trainings of a tiny model, whose vocabulary has 60 entries."""

import numpy as np

from lodarepro.data.tokenise import Encoded


def pairs(n: int, seed: int, *, longest: int = 16) -> Encoded:
    """So many pairs of a context and a completion, of fewer than 9 and `longest` tokens."""
    r = np.random.default_rng(seed)

    def tokens(most: int) -> list[int]:
        return r.integers(1, 60, r.integers(2, most)).tolist()

    return Encoded.of([(tokens(9), tokens(longest)) for _ in range(n)])
