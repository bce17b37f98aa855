"""Eight generative models side by side, with a picture for every epoch of their training.

    python examples/compare_models.py
    python examples/compare_models.py --dim 1d --models fm meanflow --coupling assignment
    python examples/compare_models.py --dim 2d --data-2d moons --output artifacts/moons

A decoder, an autoencoder, two VAEs, flow matching, MeanFlow, FACM and BackFlow learn the
same small data with networks of the same size. Interrupt the run and start it again: models
that are trained are not trained again. The output folder holds the following, and the same
with `2d` in place of `1d`:

- `comparison_1d.gif`, `comparison_1d.png`: all models, a frame for each epoch and the last one
- `comparison_1d_epochs/`, `<model>_1d_epochs/`: the frames, of all models and of each
- `<model>_1d_visualization.png`: one model after training
- `metrics.json`: distances of samples from fresh data, of latents from the prior
- `checkpoints/1d/<model>/`: the trained models, which `final_model` reads
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.random as jr
import optax

import flowkit as fk
from flowkit import few_step
from flowkit.pipelines import Count, Natural, NonNegative, Positive, Within


COUPLINGS: dict[str, Any] = {
    "independent": fk.independent,
    "assignment": fk.assignment,
    "entropic": fk.EntropicCoupling(),
    "unbalanced": fk.UnbalancedCoupling(),
    # With weights that undo what unbalanced transport does to the data.
    "reweighted": fk.UnbalancedCoupling(weight_power=1.0),
}
EIGHT = ("decoder", "ae", "vae", "vae_beta", "fm", "meanflow", "facm", "backflow")
SIZES = {"1d": 1, "2d": 2}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train generative models on a toy, and watch them learn it."""

    dim: Literal["1d", "2d", "both"] = "both"  # On the line, in the plane, or both.
    models: tuple[str, ...] = EIGHT  # Any of these and `improved_meanflow`.
    epochs: Count = 200  # How often a model sees as many examples as there are.
    data_1d: str = "mixture_1d"  # A toy of `fk.data.TOYS_1D`, or a CSV file.
    data_2d: str = "two_gaussians"  # A toy of `fk.data.TOYS_2D`, or a CSV file.
    num_samples: Count = 500  # Number of examples to learn from.
    # How flows pair noise and data: at random, or by optimal transport of the batch.
    coupling: Literal[
        "independent", "assignment", "entropic", "unbalanced", "reweighted"
    ] = "independent"
    vae_beta: NonNegative = 10.0  # Weight of the divergence of `vae_beta`.
    # Widths of the hidden layers of decoders and flows; encoders have them reversed.
    hidden_sizes: tuple[Count, ...] = (32, 64, 32)
    learning_rate: Positive = 1e-3  # Learning rate of Adam.
    batch_size: Count = 64  # Examples per step.
    num_inference: Count = 200  # Latents and data in a panel, always the same.
    num_judged: Count = 1000  # Samples that are compared with as many fresh data.
    frame_every: Count = 1  # Epochs between frames.
    fps: Annotated[float, Within(above=0, at_most=50)] = 10  # Frames per second.
    dpi: Count = 80  # Dots per inch of the frames.
    num_workers: Natural = os.cpu_count() or 1  # Processes that draw; 0 for this one.
    seed: int = 42  # Random seed.
    output: str = "artifacts/compare_models"  # Folder of one configuration.


# Options that no trained model depends on.
FREE = {"dim", "models", "frame_every", "fps", "dpi", "num_workers", "output"}


class Model(NamedTuple):
    """How a model is built and trained, and what it is meant for."""

    title: str
    build: Callable[..., Any]  # `(config, size, *, key) -> model`
    loss: Callable[..., Any]  # `(model, x1, *, key, **options)`
    outputs: tuple[str, ...]  # Those of `fk.pipelines.model_outputs` it is meant for.
    options: dict[str, Any] = {}  # Options of the loss.


def layers(sizes: tuple[int, ...], *in_out: int, key: jax.Array) -> fk.nn.FeedForward:
    relu = jax.nn.relu
    return fk.nn.FeedForward(*in_out, hidden_sizes=sizes, activation=relu, key=key)


def build_decoder(config: Config, size: int, *, key: jax.Array) -> fk.latent.Decoder:
    return fk.latent.Decoder(layers(config.hidden_sizes, size, size, key=key))


