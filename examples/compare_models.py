"""Eight generative models side by side, on the line and in the plane, with a picture for every epoch of their training.

    python examples/compare_models.py
    python examples/compare_models.py --dim 1d --models fm meanflow --coupling assignment
    python examples/compare_models.py --dim 2d --data-2d moons --output artifacts/moons
    python examples/compare_models.py --dim 2d --models vae_beta --epochs 2000 --vae-beta 4 --output artifacts/vae

A decoder, an autoencoder, two VAEs, flow matching, MeanFlow, FACM and BackFlow (`improved_meanflow` is there too) learn
the same small data with networks of the same size. Everything goes to the output folder, where `1d` may be `2d`:

- `comparison_1d.gif` and its last frame `comparison_1d.png`: all models, a frame for each epoch
- `<model>_1d_epochs/`: the panel of one model, a picture for each epoch; `comparison_1d_epochs/`: all of them
- `<model>_1d_visualization.png`: one model after training
- `metrics.json`: how far samples are from fresh data, and latents and one-step maps from what they should be
- `checkpoints/1d/<model>/`: the trained models, which `final_model` reads

Interrupt the run and start it again: models that are trained are not trained again.
"""

import concurrent.futures as cf
import dataclasses
import functools as ft
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from PIL import Image

import flowkit as fk
from flowkit import few_step


@dataclasses.dataclass(frozen=True)
class Config:
    """Train generative models on a toy, and watch them learn it."""

    dim: Literal["1d", "2d", "both"] = "both"
    """On the line, in the plane, or both."""
    models: tuple[str, ...] = (
        "decoder",
        "ae",
        "vae",
        "vae_beta",
        "fm",
        "meanflow",
        "facm",
        "backflow",
    )
    """Names of these and `improved_meanflow`, with spaces or commas between them."""
    epochs: int = 200
    """How often each model sees as many examples as there are."""
    data_1d: str = "mixture_1d"
    """A toy on the line, by its name in `fk.data.TOYS_1D`."""
    data_2d: str = "two_gaussians"
    """A toy in the plane, by its name in `fk.data.TOYS_2D`, or the path of a `.csv` file of points with two columns,
    which are brought to [-1, 1]."""
    num_samples: int = 500
    """Examples to learn from."""
    coupling: Literal[
        "independent", "assignment", "entropic", "unbalanced", "reweighted"
    ] = "independent"
    """How flows pair noise and data: at random, by optimal transport of the batch, exact or entropic, or by unbalanced
    transport, without and with weights that undo what it does to the data."""
    vae_beta: float = 10.0
    """Weight of the divergence of `vae_beta`; that of `vae` is 1."""
    hidden_sizes: tuple[int, ...] = (32, 64, 32)
    """Widths of the hidden layers of decoders and flows; encoders have them in reversed order."""
    learning_rate: float = 1e-3
    """Of Adam."""
    batch_size: int = 64
    """Examples per step."""
    num_inference: int = 200
    """Latents that are decoded, the same ones in every frame, and data that are encoded."""
    num_judged: int = 1000
    """Samples that are compared with as many fresh data."""
    frame_every: int = 1
    """Epochs between frames."""
    fps: float = 10
    """Frames per second of the GIFs."""
    dpi: int = 80
    """Dots per inch of the frames."""
    num_workers: int = os.cpu_count() or 1
    """Processes that draw; 0 draws in this one."""
    seed: int = 42
    """Of everything random."""
    output: str = "artifacts/compare_models"
    """Folder for pictures, metrics and models. It holds one configuration: only `dim`, `models` and how frames are
    drawn may differ from run to run."""


FREE = ("dim", "models", "frame_every", "fps", "dpi", "num_workers", "output")
"""Fields that no trained model depends on."""

SIZES = {"1d": 1, "2d": 2}

COUPLINGS: dict[str, Any] = {
    "independent": fk.independent,
    "assignment": fk.assignment,
    "entropic": fk.EntropicCoupling(),
    "unbalanced": fk.UnbalancedCoupling(),
    "reweighted": fk.UnbalancedCoupling(weight_power=1.0),
}

TIMES = np.linspace(0, 1, 21, dtype=np.float32)
NUM_CODES = 40
"""Data of the panel of an autoencoder, where more would hide its samples."""


