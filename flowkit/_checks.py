"""Checks of arguments that several entry points share.

Misuse is reported before any long computation starts.
"""

import inspect
import operator
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowkit._types import is_traced


def check_rows(name: str, tree: Any, num: int, of: str, hint: str = "") -> None:
    """Raises unless `tree` holds arrays with a leading axis of `num`, and nothing else."""
    for leaf in jax.tree.leaves(tree):
        if not eqx.is_array(leaf):
            raise ValueError(
                f"`{name}` must hold arrays with {num} rows, one per {of}, but holds "
                f"{leaf!r}{hint}."
            )
        if leaf.shape[:1] != (num,):
            raise ValueError(
                f"`{name}` must have {num} rows, one per {of}, but holds an array of shape "
                f"{leaf.shape}{hint}."
            )


def check_instance(name: str, value: Any) -> None:
    """Raises for a class where one of its instances is meant."""
    if isinstance(value, type):
        raise ValueError(
            f"`{name}` is the class {value.__name__}; give an instance of it, such as "
            f"`{value.__name__}(...)`."
        )


def check_call(name: str, fn: Callable, arguments: str, *keywords: str) -> None:
    """Raises for a function that does not take these `arguments`, such as `"t, x, cond"`."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        # Some built-in callables have no signature.
        return

    given = arguments.split(", ")
    names = [*signature.parameters]
    reason = None
    if len(given) > 1 and names[:2] == given[1::-1]:
        reason = "their order differs"
    try:
        signature.bind(*given, **dict.fromkeys(keywords))
    except TypeError as error:
        reason = str(error)
    if reason is None:
        return

    called = ", ".join([*given, *(["*", *keywords] if keywords else [])])
    raise ValueError(
        f"`{name}` must take the arguments `({called})`, but takes `{_plain(signature)}`: "
        f"{reason}; change them, or call it from a function or module that takes these."
    )


def _plain(signature: inspect.Signature) -> inspect.Signature:
    """A signature without its annotations."""
    empty = inspect.Parameter.empty
    parameters = signature.parameters.values()
    return inspect.Signature([one.replace(annotation=empty) for one in parameters])


def check_data(name: str, x: Any, mask: Any = None) -> None:
    """Raises for empty batches and masks that do not fit.

    Where values are known, also for non-finite data and empty clouds.
    """
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"`{name}` must be a non-empty batch (batch, ...) of arrays, "
            f"got shape {x.shape}."
        )
    if mask is not None and mask.shape != x.shape[:2]:
        raise ValueError(
            f"`mask` must have shape {x.shape[:2]}, one entry per point of `{name}`, "
            f"got {mask.shape}."
        )
    check_mask("mask", mask)
    _check_finite(name, x, mask)


def check_units(name: str, images: Any, *, signed: bool = True) -> None:
    """Raises for known images of 0 to 255; unless `signed`, for all outside of [0, 1]."""
    if is_traced(images):
        return
    low = float(np.min(images, initial=0))
    high = float(np.max(images, initial=0))
    # Resizing leaves [0, 1] by a little. The comparison is false for NaN.
    if not signed and not (low >= -0.1 and high <= 1.1):
        raise ValueError(
            f"`{name}` must be in [0, 1], got {low:g} to {high:g}; take `(images + 1) / 2` "
            "of images in [-1, 1], and divide images of 0 to 255 by 255."
        )
    # Not for samples that diverged, which leave [-1, 1] in both directions.
    if low >= -1 and 10 < high < np.inf:
        raise ValueError(
            f"`{name}` must be in [0, 1] or [-1, 1], got {low:g} to {high:g}; divide images "
            "of 0 to 255 by 255."
        )


def check_example(name: str, x: Any, mask: Any = None) -> None:
    """Raises for an example without entries.

    Where values are known, also for non-finite data and an empty mask.
    """
    if 0 in x.shape:
        raise ValueError(f"`{name}` must not be empty, got shape {x.shape}.")
    check_mask("mask", mask)
    _check_finite(name, x, mask)


def _check_finite(name: str, x: Any, mask: Any) -> None:
    if is_traced(x, mask):
        return
    valid = x if mask is None else np.asarray(x)[np.asarray(mask)]
    if not np.all(np.isfinite(valid)):
        raise ValueError(
            f"`{name}` holds NaN or infinity at valid entries; remove or mask them."
        )


def check_mask(name: str, mask: Any) -> None:
    """Raises for a known mask of one or many clouds that leaves a cloud without valid points."""
    if mask is None or is_traced(mask):
        return
    if not np.all(np.any(np.asarray(mask), axis=-1)):
        raise ValueError(
            f"`{name}` leaves a cloud without any valid point; remove empty clouds."
        )


def check_sampling(
    shape: tuple[int, ...],
    num_samples: int,
    cond: Any,
    cond_axes: int | None,
    mask: Any,
) -> None:
    """Raises where the arguments of a batch sampler do not fit together."""
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    if 0 in shape:
        raise ValueError(f"`shape` must not have an empty axis, got {shape}.")
    if cond_axes not in (0, None):
        raise ValueError(
            "`cond_axes` must be 0 (one condition per sample) or None (one for all), "
            f"got {cond_axes}."
        )
    if cond_axes == 0:
        check_rows(
            "cond",
            cond,
            num_samples,
            "sample",
            "; to share one condition, give `cond_axes=None`",
        )
    if mask is not None and mask.shape != (num_samples, *shape[:1]):
        raise ValueError(
            f"`mask` must have shape {(num_samples, *shape[:1])}, got {mask.shape}."
        )
    check_mask("mask", mask)


def check_time(name: str, t: Any) -> None:
    """Raises for a known time outside [0, 1]."""
    if not is_traced(t) and not 0 <= t <= 1:
        raise ValueError(
            f"`{name}` must be in [0, 1] (0 is noise, 1 is data), got {t}."
        )


def check_folder(argument: str, folder: Path) -> None:
    """Makes a folder, and raises `ValueError` if files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"`{argument}`: the folder {folder} cannot be written to ({error.strerror}); "
            "name another one."
        ) from error


def as_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape as Python integers, which can be a constant of a program."""
    return tuple(operator.index(size) for size in shape)


def as_size(name: str, size: int, *, least: int = 1) -> int:
    """A size as a Python integer, which can be a constant of a program."""
    size = operator.index(size)
    if size < least:
        raise ValueError(f"`{name}` must be at least {least}, got {size}.")
    return size


def check_sizes(**sizes: int) -> None:
    """Raises for a size below 1, by the name of its argument."""
    for name, size in sizes.items():
        as_size(name, size)
