"""Scores of generated text by the official definitions; one metric a file, suites in `suites.py`."""

from lodarepro.metrics.suites import SUITES, score

__all__ = ["SUITES", "score"]
