"""A one-step model in stages: a flow, perhaps a straighter one, and a map along it.

One `fk.few_step.FlowMap` serves all stages. At equal times it is the velocity of a flow,
which is trained first. It then learns to jump along this flow.
"""

from collections.abc import Callable, Mapping
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float

from flowkit import few_step, metrics, training
from flowkit._checks import as_size
from flowkit._couplings import Paired
from flowkit._losses import flow_matching_loss
from flowkit._solve import integrate, sample
from flowkit._types import AnyArray, PRNGKey


def flow_map_stages(
    shape: tuple[int, ...],
    *,
    num_steps: int,
    map_steps: int,
    reflow_steps: int = 0,
    num_pairs: int = 20_000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    key: PRNGKey,
) -> list[training.Stage]:
    """The stages `flow`, `reflow` and `map` of a `FlowMap`, for `fk.training.fit_stages`.

    ```python
    stages = fk.pipelines.flow_map_stages((2,), num_steps=12_000, map_steps=6000, key=key)
    results = fk.training.fit_stages(stages, flow_map, x1, batch_size=256, key=fit_key)
    ```

    `flow` is flow matching. `reflow` trains a straighter flow on pairs of noise and the
    points to which the first flow carries it (arXiv 2209.03003). `map` is MeanFlow (arXiv
    2505.13447) on such pairs from the flow before it.

    **Arguments:**

    - `shape`: the shape of one example.
    - `num_steps`, `reflow_steps`, `map_steps`: the number of steps of each stage. The last
        two are left out if that is 0.
    - `num_pairs`: the number of pairs that are made for a later stage.
    - `batch_size`: examples per step of the later stages.
    - `learning_rate`: the initial learning rate of Adam in each stage, with cosine decay.

    **Raises:** `ValueError` for invalid numbers of steps, and for fewer pairs than a batch
    has.
    """
    num_steps = as_size("num_steps", num_steps)
    for name, steps in {"map_steps": map_steps, "reflow_steps": reflow_steps}.items():
        if steps < 0:
            raise ValueError(f"`{name}` must not be negative, got {steps}.")
    # Before the first stage, since pairs are made only after it.
    if map_steps + reflow_steps > 0 and num_pairs < batch_size:
        raise ValueError(
            f"`num_pairs` is {num_pairs}, less than the `batch_size` {batch_size} of the "
            "stages that use them; give more pairs."
        )

    def pairs(model: Any) -> few_step.ReflowPairs:
        velocity = few_step.velocity_of(model)
        options: Any = {"solver": dfx.Midpoint(), "num_steps": 15}
        return few_step.reflow_pairs(velocity, shape, num_pairs, **options, key=key)

    def stage(name: str, loss: Callable, steps: int, **data: Any) -> training.Stage:
        # A schedule for each stage, so that every stage begins at the full rate.
        schedule = optax.cosine_decay_schedule(learning_rate, steps)
        return training.Stage(name, loss, steps, optax.adam(schedule), **data)

    stages = [stage("flow", _flow_loss, num_steps)]
    later: Any = {"batches": pairs, "batch_size": batch_size}
    if reflow_steps > 0:
        stages.append(stage("reflow", _reflow_loss, reflow_steps, **later))
    if map_steps > 0:
        stages.append(stage("map", _map_loss, map_steps, **later))
    return stages


def flow_map_distances(
    models: Mapping[str, few_step.FlowMap],
    sampler: Callable[..., Any],
    *,
    num_points: int,
    num_draws: int = 20,
    solver: dfx.AbstractSolver = dfx.Euler(),
    num_steps: int = 100,
    key: PRNGKey,
) -> dict[str, float]:
    """The exact 2-Wasserstein distance of samples from fresh data, next to its floor.

    The floor is the distance between two fresh sets. Every number is a mean over draws and
    has a standard error.

    **Arguments:**

    - `models`: the models of the stages of `flow_map_stages`; `flow` must be there.
    - `sampler`: `(num, *, key) -> (num, d)`, the data.
    - `num_points`, `num_draws`: the size of a set and the number of sets.
    - `solver`, `num_steps`: how flows are sampled; maps take one step.

    **Returns:** `w2_floor`, `w2` (of the flow) and `w2_over_floor`; if there are stages for
    them, also `w2_reflow`, `w2_reflow_one_euler_step` and `w2_one_step`; and
    `..._standard_error` of each.
    """
    sample_key, *fresh_keys = jr.split(key, 2 * num_draws + 1)
    fresh = [sampler(num_points, key=fresh_key) for fresh_key in fresh_keys]
    reference = fresh[:num_draws]
    shape = reference[0].shape[1:]
    number = num_draws * num_points
    numbers: dict[str, float] = {}

    def measure(name: str, sets: Any) -> metrics.RepeatedDistance:
        found = metrics.repeated_distance(sets, reference)
        numbers[name] = found.mean
        numbers[f"{name}_standard_error"] = found.standard_error
        return found

    def ends(stage: str, **options: Any) -> jax.Array:
        flow = few_step.velocity_of(models[stage])
        # One key for all models, so that they differ by more than their noise.
        drawn = sample(flow, shape, num_samples=number, **options, key=sample_key)
        return drawn.values.reshape(num_draws, num_points, *shape)

    how: Any = {"solver": solver, "num_steps": num_steps}

    floor = measure("w2_floor", fresh[num_draws:])
    ratio, error = measure("w2", ends("flow", **how)).over(floor)
    numbers["w2_over_floor"] = ratio
    numbers["w2_over_floor_standard_error"] = error
    if "reflow" in models:
        measure("w2_reflow", ends("reflow", **how))
        once = ends("reflow", solver=dfx.Euler(), num_steps=1)
        measure("w2_reflow_one_euler_step", once)
    if "map" in models:
        drawn = few_step.sample(
            models["map"], shape, num_samples=number, key=sample_key
        )
        measure("w2_one_step", drawn.reshape(num_draws, num_points, *shape))
    return numbers


def flow_paths(
    flow: Callable[..., Any],
    x0: Float[AnyArray, " n *shape"],
    times: Float[AnyArray, " t"],
    *,
    solver: dfx.AbstractSolver = dfx.Midpoint(),
    num_steps: int | None = None,
) -> Float[Array, " n t *shape"]:
    """Where a flow carries points: their positions at given times, for figures.

    **Arguments:**

    - `flow`: `(t, x, cond) -> dx` for one point.
    - `x0`: the points at time 0.
    - `times (t,)`: increasing, in [0, 1].
    - `solver`, `num_steps`: as in `fk.integrate`, with equal steps; by default as many as
        `times` has intervals.
    """
    num_steps = len(times) - 1 if num_steps is None else num_steps
    x0 = jnp.asarray(x0)
    return _paths(flow, x0, jnp.asarray(times, x0.dtype), solver, num_steps)


@eqx.filter_jit
def _paths(flow, x0, times, solver, num_steps):
    saveat = dfx.SaveAt(ts=times)

    def path(x) -> Any:
        options: Any = {"solver": solver, "num_steps": num_steps, "saveat": saveat}
        return integrate(flow, x, **options).ys

    return jax.vmap(path)(x0)


def _flow_loss(model, x1, key):
    return flow_matching_loss(few_step.velocity_of(model), x1, key=key)


def _reflow_loss(model, pairs, key):
    flow = few_step.velocity_of(model)
    coupling = Paired(pairs.x0)
    return flow_matching_loss(flow, pairs.x1, coupling=coupling, key=key)


def _map_loss(model, pairs, key):
    coupling = Paired(pairs.x0)
    return few_step.mean_flow_loss(model, pairs.x1, coupling=coupling, key=key)
