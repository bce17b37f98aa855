import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from flowkit.testing import (
    assert_mask_independent,
    assert_permutation_equivariant,
    assert_permutation_invariant,
    perturbed,
)


KEY = jr.key(0)
POINTS = jr.normal(jr.key(1), (5, 2))
MASK = jnp.array([True, True, False, True, True])


def where(mask, x):
    return x if mask is None else jnp.where(mask[:, None], x, jnp.zeros_like(x))


def total(x, mask):
    return jnp.sum(where(mask, x), axis=0)


def centered(x, mask):
    x = where(mask, x)
    count = (
        x.shape[0] if mask is None else jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
    )
    return where(mask, x - jnp.sum(x, axis=0) / count)


class Scaled(eqx.Module):
    scale: jax.Array

    def __call__(self, x, mask):
        return self.scale * total(x, mask)


RIGHT = [
    (assert_permutation_invariant, total),
    (assert_permutation_equivariant, centered),
    (assert_mask_independent, total),
    (assert_mask_independent, centered),
    (assert_mask_independent, Scaled(jnp.array(2.0))),
]
WRONG = {
    "order": (
        assert_permutation_invariant,
        lambda x, m: x[0],
        "output changed when the points were permuted",
    ),
    "mask left behind": (
        assert_permutation_invariant,
        lambda x, m: jnp.sum(jnp.where(MASK[:, None], x, jnp.zeros_like(x)), axis=0),
        "the largest deviation is",
    ),
    "not equivariant": (
        assert_permutation_equivariant,
        lambda x, m: jnp.cumsum(x, axis=0),
        "not permuted as",
    ),
    "no rows": (
        assert_permutation_equivariant,
        total,
        r"shape \(2,\), not one row for each of the 5",
    ),
    "zero": (
        assert_permutation_invariant,
        lambda x, m: 0 * total(x, m),
        "zero everywhere.*perturbed",
    ),
    "ignores the mask": (
        assert_mask_independent,
        lambda x, m: jnp.sum(x, axis=0),
        "holding large numbers",
    ),
    "multiplies by the mask": (
        assert_mask_independent,
        lambda x, m: jnp.sum(x * m[:, None].astype(x.dtype), axis=0),
        "holding NaN",
    ),
    "counts masked points": (
        assert_mask_independent,
        lambda x, m: total(x, m) / x.shape[0],
        "output changed when 3 masked",
    ),
    "rows left": (
        assert_mask_independent,
        lambda x, m: where(m, x) + 1.0,
        "not zero in masked rows",
    ),
    "all masked": (
        assert_mask_independent,
        lambda x, m: total(x, m) / jnp.sum(m).astype(x.dtype),
        "not finite if all points are masked",
    ),
    "gradient through the mask": (
        assert_mask_independent,
        lambda x, m: jnp.sum(where(m, jnp.sqrt(jnp.square(x - 1e3))), axis=0),
        "a gradient is not finite",
    ),
}


@pytest.mark.parametrize(("check", "fn"), RIGHT)
@pytest.mark.parametrize("mask", [None, MASK])
def test_right_functions_pass(check, fn, mask):
    check(fn, POINTS, mask, key=KEY)
    check(fn, np.asarray(POINTS), None if mask is None else np.asarray(mask), key=KEY)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_functions_fail(name):
    check, fn, message = WRONG[name]
    with pytest.raises(AssertionError, match=message):
        check(fn, POINTS, MASK, key=KEY)


def test_the_deviation_and_its_place_are_told():
    def shifted(x, mask):
        # Right, except that the second entry depends on the first point by 1000 times its order.
        return total(x, mask).at[1].add(1000 * x[0, 0])

    with pytest.raises(
        AssertionError, match=r"largest deviation is \d.*e\+03 at index \(1,\)"
    ):
        assert_permutation_invariant(shifted, 10 * POINTS, key=KEY)


def test_points_may_be_a_pytree():
    assert_permutation_equivariant(
        lambda both, mask: both[0] * both[1], (POINTS, POINTS + 1), key=KEY
    )
    with pytest.raises(ValueError, match="same number of rows"):
        assert_permutation_invariant(
            lambda both, mask: both[0], (POINTS, POINTS[:2]), key=KEY
        )


def test_one_point_has_no_permutation():
    with pytest.raises(ValueError, match="pass at least two"):
        assert_permutation_invariant(total, POINTS[:1], key=KEY)


def test_perturbed_moves_floating_arrays_only():
    model = (jnp.zeros(10_000), jnp.arange(3), jax.nn.silu, 2.0)
    moved = perturbed(model, key=KEY, scale=0.5)
    # 10,000 draws: the standard deviation is known to 0.7%.
    assert abs(jnp.std(moved[0]) / 0.5 - 1) < 5 * 0.0071
    assert jnp.array_equal(moved[1], model[1])
    assert moved[2:] == model[2:]
