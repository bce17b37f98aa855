"""A flow from noise to T-Rex, and a map that does it in one step: train them, judge them, look at them.

    python examples/trex.py all
    python examples/trex.py train --data.name spiral --training.num-steps 5000
    python examples/trex.py train --model.hidden-sizes 128 256 256 128 --model.num-frequencies 0 --model.time learned
    python examples/trex.py all --data.name points.csv --output artifacts/points
    python examples/trex.py visualize --visualization.solver midpoint --visualization.num-sampling-steps 20

One network of two times serves both. At equal times it is the velocity of a flow, which is trained first. Then it
learns the average velocity from one time to another by MeanFlow, on pairs of noise and where the flow carries it.

`train` writes checkpoints and `metrics.json` to the output folder, `visualize` draws what the checkpoints there hold,
`all` does both. Interrupt the training and start it again: it goes on from its last checkpoint.
"""

import dataclasses
import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

import flowkit as fk
from flowkit import few_step


SOLVERS = {
    "euler": dfx.Euler(),
    "midpoint": dfx.Midpoint(),
    "heun": dfx.Heun(),
    "rk4": fk.RK4(),
    "tsit5": dfx.Tsit5(),
    "dopri5": dfx.Dopri5(),
}


def check_least(config: Any, group: str, **least: int) -> None:
    """Raises for numbers that are too small, before long work starts."""
    for name, value in least.items():
        if getattr(config, name) < value:
            option = f"--{group}.{name.replace('_', '-')}"
            raise ValueError(
                f"{option} must be at least {value}, got {getattr(config, name)}."
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Points in the plane."""

    name: str = "trex"
    """A toy of `fk.data.TOYS_2D`, such as `trex`, `trex_parametric`, `spiral` or `datasaurus_star`, or the path of a
    CSV file of points, which are centred and scaled to [-1, 1]."""
    columns: tuple[str, ...] = ()
    """Of a CSV file: the two to read, by the names in its header. All of them by default."""
    num_samples: int = 10_000
    """Points to train on."""
    noise: float | None = None
    """Standard deviation of the blur of sets that have one. By default that of the set: 0.02 for T-Rex and files."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    """Widths of the hidden layers."""
    num_frequencies: int = 32
    """Random Fourier features of the place beside its coordinates; 0 for none."""
    frequency_scale: float = 1.0
    """Standard deviation of these frequencies, in periods per unit."""
    time: Literal["sinusoidal", "learned"] = "sinusoidal"
    """The embedding of a time: sines and cosines, or two learned layers."""
    time_size: int = 64
    """Size of that embedding."""

    def __post_init__(self):
        check_least(self, "model", num_frequencies=0)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the flow and the one-step map are trained."""

    num_steps: int = 12_000
    """Steps of the flow in all, those before an interruption included."""
    map_steps: int = 6000
    """Steps of the one-step map; 0 for none."""
    reflow_steps: int = 0
    """Steps of a straighter flow, on pairs of noise and where the flow carries it, from which the map then starts."""
    num_pairs: int = 20_000
    """How many pairs the flow makes for the map, and for the straighter flow."""
    batch_size: int = 256
    """Points per step."""
    learning_rate: float = 2e-3
    """Of Adam, at the beginning of a cosine decay."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are the ones judged."""
    steps_per_call: int = 100
    """Steps of one compiled call."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, which are the stages of the explorer."""
    num_judged: int = 2000
    """Points of each set whose distance from fresh data is measured."""
    num_draws: int = 20
    """How many such sets a distance is averaged over."""

    def __post_init__(self):
        check_least(
            self,
            "training",
            num_steps=1,
            map_steps=0,
            reflow_steps=0,
            num_pairs=1,
            batch_size=1,
        )
        check_least(
            self,
            "training",
            num_judged=1,
            num_draws=2,
            steps_per_call=1,
            checkpoint_every=1,
        )
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"--training.learning-rate must be positive, got {self.learning_rate}."
            )
        if (self.map_steps or self.reflow_steps) and self.num_pairs < self.batch_size:
            raise ValueError(
                f"--training.num-pairs must be at least --training.batch-size, {self.batch_size}; got {self.num_pairs}."
            )


