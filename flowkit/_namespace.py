"""What `dir()` of a public namespace shows: its public names and nothing else."""

from collections.abc import Callable
from typing import Any


def public_names(namespace: dict[str, Any], *more: str) -> Callable[[], list[str]]:
    """A `__dir__` for the module whose `globals()` are given.

    **Arguments:**

    - `namespace`: the `globals()` of the module, looked at when `dir()` is called.
    - `more`: names that the module loads on first use.
    """

    def names() -> list[str]:
        public = [name for name in namespace if not name.startswith("_")]
        return sorted({*public, *more})

    return names
