"""What tests of analyses plant: numbers and texts that look like nobody's."""

import torch
from torch import Tensor

from lodarepro.records import Decoded

D = 32  # width of the tiny model
CONTEXTS = [f"name : The Mill {i} | type : pub | area : riverside | near : Café Lune" for i in range(12)]
DECODED = [
    Decoded(context, ("The Mill is a pub by the riverside .",), "A pub .", None, -1.0, True) for context in CONTEXTS
]


def generator(seed: int = 0) -> torch.Generator:
    """Of a seed."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in fp64."""
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))
