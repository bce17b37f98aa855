"""What a `SetFlow` makes of held-out clouds: numbers and pictures.

A distance between clouds means little by itself. Every number therefore has its floor: the
distance between two versions of the same shape for reconstructions, the score of training
clouds for generated ones.
"""

import os
from pathlib import Path
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowkit as fk
from flowkit import data, latent, metrics, plotting


SOLVER: dict[str, Any] = {
    "stepsize_controller": dfx.PIDController(rtol=1e-3, atol=1e-3)
}
"""Options of `fk.sample` whose error is far below the distances between points."""

_NUM_COLLECTIONS = 4  # of generated clouds, over which the scores are averaged
_FIGURE_POINTS = 256
_NUM_PAIRS = 16
_NUM_GENERATED = 36
_NUM_MASKED = 8
_NUM_MONITORED = 100  # clouds that are reconstructed while the model trains


class SetFlowReport(eqx.Module):
    """Judges and draws a `fk.latent.SetFlow` on held-out clouds.

    ```python
    report = fk.pipelines.SetFlowReport(fk.data.cloud_split("digits"))
    numbers = report.write(model, "folder", key=key)
    ```

    **Arguments:**

    - `split`: the clouds, as from `fk.data.cloud_split`.
    - `num_classes`: the number of classes that the prior is conditioned on, 0 for none.
        Classes are then drawn as often as they occur in `split.train`.
    - `guidance`: the scale of the guidance of a class-conditional flow prior.
    - `hide`: the mask of the encoder in training. Pictures of reconstructions then show
        clouds of which the encoder has seen the visible points only.
    - `up`: the axis that points up in pictures of clouds in space.
    - `seed`: the seed of the points that are taken of larger training clouds.
    """

    split: data.CloudSplit
    num_classes: int = 0
    guidance: float = 1.0
    hide: latent.GridMask | None = None
    up: int = 2
    seed: int = 0

    def __check_init__(self):
        for name in ("train", "seen"):
            if len(getattr(self.split, name).points) < 2:
                raise ValueError(
                    f"`split.{name}` has one cloud, and scores take at least two: give "
                    "more data, or change `test_fraction` or the numbers of samples."
                )

        if self.guidance != 1 and self.num_classes == 0:
            raise ValueError(
                f"`guidance` is {self.guidance}, but the prior is not conditioned on classes."
            )

    def monitor(self, model: latent.SetFlow, *, key: jax.Array) -> dict[str, float]:
        """The explained velocity, and the Chamfer distance of a hundred reconstructions."""
        seen = _first(self.split.seen, _NUM_MONITORED)
        other = _first(self.split.other, _NUM_MONITORED)
        # A fixed number of steps, so that a reading costs the same for every model.
        samples = _reconstruct(model, seen, key=key, solver=fk.RK4(), num_steps=10)
        return {
            "explained_velocity": float(_explained(model, self.split, key).total),
            "chamfer": _chamfer(_rebuilt(model, seen, samples), other),
        }

    def write(
        self,
        model: latent.SetFlow,
        folder: str | os.PathLike[str],
        *,
        generated: bool = True,
        key: jax.Array,
    ) -> dict[str, Any]:
        """Writes the pictures to the folder, and returns the numbers.

        With `generated=False`, those of samples of the prior are left out, as in `draw`.
        """
        rebuilt_key, sample_key, velocity_key, picture_key = jr.split(key, 4)
        seen = self.split.seen
        other = self.split.other
        samples = _reconstruct(model, seen, key=rebuilt_key, **SOLVER)
        rebuilt = _rebuilt(model, seen, samples)
        explained = _explained(model, self.split, velocity_key)
        path = Path(folder) / "explained_velocity.png"
        plotting.explained_velocity(explained.times, explained.r2, path=path)

        numbers = {
            "chamfer": _chamfer(rebuilt, other),
            "chamfer_floor": _chamfer(seen, other),
            # The reconstruction of another shape: what the latents are worth.
            "chamfer_shuffled": _chamfer(rebuilt, _shifted(other)),
            "explained_velocity": float(explained.total),
            "explained_velocity_per_time": _rounded(explained.r2),
            "steps_per_sample": float(jnp.mean(samples.stats.accepted)),
        }
        if generated and not _is_local(model):
            numbers |= self._scores(model, key=sample_key)
        self.draw(model, folder, generated=generated, key=picture_key)

        return numbers

    def draw(
        self,
        model: latent.SetFlow,
        folder: str | os.PathLike[str],
        *,
        generated: bool = True,
        key: jax.Array,
    ) -> None:
        """`samples.png`, `unconditional_samples.png` and `masked_training_examples.png`.

        Nothing is drawn of clouds that are neither in the plane nor in space. With
        `generated=False` there are no samples of the prior, which may not be trained yet.
        """
        if self.split.seen.points.shape[-1] not in (2, 3):
            return
        rebuilt_key, sample_key, mask_key = jr.split(key, 3)
        output = Path(folder)
        self._draw_pairs(model, output / "samples.png", key=rebuilt_key)

        if generated and not _is_local(model):
            size = (_FIGURE_POINTS, _NUM_GENERATED)
            clouds = self._generate(model, *size, key=sample_key)
            path = output / "unconditional_samples.png"
            plotting.point_clouds(clouds, up=self.up, path=path)
        if self.hide is not None:
            self._draw_masked(output / "masked_training_examples.png", key=mask_key)

    def _draw_pairs(self, model: latent.SetFlow, path: Path, *, key: jax.Array) -> None:
        points, valid, _ = seen = _first(self.split.seen, _NUM_PAIRS)
        visible = None
        if self.hide is not None:
            mask_key, key = jr.split(key)
            visible = _visible(self.hide, seen, mask_key)

        # A model with a latent for each point moves the points that it encodes.
        local = _is_local(model)
        num_points = None if local else _FIGURE_POINTS
        # The encoder sees what it saw in training; all valid points are drawn.
        samples = _reconstruct(
            model, seen, num_points, visible=visible, key=key, **SOLVER
        )
        inputs = _only(points, valid)
        shown = valid if visible is None else visible
        plotting.reconstructions(
            inputs,
            _only(samples.values, shown if local else None),
            None if visible is None else _only(visible, valid),
            up=self.up,
            path=path,
        )

    def _draw_masked(self, path: Path, *, key: jax.Array) -> None:
        """Training clouds, with as many points as the encoder sees of held-out ones."""
        assert self.hide is not None
        num_points = self.split.seen.points.shape[1]
        some = _first(self.split.train, _NUM_MASKED)
        if some.points.shape[1] > num_points:
            rng = np.random.default_rng(self.seed)
            some = data.subsample(some, rng, num_points=num_points)
        plotting.masked_examples(
            some.points,
            _visible(self.hide, some, key),
            some.mask,
            grid_size=self.hide.grid_size,
            up=self.up,
            path=path,
        )

    def _generate(
        self, model: latent.SetFlow, num_points: int, number: int, *, key: jax.Array
    ) -> np.ndarray:
        """Clouds from the prior."""
        label_key, sample_key = jr.split(key)
        cond = None
        if self.num_classes:
            labels = jr.choice(
                label_key, jnp.asarray(self.split.train.labels), (number,)
            )
            cond = jax.nn.one_hot(labels, self.num_classes)[:, None]
        if self.guidance != 1:
            guided = fk.guided(model.prior.flow, self.guidance)  # pyright: ignore
            model = eqx.tree_at(lambda model: model.prior.flow, model, guided)
        samples = model.sample(
            num_points, num_samples=number, cond=cond, key=sample_key, **SOLVER
        )

        return np.asarray(samples.values)

    def _scores(self, model: latent.SetFlow, *, key: jax.Array) -> dict[str, float]:
        """Generated and training clouds, each in the place of the held-out ones."""
        sample_key, train_key = jr.split(key)
        train = self.split.train
        # The floor is a score of training clouds, which takes as many of them.
        number = min(len(self.split.other.points), len(train.points))
        other = _first(self.split.other, number)
        num_points = other.points.shape[1]
        total = _NUM_COLLECTIONS * number
        generated = self._generate(model, num_points, total, key=sample_key)

        # Without replacement: a cloud that occurs twice would be its own nearest
        # neighbor.
        chosen = np.asarray(jr.permutation(train_key, len(train.points)))[:total]
        some = jax.tree.map(lambda leaf: leaf[chosen], train)
        if some.points.shape[1] > num_points:
            rng = np.random.default_rng(self.seed)
            some = data.subsample(some, rng, num_points=num_points)
        scores = metrics.scores_with_floor(
            generated,
            other.points,
            some.points,
            mask_reference=other.mask,
            mask_floor=some.mask,
        )

        return {
            "one_nna_chamfer": float(scores.samples.one_nna),
            "one_nna_floor": float(scores.floor.one_nna),
            "coverage": float(scores.samples.coverage),
            "coverage_floor": float(scores.floor.coverage),
        }


