"""What analyses take from papers: `configs/analysis/<name>.yaml`, grids to measure and figures as printed."""

from __future__ import annotations

from typing import TypeVar

import yaml  # type: ignore[import-untyped]
from pydantic import TypeAdapter

from lodarepro import compose

FOLDER = "analysis"
_T = TypeVar("_T")


def read(name: str, wanted: type[_T]) -> _T:
    """The settings of an analysis, as the dataclass that it reads them into."""
    path = compose.config_folder() / FOLDER / f"{name}.yaml"
    return TypeAdapter(wanted).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