def autoencoder(kind: Callable[..., Any], code_sizes: int) -> Callable[..., Any]:
    def build(config: Config, size: int, *, key: jax.Array) -> Any:
        encoder_key, decoder_key = jr.split(key)
        sizes = config.hidden_sizes
        encoder = layers(sizes[::-1], size, code_sizes * size, key=encoder_key)
        return kind(encoder, layers(sizes, size, size, key=decoder_key))

    return build


def flow(kind: Callable[..., Any], num_times: int) -> Callable[..., Any]:
    def build(config: Config, size: int, *, key: jax.Array) -> Any:
        times = fk.nn.RawTime(num_times)
        options = {"time_embedding": times, "activation": jax.nn.relu}
        sizes = config.hidden_sizes
        return kind(fk.nn.MLP(size, hidden_sizes=sizes, **options, key=key))

    return build


def autoencoder_loss(model: Any, x1: jax.Array, *, key: jax.Array) -> jax.Array:
    return fk.latent.autoencoder_loss(model, x1)


CODER = ("output", "latents", "decoded")
FLOW = ("paths", "one_step")
MEAN_FLOW = (*FLOW, "two_steps")
BACK_FLOW = (*FLOW, "latents", "decoded")
build_vae = autoencoder(fk.latent.VAE, 2)
build_ae = autoencoder(fk.latent.Autoencoder, 1)
build_map = flow(few_step.FlowMap, 2)
improved_loss = few_step.improved_mean_flow_loss
back_loss = few_step.back_flow_loss
MEAN = few_step.MEAN_FLOW_TOY
BACK = few_step.BACK_FLOW_TOY
MODELS = {
    "decoder": Model("decoder", build_decoder, fk.latent.decoder_loss, ("output",)),
    "ae": Model("autoencoder", build_ae, autoencoder_loss, CODER),
    "vae": Model("VAE", build_vae, fk.latent.vae_loss, CODER),
    "vae_beta": Model("beta-VAE", build_vae, fk.latent.vae_loss, CODER),
    "fm": Model("flow matching", flow(fk.Flow, 1), fk.flow_matching_loss, FLOW),
    "meanflow": Model("MeanFlow", build_map, few_step.mean_flow_loss, MEAN_FLOW, MEAN),
    "improved_meanflow": Model(
        "improved MeanFlow", build_map, improved_loss, MEAN_FLOW, MEAN
    ),
    "facm": Model("FACM", build_map, few_step.facm_loss, FLOW, few_step.FACM_TOY),
    "backflow": Model("BackFlow", build_map, back_loss, BACK_FLOW, BACK),
}


def loss_of(name: str, config: Config) -> Callable[..., Any]:
    """The loss `(model, x1, key)` of a model."""
    entry = MODELS[name]
    options = dict(entry.options)
    if "paths" in entry.outputs:
        options["coupling"] = COUPLINGS[config.coupling]
    if name == "vae_beta":
        options["kl_weight"] = config.vae_beta
    return lambda model, x1, key: entry.loss(model, x1, key=key, **options)


def key_of(config: Config, purpose: int, number: int) -> jax.Array:
    """A key for a purpose (0 scene, 1 models, 2 distances) and a number."""
    return jr.fold_in(jr.split(jr.key(config.seed), 3)[purpose], number)


def make_scene(config: Config, dim: str) -> tuple[Any, Any, fk.pipelines.SideBySide]:
    """The sampler of the data, the examples, and what figures of all models share."""
    size = SIZES[dim]
    data_key, z_key, pair_key, coupling_key = jr.split(key_of(config, 0, size), 4)
    name = {"1d": config.data_1d, "2d": config.data_2d}[dim]
    sampler = fk.data.named_sampler(name, size=size)
    exact = {"exact_counts": True} if sampler is fk.data.mixture_1d else {}
    data = sampler(config.num_samples, key=data_key, **exact)

    x1 = data[: config.batch_size]
    x0 = jr.normal(pair_key, x1.shape)
    z = jr.normal(z_key, (config.num_inference, size))
    x = data[: config.num_inference]
    coupling = COUPLINGS[config.coupling]
    coupled = fk.pipelines.SideBySide.coupled
    return sampler, data, coupled(z, x, (x0, x1), coupling, key=coupling_key)


