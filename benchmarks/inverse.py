"""Methods of reconstruction against posteriors that are known exactly.

    python benchmarks/inverse.py
    python benchmarks/inverse.py --dimensions 2 16

The data are mixtures of eight Gaussians, and the flow is exact, so any deviation from the
posterior is due to the method. A quarter of the coordinates is observed with noise. Each
row is a mean over problems: the error of the mean and of the standard deviations, relative
to those of the posterior; the sliced Wasserstein distance to it, beside that of another
draw (the floor); the coverage of 90% intervals of the true data, and its CRPS beside that
of exact samples.
"""

import argparse
import time

import _report
import jax.random as jr
import numpy as np

import flowkit as fk
from flowkit import inverse


SEED = 0
NOISE_STD = 0.2
COMPONENT_STD = 0.4
METHODS = {
    "TwistedSMC": inverse.TwistedSMC(400),
    "PiGDM": inverse.PiGDM(200),
    "OTODE": inverse.OTODE(100),
    "DPS": inverse.DPS(100, 0.3),
    "RePaint": inverse.RePaint(100, 10),
    "PnPFlow": inverse.PnPFlow(100),
    "DFlow": inverse.DFlow(100),
}


def mixture_of(size: int) -> fk.GaussianMixture:
    """Eight components with means from the standard normal distribution."""
    means = jr.normal(jr.key(SEED), (8, size))
    return fk.GaussianMixture(means, COMPONENT_STD)


def scores(values, exact, other, truth) -> dict[str, float]:
    """How samples of one problem compare with exact ones."""
    std = np.std(exact, axis=0)
    shift = np.mean(values, axis=0) - np.mean(exact, axis=0)
    distance = lambda x: float(fk.metrics.sliced_w2(x, exact, key=jr.key(1)))
    crps = lambda x: float(np.mean(fk.metrics.crps(x, truth)))
    return {
        "mean": float(np.sqrt(np.mean((shift / std) ** 2))),
        "std": float(np.mean(np.std(values, axis=0) / std)),
        "sliced w2": distance(values),
        "floor": distance(other),
        "coverage": float(fk.metrics.interval_coverage(values, truth)),
        "crps / exact": crps(values) / crps(other),
    }


def rows_of(size: int, num_problems: int, num_samples: int) -> list[dict]:
    mixture = mixture_of(size)
    flow = fk.exact_flow(mixture)
    linear = inverse.PixelMask(np.arange(size) < max(size // 4, 1))
    truths = np.asarray(mixture.sample((num_problems, size), key=jr.key(2)))
    noise = NOISE_STD * np.asarray(jr.normal(jr.key(3), truths.shape))
    rows = []

    for name, method in METHODS.items():
        results = []
        sizes = []
        seconds = time.perf_counter()
        for i, truth in enumerate(truths):
            observed = linear(truth + noise[i])
            posterior = inverse.exact_posterior(
                mixture, linear, observed, noise_std=NOISE_STD
            )
            draw = lambda seed, p=posterior: p.sample(
                (num_samples, size), key=jr.key(seed)
            )
            result = inverse.reconstruct(
                flow, linear, observed, noise_std=NOISE_STD, method=method,
                num_samples=num_samples, key=jr.key(100 + i),
            )  # fmt: skip
            ess = result.effective_sample_size
            part = scores(
                result.values, np.asarray(draw(4)), np.asarray(draw(5)), truth
            )
            results.append(part)
            if ess is not None:
                sizes.append(float(ess) / num_samples)

        seconds = time.perf_counter() - seconds
        means = {k: float(np.mean([r[k] for r in results])) for k in results[0]}
        costs = {
            "effective": float(np.mean(sizes)) if sizes else None,
            "seconds": seconds,
        }
        rows.append({"dimension": size, "method": name} | means | costs)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()

    table = []
    for size in options.dimensions:
        rows = rows_of(size, options.problems, options.samples)
        _report.show(f"dimension {size}", rows)
        table += rows
        _report.save("inverse", SEED, posteriors=table)


if __name__ == "__main__":
    main()
