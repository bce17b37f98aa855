"""Tests of what every network on sets must satisfy, for your networks as well as ours.

Each assertion takes a function `fn(points, mask)`, such as an encoder or
`lambda x, m: crn(t, x, latents, mask=m)`. A new velocity network is zero everywhere, and
zero has every symmetry: pass it through `perturbed` first. A function that is zero is
refused.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from flowkit._types import AnyArray, Mask, Points, PRNGKey


Model = TypeVar("Model")


def __dir__() -> list[str]:
    return [name for name in globals() if name.startswith(("assert_", "perturbed"))]


def perturbed(model: Model, *, key: PRNGKey, scale: float = 0.1) -> Model:
    """The model with Gaussian noise of this scale added to its floating-point arrays."""
    return _perturbed(model, key, scale)


def assert_permutation_invariant(
    fn: Callable[..., PyTree],
    points: PyTree,
    mask: Mask | None = None,
    *,
    key: PRNGKey,
    tolerance: float = 1e-5,
) -> None:
    """`fn(P points, P mask) = fn(points, mask)` for random permutations `P`.

    **Arguments:**

    - `fn`: `(points, mask) -> ` any pytree of arrays.
    - `points`: a cloud `(n, d)`, or a pytree of arrays that are permuted together along
      their first axis.
    - `mask`: passed to `fn` and permuted too; `None` is passed on as `None`.
    - `key`: the key of the permutations.
    - `tolerance`: the largest deviation allowed, relative to the largest output, or to 1
      if that is larger.

    Raises an `AssertionError` that gives the largest deviation and where it is.
    """
    expected = _nonzero(_call(fn, points, mask))
    for permutation in _permutations(points, key):
        actual = _call(fn, *_permute((points, mask), permutation))
        _compare(
            actual,
            expected,
            tolerance,
            "the output changed when the points were permuted",
        )


def assert_permutation_equivariant(
    fn: Callable[..., PyTree],
    points: PyTree,
    mask: Mask | None = None,
    *,
    key: PRNGKey,
    tolerance: float = 1e-5,
) -> None:
    """`fn(P points, P mask) = P fn(points, mask)` for random permutations `P`.

    Arguments and errors are those of `assert_permutation_invariant`; the outputs are
    permuted along their first axis.
    """
    expected = _nonzero(_call(fn, points, mask))
    n = _num_rows(points)
    for leaf in jax.tree.leaves(expected):
        if leaf.ndim == 0 or leaf.shape[0] != n:
            raise AssertionError(
                f"an output has shape {leaf.shape}, not one row for each of the {n} "
                "points."
            )
    for permutation in _permutations(points, key):
        actual = _call(fn, *_permute((points, mask), permutation))
        what = "the output was not permuted as the points were"
        _compare(actual, _permute(expected, permutation), tolerance, what)


def assert_mask_independent(
    fn: Callable[..., PyTree],
    points: Points,
    mask: Mask | None = None,
    *,
    key: PRNGKey,
    num_padding: int = 3,
    tolerance: float = 1e-5,
) -> None:
    """The contents of masked rows have no influence on values and gradients.

    Masked rows are appended that hold large numbers, NaN, and infinities of both signs.
    If `mask` is given, the rows that it masks are overwritten in the same way. The
    assertions are:

    - the output is that of the valid points alone;
    - an output with one row for each point is zero in masked rows;
    - gradients with respect to the points, and to the parameters if `fn` is a module,
      are finite, and zero in masked rows;
    - everything is finite if all points are masked.

    All of this runs under `jit`, and under `vmap` over the contents.

    Arguments and errors are those of `assert_permutation_invariant`; `num_padding` is
    the number of rows appended.
    """
    rows = np.asarray(points)
    valid = np.ones(len(rows), bool) if mask is None else np.asarray(mask)
    clean = np.where(valid[:, None], rows, 0)
    expected = _nonzero(_call(fn, clean, valid))
    padded_mask = np.append(valid, np.zeros(num_padding, bool))
    clouds = _contents(clean, padded_mask, num_padding, key)

    outputs, gradients = _value_and_gradients(fn, clouds, padded_mask)
    for i, name in enumerate(_CONTENTS):
        actual = jax.tree.map(
            lambda leaf, expected, i=i: _unpadded(np.asarray(leaf)[i], expected, valid),
            outputs,
            expected,
        )
        what = (
            f"the output changed when {num_padding} masked points holding {name} were "
            "appended"
        )
        _compare(actual, expected, tolerance, what)
    _check_gradients(gradients, padded_mask)

    nothing = np.zeros_like(padded_mask)
    outputs, gradients = _value_and_gradients(fn, clouds, nothing)
    _finite(outputs, "the output is not finite if all points are masked")
    _check_gradients(gradients, nothing)


_CONTENTS = ("large numbers", "NaN", "inf", "-inf")


def _contents(
    clean: np.ndarray, padded_mask: np.ndarray, num_padding: int, key: PRNGKey
) -> np.ndarray:
    """The padded cloud with each kind of content in its masked rows.

    Its shape is `(4, n + num_padding, d)`.
    """
    padded = np.pad(clean, ((0, num_padding), (0, 0)))
    large = 100 * np.asarray(jr.normal(key, padded.shape))
    constants = [np.full_like(large, value) for value in (np.nan, np.inf, -np.inf)]
    fills = np.stack([large, *constants])
    return np.where(padded_mask[None, :, None], padded[None], fills).astype(clean.dtype)


# Only these functions run in JAX. Everything after them compares NumPy arrays, because
# each operation of JAX outside of a compiled function is compiled on its own.


@eqx.filter_jit
def _perturbed(model: Any, key: PRNGKey, scale: float) -> Any:
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(params)
    if not leaves:
        return model

    # One draw for all leaves, because each draw is compiled on its own.
    sizes = [leaf.size for leaf in leaves]
    noise = jnp.split(scale * jr.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    noisy = [
        p + z.reshape(p.shape).astype(p.dtype)
        for p, z in zip(leaves, noise, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(treedef, noisy), rest)


@eqx.filter_jit
def _call(fn: Callable[..., Any], points: PyTree, mask: Any) -> PyTree:
    return fn(points, mask)


@eqx.filter_jit
def _value_and_gradients(
    fn: Callable[..., Any], clouds: Any, mask: Any
) -> tuple[PyTree, PyTree]:
    """The outputs, and the gradients of the sum of their squares.

    The gradients are with respect to the parameters and the points.
    """

    def total(fn_and_clouds):
        fn, clouds = fn_and_clouds
        outputs = jax.vmap(lambda points: fn(points, mask))(clouds)
        floats = jax.tree.leaves(eqx.filter(outputs, eqx.is_inexact_array))
        return sum(jnp.sum(leaf * leaf) for leaf in floats), outputs

    (_, outputs), gradients = eqx.filter_value_and_grad(total, has_aux=True)(
        (fn, clouds)
    )
    return outputs, gradients


def _check_gradients(gradients: PyTree, mask: np.ndarray) -> None:
    _finite(gradients, "a gradient is not finite")
    masked = np.asarray(gradients[1])[:, ~mask]
    what = "the gradient with respect to masked points is not zero"
    _compare(masked, np.zeros_like(masked), 0.0, what)


def _num_rows(points: PyTree) -> int:
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(points)}
    if len(sizes) != 1:
        raise ValueError(
            "`points` must be arrays with the same number of rows, "
            f"got {sorted(sizes)}."
        )
    return sizes.pop()


def _permutations(points: PyTree, key: PRNGKey, number: int = 3) -> list[np.ndarray]:
    n = _num_rows(points)
    if n < 2:
        raise ValueError(
            f"`points` has {n} rows, which have no other order: pass at least two."
        )
    keys = jr.split(key, number)
    return [np.asarray(jr.permutation(one_key, n)) for one_key in keys]


def _permute(tree: PyTree, permutation: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[permutation], tree)


def _unpadded(actual: np.ndarray, expected: AnyArray, mask: np.ndarray) -> np.ndarray:
    """The rows of an output before the padding, if it has one row for each point.

    Its masked rows must be zero.
    """
    n = mask.shape[0]
    per_point = expected.shape[:1] == (n,) and actual.shape[:1] != expected.shape[:1]
    if not per_point:
        return actual

    masked = np.ones(actual.shape[0], bool)
    masked[:n] = ~mask
    rows = actual[masked]
    _compare(rows, np.zeros_like(rows), 0.0, "the output is not zero in masked rows")
    return actual[:n]


def _nonzero(outputs: PyTree) -> PyTree:
    if not any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(outputs)):
        raise AssertionError(
            "the output is zero everywhere, which says nothing about the function. A "
            "new velocity network starts at zero: pass it through "
            "`flowkit.testing.perturbed` first."
        )
    return outputs


def _finite(tree: PyTree, what: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not np.all(np.isfinite(np.asarray(leaf))):
            raise AssertionError(f"{what}{_at(path)}.")


def _compare(actual: PyTree, expected: PyTree, tolerance: float, what: str) -> None:
    """Raises if any leaf deviates by more than its tolerance.

    That is `tolerance` times the larger of 1 and the largest expected entry.
    """
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        raise AssertionError(f"{what}: its structure changed.")
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(actual),
        jax.tree.leaves(expected),
        strict=True,
    )
    for (path, a), e in pairs:
        if a.shape != e.shape:
            raise AssertionError(
                f"{what}{_at(path)}: its shape is {a.shape}, not {e.shape}."
            )
        if a.size:
            actual_64 = np.asarray(a, np.float64)
            _compare_leaf(actual_64, np.asarray(e, np.float64), tolerance, what, path)


def _compare_leaf(
    actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str, path: Any
) -> None:
    deviation = np.abs(actual - expected)
    # Comparisons with NaN are false, so this tests for success, not for failure.
    if np.all(deviation <= tolerance * max(1.0, np.abs(expected).max())):
        return

    largest = np.argmax(np.where(np.isnan(deviation), np.inf, deviation))
    worst = np.unravel_index(largest, actual.shape)
    index = tuple(int(i) for i in worst)
    raise AssertionError(
        f"{what}{_at(path)}: the largest deviation is {deviation[worst]:.3g} at index "
        f"{index} ({actual[worst]:.6g} instead of {expected[worst]:.6g}, tolerance "
        f"{tolerance:g})."
    )


def _at(path: Any) -> str:
    return f" (leaf {jax.tree_util.keystr(path)})" if path else ""
