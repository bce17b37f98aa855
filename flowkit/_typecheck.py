"""Run-time checks of annotations by beartype, set up at the first call of each function.

Setting all of them up on import would take longer than the rest of the import.
"""

import functools as ft
from collections.abc import Callable


# Off while flowkit is imported: defaults such as `fk.Normal()` are made then, and checking
# them would import beartype, a tenth of the whole import.
_is_on = False


def turn_on() -> None:
    """Called at the end of the import of flowkit."""
    global _is_on
    _is_on = True


def checked_when_called(fn: Callable) -> Callable:
    """`beartype(fn)`, made when `fn` is first called."""

    @ft.cache
    def make() -> Callable:
        from beartype import beartype

        return beartype(conf=_configuration())(fn)

    @ft.wraps(fn)
    def checked(*args, **kwargs):
        if not _is_on:
            return fn(*args, **kwargs)
        return make()(*args, **kwargs)

    return checked


@ft.cache
def _configuration():
    from typing import Any

    import numpy as np
    from beartype import BeartypeConf, FrozenDict
    from jaxtyping import PyTree

    # NumPy's integers are accepted wherever an `int` is: `labels.max() + 1` and
    # `np.prod(shape)` are `np.int64`. Everything is a `PyTree[Any]`, but finding that out
    # would flatten the model several times in each training step.
    overrides = FrozenDict({int: int | np.integer, PyTree[Any]: object})

    # An `int` is accepted where a `float` is asked for, as type checkers do.
    return BeartypeConf(is_pep484_tower=True, hint_overrides=overrides)
