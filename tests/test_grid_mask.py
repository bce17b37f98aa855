import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk


CORNERS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], np.float32)


@ft.partial(jax.jit, static_argnames=("grid_size", "num"))
def draws(points, mask=None, *, grid_size, probability, num, key):
    one = lambda key: fk.latent.grid_mask(
        points, mask, grid_size=grid_size, probability=probability, key=key
    )
    return jax.vmap(one)(jr.split(key, num))


def test_visible_fraction(key):
    """Four occupied cells: each is visible with 1 - p, and the guard adds p^4: 0.5625
    for p = 0.5."""
    visible = np.asarray(
        draws(CORNERS, grid_size=2, probability=0.5, num=20_000, key=key)
    )
    np.testing.assert_allclose(visible.mean(0), 0.5625, atol=4 * np.sqrt(0.25 / 20_000))
    # All 15 patterns but none at all, that of the guard twice as often.
    patterns, counts = np.unique(visible @ [1, 2, 4, 8], return_counts=True)
    np.testing.assert_array_equal(patterns, np.arange(1, 16))
    np.testing.assert_allclose(
        counts / 20_000,
        np.append(np.full(14, 1 / 16), 1 / 8),
        atol=4 * np.sqrt(0.11 / 20_000),
    )


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_points_in_one_cell_share_their_fate(dim, key):
    """Cells by hand, in float64; in 20 dimensions there are 3^20 of them."""
    points = np.asarray(jr.uniform(key, (60, dim)))
    box = points.astype(np.float64)
    cells = np.floor(3 * (box - box.min(0)) / (box.max(0) - box.min(0))).clip(0, 2)
    visible = np.asarray(draws(points, grid_size=3, probability=0.4, num=200, key=key))
    same = np.all(cells[:, None] == cells[None], -1)
    agree = np.all(visible[:, :, None] == visible[:, None, :], 0)
    np.testing.assert_array_equal(agree, same)


def test_masked_points_have_no_influence(key):
    points = np.concatenate([CORNERS, np.zeros((2, 2), np.float32)])
    mask = np.array([True] * 4 + [False] * 2)
    expected = draws(CORNERS, grid_size=2, probability=0.5, num=100, key=key)
    for bad in (7.0, np.nan, -np.inf):
        points[4:] = bad
        got = draws(points, mask, grid_size=2, probability=0.5, num=100, key=key)
        np.testing.assert_array_equal(got[:, :4], expected)
        assert not np.any(got[:, 4:])
    assert not np.any(fk.latent.grid_mask(points, np.zeros(6, bool), key=key))


def test_extreme_clouds(key):
    """One point, coinciding points, nothing hidden, everything hidden."""
    for points in (CORNERS[:1], np.ones((5, 3), np.float32)):
        assert np.all(fk.latent.grid_mask(points, probability=1.0, key=key))
    assert np.all(draws(CORNERS, grid_size=2, probability=0.0, num=50, key=key))
    assert np.all(draws(CORNERS, grid_size=2, probability=1.0, num=50, key=key))


class Count(eqx.Module):
    """The number of points that it sees is its latent."""

    in_size: int = 2
    out_size: int = 1

    def __call__(self, points, mask=None, key=None):
        return jnp.sum(mask, dtype=points.dtype)[None, None]


class Reported(eqx.Module):
    """A velocity so large that the loss tells the latents: v = 1000 latent."""

    def __call__(self, t, x, latents, mask=None):
        return jnp.broadcast_to(1e3 * latents, x.shape)


def test_drawn_inside_the_loss_for_the_encoder_only(key):
    """The loss of a velocity c z is c^2 E z^2 up to 1e-3; z is the number of visible
    corners, flow points are four."""
    model = fk.latent.SetFlow(Count(), fk.Flow(Reported()), fk.Normal())
    points = np.broadcast_to(CORNERS, (4000, 4, 2))

    def mean_square(**options):
        return (
            float(
                fk.latent.set_flow_loss(
                    model, points, key=key, prior_weight=0, **options
                )[0]
            )
            / 1e6
        )

    everything = mean_square(mask=np.ones((4000, 4), bool))
    assert everything == pytest.approx(16, rel=2e-3)
    counts = np.append(np.repeat([1, 2, 3], [4, 6, 4]), [4, 4])
    hidden = mean_square(encoder_mask=fk.latent.GridMask(2, 0.5))
    assert (
        abs(hidden - np.mean(counts**2)) < 5 * np.std(counts**2) / np.sqrt(4000) + 0.01
    )
    assert mean_square(encoder_mask=fk.latent.GridMask(2, 0.0)) == pytest.approx(
        everything, rel=2e-3
    )


@pytest.mark.parametrize(
    ("options", "fragment"),
    [({"grid_size": 0}, "`grid_size`"), ({"probability": 1.5}, "`prob")],
)
def test_wrong_use(options, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        fk.latent.grid_mask(CORNERS, **options, key=key)
    with pytest.raises(ValueError, match=fragment):
        fk.latent.GridMask(**options)
