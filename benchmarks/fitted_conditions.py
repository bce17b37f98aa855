"""What solvers lose under conditions and guidance that they were not fitted to.

    python benchmarks/fitted_conditions.py

A flow of the checkerboard knows the four columns as one-hot conditions. Solvers of eight
evaluations are fitted to three of them, and judged

- on the same three, with other noise,
- on the fourth column,
- on the three, and on the fourth, under guidance,
- without a condition.

They are compared with the best of nine fixed grids of the midpoint rule, chosen by its
error in the situation itself, and with solvers that are fitted to that situation. The
error is the root mean square, over all entries, of the distances to a solve in float64.
Results go to `benchmarks/results/fitted_conditions.json`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import _report
import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from _solver_flows import checkerboard_data, reference, rms
from _solver_methods import fixed_grids

import flowkit as fk


NUM_COLUMNS = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    guidance: float = 2.0
    """Scale of the guidance."""
    num_samples: int = 1024
    """Noises on which all are judged, and as many others for the fits."""
    num_steps: int = 6000
    """Training steps."""
    seed: int = 0
    """Random seed."""


class Situation(NamedTuple):
    """A velocity field, and the columns that it is asked for."""

    name: str
    flow: Any
    columns: tuple[int, ...]
    """Empty for no condition."""

    def conds(self, num: int) -> jax.Array:
        """A condition for each of the samples, the columns in turn."""
        if not self.columns:
            return jnp.zeros((num, NUM_COLUMNS))
        columns = np.resize(np.array(self.columns), num)
        return jax.nn.one_hot(columns, NUM_COLUMNS)


def train(config: Config, *, key: jax.Array) -> fk.Standardized:
    """A flow conditioned on the columns, where zeros stand for no condition."""
    data_key, network_key, fit_key = jr.split(key, 3)
    points = checkerboard_data(200_000, key=data_key)
    # The board is as wide as it is high, and its middle is the origin.
    width = points[:, 0].max() - points[:, 0].min()
    columns = np.floor((points[:, 0] / width + 0.5) * NUM_COLUMNS)
    columns = np.clip(columns, 0, NUM_COLUMNS - 1).astype(int)
    data = (points, np.eye(NUM_COLUMNS, dtype=np.float32)[columns])

    network = fk.nn.MLP(2, cond_size=NUM_COLUMNS, key=network_key)
    flow = fk.Standardized.of(fk.Flow(network), points)

    def loss(flow, batch, key):
        drop_key, key = jr.split(key)
        x1, cond = batch
        cond = fk.drop_condition(cond, key=drop_key)
        return fk.flow_matching_loss(flow, x1, cond, key=key)

    return fk.training.fit(
        loss,
        flow,
        data,
        batch_size=512,
        num_steps=config.num_steps,
        optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, config.num_steps)),
        steps_per_call=50,
        progress=False,
        key=fit_key,
    ).ema


def situations(flow: fk.Standardized, config: Config) -> list[Situation]:
    guided = fk.guided(flow, config.guidance)
    return [
        Situation("the same columns", flow, (0, 1, 2)),
        Situation("another column", flow, (3,)),
        Situation("the same columns, guided", guided, (0, 1, 2)),
        Situation("another column, guided", guided, (3,)),
        Situation("no condition", flow, ()),
    ]


def fit(
    situation: Situation, config: Config, *, key: jax.Array
) -> dict[str, dict[str, Any]]:
    """Name -> options of `fk.sample`, fitted to the situation."""
    options = {
        "cond": situation.conds(config.num_samples),
        "num_noises": config.num_samples,
        "key": key,
    }
    times = fk.solvers.fit_grid(
        situation.flow, (2,), num_steps=4, solver=dfx.Midpoint(), **options
    )
    steps = fk.solvers.fit_steps(situation.flow, (2,), num_evaluations=8, **options)
    return {"fitted grid": on_grid(times), "fitted steps": {"solver": steps}}


def on_grid(times: jax.Array) -> dict[str, Any]:
    controller = dfx.StepTo(times)
    return {"solver": dfx.Midpoint(), "stepsize_controller": controller}


def judge(
    situation: Situation, config: Config, *, key: jax.Array
) -> Callable[[dict[str, Any]], float]:
    """The error of a solver in the situation, on noise that no fit saw."""
    starts = jr.normal(key, (config.num_samples, 2))
    cond = situation.conds(config.num_samples)
    ends = reference(situation.flow, starts, tolerance=1e-9, cond=cond)
    given = {"num_samples": len(starts), "x0": starts, "cond": cond}

    def error(options):
        drawn = fk.sample(situation.flow, (2,), **given, **options)
        return rms(np.asarray(drawn.values), ends)

    return error


def main(config: Config) -> None:
    flow_key, fit_key, judge_key = jr.split(jr.key(config.seed), 3)
    flow = train(config, key=flow_key)
    several = situations(flow, config)
    known = fit(several[0], config, key=fit_key)
    grids = [on_grid(grid) for grid in fixed_grids(4, 1.0)]

    rows = []
    for i, situation in enumerate(several):
        error = judge(situation, config, key=judge_key)
        best = min(error(options) for options in grids)
        row = {"situation": situation.name, "best of nine": best}
        row |= {name: error(options) for name, options in known.items()}
        own = fit(situation, config, key=fit_key) if i else known
        row |= {f"{name} here": error(options) for name, options in own.items()}
        rows.append(row)
        _report.show("errors", [row])

    _report.show("eight evaluations", rows)
    _report.save(
        "fitted_conditions",
        config.seed,
        config=dataclasses.asdict(config),
        results={"errors": rows},
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
