"""Scores of generated text by the official definitions; one metric a file, suites in `suites.py`."""

from lodarepro.metrics.bootstrap import compare, intervals
from lodarepro.metrics.suites import ALL, SUITES, Measurement, measure, score

__all__ = ["ALL", "SUITES", "Measurement", "compare", "intervals", "measure", "score"]
