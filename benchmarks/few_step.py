"""How close is a one-step map to the exact one? Every loss of `fk.few_step` on a mixture.

    python benchmarks/few_step.py

The data are 0.7 N(-2, 0.8^2) + 0.3 N(2, 0.6^2), and every method has its toy options. In
one dimension every exact method has the same map: it takes quantiles of the noise to
those of the data. All methods are trained alike, with the same network, batch and steps,
and their maps are compared with the exact one: in one step, in four, by the adaptive
solver on the velocity of the same network, and back to the noise if the method promises
that. A column is empty where a method promises nothing.

A number is the root mean square of the difference under N(0, 1). It leaves out the places
near the jump of the map between the two modes, where any smooth map is wrong. Flow
matching and one reflow are run for comparison, with steps of Euler's method. A decoder
and the autoencoders are compared with their optima, which are known for linear networks.
Results go to `benchmarks/results/few_step.json` and `.png`.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import _report
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats as st
import tyro

import flowkit as fk
from flowkit import few_step


@dataclasses.dataclass(frozen=True)
class Config:
    """The training, and where maps are compared."""

    num_steps: int = 20_000
    """Training steps of each method; reflow takes twice that number."""
    batch_size: int = 1024
    """Fresh pairs per step, from `num_data` examples."""
    num_data: int = 500_000
    """Examples of the mixture."""
    width: int = 64
    """Width of the four hidden layers."""
    learning_rate: float = 2e-3
    """Peak learning rate, with cosine decay to zero."""
    margin: float = 0.25
    """Noise that is closer than this to the jump of the map is left out."""
    methods: tuple[str, ...] = ()
    """Names of the methods to run; all of them by default."""
    seed: int = 0
    """Random seed."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A loss `(model, x1, key)`, and what its model promises in addition to one step."""

    loss: Callable[..., Any]
    several: bool = True
    ode: bool = True
    encodes: bool = False
    one_time: bool = False


