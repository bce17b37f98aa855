"""Registries of the core and the closed forms that the tests compare with."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

import flowkit as fk


PATHS = {
    "linear": fk.LinearPath(),
    "linear-sigma-min": fk.LinearPath(sigma_min=1e-2),
    "cosine": fk.CosinePath(),
    "polynomial": fk.PolynomialPath(2),
    "variance-preserving": fk.VariancePreservingPath(),
    "user-given": fk.AffinePath(
        lambda t: t * (1.5 - 0.5 * t), lambda t: (1 - t) * (1 + 0.5 * t)
    ),
}
PREDICTIONS = {
    "velocity": fk.Velocity(),
    "noise": fk.Noise(),
    "target": fk.Target(),
    "score": fk.Score(),
}

# A lopsided one-dimensional mixture: mean -0.8, variance 3.916, mass left of zero 0.6958.
MEANS, STDS, WEIGHTS = np.array([-2.0, 2.0]), np.array([0.8, 0.6]), np.array([0.7, 0.3])


def mixture_1d(dtype=jnp.float32):
    return fk.GaussianMixture(
        jnp.asarray(MEANS[:, None], dtype),
        jnp.asarray(STDS, dtype),
        jnp.asarray(WEIGHTS, dtype),
    )


def mixture_2d(dtype=jnp.float32):
    """Two full covariances: every sign and every transpose matters."""
    means = jnp.array([[-1.5, 0.5], [1.0, 2.0]], dtype)
    covariances = jnp.array(
        [[[0.5, 0.3], [0.3, 0.4]], [[0.2, -0.1], [-0.1, 0.7]]], dtype
    )
    return fk.GaussianMixture(means, covariances, jnp.array([0.6, 0.4], dtype))


def mixture_log_prob(x):
    """Log-density of the one-dimensional mixture, by scipy."""
    return np.log(
        np.sum(WEIGHTS * norm.pdf(np.asarray(x)[..., None], MEANS, STDS), axis=-1)
    )


def mixture_map(x, s, t):
    """The flow map of the one-dimensional mixture: F_t^-1(F_s(x)), since flows in one
    dimension preserve order."""

    def cdf(x, t):
        return np.sum(
            WEIGHTS * norm.cdf(x, t * MEANS, np.sqrt((1 - t) ** 2 + (t * STDS) ** 2))
        )

    return brentq(lambda y: cdf(y, t) - cdf(x, s), -20, 20, xtol=1e-12)


def one_of(flows):
    """A velocity that is that of flow number `cond`: solves of all of them share a program."""

    def velocity(t, x, cond):
        calls = [lambda t, x, flow=flow: flow(t, x) for flow in flows]
        return jax.lax.switch(cond, calls, t, x)

    return velocity


@contextlib.contextmanager
def compilations():
    """Counts what XLA compiles inside the block."""
    events = []
    listener = lambda name, duration, **_: (
        events.append(name) if "backend_compile" in name else None
    )
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def rounded_products(fn, *args):
    """The products of single precision that GPUs and TPUs round to 10 bits or fewer."""
    program = jax.jit(fn).lower(*args).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products
    return [line for line in products if "HIGHEST" not in line]