def _is_local(model: latent.SetFlow) -> bool:
    """Whether every point has a latent, so that the prior cannot draw any."""
    # Two points against the one of `latent_shape`: the shapes differ if every point has
    # a latent. Nothing is computed.
    points = jax.ShapeDtypeStruct((2, model.in_size), jnp.result_type(float))
    latents = eqx.filter_eval_shape(eqx.nn.inference_mode(model).encode, points)
    return latents.shape != model.latent_shape


def _reconstruct(
    model: latent.SetFlow,
    sets: data.PointSets,
    num_points: int | None = None,
    *,
    visible: np.ndarray | None = None,
    key: jax.Array,
    **options: Any,
) -> fk.Samples:
    """Clouds from the latents of the given ones, of which the encoder sees a part."""
    seen = sets.mask if visible is None else visible
    latents = latent.encode_sets(model, sets.points, mask=seen)
    shape = (num_points or sets.points.shape[1], sets.points.shape[2])
    return fk.sample(
        model.flow,
        shape,
        num_samples=len(latents),
        cond=latents,
        # As in training, no point with a latent attends to one that is not valid.
        mask=sets.mask if _is_local(model) else None,
        key=key,
        **options,
    )


def _rebuilt(
    model: latent.SetFlow, seen: data.PointSets, samples: fk.Samples
) -> data.PointSets:
    """Samples as sets; a masked point has no sample where every point has its own."""
    mask = seen.mask if _is_local(model) else None
    return data.PointSets(np.asarray(samples.values), mask)