def train(
    name: str, dim: str, data: jax.Array, shown: fk.pipelines.SideBySide, config: Config
) -> fk.training.FitResult:
    """One model; what it makes of noise and data is recorded after every epoch."""
    print(f"{MODELS[name].title}, {dim}", flush=True)
    # A key of its own: a model does not depend on which others are trained.
    key = key_of(config, 1, [*MODELS].index(name))
    model_key, fit_key, output_key = jr.split(key, 3)
    steps = -(-len(data) // config.batch_size)
    described = {"model": name, "size": SIZES[dim]}
    described |= stored(Config(), MODELS, SIZES) | stored(config, [name], [dim])
    folder = Path(config.output) / "checkpoints" / dim / name
    wanted = MODELS[name].outputs
    record = fk.pipelines.record_outputs(wanted, shown.z, shown.x, key=output_key)

    return fk.training.fit(
        loss_of(name, config),
        MODELS[name].build(config, SIZES[dim], key=model_key),
        data,
        batch_size=config.batch_size,
        optimizer=optax.adam(config.learning_rate),
        num_steps=config.epochs * steps,
        steps_per_call=steps,
        checkpoints=fk.training.Checkpoints(
            folder, every=config.epochs * steps, keep=1, config=described
        ),
        callbacks=[record],
        key=fit_key,
    )


def stored(
    config: Config, names: Collection[str], dims: Collection[str]
) -> dict[str, Any]:
    """What some models depend on, as JSON has it."""
    others = FREE | {*without_effect(names, dims)}
    values = {name: one for name, one in vars(config).items() if name not in others}
    return json.loads(json.dumps(values))


def without_effect(names: Collection[str], dims: Collection[str]) -> dict[str, str]:
    """The options that none of some models depends on, with the reason."""
    idle = {}
    if "vae_beta" not in names:
        idle["vae_beta"] = "the model `vae_beta` is not among --models"
    if not any("paths" in MODELS[name].outputs for name in names):
        idle["coupling"] = "there is no flow among --models"
    for dim in set(SIZES) - set(dims):
        idle[f"data_{dim}"] = f"--dim is {' '.join(dims)}"
    return idle


def final_model(output: str | Path, name: str, dim: str) -> Any:
    """A trained model of the folder."""

    def build(described: dict[str, Any]) -> Any:
        options = {n: one for n, one in described.items() if n not in ("model", "size")}
        config = Config(**options)
        return MODELS[name].build(config, described["size"], key=jr.key(0))

    return fk.training.restore_model(Path(output) / "checkpoints" / dim / name, build)


def dims_of(config: Config) -> list[str]:
    return list(SIZES) if config.dim == "both" else [config.dim]


def check(config: Config) -> list[str]:
    """The names of the models. Misuse is an error before anything is trained."""
    names = [name for part in config.models for name in part.split(",") if name]
    if not names or set(names) - set(MODELS):
        given = " ".join(config.models)
        raise ValueError(
            f"--models must be some of {', '.join(MODELS)}, got {given!r}."
        )

    fk.pipelines.check_options(config, without_effect(names, dims_of(config)))

    if config.num_samples < max(config.batch_size, config.num_inference):
        raise ValueError(
            f"--num-samples must be at least --batch-size and --num-inference, got "
            f"{config.num_samples}, {config.batch_size} and {config.num_inference}."
        )
    return list(dict.fromkeys(names))


def main(config: Config) -> None:
    start = time.perf_counter()
    names = check(config)
    dims = dims_of(config)
    scenes = {dim: make_scene(config, dim) for dim in dims}
    output = fk.pipelines.open_run(config.output, stored(config, names, dims))
    metrics: dict[str, Any] = {}

    for dim, (sampler, data, shown) in scenes.items():
        results = {name: train(name, dim, data, shown, config) for name in names}
        metrics[dim] = fk.pipelines.output_distances(
            {name: (one.ema, MODELS[name].outputs) for name, one in results.items()},
            sampler,
            num_samples=config.num_judged,
            batch_size=config.num_inference,
            key=key_of(config, 2, SIZES[dim]),
        )
        for name, result in results.items():
            metrics[dim]["models"][name]["seconds"] = result.seconds
        print("Drawing ...", flush=True)
        shown.write(
            {name: result.history for name, result in results.items()},
            metrics[dim],
            output,
            f"_{dim}",
            titles={name: MODELS[name].title for name in names},
            every=config.frame_every,
            fps=config.fps,
            dpi=config.dpi,
            num_workers=config.num_workers,
        )

    metrics["seconds"] = time.perf_counter() - start
    text = json.dumps(metrics, indent=2)
    (output / "metrics.json").write_text(text + "\n")
    print(f"{text}\nPictures, metrics and models are in {output}/.")


if __name__ == "__main__":
    with fk.pipelines.exit_on_misuse(interrupted="The same command resumes the run."):
        main(fk.pipelines.parse(Config))
