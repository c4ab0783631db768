"""The model: our GPT-2 with named sites, and checkpoints in Hugging Face layout."""

from lodarepro.model.gpt2 import GPT2, Cache, Dense, Sizes

__all__ = ["GPT2", "Cache", "Dense", "Sizes"]
