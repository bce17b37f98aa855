"""Run-time checks of annotations by beartype, set up at the first call of each function.

Setting all of them up on import would take longer than the rest of the import.
"""

import functools as ft
import inspect
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import AnnotationError, TypeCheckError


# Off while flowkit is imported: defaults such as `fk.Normal()` are made then, and checking
# them would import beartype, a tenth of the whole import.
_is_on = False


def turn_on() -> None:
    """Called at the end of the import of flowkit."""
    global _is_on
    _is_on = True


class WrongArgumentError(AnnotationError, TypeCheckError):
    """A wrong argument, with the remedy, which the error of a type does not name.

    It is an `AnnotationError` too, the only kind whose text jaxtyping does not replace.
    """


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
        try:
            return make()(*args, **kwargs)
        except Exception as error:
            # Keys are keyword-only, so they are found here.
            _check_key(kwargs.get("key"), error)
            _check_class(fn, args, kwargs, error)
            raise

    return checked


def _check_key(key: Any, error: Exception) -> None:
    """Raises if the key is what is wrong."""
    dtype = getattr(key, "dtype", type(key))
    if key is None or jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return
    raise WrongArgumentError(
        "`key` must be made by `jax.random.key(seed)`, not by `jax.random.PRNGKey`; got "
        f"{reprlib.repr(key)}."
    ) from error


def _check_class(fn: Callable, args: Any, kwargs: Any, error: Exception) -> None:
    """Raises if a class in place of an instance is what is wrong."""
    # What beartype found to be wrong, and what it lies in.
    culprits = getattr(error, "culprits", None)
    if culprits is None:
        return
    arguments = inspect.signature(fn).bind(*args, **kwargs).arguments
    for name, value in arguments.items():
        if isinstance(value, type) and any(value is one for one in culprits):
            raise WrongArgumentError(
                f"`{name}` is the class {value.__name__}; give an instance of it, such as "
                f"`{value.__name__}(...)`."
            ) from error


@ft.cache
def _configuration():
    import numpy as np
    from beartype import BeartypeConf, FrozenDict
    from jaxtyping import PyTree

    # NumPy's integers are accepted wherever an `int` is: `labels.max() + 1` and
    # `np.prod(shape)` are `np.int64`. Everything is a `PyTree[Any]`, but finding that out
    # would flatten the model several times in each training step.
    overrides = FrozenDict({int: int | np.integer, PyTree[Any]: object})

    # An `int` is accepted where a `float` is asked for, as type checkers do.
    return BeartypeConf(is_pep484_tower=True, hint_overrides=overrides)