# -- the models: how each is built, its loss, and what it makes of latents and data


class Model(NamedTuple):
    """An entry of `MODELS`."""

    title: str
    build: Callable[..., Any]
    """`(config, size, *, key) -> model` of data with so many dimensions."""
    loss: Callable[..., Any]
    """`(config, model, x1, key)`, a loss for `fk.training.fit`."""
    apply: Callable[..., dict[str, jax.Array]]
    """`(model, z, x, key) -> arrays` by name, which `panel` draws and `judge` measures."""
    arrays: tuple[str, ...]
    """Which of them are meant for this model."""


def feed_forward(
    config: Config,
    in_size: int,
    out_size: int,
    *,
    key: jax.Array,
    reverse: bool = False,
):
    sizes = config.hidden_sizes[::-1] if reverse else config.hidden_sizes
    return fk.nn.FeedForward(
        in_size, out_size, hidden_sizes=sizes, activation=jax.nn.relu, key=key
    )


def build_decoder(config: Config, size: int, *, key: jax.Array) -> fk.latent.Decoder:
    return fk.latent.Decoder(feed_forward(config, size, size, key=key))


def build_autoencoder(
    config: Config, size: int, *, key: jax.Array
) -> fk.latent.Autoencoder:
    ekey, dkey = jr.split(key)
    encoder = feed_forward(config, size, size, key=ekey, reverse=True)
    return fk.latent.Autoencoder(encoder, feed_forward(config, size, size, key=dkey))


def build_vae(config: Config, size: int, *, key: jax.Array) -> fk.latent.VAE:
    ekey, dkey = jr.split(key)
    encoder = feed_forward(config, size, 2 * size, key=ekey, reverse=True)
    return fk.latent.VAE(encoder, feed_forward(config, size, size, key=dkey))


def network(config: Config, size: int, num_times: int, *, key: jax.Array) -> fk.nn.MLP:
    times = fk.nn.RawTime(num_times)
    options = {
        "hidden_sizes": config.hidden_sizes,
        "activation": jax.nn.relu,
        "time_embedding": times,
    }
    return fk.nn.MLP(size, **options, key=key)


def build_flow(config: Config, size: int, *, key: jax.Array) -> fk.Flow:
    return fk.Flow(network(config, size, 1, key=key))


def build_flow_map(config: Config, size: int, *, key: jax.Array) -> few_step.FlowMap:
    return few_step.FlowMap(network(config, size, 2, key=key))


