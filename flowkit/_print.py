"""How a model prints: on one line, with the type names of its parts.

Errors of types print all arguments, and a network fills pages. `print(flow.network)` still
shows all of it.
"""

from typing import Any

import wadler_lindig as wl


class ShortDoc:
    """Prints as `Flow(network=MLP(...), path=LinearPath(...))`."""

    def __pdoc__(self, **_: Any) -> wl.AbstractDoc:
        parts = []
        for name, value in vars(self).items():
            if isinstance(value, str | int | float | bool | None):
                parts.append(f"{name}={value!r}")
            else:
                kind = getattr(value, "__name__", f"{type(value).__name__}(...)")
                parts.append(f"{name}={kind}")
        return wl.TextDoc(f"{type(self).__name__}({', '.join(parts)})")