def _explained(
    model: latent.SetFlow, split: data.CloudSplit, key: jax.Array
) -> fk.ExplainedVelocity:
    """For points that the encoder has not seen, unless each has a latent of its own."""
    judged = split.seen if _is_local(model) else split.other
    latents = latent.encode_sets(model, split.seen.points, mask=split.seen.mask)
    return fk.explained_velocity(
        model.flow, judged.points, latents, mask=judged.mask, key=key
    )


def _chamfer(sets: data.PointSets, other: data.PointSets) -> float:
    """The mean distance between the clouds of two lists, pair by pair."""
    return float(_mean_chamfer(sets.points, other.points, sets.mask, other.mask))


@eqx.filter_jit
def _mean_chamfer(x: Any, y: Any, mask_x: Any, mask_y: Any) -> jax.Array:
    def distance(x, y, mask_x, mask_y):
        return metrics.chamfer(x, y, mask_x=mask_x, mask_y=mask_y)

    return jnp.mean(jax.vmap(distance)(x, y, mask_x, mask_y))


@eqx.filter_jit
def _hidden_cells(
    hide: latent.GridMask, points: Any, mask: Any, keys: Any
) -> jax.Array:
    return jax.vmap(lambda x, valid, key: hide(x, valid, key=key))(points, mask, keys)


def _visible(hide: latent.GridMask, sets: data.PointSets, key: jax.Array) -> np.ndarray:
    keys = jr.split(key, len(sets.points))
    return np.asarray(_hidden_cells(hide, sets.points, sets.mask, keys))


def _rounded(values: Any) -> list[float | None]:
    """Four digits, and `None` for NaN, which JSON does not have."""
    numbers = [round(float(value), 4) for value in values]
    return [None if np.isnan(number) else number for number in numbers]


def _only(values: Any, mask: Any) -> list[np.ndarray]:
    """The valid rows of each cloud."""
    arrays = [np.asarray(value) for value in values]
    if mask is None:
        return arrays
    return [array[valid] for array, valid in zip(arrays, np.asarray(mask), strict=True)]


def _first(sets: data.PointSets, number: int) -> data.PointSets:
    return jax.tree.map(lambda leaf: leaf[:number], sets)


def _shifted(sets: data.PointSets) -> data.PointSets:
    return jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), sets)