def flow_loss(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The loss of a flow or a flow map with the coupling that the configuration names."""
    return lambda config, model, x1, key: function(
        model, x1, coupling=COUPLINGS[config.coupling], key=key, **options
    )


def apply_decoder(
    model: Any, z: jax.Array, x: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    del x, key
    return {"output": jax.vmap(model.decoder)(z)}


def apply_autoencoder(
    model: Any, z: jax.Array, x: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """The latents of a VAE are draws: these are what should follow the prior."""
    if isinstance(model, fk.latent.VAE):
        latents = jax.vmap(lambda x, key: model.encode(x, key=key))(
            x, jr.split(key, len(x))
        )
    else:
        latents = jax.vmap(model.encode)(x)
    return apply_decoder(model, z, x, key) | {
        "latents": latents,
        "decoded": jax.vmap(model.decoder)(latents),
    }


def apply_flow(
    flow: fk.Flow, z: jax.Array, x: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """Paths, and one step of Euler's method, which a flow promises nothing about."""
    del x, key
    return {
        "paths": solve(flow, z),
        "one_step": z + jax.vmap(lambda x0: flow(0.0, x0))(z),
    }


def apply_flow_map(
    flow_map: few_step.FlowMap, z: jax.Array, x: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """Paths of the velocity, jumps in one step and in two, and jumps back to the noise and from there to the data."""
    del key
    middle, latents = jump(flow_map, 0.0, 0.5, z), jump(flow_map, 1.0, 0.0, x)
    return {
        "paths": solve(few_step.velocity_of(flow_map), z),
        "one_step": jump(flow_map, 0.0, 1.0, z),
        "two_steps": jnp.stack([z, middle, jump(flow_map, 0.5, 1.0, middle)], axis=1),
        "latents": latents,
        "decoded": jump(flow_map, 0.0, 1.0, latents),
    }


def solve(flow: fk.Flow, z: jax.Array) -> jax.Array:
    """Paths `(n, t, d)` at `TIMES`."""
    saveat = dfx.SaveAt(ts=jnp.asarray(TIMES))
    options: Any = {
        "solver": dfx.Midpoint(),
        "num_steps": len(TIMES) - 1,
        "saveat": saveat,
    }
    paths: Any = jax.vmap(lambda x0: fk.integrate(flow, x0, **options).ys)(z)
    return paths


def jump(flow_map: few_step.FlowMap, s: float, t: float, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: few_step.jump(flow_map, s, t, x))(x)


def decoder_loss(config: Config, model: Any, x1: jax.Array, key: jax.Array) -> Any:
    return fk.latent.decoder_loss(model, x1, key=key)


def autoencoder_loss(config: Config, model: Any, x1: jax.Array, key: jax.Array) -> Any:
    return fk.latent.autoencoder_loss(model, x1)


def vae_loss(config: Config, model: Any, x1: jax.Array, key: jax.Array) -> Any:
    return fk.latent.vae_loss(model, x1, key=key)


def vae_beta_loss(config: Config, model: Any, x1: jax.Array, key: jax.Array) -> Any:
    return fk.latent.vae_loss(model, x1, key=key, kl_weight=config.vae_beta)


mean_flow_loss = flow_loss(few_step.mean_flow_loss, **few_step.MEAN_FLOW_TOY)
improved_mean_flow_loss = flow_loss(
    few_step.improved_mean_flow_loss, **few_step.MEAN_FLOW_TOY
)
facm_loss = flow_loss(few_step.facm_loss, **few_step.FACM_TOY)
back_flow_loss = flow_loss(few_step.back_flow_loss, **few_step.BACK_FLOW_TOY)

DECODER, AUTOENCODER = ("output",), ("output", "latents", "decoded")
FLOW, MEAN_FLOW = ("paths", "one_step"), ("paths", "one_step", "two_steps")
BACK_FLOW = ("paths", "one_step", "latents", "decoded")

MODELS = {
    "decoder": Model("decoder", build_decoder, decoder_loss, apply_decoder, DECODER),
    "ae": Model(
        "autoencoder",
        build_autoencoder,
        autoencoder_loss,
        apply_autoencoder,
        AUTOENCODER,
    ),
    "vae": Model("VAE", build_vae, vae_loss, apply_autoencoder, AUTOENCODER),
    "vae_beta": Model(
        "beta-VAE", build_vae, vae_beta_loss, apply_autoencoder, AUTOENCODER
    ),
    "fm": Model(
        "flow matching", build_flow, flow_loss(fk.flow_matching_loss), apply_flow, FLOW
    ),
    "meanflow": Model(
        "MeanFlow", build_flow_map, mean_flow_loss, apply_flow_map, MEAN_FLOW
    ),
    "improved_meanflow": Model(
        "improved MeanFlow",
        build_flow_map,
        improved_mean_flow_loss,
        apply_flow_map,
        MEAN_FLOW,
    ),
    "facm": Model("FACM", build_flow_map, facm_loss, apply_flow_map, FLOW),
    "backflow": Model(
        "BackFlow", build_flow_map, back_flow_loss, apply_flow_map, BACK_FLOW
    ),
}


# -- data


class Scene(NamedTuple):
    """What all models of a dimension share: how to draw data, the examples, and what figures show."""

    sampler: Callable[..., Any]
    data: jax.Array
    z: jax.Array
    x: jax.Array
    pairs: tuple[Any, Any]
    """Noise and data as the flows are trained on them."""
    random_pairs: tuple[Any, Any]
    """The same without a coupling, as the decoder is."""


def key_of(
    config: Config, purpose: Literal["scene", "models", "judgement"], number: int
) -> jax.Array:
    """One for each purpose and number, no two of them alike."""
    keys = dict(
        zip(
            ("scene", "models", "judgement"),
            jr.split(jr.key(config.seed), 3),
            strict=True,
        )
    )
    return jr.fold_in(keys[purpose], number)


def make_scene(config: Config, dim: str) -> Scene:
    dkey, zkey, pkey, ckey = jr.split(key_of(config, "scene", SIZES[dim]), 4)
    sampler = find_sampler(config, dim)
    exact = {"exact_counts": True} if sampler is fk.data.mixture_1d else {}
    data = sampler(config.num_samples, key=dkey, **exact)
    x1 = data[: config.batch_size]
    x0 = jr.normal(pkey, x1.shape)
    pairing = COUPLINGS[config.coupling](x0, x1, key=ckey)
    take = lambda array, rows: array if rows is None else array[rows]
    pairs = take(x0, pairing.source), take(x1, pairing.data)
    z = jr.normal(zkey, (config.num_inference, SIZES[dim]))
    return Scene(sampler, data, z, data[: config.num_inference], pairs, (x0, x1))


def find_sampler(config: Config, dim: str) -> Callable[..., Any]:
    """`(num, *, key) -> (num, d)` for the data that are named."""
    name, toys = (
        (config.data_1d, fk.data.TOYS_1D)
        if dim == "1d"
        else (config.data_2d, fk.data.TOYS_2D)
    )
    if name in toys:
        return toys[name]
    if dim == "1d" or not name.endswith(".csv"):
        file = "" if dim == "1d" else " or the path of a .csv file,"
        raise ValueError(
            f"--data-{dim} must be one of {', '.join(toys)},{file} got {name!r}."
        )
    points = fk.data.load_csv(name)
    if points.shape[1] != 2:
        raise ValueError(
            f"--data-2d needs points in the plane, but {name} has {points.shape[1]} columns; keep two."
        )
    return ft.partial(fk.data.resample, fk.data.fit_unit_box(points)[0])


# -- training


def main(config: Config) -> None:
    start = time.perf_counter()
    names = chosen_models(config)
    dims = list(SIZES) if config.dim == "both" else [config.dim]
    scenes = {dim: make_scene(config, dim) for dim in dims}
    for dim, scene in scenes.items():
        check(config, names, dim, scene)
    output = open_output(config)
    metrics, drawings = {}, []
    with make_pool(config) as pool:
        for dim, scene in scenes.items():
            results = {name: train(name, dim, scene, config, output) for name in names}
            metrics[dim] = judge(results, dim, scene, config)
            series = {name: recorded(result, name) for name, result in results.items()}
            draw_models(series, metrics[dim], dim, scene, output)
            # Drawn by other processes, while the models of the next dimension are trained.
            drawings.append(
                (dim, *submit_frames(pool, series, dim, scene, config, output))
            )
        print("Drawing the frames ...", flush=True)
        gifs = []
        for dim, paths, parts in drawings:
            for part in parts:
                part.result()
            gifs.append(
                pool.submit(write_gif, paths, output / f"comparison_{dim}", config.fps)
            )
        for gif in gifs:
            gif.result()
    metrics["seconds"] = time.perf_counter() - start
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))
    print(f"Pictures, metrics and models are in {output}/.")


