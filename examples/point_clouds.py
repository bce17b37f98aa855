"""Generate point clouds: an encoder, a flow given its latents, and a prior over the latents.

    python examples/point_clouds.py
    python examples/point_clouds.py --data mnist --num-points 256 --class-conditional
    python examples/point_clouds.py --model.encoder slot-attention --model.backbone dit --model.conditioner select
    python examples/point_clouds.py --data clouds.npz --num-steps 20000

By default the clouds are scikit-learn's handwritten digits, which need no download. A `.npz` file holds `points`
`(clouds, n, d)`, in any dimension, and, where it has them, a boolean `mask` `(clouds, n)` and `labels` `(clouds,)`.

Everything goes to the output folder. Interrupt the run and start it again: it goes on from its last checkpoint.
"""

import dataclasses
import functools as ft
import json
import sys
import time
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
from point_cloud_models import (
    build,
    class_condition,
    has_trainable_prior,
    is_local,
    ModelConfig,
)

import flowkit as fk


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a generative model of point clouds and judge it on held-out ones."""

    data: str = "digits"
    """`digits`, `mnist`, `mnist-rotated`, `mnist-translated`, `mnist-rotated-translated`, `scenes`, `scenes-rotated`,
    `scenes-rotated-scaled`, or the path of a `.npz` file."""
    max_samples: int | None = None
    """At most so many clouds."""
    num_points: int = 64
    """Points per digit; per cloud and step, for files and MNIST."""
    draws: int = 16
    """How many clouds are drawn from each training digit of `digits`."""
    class_conditional: bool = False
    """Whether the prior, which must be a flow, is given the class of a cloud."""
    class_dropout: float = 0.1
    """Probability that the prior is not told the class in training, which guidance needs."""
    guidance: float = 1.0
    """Scale of the guidance of the prior when clouds are drawn: above 1 they are surer to be of their class, and vary
    less."""
    stages: Literal["joint", "two-stage", "flow", "prior"] = "joint"
    """Joint: everything, then the prior alone. Two-stage: encoder and flow first, the prior after them. Flow and prior:
    one of these two."""
    start_from: str | None = None
    """Folder of a finished run, whose model is trained further: for `--stages prior`, say."""
    num_steps: int = 4000
    """Training steps of the first stage in all, those before an interruption included."""
    prior_steps: int = 4000
    """Steps of the stage of the prior alone, which are about twenty times as fast."""
    batch_size: int = 64
    """Clouds per step."""
    block: int = 16
    """Clouds that are worked on at a time; the result does not depend on it."""
    learning_rate: float = 2e-3
    """Peak of a schedule with a warm-up and a cosine decay."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Of the first stage. Muon makes the updates of matrices orthogonal: half as many steps get as far. They take
    longer, up to twice for small clouds, so that it pays for large ones."""
    momentum: Literal["default", "doubled"] = "default"
    """Decay rates of Adam, with Muon of what is no matrix: (0.9, 0.999), or twice the window."""
    ema_decay: float = 0.995
    """Decay of the averaged weights, which are the ones judged."""
    times: Literal["uniform", "late"] = "uniform"
    """The law of the time in training; late is logit-normal with median 0.73, for shapes that are thin: at late times
    the noise is as small as they are."""
    coupling: Literal["independent", "points", "aligned"] = "independent"
    """How noise and points of a cloud are paired: at random, by optimal assignment, or that after a rotation."""
    vae_kl_weight: float = 0.0
    """Of the divergence of a variational model."""
    marginal_kl_weight: float = 0.0
    """Of the divergence of the moments of all latents."""
    grid_mask: bool = False
    """Whether cells of a grid over each cloud are hidden from the encoder in training."""
    grid_size: int = 3
    """Cells of that grid along each axis."""
    grid_mask_probability: float = 0.33
    """Probability that a cell is hidden."""
    augment: bool = False
    """Whether clouds are rotated, scaled and moved at random in training."""
    test_fraction: float = 0.2
    """Held-out part of the data (MNIST has its own)."""
    test_samples: int = 360
    """At most so many held-out clouds are judged."""
    checkpoint_every: int | None = 500
    """Steps between checkpoints, and between readings of the explained velocity and the Chamfer distance; none saves
    the end of a stage only."""
    up_axis: int = 2
    """Axis that points up in figures of clouds in space."""
    seed: int = 42
    """Of everything random."""
    output: str = "artifacts/point_clouds"
    """Folder for figures, metrics and checkpoints."""
    model: ModelConfig = ModelConfig()


TURN, BY = (0.0, 2 * np.pi), (-1.5, 1.5)
MNIST_POSES: dict[str, dict[str, Any]] = {
    "mnist": {},
    "mnist-rotated": {"rotate": TURN},
    "mnist-translated": {"translate": BY},
    "mnist-rotated-translated": {"rotate": TURN, "translate": BY},
}
SCENE_POSES: dict[str, dict[str, Any]] = {
    "scenes": {},
    "scenes-rotated": {"rotate": TURN},
    "scenes-rotated-scaled": {"rotate": TURN, "scale": (0.5, 1.5)},
}
NUM_SCENES = 20_000
FIGURE_POINTS = 256
"""Points of every cloud in the figures; the flow draws as many as one likes."""

NNA_DRAWS = 4
"""How many collections of generated clouds the scores are averaged over."""


# -- data


class Data(NamedTuple):
    """Training clouds, and every held-out shape twice: what the encoder sees, and more of the same to compare with."""

    train: fk.data.PointSets
    seen: fk.data.PointSets
    other: fk.data.PointSets


def load(config: Config) -> Data:
    """The data set that is named, cut to size; without labels if nothing is to be conditioned on them."""
    if config.data == "digits":
        data = load_digits(config)
    else:
        train, test = (
            load_images(config)
            if config.data in {*MNIST_POSES, *SCENE_POSES}
            else load_file(config)
        )
        data = Data(train, *halves(test, config.seed))
    cut = lambda sets, size: jax.tree.map(lambda leaf: leaf[:size], sets)
    train = cut(data.train, config.max_samples)
    if config.class_conditional and train.labels is None:
        raise ValueError(
            f"--class-conditional needs labels, which {config.data} does not have."
        )
    return Data(
        train, cut(data.seen, config.test_samples), cut(data.other, config.test_samples)
    )


def load_digits(config: Config) -> Data:
    tkey, hkey = jr.split(jr.key(config.seed))
    options = {"test_fraction": config.test_fraction, "seed": config.seed}
    train = fk.data.digits(
        config.num_points, draws=config.draws, **options, key=tkey
    ).train
    test = fk.data.digits(config.num_points, draws=2, **options, key=hkey).test
    half = len(test.points) // 2
    return Data(
        train,
        *(jax.tree.map(lambda leaf, i=i: leaf[i : i + half], test) for i in (0, half)),
    )


def load_images(config: Config) -> tuple[fk.data.PointSets, fk.data.PointSets]:
    """Clouds of MNIST, of one image each or in scenes; held-out ones with twice the points, to be halved."""
    images = fk.data.load_mnist()
    tkey, hkey = jr.split(jr.key(config.seed))
    if config.data in MNIST_POSES:
        poses = MNIST_POSES[config.data]
        test_images = jax.tree.map(
            lambda leaf: leaf[: config.test_samples], images.test
        )
        train = fk.data.image_clouds(images.train, **poses, key=tkey)
        return train.sets(), fk.data.image_clouds(
            test_images, 2 * config.num_points, **poses, key=hkey
        ).sets()
    poses = SCENE_POSES[config.data]
    train = fk.data.scenes(
        images.train, config.max_samples or NUM_SCENES, **poses, key=tkey
    )
    return train.sets(), fk.data.scenes(
        images.test, config.test_samples, 2 * config.num_points, **poses, key=hkey
    ).sets()


def load_file(config: Config) -> tuple[fk.data.PointSets, fk.data.PointSets]:
    sets, _ = fk.data.normalize(fk.data.load_npz(config.data))
    test_fraction, labels = config.test_fraction, sets.labels
    train, test = fk.data.train_test_split(
        sets, test_fraction=test_fraction, seed=config.seed, stratify=labels
    )
    if (
        test.points.shape[1] > 2 * config.num_points
    ):  # judged with as many points as in training
        test = fk.data.subsample(
            test, np.random.default_rng(config.seed), num_points=2 * config.num_points
        )
    return train, test


def halves(
    sets: fk.data.PointSets, seed: int
) -> tuple[fk.data.PointSets, fk.data.PointSets]:
    """Half of the points of each cloud, and the other half."""
    valid: np.ndarray = (
        np.ones(sets.points.shape[:2], bool) if sets.mask is None else sets.mask
    )
    order = np.argsort(
        np.where(valid, np.random.default_rng(seed).random(valid.shape), 2), axis=1
    )
    points = np.take_along_axis(sets.points, order[..., None], axis=1)
    half = valid.shape[1] // 2
    if sets.mask is None:
        return sets._replace(points=points[:, :half]), sets._replace(
            points=points[:, half : 2 * half]
        )
    rank, first = np.arange(valid.shape[1]), valid.sum(axis=1, keepdims=True) // 2
    masks = rank < first, (rank >= first) & (rank < 2 * first)
    return sets._replace(points=points, mask=masks[0]), sets._replace(
        points=points, mask=masks[1]
    )


def training_batches(train: fk.data.PointSets, config: Config):
    """Shuffled batches: of each cloud at most `num_points` random points, perhaps moved as a whole."""
    steps = []
    if train.points.shape[1] > config.num_points:
        steps.append(ft.partial(fk.data.subsample, num_points=config.num_points))
    if config.augment:
        steps.append(fk.data.Augment())

    def transform(batch, rng):
        for step in steps:
            batch = step(batch, rng)
        return batch

    return fk.data.batches(
        train,
        config.batch_size,
        seed=config.seed,
        transform=transform if steps else None,
    )


# -- training


def main(config: Config) -> None:
    output = Path(config.output)
    data = load(config)
    labels: Any = data.train.labels
    num_classes = int(labels.max()) + 1 if config.class_conditional else 0
    if config.guidance != 1 and (num_classes == 0 or config.class_dropout == 0):
        raise ValueError(
            "--guidance needs --class-conditional and a --class-dropout above 0."
        )
    model_config = dataclasses.replace(
        config.model, in_size=data.train.points.shape[-1], num_classes=num_classes
    )
    config = dataclasses.replace(config, model=model_config)
    mkey, tkey, ekey = jr.split(jr.key(config.seed + 1), 3)
    model = (
        build(config.model, key=mkey)
        if config.start_from is None
        else final_model(Path(config.start_from))[0]
    )
    results = train(model, data, config, key=tkey)
    seconds = sum(
        elapsed(result.history["seconds"].values) for result in results.values()
    )
    histories = [result.history for result in results.values()]
    *_, last = results.values()
    steps = {name: int(result.state.step) for name, result in results.items()}
    judge(
        last.ema,
        histories[0],
        data,
        config,
        output,
        {"steps": steps, "seconds": seconds},
        key=ekey,
    )


def train(
    model, data: Data, config: Config, *, key: jax.Array
) -> dict[str, fk.training.FitResult]:
    """The stages that were asked for, each from where the one before ended."""
    fkey, ekey = jr.split(key)
    names = {"joint": ("joint", "prior"), "two-stage": ("flow", "prior")}.get(
        config.stages, (config.stages,)
    )
    stages = [
        flow_stage(name, data, config, key=ekey) for name in names if name != "prior"
    ]
    if (
        "prior" in names
        and config.prior_steps > 0
        and has_trainable_prior(config.model)
    ):
        stages.append(prior_stage(data, config))
    return fk.training.fit_stages(
        stages,
        model,
        ema_decay=fk.training.WarmUpDecay(config.ema_decay),
        checkpoints=checkpoints(config),
        key=fkey,
    )


def flow_stage(
    name: str, data: Data, config: Config, *, key: jax.Array
) -> fk.training.Stage:
    """Encoder and flow; in the joint stage the prior too, which learns from the latents without moving the encoder."""
    joint = name == "joint"
    couplings = {
        "independent": fk.independent,
        "points": fk.point_assignment,
        "aligned": fk.AlignedAssignment(),
    }
    options = {
        "encoder_mask": grid_mask(config),
        "prior_weight": 1.0 if joint else 0.0,
        "vae_kl_weight": config.vae_kl_weight,
        "marginal_kl_weight": config.marginal_kl_weight,
        "coupling": couplings[config.coupling],
        "times": {"uniform": fk.uniform, "late": fk.LogitNormal(1.0, 1.0)}[
            config.times
        ],
        "block": config.block,
    }

    def loss(model, batch, key):
        drop_key, key = jr.split(key)
        cond = dropped_classes(batch.labels, config, drop_key) if joint else None
        return fk.latent.set_flow_loss(
            model, batch.points, mask=batch.mask, cond=cond, key=key, **options
        )

    return fk.training.Stage(
        name,
        loss,
        config.num_steps,
        build_optimizer(config),
        None if joint else lambda model: (model.encoder, model.flow),
        batches=training_batches(
            data.train
            if config.model.num_classes
            else data.train._replace(labels=None),
            config,
        ),
        callbacks=[
            fk.training.Every(interval(config), call)
            for call in (evaluation(data, key), stopwatch())
        ],
    )


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """A warm-up and a cosine decay for either, and clipped gradients."""
    momentum: Any = {
        "default": fk.training.DEFAULT_MOMENTUM,
        "doubled": fk.training.DOUBLED_MOMENTUM,
    }[config.momentum]
    warm_up = min(200, config.num_steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warm_up, config.num_steps
    )
    if config.optimizer == "adam":
        optimizer = optax.adam(schedule, **momentum)
    else:  # updates of the size of Adam's, so that one learning rate suits both
        of_vectors = {f"adam_{name}": value for name, value in momentum.items()}
        optimizer = optax.contrib.muon(schedule, consistent_rms=0.2, **of_vectors)
    return optax.chain(optax.clip_by_global_norm(1.0), optimizer)


def dropped_classes(labels: Any, config: Config, key: jax.Array) -> jax.Array | None:
    """The condition of the prior in training: now and then it is left out."""
    cond = class_condition(labels, config.model)
    return (
        None if cond is None else fk.drop_condition(cond, config.class_dropout, key=key)
    )


def prior_stage(data: Data, config: Config) -> fk.training.Stage:
    """The prior alone, on the latents of the trained encoder, which no longer move: much faster steps."""
    labels = jnp.asarray(data.train.labels) if config.model.num_classes else None

    def loss(model, batch, key):
        latents, labels = batch
        drop_key, key = jr.split(key)
        return fk.latent.prior_loss(
            model.prior, latents, dropped_classes(labels, config, drop_key), key=key
        )

    return fk.training.Stage(
        "prior",
        loss,
        config.prior_steps,
        optax.adam(optax.cosine_decay_schedule(2e-3, config.prior_steps)),
        lambda model: model.prior,
        batches=lambda model: (encode_all(model, data.train, config), labels),
        batch_size=min(256, len(data.train.points)),
        steps_per_call=50,
        callbacks=[fk.training.Every(interval(config), stopwatch())],
    )


def grid_mask(config: Config) -> fk.latent.GridMask | None:
    return (
        fk.latent.GridMask(config.grid_size, config.grid_mask_probability)
        if config.grid_mask
        else None
    )


def interval(config: Config) -> int:
    """Steps between checkpoints: those of the longer stage if there shall be none on the way."""
    return config.checkpoint_every or max(config.num_steps, config.prior_steps)


@eqx.filter_jit
def encode(model: fk.latent.SetFlow, points: Any, mask: Any) -> jax.Array:
    return jax.vmap(model.encode)(points, mask)


def encode_all(
    model: fk.latent.SetFlow, sets: fk.data.PointSets, config: Config, size: int = 512
) -> jax.Array:
    """The latents of all clouds, each seen as in training: by `num_points` of its points."""
    rng = np.random.default_rng(config.seed)
    latents = []
    for start in range(0, len(sets.points), size):
        part = jax.tree.map(lambda leaf, start=start: leaf[start : start + size], sets)
        if part.points.shape[1] > config.num_points:
            part = fk.data.subsample(part, rng, num_points=config.num_points)
        latents.append(encode(model, part.points, part.mask))
    return jnp.concatenate(latents)


def checkpoints(config: Config) -> fk.training.Checkpoints:
    """Where the stages are saved."""
    return fk.training.Checkpoints(
        Path(config.output) / "checkpoints",
        every=interval(config),
        config=stored(config),
    )


def stored(config: Config) -> dict[str, Any]:
    """What a run must share with the one that it goes on from."""
    free = (
        "num_steps",
        "prior_steps",
        "checkpoint_every",
        "stages",
        "test_samples",
        "guidance",
        "output",
    )
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in free
    }


def restore(config: dict) -> fk.latent.SetFlow:
    """A model as a stored configuration describes it, for `fk.training.restore_model`."""
    return build(ModelConfig(**config["model"]))


def final_model(output: Path) -> tuple[fk.latent.SetFlow, Config]:
    """The model of the last stage that was trained in a folder, and the configuration of its run."""
    folder = next(
        (
            path
            for stage in ("prior", "joint", "flow")
            if (path := output / "checkpoints" / stage).is_dir()
        ),
        None,
    )
    if folder is None:
        raise FileNotFoundError(
            f"{output} holds no checkpoints; run examples/point_clouds.py first."
        )
    configs = []
    model = fk.training.restore_model(
        folder, lambda config: configs.append(config) or restore(config)
    )
    options = {
        **configs[0],
        "output": str(output),
        "model": ModelConfig(**configs[0]["model"]),
    }
    return model, Config(**options)


def stopwatch():
    """A callback: the seconds since it was first called, before the first step."""
    start: list[float] = []

    def callback(state, step):
        start.append(time.perf_counter())
        return {"seconds": start[-1] - start[0]}

    return callback


def elapsed(seconds: np.ndarray) -> float:
    """The sum over the sessions of a run of a stopwatch that starts anew in each."""
    ends_session = np.append(np.diff(seconds) < 0, True)
    return float(np.sum(seconds[ends_session]))


# -- judgement


def evaluation(data: Data, key: jax.Array):
    """A callback: R2 of the velocity on held-out clouds, the number that the loss cannot give, and the Chamfer distance
    of a hundred reconstructions."""
    hundred = data._replace(seen=first(data.seen, 100), other=first(data.other, 100))

    def callback(state, step):
        del step
        explained = explained_velocity(state.ema, data, key)
        values = reconstruct(
            state.ema, hundred, key, num_steps=10, solver=fk.RK4()
        ).values
        return {
            "explained_velocity": explained.total,
            "chamfer": mean_chamfer(values, None, hundred.other),
        }

    return callback


def first(sets: fk.data.PointSets, size: int) -> fk.data.PointSets:
    return jax.tree.map(lambda leaf: leaf[:size], sets)


@eqx.filter_jit
def explained_velocity(
    model: fk.latent.SetFlow, data: Data, key: jax.Array
) -> fk.ExplainedVelocity:
    """Of the points that the encoder has not seen; of those that it has if each has a latent of its own."""
    latents = encode(model, data.seen.points, data.seen.mask)
    judged = data.seen if latents.shape[1] == data.seen.points.shape[1] else data.other
    return fk.explained_velocity(
        model.flow, judged.points, latents, mask=judged.mask, key=key
    )


def reconstruct(
    model: fk.latent.SetFlow,
    data: Data,
    key: jax.Array,
    num_points: int | None = None,
    **options,
):
    """Clouds from the latents of those that are seen."""
    seen = data.seen
    latents = encode(model, seen.points, seen.mask)
    shape = (num_points or seen.points.shape[1], seen.points.shape[2])
    return fk.sample(
        model.flow, shape, num_samples=len(latents), cond=latents, key=key, **options
    )


def mean_chamfer(points: Any, mask: Any, other: fk.data.PointSets) -> float:
    masks = {} if mask is None else {"mask_x": mask}
    masks |= {} if other.mask is None else {"mask_y": other.mask}
    return float(jnp.mean(CHAMFER(points, other.points, **masks)))


CHAMFER = eqx.filter_jit(jax.vmap(fk.metrics.chamfer))
"""Of pairs of clouds."""

SOLVER: dict[str, Any] = {
    "stepsize_controller": dfx.PIDController(rtol=1e-3, atol=1e-3)
}
"""A tolerance far below the distances between points, for clouds that are judged or drawn."""


def judge(
    model: fk.latent.SetFlow,
    history: dict,
    data: Data,
    config: Config,
    output: Path,
    metrics: dict,
    *,
    key: jax.Array,
) -> None:
    """Numbers and figures, on held-out clouds."""
    rkey, skey, vkey, fkey = jr.split(key, 4)
    print("Reconstructing and sampling ...", flush=True)
    samples = reconstruct(model, data, rkey, **SOLVER)
    shuffled = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), data.other)
    explained = explained_velocity(model, data, vkey)
    metrics |= {
        "chamfer": mean_chamfer(samples.values, None, data.other),
        "chamfer_floor": mean_chamfer(data.seen.points, data.seen.mask, data.other),
        "chamfer_shuffled": mean_chamfer(samples.values, None, shuffled),
        "explained_velocity": float(explained.total),
        "explained_velocity_per_time": [
            round(float(value), 4) for value in explained.r2
        ],
        "steps_per_sample": float(jnp.mean(samples.stats.accepted)),
    }
    if not is_local(config.model):
        metrics |= scores(model, data, config, key=skey)
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw(model, history, data, config, output, key=fkey)
    fk.plotting.explained_velocity(
        explained.times, explained.r2, path=output / "explained_velocity.png"
    )
    print(json.dumps(metrics, indent=2))
    print(f"Figures, metrics and checkpoints are in {output}/.")


def scores(
    model: fk.latent.SetFlow, data: Data, config: Config, *, key: jax.Array
) -> dict[str, float]:
    """Generated collections against the held-out one, the mean over several; the floor are training clouds."""
    gkey, tkey = jr.split(key)
    other = data.other
    num, num_points = other.points.shape[:2]
    generated = generate(
        model, data.train.labels, config, num_points, NNA_DRAWS * num, key=gkey
    )
    chosen = np.asarray(jr.permutation(tkey, len(data.train.points)))[: NNA_DRAWS * num]
    some_train = jax.tree.map(lambda leaf: leaf[chosen], data.train)
    if some_train.points.shape[1] > num_points:
        some_train = fk.data.subsample(
            some_train, np.random.default_rng(config.seed), num_points=num_points
        )

    def mean_scores(sets: fk.data.PointSets) -> dict[str, float]:
        starts = range(0, len(sets.points) - num + 1, num)
        parts = [
            jax.tree.map(lambda leaf, i=i: leaf[i : i + num], sets) for i in starts
        ]
        options: Any = {"mask_reference": other.mask}
        values = [
            fk.metrics.set_scores(
                part.points, other.points, mask_samples=part.mask, **options
            )
            for part in parts
        ]
        return {
            name: float(np.mean([getattr(value, name) for value in values]))
            for name in ("one_nna", "coverage")
        }

    ours, floor = mean_scores(fk.data.PointSets(generated)), mean_scores(some_train)
    return {
        "one_nna_chamfer": ours["one_nna"],
        "one_nna_floor": floor["one_nna"],
        "coverage": ours["coverage"],
        "coverage_floor": floor["coverage"],
    }


def generate(
    model, labels, config: Config, num_points: int, num: int, *, key: jax.Array
) -> np.ndarray:
    """Clouds from the prior; of a class-conditional one, with classes as frequent as in training."""
    lkey, skey = jr.split(key)
    cond = None
    if config.model.num_classes:
        cond = class_condition(
            jr.choice(lkey, jnp.asarray(labels), (num,)), config.model
        )
    if config.guidance != 1:
        model = guide(model, config.guidance)
    return np.asarray(
        model.sample(num_points, num_samples=num, cond=cond, key=skey, **SOLVER).values
    )


def guide(model: fk.latent.SetFlow, scale: float) -> fk.latent.SetFlow:
    """The model with a guided prior; without a class, zeros stand in the place of its one-hot vector."""
    prior: Any = model.prior
    return eqx.tree_at(
        lambda model: model.prior.flow, model, fk.guided(prior.flow, scale)
    )


def draw(
    model, history, data: Data, config: Config, output: Path, *, key: jax.Array
) -> None:
    """The figures. Clouds are drawn with more points than the model was trained on."""
    rkey, skey, mkey = jr.split(key, 3)
    panels = {
        "loss": ["loss"],
        "components (log scale)": [
            name for name in history if name.endswith(("_loss", "_kl"))
        ],
        "chamfer": [name for name in history if name == "chamfer"],
        "explained velocity": [
            name for name in history if name == "explained_velocity"
        ],
    }
    fk.plotting.loss_trajectory(
        history, panels=panels, path=output / "loss_trajectory.png"
    )
    some = data._replace(seen=first(data.seen, 16), other=first(data.other, 16))
    points, mask, _ = some.seen
    # A local model moves the points that it encodes, so it draws as many.
    values = reconstruct(
        model, some, rkey, None if is_local(config.model) else FIGURE_POINTS, **SOLVER
    ).values
    inputs = (
        points
        if mask is None
        else [cloud[seen] for cloud, seen in zip(points, mask, strict=True)]
    )
    fk.plotting.reconstructions(
        inputs, values, up=config.up_axis, path=output / "samples.png"
    )
    if not is_local(config.model):
        generated = generate(
            model, data.train.labels, config, FIGURE_POINTS, 36, key=skey
        )
        fk.plotting.point_clouds(
            generated, up=config.up_axis, path=output / "unconditional_samples.png"
        )
    if config.grid_mask and points.shape[-1] == 2:
        hide = fk.latent.GridMask(config.grid_size, config.grid_mask_probability)
        visible = jax.vmap(lambda points, mask, key: hide(points, mask, key=key))(
            points, mask, jr.split(mkey, len(points))
        )
        path = output / "masked_training_examples.png"
        fk.plotting.masked_examples(
            points[:8], visible[:8], grid_size=config.grid_size, path=path
        )


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from the last checkpoint.")
