"""What solvers lose under conditions and guidance that they were not fitted to.

    python benchmarks/fitted_conditions.py

A flow of the checkerboard knows the four columns as one-hot conditions. Solvers of eight
evaluations are fitted to three of them, and judged

- on the same three, with other noise,
- on the fourth column,
- on the three, and on the fourth, under guidance,
- without a condition.

Beside them stand the best of nine fixed grids of the midpoint rule, chosen by its error in
the situation itself, and solvers that are fitted to that situation. The error is the root
mean square, over all entries, of the distances to a solve in float64. Results go to
`benchmarks/results/fitted_conditions.json`.
"""

import dataclasses
from typing import Any, NamedTuple

import _report
import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from _solver_flows import accurate, checkerboard_data, in_float64, rms
from _solver_methods import fixed_grids

import flowkit as fk


NUM_COLUMNS = 4

SOLVERS = {"fitted grid": (dfx.Midpoint(), 4), "fitted steps": (None, 8)}
"""What is fitted: the solver of a grid, and its steps; the evaluations of free steps."""


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
    """A flow that knows the columns, and no condition as zeros."""
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
    fitted = {}
    for name, (solver, number) in SOLVERS.items():
        if solver is None:
            steps = fk.solvers.fit_steps(
                situation.flow, (2,), num_evaluations=number, **options
            )
            fitted[name] = {"solver": steps}
            continue
        times = fk.solvers.fit_grid(
            situation.flow, (2,), num_steps=number, solver=solver, **options
        )
        controller = dfx.StepTo(times)
        fitted[name] = {"solver": solver, "stepsize_controller": controller}
    return fitted


class Judge:
    """The errors of solvers in a situation, on noise that no fit saw."""

    def __init__(self, situation: Situation, config: Config, *, key: jax.Array):
        self.flow = situation.flow
        self.starts = jr.normal(key, (config.num_samples, 2))
        self.conds = situation.conds(config.num_samples)
        self.ends = self.reference()

    def reference(self) -> np.ndarray:
        with jax.enable_x64(True):
            starts = jnp.asarray(np.asarray(self.starts, np.float64))
            conds = jnp.asarray(np.asarray(self.conds, np.float64))
            flow = in_float64(self.flow)
            return self.drawn(flow, starts, conds, accurate(1e-9))

    def error(self, options: dict[str, Any]) -> float:
        return rms(self.drawn(self.flow, self.starts, self.conds, options), self.ends)

    @staticmethod
    def drawn(
        flow: Any, starts: Any, conds: Any, options: dict[str, Any]
    ) -> np.ndarray:
        given = {"x0": starts, "cond": conds}
        drawn = fk.sample(flow, (2,), num_samples=len(starts), **given, **options)
        return np.asarray(drawn.values)

    def best_fixed(self) -> float:
        """The least error of the midpoint rule on nine grids of four steps."""
        grids = fixed_grids(4, 1.0)
        options = {"solver": dfx.Midpoint()}
        return min(
            self.error(options | {"stepsize_controller": dfx.StepTo(grid)})
            for grid in grids
        )


def main(config: Config) -> None:
    flow_key, fit_key, judge_key = jr.split(jr.key(config.seed), 3)
    flow = train(config, key=flow_key)
    several = situations(flow, config)
    known = fit(several[0], config, key=fit_key)

    rows = []
    for situation in several:
        judge = Judge(situation, config, key=judge_key)
        row = {"situation": situation.name, "best of nine": judge.best_fixed()}
        row |= {name: judge.error(options) for name, options in known.items()}
        own = fit(situation, config, key=fit_key)
        row |= {f"{name} here": judge.error(options) for name, options in own.items()}
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