def chosen_models(config: Config) -> list[str]:
    names = [name for part in config.models for name in part.split(",") if name]
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        raise ValueError(
            f"--models must be some of {', '.join(MODELS)}, got {' '.join(config.models)!r}."
        )
    return list(dict.fromkeys(names))


def check(config: Config, names: list[str], dim: str, scene: Scene) -> None:
    """Wrong options are errors before anything is trained: every loss is traced."""
    for name in ("epochs", "num_inference", "num_judged", "frame_every", "dpi"):
        if getattr(config, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}."
            )
    if config.num_workers < 0:
        raise ValueError(
            f"--num-workers must not be negative, got {config.num_workers}; 0 draws in this process."
        )
    if not 0 < config.learning_rate < float("inf"):
        raise ValueError(
            f"--learning-rate must be positive, got {config.learning_rate}."
        )
    if not 0 < config.fps <= 50:
        raise ValueError(f"--fps must be positive and at most 50, got {config.fps}.")
    if not max(config.batch_size, config.num_inference) <= config.num_samples:
        raise ValueError(
            f"--num-samples must be at least --batch-size and --num-inference, got {config.num_samples}, "
            f"{config.batch_size} and {config.num_inference}."
        )
    for name in names:
        build = lambda key, name=name: MODELS[name].build(config, SIZES[dim], key=key)
        loss = lambda batch, key, name=name, build=build: MODELS[name].loss(
            config, build(key), batch, key
        )
        eqx.filter_eval_shape(loss, scene.data[: config.batch_size], jr.key(0))


