"""Generate point clouds: an encoder, a flow conditioned on its latents, and a flow over the latents.

    python examples/point_clouds.py
    python examples/point_clouds.py --data clouds.npz --num-steps 20000

By default the clouds are scikit-learn's handwritten digits, which need no download. A `.npz` file holds `points`
`(clouds, n, d)` and, if some clouds have fewer points, a boolean `mask` `(clouds, n)`.

Everything goes to `artifacts/point_clouds/`. Interrupt the run and start it again: it goes on from its last
checkpoint.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro

import flowkit as fk


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The networks. Stored with every checkpoint, so that the model can be restored without this file's defaults."""

    in_size: int = 2
    """Dimension of the points; taken from the data."""
    latent_size: int = 16
    """Size of the latent vector of a cloud."""
    encoder_sizes: Sequence[int] = (64, 128, 256)
    """Widths of the encoder, PointNet."""
    width_size: int = 64
    """Width of the conditional ResNet that moves the points."""
    depth: int = 6
    """Its number of layers."""
    prior_sizes: Sequence[int] = (256, 256, 256)
    """Widths of the flow over latents."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a generative model of point clouds and judge it on held-out ones."""

    data: str = "digits"
    """`digits`, or the path of a `.npz` file."""
    num_points: int = 64
    """Points per digit."""
    draws: int = 16
    """How many clouds are drawn from each training digit."""
    num_steps: int = 4000
    """Training steps in all, those before an interruption included."""
    prior_steps: int = 4000
    """Then steps of the prior alone, which are about twenty times as fast."""
    batch_size: int = 64
    """Clouds per step."""
    block: int = 16
    """Clouds that are worked on at a time; the result does not depend on it."""
    learning_rate: float = 2e-3
    """Peak of a schedule with a warm-up and a cosine decay."""
    ema_decay: float = 0.995
    """Decay of the averaged weights, which are the ones judged."""
    test_fraction: float = 0.2
    """Held-out part of the data."""
    checkpoint_every: int = 500
    """Steps between checkpoints, and between readings of the explained velocity."""
    seed: int = 0
    """Of everything random."""
    output: str = "artifacts/point_clouds"
    """Folder for figures, metrics and checkpoints."""
    model: ModelConfig = ModelConfig()


FIGURE_POINTS = 256
"""Points of every cloud in the figures."""

NNA_DRAWS = 4
"""How many collections of generated clouds the 1-NN accuracy is averaged over."""


class HeldOut(NamedTuple):
    """Every held-out shape twice: what the encoder sees, and another draw of the same to compare with."""

    seen: fk.data.PointSets
    other: fk.data.PointSets


def load(config: Config) -> tuple[fk.data.PointSets, HeldOut]:
    """The training clouds and the held-out pairs."""
    if config.data == "digits":
        dkey, tkey = jr.split(jr.key(config.seed))
        options = {"test_fraction": config.test_fraction, "seed": config.seed}
        train = fk.data.digits(config.num_points, draws=config.draws, **options, key=dkey).train
        test = fk.data.digits(config.num_points, draws=2, **options, key=tkey).test
        seen, other = np.split(test.points, 2)
        return train, HeldOut(fk.data.PointSets(seen), fk.data.PointSets(other))
    sets, _ = fk.data.normalize(fk.data.load_npz(config.data))
    split = fk.data.train_test_split(sets, test_fraction=config.test_fraction, seed=config.seed)
    return split.train, split_points(split.test, config.seed)


def split_points(sets: fk.data.PointSets, seed: int) -> HeldOut:
    """Files hold one draw of each shape: half of its points are seen, the other half is compared with."""
    valid = np.ones(sets.points.shape[:2], bool) if sets.mask is None else sets.mask
    order = np.argsort(np.where(valid, np.random.default_rng(seed).random(valid.shape), 2), axis=1)
    rank = np.argsort(order, axis=1)
    half = valid.sum(axis=1, keepdims=True) // 2
    return HeldOut(
        sets._replace(mask=valid & (rank < half)),
        sets._replace(mask=valid & (rank >= half)),
    )


