"""Run-time checks of annotations by beartype, set up at the first call of each function instead of on import."""

import functools as ft
from collections.abc import Callable


def checked_when_called(fn: Callable) -> Callable:
    """`beartype(fn)`, made when it is first needed: making all of them takes longer than the rest of the import."""

    @ft.cache
    def make() -> Callable:
        from beartype import beartype, BeartypeConf

        # An int is taken where a float is asked for, as type checkers do.
        return beartype(conf=BeartypeConf(is_pep484_tower=True))(fn)

    @ft.wraps(fn)
    def checked(*args, **kwargs):
        return make()(*args, **kwargs)

    return checked
