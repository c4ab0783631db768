"""Reproducible research on parameter-efficient fine-tuning of GPT-2 for data-to-text."""

__version__ = "0.1.0"
