"""Flows for `solver_accuracy.py` and `likelihood.py`: exact ones, and networks trained briefly.

Each is made by a function of a key, which returns the flow and the shape of a sample.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowkit as fk


Made = tuple[Any, tuple[int, ...]]
"""A flow, and the shape of a sample."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How networks are trained, and where they are kept."""

    share: float = 1.0
    """Share of the steps that are taken; less to try things out."""
    folder: str | None = None
    """Where trained weights are kept for the next run; nowhere by default."""

    def __call__(
        self,
        name: str,
        network: Callable,
        data: Any,
        *,
        num_steps: int,
        batch_size: int,
        learning_rate: float = 2e-3,
        key: jax.Array,
    ) -> fk.Standardized:
        """A flow of standardized data, with averaged weights."""
        num_steps = max(1, round(self.share * num_steps))
        flow = fk.Standardized.of(fk.Flow(network), data)
        seed = "-".join(str(word) for word in np.ravel(jr.key_data(key)))
        file = Path(self.folder or "", f"{name}-{num_steps}-{seed}.eqx")
        if self.folder is not None and file.exists():
            return eqx.tree_deserialise_leaves(file, flow)

        schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
        flow = fk.training.fit(
            flow_loss,
            flow,
            data,
            batch_size=batch_size,
            num_steps=num_steps,
            optimizer=optax.adam(schedule),
            steps_per_call=50,
            progress=False,
            key=key,
        ).ema
        if self.folder is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            eqx.tree_serialise_leaves(file, flow)
        return flow


def flow_loss(flow, x1, key):
    """Flow matching without a condition."""
    return fk.flow_matching_loss(flow, x1, key=key)


# Exact flows.


GAUSSIAN_MEAN = np.array([1.0, -1.0], np.float32)
GAUSSIAN_STD = np.array([0.5, 0.25], np.float32)


def gaussian(key: jax.Array, train: Trainer) -> Made:
    del key, train
    return fk.exact_flow(fk.Normal(GAUSSIAN_MEAN, GAUSSIAN_STD)), (2,)


def gaussian_ends(starts: np.ndarray) -> np.ndarray:
    """Where the flow of `gaussian` carries noise, in closed form: `mean + std x0`."""
    return GAUSSIAN_MEAN + GAUSSIAN_STD * starts.astype(np.float64)


def eight_gaussians(size: int, *, key: jax.Array) -> fk.GaussianMixture:
    """Eight Gaussians of different widths, with means as far apart as the noise is wide."""
    mean_key, std_key = jr.split(key)
    means = jr.normal(mean_key, (8, size))
    stds = jr.uniform(std_key, (8, size), minval=0.1, maxval=0.4)
    return fk.GaussianMixture(means, stds)


def mixture(size: int) -> Callable[[jax.Array, Trainer], Made]:
    """The exact flow of eight Gaussians in this many dimensions."""

    def make(key: jax.Array, train: Trainer) -> Made:
        del train
        return fk.exact_flow(eight_gaussians(size, key=key)), (size,)

    return make


# Trained flows.


def checkerboard_data(num: int, *, key: jax.Array) -> np.ndarray:
    """The checkerboard of flow_matching's notebook: eight squares of area 8 / 0.45^2 in all."""
    # That of flowkit has squares of side 2.
    return np.asarray(fk.data.checkerboard(num, key=key)) / np.float32(0.9)


def checkerboard(
    key: jax.Array,
    train: Trainer,
    *,
    hidden_sizes: Sequence[int] = (128, 128, 128),
    num_steps: int = 6000,
    batch_size: int = 512,
) -> Made:
    data_key, network_key, fit_key = jr.split(key, 3)
    data = checkerboard_data(200_000, key=data_key)
    network = fk.nn.MLP(2, hidden_sizes=hidden_sizes, key=network_key)
    sizes = "-".join(str(size) for size in hidden_sizes)
    flow = train(
        f"checkerboard-{sizes}-{batch_size}",
        network,
        data,
        num_steps=num_steps,
        batch_size=batch_size,
        key=fit_key,
    )
    return flow, (2,)


def moons(key: jax.Array, train: Trainer) -> Made:
    """Two moons, by the network that other libraries solve with the same weights."""
    data_key, network_key, fit_key = jr.split(key, 3)
    data = np.asarray(fk.data.moons(50_000, key=data_key))
    embedding = fk.nn.SinusoidalTime(32)
    network = fk.nn.MLP(2, time_embedding=embedding, key=network_key)
    flow = train("moons", network, data, num_steps=5000, batch_size=256, key=fit_key)
    return flow, (2,)