def build(config: ModelConfig, *, key: jax.Array = jr.key(0)) -> fk.latent.SetFlow:
    """The model: PointNet with max and mean pooling, a conditional ResNet, and a flow over the latents."""
    ekey, fkey, pkey = jr.split(key, 3)
    d, c = config.in_size, config.latent_size
    encoder = fk.nn.PointNet(d, c, hidden_sizes=config.encoder_sizes, pooling=fk.nn.max_mean_pool, key=ekey)
    crn = fk.nn.AdaLNMLP(d, c, width_size=config.width_size, depth=config.depth, key=fkey)
    latent_velocity = fk.nn.MLP(c, hidden_sizes=config.prior_sizes, time_embedding=fk.nn.SinusoidalTime(64), key=pkey)
    prior = fk.latent.FlowPrior(fk.Flow(latent_velocity), c)
    return fk.latent.SetFlow(encoder, fk.Flow(crn), prior)


def main(config: Config) -> None:
    output = Path(config.output)
    train, held_out = load(config)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, in_size=train.points.shape[-1]))
    mkey, fkey, pkey, ekey = jr.split(jr.key(config.seed + 1), 4)

    joint = train_jointly(build(config.model, key=mkey), train, held_out, config, key=fkey)
    final = train_prior(joint.ema, train, config, key=pkey)
    seconds = sum(elapsed(result.history["seconds"].values) for result in (joint, final))
    judge(final.ema, joint.history, train, held_out, output, {"steps": config.num_steps, "seconds": seconds}, key=ekey)


def train_jointly(model, train, held_out, config, *, key) -> fk.training.FitResult:
    """Encoder, flow and prior together; the prior learns from the latents without moving the encoder."""
    tkey, vkey = jr.split(key)

    def loss(model, batch, key):
        return fk.latent.set_flow_loss(model, batch.points, mask=batch.mask, key=key, block=config.block)

    warm_up = min(200, config.num_steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warm_up, config.num_steps)
    return fk.training.fit(
        loss,
        model,
        fk.data.batches(train._replace(labels=None), config.batch_size, seed=config.seed),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        num_steps=config.num_steps,
        ema_decay=fk.training.WarmUpDecay(config.ema_decay),
        checkpoints=checkpoints(config, "joint"),
        callbacks=[
            fk.training.Every(config.checkpoint_every, explained_velocity_callback(held_out, vkey)),
            fk.training.Every(config.checkpoint_every, stopwatch()),
        ],
        key=tkey,
    )


def train_prior(model, train, config, *, key) -> fk.training.FitResult:
    """The prior alone, on the latents of the trained encoder, which no longer move: a few seconds."""
    encode = jax.jit(lambda points, mask: jax.vmap(model.encode)(points, mask))
    latents = jnp.concatenate([encode(*batch) for batch in in_batches(train, 2048)])
    return fk.training.fit(
        lambda model, latents, key: fk.latent.prior_loss(model.prior, latents, key=key),
        model,
        latents,
        batch_size=min(256, len(latents)),
        optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, config.prior_steps)),
        num_steps=config.prior_steps,
        steps_per_call=50,
        ema_decay=fk.training.WarmUpDecay(config.ema_decay),
        trainable=lambda model: model.prior,
        callbacks=[fk.training.Every(config.checkpoint_every, stopwatch())],
        checkpoints=checkpoints(config, f"prior-{config.num_steps}"),
        key=key,
    )


def checkpoints(config: Config, stage: str) -> fk.training.Checkpoints:
    """Where a stage is saved, with everything that a run must share to go on from there.

    `fk.training.restore_model("artifacts/point_clouds/checkpoints/prior-4000", restore)` gives the final model.
    """
    shared = dataclasses.asdict(config)
    for name in ("num_steps", "prior_steps", "checkpoint_every", "output"):
        shared.pop(name)
    directory = Path(config.output) / "checkpoints" / stage
    return fk.training.Checkpoints(directory, every=config.checkpoint_every, config=shared)


def restore(config: dict) -> fk.latent.SetFlow:
    """The model that a stored configuration describes."""
    return build(ModelConfig(**config["model"]))


def stopwatch():
    """A callback: the seconds since it was made."""
    start = time.perf_counter()
    return lambda state, step: {"seconds": time.perf_counter() - start}


def elapsed(seconds: np.ndarray) -> float:
    """The sum over the sessions of a run of a stopwatch that starts anew in each."""
    ends_session = np.append(np.diff(seconds) < 0, True)
    return float(np.sum(seconds[ends_session]))


def in_batches(sets: fk.data.PointSets, size: int):
    for start in range(0, len(sets.points), size):
        rows = slice(start, start + size)
        yield sets.points[rows], None if sets.mask is None else sets.mask[rows]


def explained_velocity_callback(held_out: HeldOut, key: jax.Array):
    """A callback: R2 of the velocity on held-out clouds, the number that the loss cannot give."""

    def callback(state, step):
        del step
        return {"explained_velocity": explained_velocity(state.ema, held_out, key).total}

    return callback


