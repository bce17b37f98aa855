"""Settings of the whole suite: two virtual CPU devices, strict dtype promotion, no display."""

import os


os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import jax.random as jr
import pytest


@pytest.fixture(autouse=True, scope="module")
def fresh_caches():
    """Every compiled program holds memory maps, of which a process has only so many (65,530 by default on Linux)."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jr.key(5678)
