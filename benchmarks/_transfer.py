"""An MLP of flowkit as arrays, from which `_torch_peers.py` builds the same network."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowkit as fk


def transferred(flow: fk.Standardized) -> dict[str, Any]:
    """Weights, units and frequencies of time, and velocities by which the copy is checked.

    The network is an `fk.nn.MLP` with `SinusoidalTime` or `RawTime`.
    """
    bare: Any = flow.flow
    network = bare.network
    arrays = {"mean": flow.shift.value, "std": flow.scale.value}
    for i, layer in enumerate(network.layers.layers):
        arrays[f"weight{i}"] = layer.weight
        arrays[f"bias{i}"] = layer.bias

    embedding = network.time_embedding
    if isinstance(embedding, fk.nn.SinusoidalTime):
        # At time 0, the slope of a sine is its frequency.
        slopes = jax.jacfwd(embedding)(jnp.zeros(()))
        arrays["frequencies"] = slopes[: embedding.out_size // 2]

    time_key, place_key = jr.split(jr.key(0))
    times = jr.uniform(time_key, (256,))
    places = 2 * jr.normal(place_key, (256, 2))
    arrays |= {
        "times": times,
        "places": places,
        "velocities": jax.vmap(flow)(times, places),
    }
    return {name: np.asarray(array) for name, array in arrays.items()}