@eqx.filter_jit
def explained_velocity(model: fk.latent.SetFlow, held_out: HeldOut, key: jax.Array):
    points, mask, _ = held_out.seen
    latents = jax.vmap(model.encode)(points, mask)
    return fk.explained_velocity(model.flow, held_out.other.points, latents, mask=held_out.other.mask, key=key)


def judge(
    model: fk.latent.SetFlow,
    history: dict,
    train: fk.data.PointSets,
    held_out: HeldOut,
    output: Path,
    metrics: dict,
    *,
    key: jax.Array,
) -> None:
    """Numbers and figures, on held-out clouds."""
    rkey, skey, vkey, tkey, fkey = jr.split(key, 5)
    seen, other = held_out
    num, num_points, size = seen.points.shape

    print("Reconstructing and sampling ...", flush=True)
    latents = jax.vmap(model.encode)(seen.points, seen.mask)
    samples = fk.sample(model.flow, (num_points, size), num_samples=num, cond=latents, key=rkey)
    reconstructed = np.asarray(samples.values)
    generated = np.asarray(model.sample(num_points, num_samples=NNA_DRAWS * num, key=skey).values)

    chamfer = jax.jit(jax.vmap(fk.metrics.chamfer))
    shuffled = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), other)
    distance = lambda x, x_mask, y: float(jnp.mean(chamfer(x, y.points, mask_x=x_mask, mask_y=y.mask)))
    chosen = np.asarray(jr.permutation(tkey, len(train.points)))
    some_train = jax.tree.map(lambda leaf: leaf[chosen[: NNA_DRAWS * num]], train)
    explained = explained_velocity(model, held_out, vkey)
    metrics |= {
        "chamfer": distance(reconstructed, None, other),
        "chamfer_floor": distance(seen.points, seen.mask, other),
        "chamfer_shuffled": distance(reconstructed, None, shuffled),
        "one_nna_chamfer": one_nna(fk.data.PointSets(generated), other),
        "one_nna_floor": one_nna(some_train, other),
        "explained_velocity": float(explained.total),
        "explained_velocity_per_time": [round(float(value), 4) for value in explained.r2],
        "steps_per_sample": float(jnp.mean(samples.stats.accepted)),
    }
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    draw(model, history, held_out, output, key=fkey)
    fk.plotting.explained_velocity(explained.times, explained.r2, path=output / "explained_velocity.png")
    print(json.dumps(metrics, indent=2))
    print(f"Figures, metrics and checkpoints are in {output}/.")


def draw(model: fk.latent.SetFlow, history: dict, held_out: HeldOut, output: Path, *, key: jax.Array) -> None:
    """The figures. The flow draws as many points of a cloud as one likes: here more than it was trained on."""
    rkey, skey = jr.split(key)
    panels = {
        "loss": ["loss"],
        "components (log scale)": ["flow_loss", "prior_loss"],
        "gradient norm (log scale)": ["grad_norm"],
        "explained velocity": ["explained_velocity"],
    }
    fk.plotting.loss_trajectory(history, panels=panels, path=output / "loss_trajectory.png")
    points, mask, _ = jax.tree.map(lambda leaf: leaf[:16], held_out.seen)
    size = points.shape[-1]
    latents = jax.vmap(model.encode)(points, mask)
    samples = fk.sample(model.flow, (FIGURE_POINTS, size), num_samples=len(points), cond=latents, key=rkey)
    inputs = points if mask is None else [cloud[seen] for cloud, seen in zip(points, mask, strict=True)]
    fk.plotting.reconstructions(inputs, samples.values, path=output / "samples.png")
    generated = model.sample(FIGURE_POINTS, num_samples=36, key=skey).values
    fk.plotting.point_clouds(generated, path=output / "unconditional_samples.png")


def one_nna(sets: fk.data.PointSets, reference: fk.data.PointSets) -> float:
    """Leave-one-out 1-NN accuracy, 0.5 is ideal: the mean over consecutive parts as long as the reference."""
    num = len(reference.points)
    distances = lambda x, y: fk.metrics.pairwise(fk.metrics.chamfer, x.points, y.points, mask_xs=x.mask, mask_ys=y.mask)
    within = distances(reference, reference)
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + num], sets) for i in range(0, len(sets.points), num)]
    values = [
        fk.metrics.one_nna(distances(part, part), distances(part, reference), within)
        for part in parts
        if len(part.points) == num
    ]
    return float(np.mean(values))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from the last checkpoint.")