def clouds(key: jax.Array, train: Trainer) -> Made:
    """Handwritten digits as clouds of 32 points, by a small transformer."""
    data_key, network_key, fit_key = jr.split(key, 3)
    data = fk.data.digits(32, draws=4, key=data_key).train.points
    network = fk.nn.DiT(2, 0, depth=2, cond_size=64, key=network_key)
    flow = train("clouds", network, data, num_steps=1000, batch_size=64, key=fit_key)
    return flow, data.shape[1:]


def images(key: jax.Array, train: Trainer) -> Made:
    """Handwritten digits of 8 x 8 pixels, by a small U-Net."""
    network_key, fit_key = jr.split(key)
    data = fk.data.as_images(fk.data.load_digits().train.images)
    network = fk.nn.UNet(1, width_size=16, multipliers=(1, 2), key=network_key)
    flow = train("images", network, data, num_steps=1000, batch_size=64, key=fit_key)
    return flow, data.shape[1:]


class Recipe(NamedTuple):
    """How a flow is made, on how many starts it is judged, and what fitting a solver costs."""

    make: Callable[[jax.Array, Trainer], Made]
    num_samples: int = 1024
    num_noises: int = 1024
    num_iterations: int = 30
    """Noises that a solver is fitted on, and the most steps of the fit."""
    ends: Callable[[np.ndarray], np.ndarray] | None = None
    """The ends in closed form, if they are known."""


FLOWS: dict[str, Recipe] = {
    "Gaussian": Recipe(gaussian, ends=gaussian_ends),
    "mixture, 2-D": Recipe(mixture(2)),
    "mixture, 16-D": Recipe(mixture(16), 256, 512),
    "mixture, 128-D": Recipe(mixture(128), 256, 256),
    "checkerboard": Recipe(checkerboard),
    "moons": Recipe(moons),
    "clouds": Recipe(clouds, 64, 64, 20),
    "images": Recipe(images, 32, 64, 20),
}
"""The flows of the table."""


def own(make: Callable[[jax.Array], Made]) -> Recipe:
    """The recipe of a user's function of a key."""
    return Recipe(lambda key, train: make(key), 256, 512)


class Case(NamedTuple):
    """A flow with starts, and where an accurate solve in float64 carries them."""

    name: str
    flow: Any
    starts: jax.Array
    ends: np.ndarray
    recipe: Recipe
    doubt: float
    """How far the ends of a looser solve are from these, a root mean square."""

    def sample(self, **options: Any) -> fk.Samples:
        """The samples of the starts."""
        shape = self.starts.shape[1:]
        number = len(self.starts)
        return fk.sample(
            self.flow, shape, num_samples=number, x0=self.starts, **options
        )

    def error(self, values: Any) -> float:
        """The root mean square of the distances from the ends, over all entries."""
        return rms(np.asarray(values, np.float64), self.ends)


def make_case(name: str, recipe: Recipe, train: Trainer, *, key: jax.Array) -> Case:
    """The flow of a recipe, starts for it, and their ends."""
    flow_key, start_key = jr.split(key)
    flow, shape = recipe.make(flow_key, train)
    starts = jr.normal(start_key, (recipe.num_samples, *shape))
    ends = reference(flow, starts, tolerance=1e-11)
    loose = reference(flow, starts, tolerance=1e-9)
    return Case(name, flow, starts, ends, recipe, rms(loose, ends))


def reference(
    flow: Any, starts: jax.Array, *, tolerance: float, cond: Any = None
) -> np.ndarray:
    """The ends of a solve of order eight in float64, with the same weights."""
    starts64 = np.asarray(starts, np.float64)
    with jax.enable_x64(True):
        samples = fk.sample(
            in_float64(flow),
            starts.shape[1:],
            num_samples=len(starts),
            x0=starts64,
            cond=in_float64(cond),
            **accurate(tolerance),
        )
        return np.asarray(samples.values)


def in_float64(tree: Any) -> Any:
    """The same numbers in float64, where JAX has it enabled."""

    def cast(leaf):
        return jnp.asarray(leaf, float) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(cast, tree)


def accurate(tolerance: float) -> dict[str, Any]:
    """Options of a solve that is as accurate as the tolerance asks for."""
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
    return {"solver": dfx.Dopri8(), "stepsize_controller": controller}


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))
