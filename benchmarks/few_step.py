"""How near is a one-step map to the exact one? Every loss of `fk.few_step`, with its toy options, on a mixture.

    python benchmarks/few_step.py

The data are 0.7 N(-2, 0.8^2) + 0.3 N(2, 0.6^2). In one dimension every exact method is the same map: the quantiles of
the data at those of the noise. Each method is trained alike, with the same network, batch and steps, and its maps are
compared with the exact one: in one step, in four, by the adaptive solver on the velocity of the same network, and back
to the noise where the method promises that. A number is the root mean square of the difference under N(0, 1), without
the places near the jump of the map between the two modes, where any smooth map is wrong; where a method promises
nothing the column is empty. Flow matching and one reflow stand beside them, with steps of Euler's method; the decoder
and the autoencoders, whose optima are known for linear networks, are held to these. Results go to
`benchmarks/results/few_step.json` and `.png`.
"""

import dataclasses
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
    """Training steps of each method; reflow has them twice."""
    batch_size: int = 1024
    """Fresh pairs per step, from `num_data` examples."""
    num_data: int = 500_000
    """Examples of the mixture."""
    width: int = 64
    """Of the four hidden layers."""
    learning_rate: float = 2e-3
    """At its highest; cosine decay to zero."""
    margin: float = 0.25
    """Noise nearer than this to the jump of the map is left out."""
    methods: tuple[str, ...] = ()
    """Names of those to run; all by default."""
    seed: int = 0
    """Of everything random."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A loss `(model, x1, key)`, and what its model promises beside one step."""

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
"""The noise that is carried to the middle between the modes."""


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
    """The averaged weights, and the seconds that they took, compilation included."""
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
    """Quantiles of the noise, each as likely, away from the jump."""
    z = st.norm.ppf((np.arange(2000) + 0.5) / 2000)
    return jnp.asarray(z[np.abs(z - JUMP) > config.margin][:, None], jnp.float32)


@eqx.filter_jit
def along(
    flow_map: few_step.FlowMap, x: jax.Array, times: tuple[float, ...]
) -> jax.Array:
    for s, t in zip(times, times[1:], strict=False):
        x = jax.vmap(lambda x, s=s, t=t: few_step.jump(flow_map, s, t, x))(x)
    return x


def rms(values: jax.Array, exact: jax.Array) -> float:
    return float(jnp.sqrt(jnp.mean((values - exact) ** 2)))


def solve(flow: fk.Flow, x: jax.Array, **options: Any) -> jax.Array:
    end = lambda x: jax.tree.leaves(fk.integrate(flow, x, **options).ys)[0][-1]
    return eqx.filter_vmap(end)(x)


def run_map(
    config: Config, method: Method, data: jax.Array, z: jax.Array, *, key: jax.Array
) -> tuple[dict, jax.Array]:
    mkey, fkey = jr.split(key)
    times = few_step.expanded_interval if method.one_time else few_step.both_times
    model = few_step.FlowMap(
        network(config, key=mkey, num_times=1 if method.one_time else 2), times=times
    )
    model, seconds = train(config, method.loss, model, data, key=fkey)
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
    """Flow matching, and a second flow on the pairs of the first."""
    mkey, fkey, pkey, rkey = jr.split(key, 4)
    exact = along(EXACT, z, (0.0, 1.0))
    loss = lambda flow, x1, key: fk.flow_matching_loss(flow, x1, key=key)
    flow, seconds = train(
        config, loss, fk.Flow(network(config, key=mkey)), data, key=fkey
    )
    pairs = few_step.reflow_pairs(flow, (1,), min(len(data), 100_000), key=pkey)
    reloss = lambda flow, pairs, key: fk.flow_matching_loss(
        flow, pairs.x1, key=key, coupling=fk.Paired(pairs.x0)
    )
    straight, more = train(config, reloss, flow, pairs, key=rkey)
    rows, maps = {}, {}
    for name, one, taken in (
        ("flow matching", flow, seconds),
        ("reflow", straight, seconds + more),
    ):
        maps[name], four = (
            solve(one, z, solver=dfx.Euler(), num_steps=num) for num in (1, 4)
        )
        rows[name] = {
            "one step": rms(maps[name], exact),
            "four steps": rms(four, exact),
            "solver": rms(solve(one, z), exact),
            "encoding": "",
            "seconds": taken,
        }
    return rows, maps


