"""Do slots find objects? A `SetFlow` with slot attention on scenes of two digits.

    python benchmarks/slot_attention.py

It is trained without labels. Each point is assigned to the slot that it attends to most,
and this grouping is compared with the true objects by the adjusted Rand index (1 is
perfect, 0 is chance). For comparison: the index of the untrained network, and that of
k-means on the coordinates. Results go to `benchmarks/results/slot_attention.json` and
`.png`.
"""

import dataclasses
from typing import Any

import _report
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import flowkit as fk


@dataclasses.dataclass(frozen=True)
class Config:
    """The scenes and the training."""

    images: str = "mnist"
    """`mnist`, or `digits` for the digits of scikit-learn."""
    num_objects: int = 2
    """Number of digits in a scene, and of slots."""
    num_points: int = 64
    """Points of each digit."""
    num_scenes: int = 10_000
    """Training scenes."""
    num_steps: int = 1500
    """Training steps."""
    batch_size: int = 32
    """Scenes per step."""
    seed: int = 0
    """Random seed."""


def build(config: Config, *, key: jax.Array) -> fk.latent.SetFlow:
    ekey, ckey, bkey = jr.split(key, 3)
    features = fk.nn.SinusoidalFeatures()
    encoder = fk.nn.SlotAttention(
        2, 32, num_slots=config.num_objects, features=features, key=ekey
    )
    conditioner = fk.nn.Select(2, 32, key=ckey)
    crn = fk.nn.AdaLNMLP(
        2, 32, conditioner=conditioner, cond_size=64, features=features, key=bkey
    )
    return fk.latent.SetFlow(encoder, fk.Flow(crn), fk.Normal())


def rand_indices(slots: np.ndarray, object_ids: np.ndarray) -> np.ndarray:
    pairs = zip(object_ids, slots, strict=True)
    return np.array([adjusted_rand_score(ids, own) for ids, own in pairs])


@eqx.filter_jit
def slots_of(encoder, points: Any) -> jax.Array:
    """The slot of each point, `(scenes, n)`."""
    _, attention = jax.vmap(encoder.with_attention)(points)
    return jnp.argmax(attention, axis=-1)


def mean_and_error(values: np.ndarray) -> dict:
    return {
        "mean": float(values.mean()),
        "standard_error": float(values.std() / np.sqrt(len(values))),
    }


def train(model: fk.latent.SetFlow, scenes: Any, config: Config, *, key: jax.Array):
    """The model after training, averaged over the last steps."""

    def loss(model, batch, key):
        return fk.latent.set_flow_loss(model, batch, key=key, block=8, prior_weight=0)

    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 200, config.num_steps)
    return fk.training.fit(
        loss,
        model,
        fk.data.batches(scenes, config.batch_size, seed=config.seed),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        num_steps=config.num_steps,
        key=key,
    ).ema


def main(config: Config) -> None:
    skey, tkey, mkey, fkey = jr.split(jr.key(config.seed), 4)
    images = fk.data.load_mnist() if config.images == "mnist" else fk.data.load_digits()
    options: Any = {"num_points": config.num_points, "num_objects": config.num_objects}
    scenes = fk.data.scenes(images.train, config.num_scenes, **options, key=skey)
    test = fk.data.scenes(images.test, 500, **options, key=tkey)

    # A digit is two units wide; halved, the scenes have about unit variance.
    points = test.points / 2
    model = build(config, key=mkey)
    untrained = np.asarray(slots_of(model.encoder, points))
    model = train(model, scenes.points / 2, config, key=fkey)
    slots = np.asarray(slots_of(model.encoder, points))

    kmeans = KMeans(config.num_objects, n_init="auto", random_state=config.seed)
    clusters = np.stack([kmeans.fit_predict(cloud) for cloud in points])
    groupings = {"slot attention": slots, "untrained": untrained, "k-means": clusters}
    results = {
        name: mean_and_error(rand_indices(grouping, test.object_ids))
        for name, grouping in groupings.items()
    }

    table = [{"grouping": name} | row for name, row in results.items()]
    _report.show("adjusted Rand index", table)
    settings = dataclasses.asdict(config)
    _report.save("slot_attention", config.seed, config=settings, results=results)
    path = _report.RESULTS / "slot_attention.png"
    fk.plotting.segmentations(points[:8], test.object_ids[:8], slots[:8], path=path)


if __name__ == "__main__":
    main(tyro.cli(Config))
