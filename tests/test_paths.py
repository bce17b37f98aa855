import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk

from .oracles import PATHS


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_derivatives_match_finite_differences(path):
    with jax.enable_x64(True):
        for t in (0.1, 0.4, 0.9):
            c = path.coefficients(t)
            h = 1e-6
            after, before = path.coefficients(t + h), path.coefficients(t - h)
            assert c.d_alpha == pytest.approx(
                float(after.alpha - before.alpha) / (2 * h), rel=1e-5
            )
            assert c.d_sigma == pytest.approx(
                float(after.sigma - before.sigma) / (2 * h), rel=1e-5
            )


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_data_and_noise_are_told_apart_inside(path):
    c = jax.vmap(path.coefficients)(jnp.linspace(0.01, 0.99, 99))
    assert np.all(c.d_alpha * c.sigma - c.alpha * c.d_sigma > 0)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "user-given"])
def test_ends_are_exact(name):
    start, end = PATHS[name].coefficients(0.0), PATHS[name].coefficients(1.0)
    assert (start.alpha, start.sigma, end.alpha, end.sigma) == (0, 1, 1, 0)
    assert all(np.isfinite(value) for value in (*start, *end))


def test_variance_preserving_ends():
    # exp(-4.975 - 0.05) and its complement.
    start, end = (fk.VariancePreservingPath().coefficients(t) for t in (0.0, 1.0))
    assert float(start.alpha) == pytest.approx(0.00657, abs=5e-6)
    assert float(start.sigma) == pytest.approx(0.999978, abs=5e-7)
    assert (end.alpha, end.sigma) == (1, 0)
    assert np.isfinite(end.d_sigma)


def test_closed_forms_of_the_table():
    t = 0.3
    c = fk.CosinePath().coefficients(t)
    assert c.d_alpha * c.sigma - c.alpha * c.d_sigma == pytest.approx(
        np.pi / 2, rel=1e-6
    )
    c = fk.PolynomialPath(3).coefficients(t)
    assert c.d_alpha * c.sigma - c.alpha * c.d_sigma == pytest.approx(
        3 * t**2, rel=1e-6
    )
    c = fk.LinearPath(sigma_min=0.1).coefficients(t)
    assert (float(c.sigma), float(c.d_sigma)) == pytest.approx((1 - 0.9 * t, -0.9))


def test_interpolate_takes_numpy_and_keeps_the_dtype():
    x0, x1 = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    x_t = fk.LinearPath().interpolate(0.25, x0, x1)
    assert x_t.dtype == jnp.float32
    assert np.all(x_t == 0.25)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: fk.LinearPath(sigma_min=1.0), "`sigma_min`"),
        (lambda: fk.PolynomialPath(0), "`degree`"),
        (lambda: fk.VariancePreservingPath(1e-4, 0.02), "add up to at least 12"),
        (
            lambda: fk.VariancePreservingPath(-0.1),
            "`beta_min` and `beta_max` must be finite",
        ),
        (lambda: fk.AffinePath(lambda t: 1 - t, lambda t: t), "t = 0 is noise"),
        (
            lambda: fk.AffinePath(lambda t: t, lambda t: jnp.sqrt(1 - t)),
            "finite derivatives",
        ),
    ],
)
def test_wrong_use(make, fragment):
    with pytest.raises(ValueError, match=fragment):
        make()


LAWS = {
    "uniform": fk.uniform,
    "stratified": fk.stratified,
    "logit-normal": fk.LogitNormal(0.4, 1.0),
    "arctan-lognormal": fk.ArctanLogNormal(),
    "beta": fk.Beta(2.0, 1.0),
    "cosmap": fk.cosmap,
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_times_lie_in_the_unit_interval(law, key):
    t = law(10_000, key=key)
    assert t.shape == (10_000,)
    assert np.all((t >= 0) & (t <= 1))


# A monotone map takes medians to medians; that of Beta(2, 1) is 2^(-1/2), and the
# cosmap is symmetric.
MEDIANS = {
    "uniform": 0.5,
    "logit-normal": 0.5987,
    "arctan-lognormal": 0.7312,
    "beta": 0.7071,
    "cosmap": 0.5,
}


@pytest.mark.parametrize("name", MEDIANS)
def test_median_of_the_law(name, key):
    num = 40_000
    below = np.mean(LAWS[name](num, key=key) < MEDIANS[name])
    assert abs(below - 0.5) < 4 * 0.5 / np.sqrt(num)


def test_stratified_puts_one_time_in_each_stratum(key):
    t = fk.stratified(64, key=key)
    assert sorted((np.asarray(t) * 64).astype(int)) == list(range(64))
    assert not np.all(np.diff(t) > 0)


def test_laws_are_jitted_without_a_second_trace(key):
    jitted = eqx.filter_jit(
        eqx.debug.assert_max_traces(lambda law, key: law(8, key=key), max_traces=1)
    )
    jitted(fk.LogitNormal(0.0, 1.0), key)
    jitted(fk.LogitNormal(0.0, 1.0), jr.key(1))