def run_baselines(
    config: Config, data: jax.Array, *, key: jax.Array
) -> list[dict[str, Any]]:
    """What models of one latent reach, and their optimum: for the VAEs with linear networks (Lucas et al., 2019).

    With the variance `S` of the data, that of a VAE of weight `b` has `w^2 = max(S - b / 2, 0)` and the error
    `min(b / 2, S)`.
    """
    dkey, ekey, vkey, fkey, skey = jr.split(key, 5)
    mean, variance = float(jnp.mean(data)), float(jnp.var(data))
    wide = (32, 64, 32)
    decoder = fk.latent.Decoder(fk.nn.FeedForward(1, 1, hidden_sizes=wide, key=dkey))
    decoder, _ = train(
        config,
        lambda m, x, key: fk.latent.decoder_loss(m, x, key=key),
        decoder,
        data,
        key=fkey,
    )
    outputs = decoder.sample(num_samples=10_000, key=skey)
    rows = [
        {
            "model": "decoder",
            "value": "distance from the mean",
            "reached": rms(outputs, jnp.asarray(mean)),
            "optimum": 0.0,
        }
    ]
    coder = fk.latent.Autoencoder(
        fk.nn.FeedForward(1, 1, hidden_sizes=wide, key=ekey),
        fk.nn.FeedForward(1, 1, hidden_sizes=wide, key=dkey),
    )
    coder, _ = train(
        config,
        lambda m, x, key: fk.latent.autoencoder_loss(m, x),
        coder,
        data,
        key=fkey,
    )
    error = float(fk.latent.autoencoder_loss(coder, data))
    rows.append(
        {
            "model": "autoencoder",
            "value": "squared error",
            "reached": error,
            "optimum": 0.0,
        }
    )
    for beta in (1.0, 10.0):
        encoder, decoder = (
            fk.nn.FeedForward(1, n, hidden_sizes=(), key=k)
            for n, k in ((2, ekey), (1, vkey))
        )
        loss = lambda m, x, key, beta=beta: fk.latent.vae_loss(
            m, x, key=key, kl_weight=beta
        )
        vae, _ = train(config, loss, fk.latent.VAE(encoder, decoder), data, key=fkey)
        _, parts = loss(vae, data, skey)
        slope = float(
            jnp.square(vae.decoder(jnp.ones(1)) - vae.decoder(jnp.zeros(1)))[0]
        )
        optima = {
            "squared slope": max(variance - beta / 2, 0.0),
            "squared error": min(beta / 2, variance),
        }
        for value, reached in (
            ("squared slope", slope),
            ("squared error", float(parts["reconstruction"])),
        ):
            rows.append(
                {
                    "model": f"VAE, weight {beta:g}",
                    "value": value,
                    "reached": reached,
                    "optimum": optima[value],
                }
            )
    return rows


def picture(z: jax.Array, maps: dict[str, jax.Array]) -> None:
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    below = np.asarray(z[:, 0]) < JUMP
    for name, values in ({"exact": along(EXACT, z, (0.0, 1.0))} | maps).items():
        style: dict[str, Any] = (
            {"color": "black", "lw": 3, "alpha": 0.3} if name == "exact" else {"lw": 1}
        )
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
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"unknown methods {sorted(unknown)}; there are {list(known)}.")
    dkey, bkey, *keys = jr.split(jr.key(config.seed), len(METHODS) + 3)
    data, z = MIXTURE.sample((config.num_data, 1), key=dkey), places(config)
    rows, maps = (
        run_flows(config, data, z, key=keys[-1])
        if set(FLOWS) & set(chosen)
        else ({}, {})
    )
    for (name, method), key in zip(METHODS.items(), keys, strict=False):
        if name in chosen:
            rows[name], maps[name] = run_map(config, method, data, z, key=key)
            print(f"{name}: {rows[name]['one step']:.4g} in one step", flush=True)
    title = f"root mean square from the exact map, {config.num_steps} steps of {config.batch_size}"
    _report.show(title, [{"method": name} | row for name, row in rows.items()])
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
