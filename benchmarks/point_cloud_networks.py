"""Every encoder with every conditioner and conditional network (CRN) that suits it.

    python benchmarks/point_cloud_networks.py
    python benchmarks/point_cloud_networks.py --num-steps 1000 --only dgcnn

All are trained alike on scikit-learn's digits. The models are those of
`examples/point_clouds.py`, at its default sizes. For each: parameters, the median
processor time of a training step (all cores together), the loss at the start and at the
end, and the Chamfer distance of reconstructions of held-out digits over that of two draws
of the same digit. Results go to `benchmarks/results/point_cloud_networks.json` and
`.png`.
"""

import dataclasses
import statistics
import time
from typing import Any

import _report
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import flowkit as fk
from flowkit.pipelines import SetFlowConfig


GLOBAL = "(1, c)"
STRUCTURED = "(k, c)"
LOCAL = "(n, c)"
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "PointNet": (GLOBAL, {"encoder": "point-net"}),
    "SetTransformer, pooled": (
        GLOBAL,
        {"encoder": "set-transformer", "pooling": "attention"},
    ),
    "DGCNN, pooled": (GLOBAL, {"encoder": "dgcnn", "pooling": "max-mean"}),
    "SlotAttention": (STRUCTURED, {"encoder": "slot-attention"}),
    "CrossAttentionEncoder": (STRUCTURED, {"encoder": "cross-attention"}),
    "GMMFeaturizer": (STRUCTURED, {"encoder": "gmm"}),
    "SetTransformer": (LOCAL, {"encoder": "set-transformer"}),
    "DGCNN": (LOCAL, {"encoder": "dgcnn"}),
}
CONDITIONERS = {
    GLOBAL: ("broadcast",),
    STRUCTURED: ("select", "pool"),
    LOCAL: ("per-point", "pool"),
}
BACKBONES = ("adaln-mlp", "dit", "cross-attention", "concat-squash")


@dataclasses.dataclass(frozen=True)
class Config:
    """How each model is trained."""

    num_steps: int = 200
    """Training steps."""
    num_points: int = 64
    """Points of each cloud."""
    batch_size: int = 32
    """Clouds per step."""
    seed: int = 0
    """Random seed."""
    only: str = ""
    """Only combinations whose description contains this."""


def combinations():
    """Names and configurations of all that go together.

    Latents reduced to one vector are the same to every CRN, wherever they come from: such
    combinations are listed with the first CRN only.
    """
    for encoder, (kind, options) in ENCODERS.items():
        for backbone in BACKBONES:
            for conditioner in CONDITIONERS[kind]:
                reduced = conditioner == "pool" or "pooling" in options
                if backbone != BACKBONES[0] and reduced:
                    continue
                # The CRN with cross-attention has no conditioner.
                attends = backbone == "cross-attention"
                names = encoder, kind, "-" if attends else conditioner, backbone
                chosen = "auto" if attends else conditioner
                yield (
                    names,
                    SetFlowConfig(
                        in_size=2,
                        **options,
                        backbone=backbone,
                        conditioner=chosen,
                        prior="normal",
                    ),
                )


def measure(model, train, seen, other, config: Config) -> dict:
    """Trains a model and judges its reconstructions."""
    loss = lambda model, batch, key: fk.latent.set_flow_loss(
        model, batch.points, key=key, block=16, prior_weight=0
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(2e-3, config.num_steps)),
    )
    step = fk.training.make_step(loss, optimizer)
    state = fk.training.init_state(model, optimizer, key=jr.key(config.seed))
    batches = iter(
        fk.data.batches(
            train._replace(labels=None), config.batch_size, seed=config.seed
        )
    )
    losses = []
    seconds = []
    for _ in range(config.num_steps):
        batch = next(batches)
        start = time.process_time()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.process_time() - start)
    return {
        "parameters": sum(
            leaf.size
            for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        ),
        "step_cpu_ms": 1e3 * statistics.median(seconds[1:]),
        "first_loss": float(np.mean(losses[:10])),
        "last_loss": float(np.mean(losses[-50:])),
        "chamfer/floor": chamfer(state.model, seen, other, jr.key(config.seed)),
    }


@eqx.filter_jit
def reconstruct(model, points, key):
    latents = jax.vmap(model.encode)(points)
    options = {"solver": fk.RK4(), "num_steps": 10}
    return fk.sample(
        model.flow,
        points.shape[1:],
        num_samples=len(points),
        cond=latents,
        key=key,
        **options,
    ).values


def chamfer(model, seen, other, key) -> float:
    distance = jax.jit(jax.vmap(fk.metrics.chamfer))
    rebuilt = reconstruct(model, seen, key)
    return float(jnp.mean(distance(rebuilt, other)) / jnp.mean(distance(seen, other)))


def picture(rows: list[dict]) -> Figure:
    """Time of a step against the quality of reconstructions."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    markers = dict(zip(BACKBONES, "osD^", strict=True))
    for encoder, color in zip(ENCODERS, fk.plotting.colors.values(), strict=True):
        for backbone, marker in markers.items():
            own = [
                row
                for row in rows
                if (row["encoder"], row["backbone"]) == (encoder, backbone)
            ]
            axes.scatter(
                [row["step_cpu_ms"] for row in own],
                [row["chamfer/floor"] for row in own],
                color=color,
                marker=marker,
                label=encoder if marker == "o" else None,
                alpha=0.8,
            )
    for backbone, marker in markers.items():
        axes.scatter([], [], color="#555555", marker=marker, label=backbone)
    axes.set(
        xlabel="processor time of a training step in ms",
        ylabel="Chamfer distance / floor",
    )
    axes.loglog()
    ticks = [1, 1.2, 1.5, 2]
    axes.set_yticks(ticks, map(str, ticks))
    axes.set_yticks([], minor=True)
    axes.axhline(1, color="#999999", linewidth=0.8, linestyle="--")
    axes.grid(True, color="#e9e9e9")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def main(config: Config) -> None:
    train = fk.data.digits(
        config.num_points, draws=16, test_fraction=0.2, key=jr.key(config.seed)
    ).train
    test = fk.data.digits(
        config.num_points, draws=2, test_fraction=0.2, key=jr.key(config.seed + 1)
    ).test
    seen, other = np.split(test.points, 2)
    rows = []
    for names, model_config in combinations():
        if config.only.lower() not in " ".join(names).lower():
            continue
        model = model_config.build(key=jr.key(config.seed))
        row = dict(
            zip(("encoder", "latents", "conditioner", "backbone"), names, strict=True)
        )
        rows.append(row | measure(model, train, seen, other, config))
        print(rows[-1], flush=True)
        if not config.only:
            # After each model, so that an interrupted run leaves what it has.
            _report.save(
                "point_cloud_networks",
                config.seed,
                config=dataclasses.asdict(config),
                rows=rows,
            )
    _report.show("point-cloud networks", rows)
    if not config.only:
        picture(rows).savefig(_report.RESULTS / "point_cloud_networks.png", dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Config))
