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
    latent_size: int = 32
    """Size of the latent vector of a cloud."""
    encoder_sizes: tuple[int, ...] = (64, 128, 256)
    """Widths of the encoder, PointNet."""
    width_size: int = 128
    """Width of the conditional ResNet that moves the points."""
    depth: int = 6
    """Its number of layers."""
    prior_sizes: tuple[int, ...] = (256, 256, 256)
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
    num_steps: int = 5000
    """Training steps in all, those before an interruption included."""
    batch_size: int = 128
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
        seen, other = (fk.data.PointSets(*(half[i] for half in _halves(test))) for i in range(2))
        return train, HeldOut(seen, other)
    sets, _ = fk.data.normalize(fk.data.load_npz(config.data))
    split = fk.data.train_test_split(sets, test_fraction=config.test_fraction, seed=config.seed)
    return split.train, _split_points(split.test, config.seed)


def _halves(sets: fk.data.PointSets):
    points, _, labels = sets
    return points.reshape(2, -1, *points.shape[1:]), (None, None), labels.reshape(2, -1)


def _split_points(sets: fk.data.PointSets, seed: int) -> HeldOut:
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
    model_config = dataclasses.replace(config.model, in_size=train.points.shape[-1])
    mkey, fkey, ekey = jr.split(jr.key(config.seed + 1), 3)
    model = build(model_config, key=mkey)

    def loss(model, batch, key):
        return fk.latent.set_flow_loss(model, batch.points, mask=batch.mask, key=key, block=config.block)

    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(200, config.num_steps // 10), config.num_steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    report = ft_explained(held_out, ekey)
    start = time.perf_counter()
    result = fk.training.fit(
        loss,
        model,
        fk.data.batches(train._replace(labels=None), config.batch_size, seed=config.seed),
        optimizer=optimizer,
        num_steps=config.num_steps,
        ema_decay=fk.training.WarmUpDecay(config.ema_decay),
        checkpoints=fk.training.Checkpoints(
            output / "checkpoints", every=config.checkpoint_every, config=dataclasses.asdict(model_config)
        ),
        callbacks=[fk.training.Every(config.checkpoint_every, report)],
        key=fkey,
    )
    seconds = time.perf_counter() - start
    judge(result, train, held_out, output, {"steps": config.num_steps, "seconds": seconds}, key=ekey)


def ft_explained(held_out: HeldOut, key: jax.Array):
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
    result: fk.training.FitResult,
    train: fk.data.PointSets,
    held_out: HeldOut,
    output: Path,
    metrics: dict,
    *,
    key: jax.Array,
) -> None:
    """Figures and numbers of the averaged weights, on held-out clouds."""
    model = result.ema
    rkey, skey, vkey, tkey = jr.split(key, 4)
    seen, other = held_out
    num, num_points = seen.points.shape[:2]

    print("Reconstructing and sampling ...", flush=True)
    latents = jax.vmap(model.encode)(seen.points, seen.mask)
    shape = (num_points, seen.points.shape[-1])
    reconstructed = np.asarray(fk.sample(model.flow, shape, num_samples=num, cond=latents, key=rkey).values)
    generated = np.asarray(model.sample(num_points, num_samples=num, key=skey).values)

    chamfer = jax.jit(jax.vmap(fk.metrics.chamfer))
    shuffled = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), other)
    distance = lambda x, x_mask, y: float(jnp.mean(chamfer(x, y.points, mask_x=x_mask, mask_y=y.mask)))
    nearest = jr.permutation(tkey, len(train.points))[:num]
    training = jax.tree.map(lambda leaf: leaf[np.asarray(nearest)], train)
    explained = explained_velocity(model, held_out, vkey)
    metrics |= {
        "chamfer": distance(reconstructed, None, other),
        "chamfer_floor": distance(seen.points, seen.mask, other),
        "chamfer_shuffled": distance(reconstructed, None, shuffled),
        "one_nna_chamfer": one_nna(fk.data.PointSets(generated), other),
        "one_nna_floor": one_nna(training, other),
        "explained_velocity": float(explained.total),
        "explained_velocity_per_time": [round(float(value), 4) for value in explained.r2],
    }
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    fk.plotting.loss_trajectory(result.history, path=output / "loss_trajectory.png")
    fk.plotting.reconstructions(
        seen.points[:16], reconstructed[:16], input_masks=seen.mask, path=output / "samples.png"
    )
    fk.plotting.point_clouds(generated[:36], path=output / "unconditional_samples.png")
    fk.plotting.explained_velocity(explained.times, explained.r2, path=output / "explained_velocity.png")
    print(json.dumps(metrics, indent=2))
    print(f"Figures, metrics and checkpoints are in {output}/.")


def one_nna(sets: fk.data.PointSets, reference: fk.data.PointSets) -> float:
    """Leave-one-out 1-NN accuracy between two collections of clouds; 0.5 is ideal."""
    distances = lambda x, y: fk.metrics.pairwise(fk.metrics.chamfer, x.points, y.points, mask_xs=x.mask, mask_ys=y.mask)
    return float(fk.metrics.one_nna(distances(sets, sets), distances(sets, reference), distances(reference, reference)))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from the last checkpoint.")
