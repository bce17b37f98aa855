"""What generative models make of the same noise and the same data, as arrays by name.

| name | shape | what it is | of |
|---|---|---|---|
| `output` | `(n, d)` | decoded latents `z` | autoencoders, decoders |
| `paths` | `(n, t, d)` | paths of a flow from `z`, at `OUTPUT_TIMES` | flows, flow maps |
| `one_step` | `(n, d)` | one step from `z` (of a flow, Euler's) | flows, flow maps |
| `two_steps` | `(n, 3, d)` | two jumps from `z` | flow maps |
| `latents` | `(m, d)` | encoded data `x` | autoencoders, flow maps |
| `decoded` | `(m, d)` | these latents decoded | autoencoders, flow maps |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit import few_step, latent, metrics
from flowkit._flow import Flow
from flowkit._types import AnyArray, PRNGKey
from flowkit.pipelines._flow_maps import flow_paths


OUTPUT_TIMES = np.linspace(0, 1, 21, dtype=np.float32)
"""The times of the paths of `model_outputs`."""

OUTPUT_NAMES = ("output", "paths", "one_step", "two_steps", "latents", "decoded")
"""The names of the outputs."""

_NUM_FLOORS = 5


@eqx.filter_jit
def model_outputs(
    model: Any,
    z: Float[AnyArray, "n d"],
    x: Float[AnyArray, "m d"],
    *,
    key: PRNGKey,
) -> dict[str, Array]:
    """What a model makes of noise `z` and of data `x`, as arrays by name.

    **Arguments:**

    - `model`: a `fk.Flow`, a `fk.few_step.FlowMap`, or a decoder or autoencoder of
        `fk.latent` with as many latents as data have entries.
    - `key`: for the latents of a VAE, which are drawn at random, since it is the draws
      that should follow the prior.

    **Returns:** `paths` and `one_step` of a flow; of a map also `two_steps`, `latents` and
    `decoded`; `output` of a decoder, with `latents` and `decoded` if it has an encoder.
    """
    z = jnp.asarray(z)
    x = jnp.asarray(x)
    if isinstance(model, Flow):
        one_step = z + jax.vmap(lambda x0: model(0.0, x0))(z)
        return {"paths": flow_paths(model, z, OUTPUT_TIMES), "one_step": one_step}
    if isinstance(model, few_step.FlowMap):
        return _map_outputs(model, z, x)

    arrays = {"output": jax.vmap(model.decoder)(z)}
    if isinstance(model, latent.Decoder):
        return arrays
    if isinstance(model, latent.VAE):
        encode = lambda x, key: model.encode(x, key=key)
        latents = jax.vmap(encode)(x, jr.split(key, len(x)))
    else:
        latents = jax.vmap(model.encode)(x)

    return arrays | {"latents": latents, "decoded": jax.vmap(model.decoder)(latents)}


def _map_outputs(flow_map, z, x):
    def jump(s, t, points):
        return jax.vmap(lambda x: few_step.jump(flow_map, s, t, x))(points)

    middle = jump(0.0, 0.5, z)
    latents = jump(1.0, 0.0, x)
    return {
        "paths": flow_paths(few_step.velocity_of(flow_map), z, OUTPUT_TIMES),
        "one_step": jump(0.0, 1.0, z),
        "two_steps": jnp.stack([z, middle, jump(0.5, 1.0, middle)], axis=1),
        "latents": latents,
        "decoded": jump(0.0, 1.0, latents),
    }


def record_outputs(
    names: Sequence[str],
    z: Float[AnyArray, "n d"],
    x: Float[AnyArray, "m d"],
    *,
    key: PRNGKey,
) -> Callable[..., dict[str, Array]]:
    """A callback of `fk.training.fit` that records `model_outputs` of the averaged model.

    **Arguments:** the `names` of the outputs to record; the others as in `model_outputs`.
    """

    def callback(state: Any, step: int) -> dict[str, Array]:
        arrays = model_outputs(state.ema, z, x, key=key)
        return {name: arrays[name] for name in names}

    return callback


def output_distances(
    models: Mapping[str, tuple[Any, Sequence[str]]],
    sampler: Callable[..., Any],
    *,
    num_samples: int,
    batch_size: int,
    key: PRNGKey,
) -> dict[str, Any]:
    """The exact 2-Wasserstein distances of samples from fresh data and of latents from noise.

    **Arguments:**

    - `models`: name -> the model, and the names of its outputs that are measured.
    - `sampler`: `(num, *, key) -> (num, d)`, the data.
    - `num_samples`: the least number of samples.
    - `batch_size`: samples that are made at a time; their number is a multiple of it.

    **Returns:** `w2_floor`, the distance between two draws of the data (a mean of five),
    `latent_w2_floor`, that of two draws of noise, and under `models` the numbers of each:
    `w2`, `mean` and `std` of the samples; and, if the outputs for them are given,
    `w2_one_step`, `w2_two_steps`, `path_to_one_step` (how far one step ends from the
    path), `latent_w2`, `latent_mean` and `latent_std`.
    """
    # Rounded up, so that all batches are full.
    parts = -(-num_samples // batch_size)
    fresh_key, floor_key, prior_key, data_key, noise_key = jr.split(key, 5)
    number = parts * batch_size
    fresh = sampler(number, key=fresh_key)
    # One draw as input, one to compare latents with, and a third for the floor between
    # them.
    prior = jr.normal(prior_key, (3, *fresh.shape))
    others = [sampler(number, key=one) for one in jr.split(floor_key, _NUM_FLOORS)]
    floor = metrics.repeated_distance(others, [fresh] * _NUM_FLOORS)
    results = {"w2_floor": floor.mean, "latent_w2_floor": _w2(prior[1], prior[2])}

    # In batches of one size, so that a model is compiled once.
    z = prior[0].reshape(parts, batch_size, -1)
    x = sampler(number, key=data_key).reshape(z.shape)
    keys = jr.split(noise_key, parts)
    found = {}

    for name, (model, wanted) in models.items():
        batches = [model_outputs(model, z[i], x[i], key=keys[i]) for i in range(parts)]
        arrays = {
            one: np.concatenate([batch[one] for batch in batches]) for one in wanted
        }
        found[name] = _distances(arrays, fresh, prior[1])

    return results | {"models": found}


def _distances(arrays: Mapping[str, np.ndarray], fresh: Any, prior: Any) -> dict:
    samples = arrays["paths"][:, -1] if "paths" in arrays else arrays["output"]
    numbers: dict[str, Any] = {"w2": _w2(samples, fresh)} | _moments(samples)
    if "one_step" in arrays:
        gaps = np.linalg.norm(samples - arrays["one_step"], axis=-1)
        numbers["w2_one_step"] = _w2(arrays["one_step"], fresh)
        numbers["path_to_one_step"] = {
            "mean": float(np.mean(gaps)),
            "std": float(np.std(gaps)),
        }
    if "two_steps" in arrays:
        numbers["w2_two_steps"] = _w2(arrays["two_steps"][:, -1], fresh)
    if "latents" in arrays:
        numbers["latent_w2"] = _w2(arrays["latents"], prior)
        numbers |= _moments(arrays["latents"], "latent_")

    return numbers


def _moments(samples: np.ndarray, prefix: str = "") -> dict[str, list[float]]:
    return {
        f"{prefix}mean": np.mean(samples, 0).tolist(),
        f"{prefix}std": np.std(samples, 0).tolist(),
    }


def _w2(x: Any, y: Any) -> float:
    return float(metrics.w2(jnp.asarray(x), jnp.asarray(y)))