@dataclasses.dataclass(frozen=True)
class VisualizationConfig:
    """How the flow is sampled and drawn."""

    solver: Literal["euler", "midpoint", "heun", "rk4", "tsit5", "dopri5"] = "euler"
    """Of the flow, also where `train` measures it."""
    num_sampling_steps: int = 100
    """Steps of the solver, all of one length."""
    num_points: int = 2000
    """Points of a figure."""
    num_particles: int = 100
    """Points whose trails are drawn."""
    num_frames: int = 20
    """Frames of an animation, before the last one stands still."""
    grid_size: int = 20
    """Arrows of the velocity field along each axis."""
    window: float = 1.5
    """Half the width of what is shown; more for data that reach further."""

    def __post_init__(self):
        check_least(
            self,
            "visualization",
            num_sampling_steps=5,
            num_points=1,
            num_particles=1,
            num_frames=2,
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a flow and a one-step map on points in the plane, and draw them."""

    command: tyro.conf.Positional[Literal["train", "visualize", "all"]] = "all"
    """`visualize` takes data and model from the run in the output folder."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    visualization: VisualizationConfig = VisualizationConfig()
    seed: int = 42
    """Of everything random."""
    output: str = "artifacts/trex"
    """Folder for figures, metrics and checkpoints."""


STAGES = ("flow", "reflow", "map")


def main(config: Config) -> None:
    if config.command != "visualize":
        train(config)
    if config.command != "train":
        visualize(config)


# -- data and network


def load(config: DataConfig) -> Callable[..., jax.Array]:
    """The sampler `(num, *, key) -> (num, 2)` of the data that are named."""
    noise = {} if config.noise is None else {"noise": config.noise}
    if config.name in fk.data.TOYS_2D:
        toy = fk.data.TOYS_2D[config.name]
        if noise and "noise" not in inspect.signature(toy).parameters:
            raise ValueError(
                f"--data.noise is not for {config.name}, whose width is its own; leave it out."
            )
        return lambda num, *, key: toy(num, **noise, key=key)
    if not Path(config.name).is_file():
        known = ", ".join(fk.data.TOYS_2D)
        raise ValueError(
            f"--data.name must be a CSV file that exists or one of {known}, got {config.name!r}."
        )
    points, _ = fk.data.fit_unit_box(
        fk.data.load_csv(config.name, config.columns or None)
    )
    if points.shape[1] != 2:
        raise ValueError(
            f"{config.name} has {points.shape[1]} columns; name two with --data.columns."
        )
    return lambda num, *, key: fk.data.resample(
        points, num, **{"noise": 0.02} | noise, key=key
    )


class Network(eqx.Module):
    """An MLP that sees Fourier features of the place beside its coordinates."""

    features: fk.nn.FourierFeatures | None
    mlp: fk.nn.MLP

    def __call__(self, t, x, cond=None):
        seen = (
            x
            if self.features is None
            else jnp.concatenate([x, self.features(x[None])[0]])
        )
        return self.mlp(t, seen)


def build(config: ModelConfig, *, key: jax.Array) -> few_step.FlowMap:
    fkey, mkey, *tkeys = jr.split(key, 4)
    num, features = config.num_frequencies, None
    if num > 0:
        features = fk.nn.FourierFeatures(
            2, num_frequencies=num, scale=config.frequency_scale, key=fkey
        )
    if config.time == "sinusoidal":
        embeddings = [fk.nn.SinusoidalTime(config.time_size, scale=1.0)]
    else:
        embeddings = [fk.nn.LearnedTime(config.time_size, key=key) for key in tkeys]
    times = fk.nn.TwoTimes(*embeddings)
    mlp = fk.nn.MLP(
        2 + 2 * num,
        2,
        hidden_sizes=tuple(config.hidden_sizes),
        time_embedding=times,
        key=mkey,
    )
    return few_step.FlowMap(Network(features, mlp))


# -- training


def keys_of(config: Config) -> jax.Array:
    """For data, model, training, judgement, pairs and figures."""
    return jr.split(jr.key(config.seed), 6)


def train(config: Config) -> None:
    sampler = load(config.data)
    dkey, mkey, tkey, jkey, pkey, _ = keys_of(config)
    data, model = (
        sampler(config.data.num_samples, key=dkey),
        build(config.model, key=mkey),
    )
    results = fk.training.fit_stages(
        stages(config, pkey),
        model,
        data,
        batch_size=config.training.batch_size,
        steps_per_call=config.training.steps_per_call,
        ema_decay=fk.training.WarmUpDecay(config.training.ema_decay),
        checkpoints=checkpoints(config),
        callbacks=[fk.training.Every(config.training.checkpoint_every, stopwatch())],
        key=tkey,
    )
    seconds = elapsed(
        np.concatenate(
            [result.history["seconds"].values for result in results.values()]
        )
    )
    metrics = {
        "steps": {name: int(result.state.step) for name, result in results.items()},
        "seconds": seconds,
    }
    print("Measuring the distance from fresh data ...", flush=True)
    metrics |= judge(
        {name: result.ema for name, result in results.items()},
        sampler,
        config,
        key=jkey,
    )
    (Path(config.output) / "metrics.json").write_text(
        json.dumps(metrics, indent=2) + "\n"
    )
    print(json.dumps(metrics, indent=2))
    print(f"Metrics and checkpoints are in {config.output}/.")


def stages(config: Config, key: jax.Array) -> list[fk.training.Stage]:
    """The flow, perhaps a straighter one, and the map, each from where the one before ended."""
    training = config.training

    def pairs(model):
        options = {"solver": dfx.Midpoint(), "num_steps": 15, "key": key}
        return few_step.reflow_pairs(
            few_step.velocity_of(model), (2,), training.num_pairs, **options
        )

    def flow_loss(model, x1, key):
        return fk.flow_matching_loss(few_step.velocity_of(model), x1, key=key)

    def reflow_loss(model, pairs, key):
        return fk.flow_matching_loss(
            few_step.velocity_of(model), pairs.x1, coupling=fk.Paired(pairs.x0), key=key
        )

    def map_loss(model, pairs, key):
        return few_step.mean_flow_loss(
            model, pairs.x1, coupling=fk.Paired(pairs.x0), key=key
        )

    losses = {"flow": flow_loss, "reflow": reflow_loss, "map": map_loss}
    steps = {
        "flow": training.num_steps,
        "reflow": training.reflow_steps,
        "map": training.map_steps,
    }
    made: list[fk.training.Stage] = []
    for name in STAGES:
        if name == "flow" or steps[name] > 0:
            optimizer = optax.adam(
                optax.cosine_decay_schedule(training.learning_rate, max(steps[name], 1))
            )
            own = (
                {}
                if name == "flow"
                else {"batches": pairs, "batch_size": training.batch_size}
            )
            made.append(
                fk.training.Stage(name, losses[name], steps[name], optimizer, **own)
            )
    return made


def checkpoints(config: Config) -> fk.training.Checkpoints:
    """All of them are kept, for the explorer. A run is told from others by what decides on its data and model."""
    every = config.training.checkpoint_every
    free = (
        "num_steps",
        "map_steps",
        "reflow_steps",
        "steps_per_call",
        "checkpoint_every",
        "num_judged",
        "num_draws",
    )
    training = {
        name: value
        for name, value in dataclasses.asdict(config.training).items()
        if name not in free
    }
    stored = {
        "data": dataclasses.asdict(config.data),
        "model": dataclasses.asdict(config.model),
        "training": training,
    }
    return fk.training.Checkpoints(
        Path(config.output) / "checkpoints",
        every=every,
        keep=1000,
        config=stored | {"seed": config.seed},
    )


def stopwatch() -> Callable[..., dict[str, float]]:
    """A callback: the seconds since now."""
    start = time.perf_counter()
    return lambda state, step: {"seconds": time.perf_counter() - start}


def elapsed(seconds: np.ndarray) -> float:
    """The sum over the sessions of a run of a stopwatch that starts anew in each."""
    ends_session = np.append(np.diff(seconds) < 0, True)
    return float(np.sum(seconds[ends_session]))


# -- judgement


def judge(
    models: dict[str, few_step.FlowMap],
    sampler: Callable[..., jax.Array],
    config: Config,
    *,
    key: jax.Array,
) -> dict[str, float]:
    """W2 between generated points and fresh data, and between two fresh sets, the floor; means over several draws."""
    num, draws = config.training.num_judged, config.training.num_draws
    gkey, *fkeys = jr.split(key, 2 * draws + 1)
    fresh = [sampler(num, key=key) for key in fkeys]
    standard_error = lambda values: float(np.std(values, ddof=1) / draws**0.5)
    metrics: dict[str, float] = {}

    def measure(name: str, clouds: Any) -> np.ndarray:
        with ThreadPoolExecutor() as pool:  # assignments are solved on the host
            distances = np.asarray(
                [float(one) for one in pool.map(fk.metrics.w2, clouds, fresh[:draws])]
            )
        metrics.update(
            {
                name: float(np.mean(distances)),
                f"{name}_standard_error": standard_error(distances),
            }
        )
        return distances

    def ends(model: few_step.FlowMap, **options: Any) -> jax.Array:
        flow = few_step.velocity_of(model)
        return fk.sample(
            flow, (2,), num_samples=draws * num, key=gkey, **options
        ).values.reshape(draws, num, 2)

    floors, distances = (
        measure("w2_floor", fresh[draws:]),
        measure("w2", ends(models["flow"], **solver(config))),
    )
    metrics["w2_over_floor"] = ratio = metrics["w2"] / metrics["w2_floor"]
    metrics["w2_over_floor_standard_error"] = (
        standard_error(distances - ratio * floors) / metrics["w2_floor"]
    )
    if "reflow" in models:
        measure("w2_reflow", ends(models["reflow"], **solver(config)))
        measure(
            "w2_reflow_one_euler_step",
            ends(models["reflow"], solver=dfx.Euler(), num_steps=1),
        )
    if "map" in models:
        one = few_step.sample(models["map"], (2,), num_samples=draws * num, key=gkey)
        measure("w2_one_step", one.reshape(draws, num, 2))
    return metrics


def solver(config: Config) -> dict[str, Any]:
    return {
        "solver": SOLVERS[config.visualization.solver],
        "num_steps": config.visualization.num_sampling_steps,
    }


# -- figures


def visualize(config: Config) -> None:
    """Every figure from the checkpoints alone."""
    output, options = Path(config.output), config.visualization
    models, data_config = restore(output)
    sampler = load(data_config)
    dkey, *_, fkey = keys_of(config)
    target = np.asarray(sampler(options.num_points, key=dkey))
    x0 = jr.normal(fkey, (max(options.num_points, options.num_particles), 2))
    half = max(options.window, 1.1 * float(np.abs(target).max()))
    window = (-half, half)
    times = np.linspace(0, 1, options.num_sampling_steps + 1)
    flow = few_step.velocity_of(models["flow"])
    paths = {"flow": paths_of(flow, x0, times, config)}

    print("Drawing figures ...", flush=True)
    points = paths["flow"][: options.num_points]
    fk.plotting.samples_2d(
        target, points[:, -1], limits=window, path=output / "comparison.png"
    )
    fk.plotting.snapshots(
        times, points, target=target, limits=window, path=output / "trajectory.png"
    )
    arrows = {"points": target, "resolution": options.grid_size}
    fk.plotting.vector_field(flow, window, **arrows, path=output / "vector_field.png")
    if "map" in models:
        one = jax.vmap(lambda x: few_step.jump(models["map"], 0.0, 1.0, x))(
            x0[: options.num_points]
        )
        fk.plotting.samples_2d(target, one, limits=window, path=output / "one_step.png")
    if "reflow" in models:
        paths["reflow"] = paths_of(
            few_step.velocity_of(models["reflow"]), x0, times, config
        )
        draw_reflow(times, paths, target, config, window, output / "reflow.png")
    draw_curvature(times, paths, output / "curvature.png")

    print("Drawing animations ...", flush=True)
    chosen = np.round(np.linspace(0, len(times) - 1, options.num_frames)).astype(int)
    chosen = np.append(chosen, [len(times) - 1] * 4)  # stands still
    clouds = [(f"t = {times[k]:.2f}", points[:, k]) for k in chosen]
    shades = [fk.plotting.colors[role] for role in ("data_x", "output_x_hat")]
    frames = (
        fk.plotting.point_clouds(
            [target, xs], titles=["data", text], color=shades, limits=window
        )
        for text, xs in clouds
    )
    fk.plotting.animate(frames, output / "flow.gif", dpi=150)
    some, behind = (
        paths["flow"][: options.num_particles],
        {"target": target[:500], "limits": (-2 * half, 2 * half)},
    )
    frames = (
        fk.plotting.trajectories(times[:k], some[:, :k], **behind)
        for k in np.maximum(chosen + 1, 2)
    )
    fk.plotting.animate(frames, output / "particles.gif", dpi=80)
    heat = {"resolution": 50, "limits": window}
    frames = (
        fk.plotting.density_2d({"data": target, text: xs}, **heat)
        for text, xs in clouds
    )
    fk.plotting.animate(frames, output / "density.gif", dpi=80)
    frames = (
        fk.plotting.vector_field(flow, window, (float(times[k]),), **arrows)
        for k in chosen
    )
    fk.plotting.animate(frames, output / "field.gif", dpi=80)

    write_explorer(x0[:500], times, target, config, window, title=data_config.name)
    print(f"Figures are in {output}/.")


def restore(output: Path) -> tuple[dict[str, few_step.FlowMap], DataConfig]:
    """The models that a folder holds, by stage, and the data that they were trained on."""
    stored: list[dict[str, Any]] = []
    models = {
        name: fk.training.restore_model(
            output / "checkpoints" / name, lambda config: rebuild(config, stored)
        )
        for name in STAGES
        if saved_steps(output, name)
    }
    if "flow" not in models:
        raise FileNotFoundError(
            f"{output} holds no checkpoints; run `python examples/trex.py train` first."
        )
    return models, DataConfig(**stored[0]["data"])


def rebuild(config: dict[str, Any], stored: list[dict[str, Any]]) -> few_step.FlowMap:
    """A model as a stored configuration describes it, which is noted."""
    stored.append(config)
    return build(ModelConfig(**config["model"]), key=jr.key(0))


def saved_steps(output: Path, stage: str) -> list[int]:
    folder = output / "checkpoints" / stage
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


@eqx.filter_jit
def solve(flow: fk.Flow, x0: jax.Array, options: dict[str, Any]) -> Any:
    return jax.vmap(lambda x0: fk.integrate(flow, x0, **options).ys)(x0)


def paths_of(
    flow: fk.Flow, x0: jax.Array, times: np.ndarray, config: Config
) -> np.ndarray:
    """Where the flow carries every point, `(n, t, 2)`."""
    return np.asarray(
        solve(
            flow,
            x0,
            solver(config) | {"saveat": dfx.SaveAt(ts=jnp.asarray(times, x0.dtype))},
        )
    )


def draw_reflow(
    times: np.ndarray,
    paths: dict,
    target: np.ndarray,
    config: Config,
    window: Any,
    path: Path,
) -> None:
    """The paths of the flow beside the straighter ones."""
    num = config.visualization.num_particles
    panels = {
        name: fk.plotting.Paths(times, points[:num], target=target)
        for name, points in paths.items()
    }
    fk.plotting.comparison(panels, limits=(2 * window[0], 2 * window[1]), path=path)


def draw_curvature(times: np.ndarray, paths: dict[str, np.ndarray], path: Path) -> None:
    """The mean length of the second derivative along the paths: zero where they are straight, at constant speed."""
    figure, axes = plt.subplots(figsize=(5.6, 3.5), layout="constrained")
    for name, points in paths.items():
        bend = np.diff(points, n=2, axis=1) / (times[1] - times[0]) ** 2
        axes.plot(times[1:-1], np.linalg.norm(bend, axis=-1).mean(0), label=name)
    axes.set(
        xlabel="time  (0 noise, 1 data)",
        ylabel="mean |d²x/dt²|",
        title="curvature of the paths",
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_explorer(
    x0: jax.Array,
    times: np.ndarray,
    target: np.ndarray,
    config: Config,
    window: Any,
    **options,
) -> None:
    """A page with a stage for each checkpoint of the flow."""
    if importlib.util.find_spec("plotly") is None:
        print('No explorer.html without plotly: `pip install "flowkit-jax[explorer]"`.')
        return
    output, shown = (
        Path(config.output),
        times[np.unique(np.linspace(0, len(times) - 1, 41).astype(int))],
    )
    folder, build_model = (
        output / "checkpoints" / "flow",
        lambda config: rebuild(config, []),
    )
    made = []
    for step in saved_steps(output, "flow"):
        flow = few_step.velocity_of(
            fk.training.restore_model(folder, build_model, step=step)
        )
        made.append(
            fk.plotting.ExplorerStage(
                f"step {step}", shown, paths_of(flow, x0, shown, config), flow
            )
        )
    fk.plotting.explorer(
        made, target=target, limits=window, path=output / "explorer.html", **options
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from the last checkpoint.")
