import jax.random as jr
import numpy as np
import pytest
from sklearn.cluster import KMeans

import flowkit.nn as nn

from .helpers import call, KEY


POINTS = np.asarray(jr.normal(KEY, (12, 3)))
MASK = np.arange(12) % 4 != 1


def squares(a, b):
    return np.sum((a[:, None] - b) ** 2, axis=-1)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_nearest_neighbors_are_those_of_all_distances(shift):
    indices, valid = call(
        lambda p, m: nn.nearest_neighbors(p, 4, m),
        (POINTS + shift).astype(np.float32),
        MASK,
    )
    distances = np.where(
        np.eye(12, dtype=bool) | ~MASK, np.inf, squares(POINTS, POINTS)
    )
    assert np.all(valid)
    np.testing.assert_array_equal(
        np.asarray(indices)[MASK], np.argsort(distances, axis=1)[MASK, :4]
    )


def test_nearest_neighbors_say_which_are_there():
    mask = np.arange(12) < 3
    indices, valid = call(lambda p, m: nn.nearest_neighbors(p, 20, m), POINTS, mask)
    assert indices.shape == (12, 11)
    assert valid.sum(axis=1).tolist() == [2] * 3 + [3] * 9
    assert np.all(np.asarray(indices)[np.asarray(valid)] < 3)
    assert not np.any(call(lambda p: nn.nearest_neighbors(p, 20), POINTS[:1])[1])


def test_farthest_points_are_the_farthest():
    valid = POINTS[MASK]
    expected = [np.argmax(np.sum((valid - valid.mean(0)) ** 2, axis=1))]
    for _ in range(4):
        expected.append(np.argmax(squares(valid, valid[expected]).min(1)))
    chosen = call(lambda p, m: nn.farthest_points(p, 5, m), POINTS, MASK)
    np.testing.assert_array_equal(chosen, np.flatnonzero(MASK)[expected])


def test_farthest_points_do_not_depend_on_the_order_even_with_ties():
    # The corners of a square, one twice: all are equally far from the mean, and there are
    # fewer than are asked for.
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [9, 9]], np.float32)
    mask = np.array([1, 1, 1, 1, 1, 0], bool)
    choose = lambda p, m: p[nn.farthest_points(p, 7, m)]
    first = np.asarray(call(choose, corners, mask))
    assert {tuple(point) for point in first[:4].tolist()} == {
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    }
    for order in ([5, 4, 3, 2, 1, 0], [2, 5, 0, 4, 1, 3]):
        np.testing.assert_array_equal(call(choose, corners[order], mask[order]), first)


def test_k_means_are_those_of_lloyd():
    steps, start = 3, POINTS[MASK][:3]
    centers = call(
        lambda p, c, m: nn.k_means(p, c, num_steps=steps, mask=m), POINTS, start, MASK
    )
    expected = KMeans(
        3, init=start, n_init=1, max_iter=steps, tol=0, algorithm="lloyd"
    ).fit(POINTS[MASK])
    np.testing.assert_allclose(centers, expected.cluster_centers_, atol=1e-5)


def test_a_center_without_points_stays():
    far = np.array([[0.0, 0.0, 0.0], [99.0, 0.0, 0.0]], np.float32)
    centers = call(lambda p, c: nn.k_means(p, c), POINTS, far)
    np.testing.assert_allclose(centers, [POINTS.mean(0), far[1]], atol=1e-5)


@pytest.mark.parametrize("d", [3, 20])
def test_neighbors_within_groups_that_are_far_apart(d):
    """The distances within a group are a millionth of those between the groups."""
    rng = np.random.default_rng(0)
    groups = np.repeat([[-500.0], [500.0]], 10, axis=0)
    points = (groups + 0.01 * rng.normal(size=(20, d))).astype(np.float32)
    indices, _ = call(lambda p: nn.nearest_neighbors(p, 4), points)
    exact = points.astype(np.float64)
    distances = np.where(np.eye(20, dtype=bool), np.inf, squares(exact, exact))
    np.testing.assert_array_equal(indices, np.argsort(distances, axis=1)[:, :4])
