"""A flow from noise to T-Rex, and a map that does it in one step: train, measure, draw.

    python examples/trex.py all
    python examples/trex.py all --data.name points.csv --output artifacts/points
    python examples/trex.py visualize --visualization.solver midpoint

A network of two times is the velocity of a flow where the times are equal, and this flow is
trained first. The network then learns the average velocity between two times by MeanFlow, on
pairs that the flow makes. `visualize` draws what the checkpoints in the output folder hold.
Interrupt the training and start it again: it resumes.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import flowkit as fk
from flowkit.pipelines import Count, Fraction, Natural, NonNegative, Positive, Within


Several = Annotated[int, Within(at_least=2)]
STEPS = ("num_steps", "reflow_steps", "map_steps")
RATES = ("num_pairs", "batch_size", "learning_rate")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Points in the plane."""

    # A toy of `fk.data.TOYS_2D`, or a CSV file, which is centered and scaled to [-1, 1].
    name: str = "trex"
    columns: tuple[str, ...] = ()  # Names of the two columns of a CSV file to read.
    num_samples: Count = 10_000  # Number of points to train on.
    noise: NonNegative | None = None  # Blur. Default: the toy's own; 0.02 for files.


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    hidden_sizes: tuple[Count, ...] = (128, 128, 128)  # Widths of the hidden layers.
    num_frequencies: Natural = 32  # Random Fourier features of the point; 0 for none.
    frequency_scale: Positive = 1.0  # Standard deviation of their frequencies.
    time: Literal["sinusoidal", "learned"] = "sinusoidal"  # Embedding of a time.
    time_size: Several = 64  # Size of the embedding.


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the flow and the one-step map are trained and measured."""

    num_steps: Count = 12_000  # Total steps of the flow, also over an interruption.
    map_steps: Natural = 6000  # Steps of the one-step map; 0 for none.
    reflow_steps: Natural = 0  # Steps of a straighter flow before the map; 0 for none.
    num_pairs: Count = 20_000  # Pairs that the flow makes for the stages after it.
    batch_size: Count = 256  # Points per step.
    learning_rate: Positive = 2e-3  # Initial rate of Adam, with cosine decay.
    ema_decay: Fraction = 0.999  # Decay of the averaged weights, which are judged.
    steps_per_call: Count = 100  # Steps of one compiled call.
    checkpoint_every: Count = 1000  # Steps between the stages of the explorer.
    num_judged: Count = 2000  # Points of a set whose distance is measured.
    num_draws: Several = 20  # Number of sets that a distance is averaged over.


@dataclasses.dataclass(frozen=True)
class VisualizationConfig:
    """How the flow is sampled, also where `train` measures it, and drawn."""

    solver: Literal["euler", "midpoint", "heun", "rk4", "tsit5", "dopri5"] = "euler"
    num_sampling_steps: Annotated[int, Within(at_least=5)] = 100  # Equal solver steps.
    num_points: Count = 2000  # Points of a figure.
    num_particles: Count = 100  # Maximum number of trails.
    num_frames: Several = 20  # Frames of an animation before it stands still.
    grid_size: Several = 20  # Arrows of the velocity field along each axis.
    window: Positive = 1.5  # Half the width that is shown; wide data widen it.

    @property
    def how(self) -> dict:
        return {
            "solver": fk.pipelines.SOLVERS[self.solver],
            "num_steps": self.num_sampling_steps,
        }


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a flow and a one-step map on points in the plane, and draw them."""

    # `visualize` takes data and model from the run in the output folder.
    command: tyro.conf.Positional[Literal["train", "visualize", "all"]] = "all"

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    visualization: VisualizationConfig = VisualizationConfig()
    seed: int = 42  # Random seed.
    output: str = "artifacts/trex"  # Folder for figures, metrics and checkpoints.


def check(config: Config) -> None:
    """Invalid options and options without effect are errors, before any work."""
    idle: dict[str, str] = {}
    if config.command == "visualize":
        reason = "the run in the output folder has its own"
        idle |= {name: reason for name in ("data", "model", "training")}
    if config.command == "train":
        drawn = ("num_points", "num_particles", "num_frames", "grid_size", "window")
        idle |= {f"visualization.{name}": "`train` draws nothing" for name in drawn}
    if config.model.num_frequencies == 0:
        idle["model.frequency_scale"] = "there are no Fourier features"
    if config.training.map_steps == config.training.reflow_steps == 0:
        idle["training.num_pairs"] = "only the flow is trained"
    fk.pipelines.check_options(config, idle)


