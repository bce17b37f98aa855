"""The networks of `throughput.py` in flowkit, and the check that peers have the same."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _peer import Peer
from _plain_networks import PlainModel

import flowkit as fk
from flowkit import pipelines


class Vectors(NamedTuple):
    """A flow in the plane by an MLP, with the time itself or two learned layers of it."""

    sizes: tuple[int, ...] = (64, 64, 64)
    activation: str = "selu"
    time_size: int = 0

    def model(self) -> fk.Flow:
        time = None
        if self.time_size:
            time = fk.nn.LearnedTime(self.time_size, key=jr.key(2))
        network = fk.nn.MLP(
            2,
            hidden_sizes=self.sizes,
            activation=getattr(jax.nn, self.activation),
            time_embedding=time,
            key=jr.key(1),
        )
        return fk.Flow(network)

    def request(self) -> dict[str, Any]:
        """What makes the same network in the peer."""
        return {"kind": "vectors", **self._asdict()}


class Clouds(NamedTuple):
    """PointNet and an AdaLN MLP of default sizes, or as Flow-Mix has them."""

    plain: bool = False

    def model(self) -> fk.latent.SetFlow:
        pooling = fk.nn.max_pool if self.plain else fk.nn.max_mean_pool
        encoder = fk.nn.PointNet(2, 32, pooling=pooling, key=jr.key(1))
        residual = not self.plain
        network = fk.nn.AdaLNMLP(2, 32, residual=residual, key=jr.key(2))
        return fk.latent.SetFlow(encoder, fk.Flow(network), fk.Normal())

    def request(self) -> dict[str, Any]:
        """What makes the same network in the peer, which has the default one only."""
        return {"kind": "clouds"}


SMALL = Vectors()
WIDE = Vectors((128, 256, 256, 128), "silu", 64)


def vector_loss(flow, x1, key, **draw):
    """Flow matching of vectors."""
    return fk.flow_matching_loss(flow, x1, key=key, **draw)


def cloud_loss(model, points, key, **draw):
    """Flow matching of clouds, encoder included; a normal prior has nothing to train."""
    value, _ = fk.latent.set_flow_loss(model, points, prior_weight=0, key=key, **draw)
    return value


class MainJob(NamedTuple):
    """The training of `examples/point_clouds.py` with its default options."""

    stage: fk.training.Stage
    model: fk.latent.SetFlow
    ema_decay: fk.training.WarmUpDecay
    batch_size: int

    @classmethod
    def of(cls, clouds: int, points: int, points_of_step: int) -> "MainJob":
        """For random clouds of `points` points, of which a step takes `points_of_step`."""
        rng = np.random.default_rng(0)
        shape = (clouds, points, 2)
        sets = fk.data.PointSets(rng.standard_normal(shape, np.float32))
        options = pipelines.SetFlowTraining()
        config = pipelines.SetFlowConfig(in_size=2)
        stage, *_ = pipelines.set_flow_stages(
            options, config, sets, num_points=points_of_step
        )
        decay = fk.training.WarmUpDecay(options.ema_decay)
        return cls(stage, config.build(), decay, options.batch_size)


def parameters(model: Any) -> list[jax.Array]:
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def trained(model: Any) -> Any:
    """The part of a model that the peers have."""
    if isinstance(model, fk.latent.SetFlow):
        return (model.encoder, model.flow)
    return model


def randomized(model: Any) -> Any:
    """The model with random numbers added, since last layers start at zero."""
    leaves, structure = jax.tree.flatten(model)
    keys = jr.split(jr.key(3), len(leaves))
    for i, leaf in enumerate(leaves):
        if eqx.is_inexact_array(leaf):
            leaves[i] = leaf + 0.1 * jr.normal(keys[i], leaf.shape)
    return jax.tree.unflatten(structure, leaves)


def agreement(peer: Peer | None, num_points: int) -> list[dict[str, Any]]:
    """Parameters and losses of all networks, in flowkit and in its peers.

    They see the same weights, pairs and times. Losses must agree to 1e-4, parameters in
    number.
    """
    rows = []
    networks = {"MLP 3 x 64": SMALL, "MLP [128, 256, 256, 128]": WIDE}
    if peer is not None:
        for name, vectors in networks.items():
            rows.append(_row(name, vectors, vector_loss, (256, 2), peer))
        shape = (8, num_points, 2)
        rows.append(_row("PointNet, AdaLN MLP", Clouds(), cloud_loss, shape, peer))
    rows.append(_plain_row((8, num_points, 2)))

    for row in rows:
        assert row["parameters"] == row["parameters of the peer"], row
        difference = row["loss"] - row["loss of the peer"]
        assert abs(difference) <= 1e-4 * abs(row["loss"]), row
    return rows


def _row(
    name: str, network: Any, loss: Callable, shape: tuple[int, ...], peer: Peer
) -> dict[str, Any]:
    model = randomized(network.model())
    x0, x1, t = _pairs(shape)
    weights = parameters(trained(model))
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "weights.npz"))
        named: Any = {f"weight{i}": weight for i, weight in enumerate(weights)}
        np.savez(file, x0=x0, x1=x1, t=t, **named)
        theirs = peer.ask(task="loss", network=network.request(), file=file)
    return _compared(
        f"{name}, torch", model, loss, (x0, x1, t), theirs["loss"], theirs["parameters"]
    )


def _plain_row(shape: tuple[int, ...]) -> dict[str, Any]:
    model = randomized(Clouds(plain=True).model())
    pairs = _pairs(shape)
    plain = PlainModel(model)
    error = float(jnp.mean(jax.vmap(plain.error)(*pairs)))
    count = sum(leaf.size for leaf in parameters(plain))
    return _compared("as Flow-Mix, plain", model, cloud_loss, pairs, error, count)


def _compared(
    name: str, model: Any, loss: Callable, pairs: Any, theirs: float, count: int
) -> dict[str, Any]:
    x0, x1, t = pairs
    times = lambda num, *, key: t
    draw = {"coupling": fk.Paired(x0), "times": times}
    return {
        "network": name,
        "parameters": sum(leaf.size for leaf in parameters(trained(model))),
        "parameters of the peer": count,
        "loss": float(loss(model, x1, jr.key(0), **draw)),
        "loss of the peer": theirs,
    }


def _pairs(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Noise, data and times."""
    noise_key, data_key, time_key = jr.split(jr.key(4), 3)
    x0 = jr.normal(noise_key, shape)
    return x0, jr.normal(data_key, shape), jr.uniform(time_key, shape[:1])