def with_options(loss: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda model, x1, key: loss(model, x1, key=key, **options)


METHODS = {
    "MeanFlow": Method(with_options(few_step.mean_flow_loss, **few_step.MEAN_FLOW_TOY)),
    "improved MeanFlow": Method(
        with_options(few_step.improved_mean_flow_loss, **few_step.MEAN_FLOW_TOY)
    ),
    "BackFlow": Method(
        with_options(few_step.back_flow_loss, **few_step.BACK_FLOW_TOY), encodes=True
    ),
    "FACM": Method(
        with_options(few_step.facm_loss, **few_step.FACM_TOY), several=False
    ),
    "FACM, one time": Method(
        with_options(few_step.facm_loss, **few_step.FACM_TOY),
        several=False,
        one_time=True,
    ),
    "consistency": Method(
        with_options(few_step.consistency_loss), several=False, ode=False
    ),
    "shortcut": Method(with_options(few_step.shortcut_loss)),
}
FLOWS = ("flow matching", "reflow")

MIXTURE = fk.GaussianMixture(
    jnp.array([[-2.0], [2.0]]), jnp.array([0.8, 0.6]), jnp.array([0.7, 0.3])
)
EXACT = few_step.exact_flow_map(MIXTURE)
JUMP = st.norm.ppf(0.7 * st.norm.cdf(2 / 0.8) + 0.3 * st.norm.cdf(-2 / 0.6))
"""The noise that the exact map takes to the middle between the modes."""


def network(config: Config, *, key: jax.Array, num_times: int = 1) -> fk.nn.MLP:
    return fk.nn.MLP(
        1,
        hidden_sizes=(config.width,) * 4,
        time_embedding=fk.nn.RawTime(num_times),
        key=key,
    )


def train(
    config: Config,
    loss: Callable[..., Any],
    model: Any,
    batches: Any,
    *,
    key: jax.Array,
) -> tuple[Any, float]:
    """The model with averaged weights, and the seconds of the training with compilation."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(200, config.num_steps // 2), config.num_steps
    )
    start = time.perf_counter()
    result = fk.training.fit(
        loss,
        model,
        batches,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        steps_per_call=min(50, config.num_steps),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        progress=False,
        key=key,
    )
    return jax.block_until_ready(result.ema), time.perf_counter() - start


def places(config: Config) -> jax.Array:
    """Equally likely quantiles of the noise, away from the jump."""
    z = st.norm.ppf((np.arange(2000) + 0.5) / 2000)
    return jnp.asarray(z[np.abs(z - JUMP) > config.margin][:, None], jnp.float32)


@eqx.filter_jit
def along(
    flow_map: few_step.FlowMap, x: jax.Array, times: tuple[float, ...]
) -> jax.Array:
    """The points `x` after jumps between neighboring times."""
    for s, t in itertools.pairwise(times):
        x = jax.vmap(lambda x, s=s, t=t: few_step.jump(flow_map, s, t, x))(x)
    return x


def rms(values: jax.Array, exact: jax.Array) -> float:
    return float(jnp.sqrt(jnp.mean((values - exact) ** 2)))


def solve(flow: fk.Flow, x: jax.Array, **options: Any) -> jax.Array:
    """The ends of the ODE."""

    def end(x: jax.Array) -> jax.Array:
        return jax.tree.leaves(fk.integrate(flow, x, **options).ys)[0][-1]

    return eqx.filter_vmap(end)(x)


def run_map(
    config: Config, method: Method, data: jax.Array, z: jax.Array, *, key: jax.Array
) -> tuple[dict, jax.Array]:
    """The scores of a method, and its one-step map of `z`."""
    mkey, fkey = jr.split(key)
    times = few_step.expanded_interval if method.one_time else few_step.both_times
    net = network(config, key=mkey, num_times=1 if method.one_time else 2)
    model, seconds = train(
        config, method.loss, few_step.FlowMap(net, times=times), data, key=fkey
    )

    exact = along(EXACT, z, (0.0, 1.0))
    one = along(model, z, (0.0, 1.0))
    row = {
        "one step": rms(one, exact),
        "four steps": "",
        "solver": "",
        "encoding": "",
        "seconds": seconds,
    }
    if method.several:
        row["four steps"] = rms(along(model, z, (0.0, 0.25, 0.5, 0.75, 1.0)), exact)
    if method.ode:
        row["solver"] = rms(solve(few_step.velocity_of(model), z), exact)
    if method.encodes:
        row["encoding"] = rms(along(model, exact, (1.0, 0.0)), z)
    return row, one


def run_flows(
    config: Config, data: jax.Array, z: jax.Array, *, key: jax.Array
) -> tuple[dict, dict]:
    """Scores and maps of flow matching, and of a second flow on the pairs of the first."""
    mkey, fkey, pkey, rkey = jr.split(key, 4)

    def loss(flow, x1, key):
        return fk.flow_matching_loss(flow, x1, key=key)

    def reflow_loss(flow, pairs, key):
        coupling = fk.Paired(pairs.x0)
        return fk.flow_matching_loss(flow, pairs.x1, key=key, coupling=coupling)

    flow, seconds = train(
        config, loss, fk.Flow(network(config, key=mkey)), data, key=fkey
    )
    pairs = few_step.reflow_pairs(flow, (1,), min(len(data), 100_000), key=pkey)
    straight, more = train(config, reflow_loss, flow, pairs, key=rkey)

    exact = along(EXACT, z, (0.0, 1.0))
    rows = {}
    maps = {}
    for name, trained, taken in (
        ("flow matching", flow, seconds),
        ("reflow", straight, seconds + more),
    ):
        maps[name] = solve(trained, z, solver=dfx.Euler(), num_steps=1)
        four = solve(trained, z, solver=dfx.Euler(), num_steps=4)
        rows[name] = {
            "one step": rms(maps[name], exact),
            "four steps": rms(four, exact),
            "solver": rms(solve(trained, z), exact),
            "encoding": "",
            "seconds": taken,
        }
    return rows, maps


def baseline(model: str, value: str, reached: float, optimum: float) -> dict[str, Any]:
    """A row of the table of models of one latent."""
    return {"model": model, "value": value, "reached": reached, "optimum": optimum}


def run_decoder(config: Config, data: jax.Array, keys: jax.Array) -> dict[str, Any]:
    """A decoder of noise that is independent of the data, whose optimum is the mean."""
    dkey, _, _, fkey, skey = keys
    net = fk.nn.FeedForward(1, 1, hidden_sizes=(32, 64, 32), key=dkey)

    def loss(decoder, x, key):
        return fk.latent.decoder_loss(decoder, x, key=key)

    decoder, _ = train(config, loss, fk.latent.Decoder(net), data, key=fkey)
    outputs = decoder.sample(num_samples=10_000, key=skey)
    reached = rms(outputs, jnp.asarray(float(jnp.mean(data))))
    return baseline("decoder", "distance from the mean", reached, 0.0)


def run_autoencoder(config: Config, data: jax.Array, keys: jax.Array) -> dict[str, Any]:
    """An autoencoder whose latent is as wide as the data, so that its optimum is zero."""
    dkey, ekey, _, fkey, _ = keys
    wide = (32, 64, 32)
    coder = fk.latent.Autoencoder(
        fk.nn.FeedForward(1, 1, hidden_sizes=wide, key=ekey),
        fk.nn.FeedForward(1, 1, hidden_sizes=wide, key=dkey),
    )

    def loss(coder, x, key):
        return fk.latent.autoencoder_loss(coder, x)

    coder, _ = train(config, loss, coder, data, key=fkey)
    error = float(fk.latent.autoencoder_loss(coder, data))
    return baseline("autoencoder", "squared error", error, 0.0)


def run_vae(
    config: Config, data: jax.Array, beta: float, keys: jax.Array
) -> list[dict[str, Any]]:
    """A linear VAE of weight `b = beta` (Lucas et al., 2019).

    With the variance `S` of the data, its optimum has the squared slope
    `max(S - b / 2, 0)` and the squared error `min(b / 2, S)`.
    """
    _, ekey, vkey, fkey, skey = keys
    vae = fk.latent.VAE(
        fk.nn.FeedForward(1, 2, hidden_sizes=(), key=ekey),
        fk.nn.FeedForward(1, 1, hidden_sizes=(), key=vkey),
    )

    def loss(vae, x, key):
        return fk.latent.vae_loss(vae, x, key=key, kl_weight=beta)

    vae, _ = train(config, loss, vae, data, key=fkey)
    _, parts = loss(vae, data, skey)
    difference = vae.decoder(jnp.ones(1)) - vae.decoder(jnp.zeros(1))
    slope = float(jnp.square(difference)[0])
    error = float(parts["reconstruction"])

    variance = float(jnp.var(data))
    name = f"VAE, weight {beta:g}"
    return [
        baseline(name, "squared slope", slope, max(variance - beta / 2, 0.0)),
        baseline(name, "squared error", error, min(beta / 2, variance)),
    ]


def run_baselines(
    config: Config, data: jax.Array, *, key: jax.Array
) -> list[dict[str, Any]]:
    """The values that models of one latent reach, and their optima."""
    keys = jr.split(key, 5)
    rows = [run_decoder(config, data, keys), run_autoencoder(config, data, keys)]
    for beta in (1.0, 10.0):
        rows += run_vae(config, data, beta, keys)
    return rows


def picture(z: jax.Array, maps: dict[str, jax.Array]) -> None:
    """The one-step maps of all methods, and the exact one."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    below = np.asarray(z[:, 0]) < JUMP
    for name, values in ({"exact": along(EXACT, z, (0.0, 1.0))} | maps).items():
        style: dict[str, Any] = {"lw": 1}
        if name == "exact":
            style = {"color": "black", "lw": 3, "alpha": 0.3}
        # A gap, not a line, where the map jumps.
        gap = np.where(np.diff(below, prepend=True), np.nan, np.asarray(values[:, 0]))
        axes.plot(z[:, 0], gap, label=name, **style)

    axes.set(
        xlabel="noise", ylabel="one step", title="Away from the jump of the exact map"
    )
    axes.legend(frameon=False)
    figure.savefig(_report.RESULTS / "few_step.png", dpi=110)


def main(config: Config) -> None:
    known = (*FLOWS, *METHODS)
    chosen = config.methods or known
    unknown = set(chosen) - set(known)
    if unknown:
        raise SystemExit(f"unknown methods {sorted(unknown)}; there are {list(known)}.")

    dkey, bkey, *keys = jr.split(jr.key(config.seed), len(METHODS) + 3)
    data = MIXTURE.sample((config.num_data, 1), key=dkey)
    z = places(config)
    rows = {}
    maps = {}
    if set(FLOWS) & set(chosen):
        rows, maps = run_flows(config, data, z, key=keys[-1])
    for (name, method), key in zip(METHODS.items(), keys, strict=False):
        if name in chosen:
            rows[name], maps[name] = run_map(config, method, data, z, key=key)
            print(f"{name}: {rows[name]['one step']:.4g} in one step", flush=True)

    size = f"{config.num_steps} steps of {config.batch_size}"
    title = f"root mean square of the difference from the exact map, {size}"
    _report.show(title, [{"method": name} | row for name, row in rows.items()])

    # Only full runs are stored.
    if not config.methods:
        baselines = run_baselines(config, data, key=bkey)
        _report.show("models of one latent", baselines)
        _report.save(
            "few_step",
            config.seed,
            config=dataclasses.asdict(config),
            results=rows,
            baselines=baselines,
        )
        picture(z, maps)


if __name__ == "__main__":
    main(tyro.cli(Config))