def open_output(config: Config) -> Path:
    """The folder, if it can be written to and holds nothing else than runs of this configuration."""
    output = Path(config.output)
    record, given = output / "config.json", stored(config)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(
            f"--output: the folder {output} cannot be written to ({error.strerror})."
        ) from error
    if not record.exists() and any(output.iterdir()):
        raise ValueError(
            f"--output: the folder {output} holds something else; name a new one."
        )
    found = json.loads(record.read_text()) if record.exists() else given
    if found != given and any(output.glob("checkpoints/*/*/[0-9]*")):
        different = [
            f"{name} is {found.get(name)} there and {given[name]} here"
            for name in given
        ]
        different = [
            text
            for text, name in zip(different, given, strict=True)
            if found.get(name) != given[name]
        ]
        raise ValueError(
            f"--output: {output} holds models of another configuration ({'; '.join(different)}). Nothing was changed: "
            "name another folder, or give the options as they were."
        )
    record.write_text(json.dumps(given, indent=2) + "\n")
    return output


def stored(config: Config) -> dict[str, Any]:
    """What all models of a folder share, as JSON has it."""
    values = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in FREE
    }
    return json.loads(json.dumps(values))


def train(
    name: str, dim: str, scene: Scene, config: Config, output: Path
) -> fk.training.FitResult:
    """One model; what it makes of the scene is recorded after every epoch."""
    print(f"{MODELS[name].title}, {dim}", flush=True)
    model = MODELS[name]
    # A key of its own, so that a model does not depend on which others are trained.
    mkey, tkey, akey = jr.split(key_of(config, "models", [*MODELS].index(name)), 3)
    steps = -(-len(scene.data) // config.batch_size)
    described = {"model": name, "size": SIZES[dim], **stored(config)}
    return fk.training.fit(
        ft.partial(model.loss, config),
        model.build(config, SIZES[dim], key=mkey),
        scene.data,
        batch_size=config.batch_size,
        optimizer=optax.adam(config.learning_rate),
        num_steps=config.epochs * steps,
        steps_per_call=steps,
        checkpoints=fk.training.Checkpoints(
            output / "checkpoints" / dim / name,
            every=config.epochs * steps,
            keep=1,
            config=described,
        ),
        callbacks=[recorder(model, scene, akey)],
        key=tkey,
    )


@eqx.filter_jit
def apply(
    function: Callable[..., Any], model: Any, z: jax.Array, x: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """Compiled once for all models that are built and applied alike."""
    return function(model, z, x, key)


def recorder(entry: Model, scene: Scene, key: jax.Array) -> Callable[..., Any]:
    """A callback: the arrays of the averaged model, and the seconds since it was last called."""
    last = [time.perf_counter()]

    def callback(state, step):
        del step
        arrays = jax.block_until_ready(
            apply(entry.apply, state.ema, scene.z, scene.x, key)
        )
        before, last[0] = last[0], time.perf_counter()
        return {name: arrays[name] for name in entry.arrays} | {
            "seconds": last[0] - before
        }

    return callback


def recorded(result: fk.training.FitResult, name: str) -> dict[str, np.ndarray]:
    """The arrays after every epoch, `(epochs, ...)`; the record of the untrained model is left out."""
    return {array: result.history[array].values[1:] for array in MODELS[name].arrays}


def final_model(output: Path, name: str, dim: str) -> Any:
    """A trained model of the folder."""
    return fk.training.restore_model(output / "checkpoints" / dim / name, restore)


def restore(described: dict[str, Any]) -> Any:
    """A model as a checkpoint describes it."""
    options = {
        name: value
        for name, value in described.items()
        if name not in ("model", "size")
    }
    return MODELS[described["model"]].build(
        Config(**options), described["size"], key=jr.key(0)
    )


# -- judgement


def judge(
    results: dict[str, fk.training.FitResult], dim: str, scene: Scene, config: Config
) -> dict[str, Any]:
    """Distances between samples and fresh data, latents and the prior, paths and one-step maps."""
    parts = -(-config.num_judged // config.num_inference)
    draw = lambda key: scene.sampler(parts * config.num_inference, key=key)
    fkey, xkey, zkey, akey = jr.split(key_of(config, "judgement", SIZES[dim]), 4)
    fresh = draw(fkey)
    prior = jr.normal(zkey, (3, *fresh.shape))
    floors = [w2(draw(key), fresh) for key in jr.split(xkey, 5)]
    metrics: dict[str, Any] = {
        "w2_floor": float(np.mean(floors)),
        "latent_w2_floor": w2(prior[1], prior[2]),
        "models": {},
    }
    # In parts of the size that the programs are compiled for.
    z, x = (
        array.reshape(parts, config.num_inference, -1)
        for array in (prior[0], draw(akey))
    )
    for name, result in results.items():
        entry, inputs = MODELS[name], zip(z, x, jr.split(akey, parts), strict=True)
        draws = [apply(entry.apply, result.ema, *some) for some in inputs]
        arrays = {
            array: np.concatenate([draw[array] for draw in draws])
            for array in entry.arrays
        }
        seconds = float(np.sum(result.history["seconds"].values))
        metrics["models"][name] = {
            **measure(arrays, fresh, prior[1]),
            "seconds": seconds,
        }
    return metrics


def measure(
    arrays: dict[str, np.ndarray], fresh: jax.Array, prior: jax.Array
) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    samples = arrays["paths"][:, -1] if "paths" in arrays else arrays["output"]
    numbers["w2"] = w2(samples, fresh)
    numbers["mean"], numbers["std"] = (
        np.mean(samples, 0).tolist(),
        np.std(samples, 0).tolist(),
    )
    if "one_step" in arrays:
        gaps = np.linalg.norm(samples - arrays["one_step"], axis=-1)
        numbers["w2_one_step"] = w2(arrays["one_step"], fresh)
        numbers["path_to_one_step"] = {
            "mean": float(np.mean(gaps)),
            "std": float(np.std(gaps)),
        }
    if "two_steps" in arrays:
        numbers["w2_two_steps"] = w2(arrays["two_steps"][:, -1], fresh)
    if "latents" in arrays:
        latents = arrays["latents"]
        numbers["latent_w2"] = w2(latents, prior)
        numbers["latent_mean"], numbers["latent_std"] = (
            np.mean(latents, 0).tolist(),
            np.std(latents, 0).tolist(),
        )
    return numbers


def w2(x: Any, y: Any) -> float:
    return float(fk.metrics.w2(jnp.asarray(x), jnp.asarray(y)))


# -- figures


def panel(
    arrays: dict[str, Any], scene: Scene
) -> fk.plotting.Paths | fk.plotting.LatentMap:
    """One model at one time of its training."""
    if "paths" in arrays:
        paths, one_step = arrays["paths"], arrays["one_step"]
        return fk.plotting.Paths(
            TIMES, paths, target=scene.x, one_step=one_step, coupling=scene.pairs
        )
    infer = (scene.z, arrays["output"])
    if "latents" not in arrays:
        return fk.plotting.LatentMap(train=scene.random_pairs, infer=infer)
    x, latents, decoded = (
        array[:NUM_CODES] for array in (scene.x, arrays["latents"], arrays["decoded"])
    )
    return fk.plotting.LatentMap(
        infer=infer, encode=(x, latents), decode=(latents, decoded)
    )


def panels(title: str, arrays: dict[str, Any], scene: Scene) -> dict[str, Any]:
    """One model from all sides."""
    sides: dict[str, Any] = {title: panel(arrays, scene)}
    if "two_steps" in arrays:
        sides["in two steps"] = fk.plotting.Paths(
            np.linspace(0, 1, 3), arrays["two_steps"], target=scene.x
        )
    if "latents" in arrays:
        latents = arrays["latents"]
        sides["encode"] = fk.plotting.LatentMap(encode=(scene.x, latents))
        sides["decode"] = fk.plotting.LatentMap(decode=(latents, arrays["decoded"]))
        if "output" in arrays:
            sides["samples"] = fk.plotting.LatentMap(infer=(scene.z, arrays["output"]))
    return sides


def limits(
    series: dict[str, dict[str, np.ndarray]], scene: Scene
) -> tuple[float, float]:
    """The same for all panels and frames: room for noise, data and most of the latents."""
    latents = [
        arrays["latents"][-1] for arrays in series.values() if "latents" in arrays
    ]
    low = min(
        float(np.min(a))
        for a in (scene.z, scene.x, *(np.quantile(a, 0.02) for a in latents))
    )
    high = max(
        float(np.max(a))
        for a in (scene.z, scene.x, *(np.quantile(a, 0.98) for a in latents))
    )
    return low - 0.1 * (high - low), high + 0.1 * (high - low)


def draw_models(
    series: dict[str, Any],
    metrics: dict[str, Any],
    dim: str,
    scene: Scene,
    output: Path,
) -> None:
    for name, arrays in series.items():
        numbers = metrics["models"][name]
        title = f"W2 to the data {numbers['w2']:.2f} (floor {metrics['w2_floor']:.2f})"
        if "latent_w2" in numbers:
            title += f", latents to N(0, 1) {numbers['latent_w2']:.2f} (floor {metrics['latent_w2_floor']:.2f})"
        sides = panels(
            MODELS[name].title,
            {key: values[-1] for key, values in arrays.items()},
            scene,
        )
        fk.plotting.comparison(
            sides,
            limits=limits(series, scene),
            title=title,
            path=output / f"{name}_{dim}_visualization.png",
        )


def make_pool(config: Config) -> cf.Executor:
    if config.num_workers == 0:
        return cf.ThreadPoolExecutor(1)
    return cf.ProcessPoolExecutor(
        config.num_workers, mp_context=multiprocessing.get_context("spawn")
    )


def submit_frames(
    pool: cf.Executor,
    series: dict[str, Any],
    dim: str,
    scene: Scene,
    config: Config,
    output: Path,
) -> tuple[list[Path], list[cf.Future]]:
    """Hands the frames to the pool, in as many parts as it has workers."""
    epochs = sorted(
        {
            *range(config.frame_every, config.epochs + 1, config.frame_every),
            config.epochs,
        }
    )
    shown = jax.tree.map(np.asarray, scene._replace(sampler=None))
    bounds = limits(series, scene)
    parts = []
    for part in np.array_split(epochs, max(config.num_workers, 1)):
        if len(part):
            chosen = {
                name: {key: a[part - 1] for key, a in arrays.items()}
                for name, arrays in series.items()
            }
            parts.append(
                pool.submit(
                    draw_frames,
                    part.tolist(),
                    chosen,
                    shown,
                    bounds,
                    dim,
                    config.dpi,
                    output,
                )
            )
    return [frame_path(output, "comparison", dim, epoch) for epoch in epochs], parts


def frame_path(output: Path, name: str, dim: str, epoch: int) -> Path:
    return output / f"{name}_{dim}_epochs" / f"epoch_{epoch:04d}.png"


def draw_frames(
    epochs: Sequence[int],
    series: dict[str, Any],
    scene: Scene,
    bounds: Any,
    dim: str,
    dpi: int,
    output: Path,
) -> None:
    """Frames of all models, and of each model what is cut out of them."""
    for name in ("comparison", *series):
        frame_path(output, name, dim, 0).parent.mkdir(exist_ok=True)

    def frames():
        for i, epoch in enumerate(epochs):
            at = {
                name: {key: values[i] for key, values in arrays.items()}
                for name, arrays in series.items()
            }
            yield (
                f"epoch {epoch}",
                {
                    MODELS[name].title: panel(arrays, scene)
                    for name, arrays in at.items()
                },
            )

    for epoch, frame in zip(
        epochs,
        fk.plotting.comparison_frames(frames(), limits=bounds, dpi=dpi),
        strict=True,
    ):
        # With 256 colours, found quickly: what takes longest in writing a GIF is to find them.
        image = frame.image.quantize(
            method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        image.save(frame_path(output, "comparison", dim, epoch))
        for name in series:
            frame.panels[MODELS[name].title].save(frame_path(output, name, dim, epoch))


def write_gif(frames: Sequence[Path], path: Path, fps: float) -> None:
    """The animation, and its last frame as a picture."""
    fk.plotting.animate(frames, path.with_suffix(".gif"), fps=fps)
    path.with_suffix(".png").write_bytes(frames[-1].read_bytes())


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on.")
