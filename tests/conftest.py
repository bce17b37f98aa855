"""Settings of the whole suite: two virtual CPU devices, quick compilation, strict dtype
promotion, no display."""

import gc
import os
from pathlib import Path


os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("MPLBACKEND", "agg")

import jax


# Nearly all of the time of the suite is compilation; without optimisation it takes a third.
FLAGS = [
    "--xla_force_host_platform_device_count=2",
    "--xla_backend_optimization_level=0",
]
if jax.__version_info__ < (0, 11):  # later ones do not know this flag, and would stop
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(
    [*FLAGS, os.environ.get("XLA_FLAGS", "")]
)  # read when the first device is used

import jax.random as jr
import pytest


MAPS = Path("/proc/self/maps")

# Programs that stay leave millions of objects: to search them for garbage again and again, as
# Python does by default, takes 3 to 8% of the time.
gc.set_threshold(50_000, 20, 100)


def pytest_collection_finish():
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Every compiled program holds memory, and memory maps, of which a process has only
    so many (65,530 by default on Linux)."""
    yield
    if not MAPS.exists() or len(MAPS.read_text().splitlines()) > 15_000:
        jax.clear_caches()


@pytest.fixture
def key():
    return jr.key(5678)
