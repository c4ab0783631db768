"""YAML files of a form of the project's own, such as tables: their scalars as text, what is wrong in a line each."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml  # type: ignore[import-untyped]
from pydantic import TypeAdapter, ValidationError

from lodarepro.errors import BadInput

_T = TypeVar("_T")


def read(path: Path, form: type[_T], *, what: str, keys: str) -> _T:
    """Read a file.

    All scalars are text: 2.40 is not 2.4, and `yes` is a value like others.

    Args:
        path: of the file.
        form: a dataclass that pydantic checks.
        what: the file is, for the lines about faults.
        keys: that it should have, for a file without any.

    Raises:
        BadInput: with every fault of the file, one line each.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        if not isinstance(tree, dict):
            raise BadInput(f"{what} {path}: holds no keys; give {keys}")
        return TypeAdapter(form).validate_python(tree)
    except OSError as e:
        raise BadInput(f"{what} {path}: can't be read ({e.strerror})") from None
    except (yaml.YAMLError, UnicodeError) as e:
        raise BadInput(f"{what} {path}: is no YAML ({' '.join(str(e).split())})") from None
    except ValidationError as e:
        raise BadInput(
            f"{what} {path}: {'.'.join(map(str, error['loc'])) or 'the file'}: {error['msg'].lower()}"
            for error in e.errors()
        ) from None
