"""Decoding: from contexts to hypotheses."""
