"""What `dir()` of a public namespace shows: its public names and nothing else."""

import inspect
from collections.abc import Callable
from typing import Any


def public_names(namespace: dict[str, Any], *more: str) -> Callable[[], list[str]]:
    """A `__dir__` for the module whose `globals()` are given.

    **Arguments:**

    - `namespace`: the `globals()` of the module, looked at when `dir()` is called.
    - `more`: names that the module loads on first use.
    """

    def names() -> list[str]:
        public = [name for name, value in namespace.items() if _is_public(name, value)]
        return sorted({*public, *more})

    return names


def _is_public(name: str, value: Any) -> bool:
    """Whether a name is public and not one that the module has imported from elsewhere."""
    if inspect.ismodule(value):
        home = value.__name__
    else:
        # Constants, such as a dictionary of options, have no module.
        home = getattr(value, "__module__", "flowkit")
    return not name.startswith("_") and home.startswith("flowkit")