def load(config: DataConfig) -> Callable[..., jax.Array]:
    noise = config.noise
    if noise is None and config.name not in fk.data.TOYS_2D:
        noise = 0.02
    return fk.data.named_sampler(config.name, columns=config.columns, noise=noise)


def build(config: ModelConfig, *, key: jax.Array) -> fk.few_step.FlowMap:
    feature_key, mlp_key, *time_keys = jr.split(key, 4)
    features = None
    if config.num_frequencies > 0:
        features = fk.nn.FourierFeatures(
            2,
            num_frequencies=config.num_frequencies,
            scale=config.frequency_scale,
            key=feature_key,
        )
    if config.time == "sinusoidal":
        embeddings = [fk.nn.SinusoidalTime(config.time_size, scale=1.0)]
    else:
        embeddings = [fk.nn.LearnedTime(config.time_size, key=key) for key in time_keys]
    network = fk.nn.FeatureMLP(
        2,
        features=features,
        hidden_sizes=config.hidden_sizes,
        time_embedding=fk.nn.TwoTimes(*embeddings),
        key=mlp_key,
    )
    return fk.few_step.FlowMap(network)


def rebuild(stored: dict) -> fk.few_step.FlowMap:
    return build(ModelConfig(**stored["model"]), key=jr.key(0))


def train(config: Config) -> None:
    options = dataclasses.asdict(config.training)
    sampler = load(config.data)
    keys = jr.split(jr.key(config.seed), 6)
    data_key, model_key, fit_key, distance_key, pair_key, _ = keys
    stages = fk.pipelines.flow_map_stages(
        (2,), **{name: options[name] for name in (*STEPS, *RATES)}, key=pair_key
    )

    # What the weights depend on; all else may change when a run goes on.
    stored: dict = {"data": vars(config.data), "model": vars(config.model)}
    stored["training"] = {name: options[name] for name in (*RATES, "ema_decay")}
    stored["seed"] = config.seed

    every = config.training.checkpoint_every
    folder = Path(config.output)
    results = fk.training.fit_stages(
        stages,
        build(config.model, key=model_key),
        sampler(config.data.num_samples, key=data_key),
        batch_size=config.training.batch_size,
        steps_per_call=config.training.steps_per_call,
        ema_decay=fk.training.WarmUpDecay(config.training.ema_decay),
        # All of them are kept, for the explorer.
        checkpoints=fk.training.Checkpoints(
            folder / "checkpoints", every=every, keep=1000, config=stored
        ),
        key=fit_key,
    )

    print("Measuring the distance from fresh data ...", flush=True)
    steps = {name: int(result.state.step) for name, result in results.items()}
    distances = fk.pipelines.flow_map_distances(
        {name: result.ema for name, result in results.items()},
        sampler,
        num_points=config.training.num_judged,
        num_draws=config.training.num_draws,
        **config.visualization.how,
        key=distance_key,
    )
    seconds = sum(result.seconds for result in results.values())
    text = json.dumps({"steps": steps, "seconds": seconds} | distances, indent=2)
    (folder / "metrics.json").write_text(text + "\n")
    print(f"{text}\nMetrics and checkpoints are in {folder}/.")


def visualize(config: Config) -> None:
    """Every figure from the checkpoints alone."""
    options = config.visualization
    folder = Path(config.output)
    models, stored = fk.pipelines.restore_stages(folder / "checkpoints", rebuild)
    data_key, *_, figure_key = jr.split(jr.key(config.seed), 6)
    target = load(DataConfig(**stored["data"]))(options.num_points, key=data_key)
    x0 = jr.normal(figure_key, (options.num_points, 2))
    half = max(options.window, 1.1 * float(jnp.abs(target).max()))
    shared = {"target": target, "limits": (-half, half), **options.how}

    print("Drawing figures and animations ...", flush=True)
    fk.pipelines.draw_flow_map(
        models,
        x0,
        folder,
        num_frames=options.num_frames,
        num_particles=options.num_particles,
        resolution=options.grid_size,
        **shared,
    )
    if importlib.util.find_spec("plotly") is not None:
        fk.pipelines.explore_training(
            folder / "checkpoints" / "flow",
            rebuild,
            x0,
            flow_of=fk.few_step.velocity_of,
            title=stored["data"]["name"],
            path=folder / "explorer.html",
            **shared,
        )
    print(f"Figures are in {folder}/, explorer.html only with plotly.")


def main(config: Config) -> None:
    check(config)
    if config.command != "visualize":
        train(config)
    if config.command != "train":
        visualize(config)


if __name__ == "__main__":
    with fk.pipelines.exit_on_misuse(interrupted="The same command resumes the run."):
        main(fk.pipelines.parse(Config))
