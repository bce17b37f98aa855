"""Look at the latents of a trained model of point clouds: moments by dimension and class, and a map by t-SNE.

    python examples/point_clouds.py
    python examples/analyze_latents.py
    python examples/analyze_latents.py --model artifacts/point_clouds --pooling mean

Encodes the held-out clouds of the run and writes to the folder `latents` within the run's: `statistics.txt`,
`statistics.json`, `statistics.png` and `t_sne.png`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
import point_clouds
import tyro
from sklearn.manifold import TSNE

import flowkit as fk


@dataclasses.dataclass(frozen=True)
class Config:
    """Analyse the latents of the held-out clouds."""

    model: str = "artifacts/point_clouds"
    """Folder of a run of `point_clouds.py`, with its checkpoints."""
    pooling: Literal["auto", "flatten", "mean"] = "auto"
    """How the latents of a cloud become one vector. Flatten: one after the other. Mean: over the latents, which suits
    slots, as they have no order. Auto: the mean where every point has a latent, flattened otherwise."""
    perplexity: float = 30.0
    """Of the t-SNE; about how many neighbours count. At most a third of the number of clouds is used."""
    num_iterations: int = 1000
    """Of the t-SNE."""
    seed: int = 42
    """Of the t-SNE."""


def main(config: Config) -> None:
    folder = Path(config.model) / "latents"
    model, run = point_clouds.final_model(Path(config.model))
    points, mask, labels = point_clouds.load(run).seen
    latents = encode(model, points, mask)
    vectors, rule = as_vectors(latents, points.shape[1], mask, config.pooling)
    folder.mkdir(parents=True, exist_ok=True)

    heading = f"{len(latents)} held-out clouds, latents {latents.shape[1:]}, {rule}: {vectors.shape[1]} numbers each"
    numbers = statistics(vectors, labels)
    (folder / "statistics.json").write_text(
        json.dumps({"latents": heading, **numbers}, indent=1) + "\n"
    )
    text = f"{heading}\n\n{report(numbers)}"
    (folder / "statistics.txt").write_text(text)
    draw_statistics(numbers, folder / "statistics.png")
    xy = t_sne(vectors, config)
    fk.plotting.embedding(
        xy, labels, title="t-SNE of the latents", path=folder / "t_sne.png"
    )
    print(f"{text}\nFigures and statistics are in {folder}/.")


def encode(
    model: fk.latent.SetFlow,
    points: np.ndarray,
    mask: np.ndarray | None,
    size: int = 256,
) -> np.ndarray:
    """The latents `(b, k, c)` of all clouds, some at a time."""
    some = eqx.filter_jit(lambda points, mask: jax.vmap(model.encode)(points, mask))
    parts = [slice(start, start + size) for start in range(0, len(points), size)]
    return np.concatenate(
        [np.asarray(some(points[p], None if mask is None else mask[p])) for p in parts]
    )


def as_vectors(
    latents: np.ndarray, num_points: int, mask: np.ndarray | None, pooling: str
) -> tuple[np.ndarray, str]:
    """One vector for every cloud, and how it was made. Latents of points that are masked out do not count."""
    number = latents.shape[1]
    local = number == num_points and number > 1
    if pooling == "flatten" or (pooling == "auto" and not local):
        return latents.reshape(len(latents), -1), "flattened"
    if local and mask is not None:
        total = np.sum(np.where(mask[..., None], latents, 0), axis=1)
        return total / np.sum(mask, axis=1, keepdims=True), "mean over the valid points"
    return latents.mean(axis=1), f"mean over {number}"


def statistics(vectors: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """Moments of every dimension, overall and by class, and the fraction of the variance that is between classes."""
    as_lists = lambda moments: {
        name: np.asarray(values).tolist() for name, values in moments._asdict().items()
    }
    overall = fk.metrics.latent_statistics(vectors)
    if labels is None:
        return {"overall": as_lists(overall), "classes": None, "between": None}
    classes = fk.metrics.latent_statistics(vectors, labels, int(np.max(labels)) + 1)
    counts = np.asarray(classes.count)[:, None]
    squares = np.where(
        counts > 0,
        counts * (np.asarray(classes.mean) - np.asarray(overall.mean)) ** 2,
        0,
    )
    variance = np.asarray(overall.variance)
    between = np.sum(squares, 0) / len(vectors) / np.where(variance > 0, variance, 1)
    return {
        "overall": as_lists(overall),
        "classes": as_lists(classes),
        "between": between.tolist(),
    }


def report(numbers: dict[str, Any]) -> str:
    """The statistics as text: a table over dimensions for all clouds, then one for each class."""
    classes, between = numbers["classes"], numbers["between"]
    lines = [
        "All clouds"
        + (
            ""
            if between is None
            else "; between: part of the variance that is between classes"
        )
    ]
    lines += table(numbers["overall"], between)
    if classes is None:
        return "\n".join(lines) + "\n"
    for k in range(len(classes["count"])):
        moments = {name: values[k] for name, values in classes.items()}
        lines += ["", f"Class {k}: {int(moments['count'])} clouds"]
        lines += table(moments, None) if moments["count"] else []
    return "\n".join(lines) + "\n"


def table(moments: dict[str, Any], between: list[float] | None) -> list[str]:
    columns = {name: moments[name] for name in ("mean", "variance", "std")}
    if between is not None:
        columns["between"] = between
    lines = ["dimension" + "".join(f"{name:>12}" for name in columns)]
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        lines.append(f"{i:>9}" + "".join(f"{value:>12.4f}" for value in row))
    return lines


def draw_statistics(numbers: dict[str, Any], path: Path) -> None:
    overall, classes = numbers["overall"], numbers["classes"]
    by_class = (
        []
        if classes is None
        else [np.asarray(classes[name]) for name in ("mean", "std")]
    )
    moments = [np.asarray(overall[name]) for name in ("mean", "std")]
    fk.plotting.latent_statistics(*moments, *by_class, path=path)


def t_sne(vectors: np.ndarray, config: Config) -> np.ndarray:
    """A map `(b, 2)` in which clouds with similar latents are neighbours."""
    perplexity = min(config.perplexity, max(1.0, (len(vectors) - 1) / 3))
    options = {
        "perplexity": perplexity,
        "max_iter": config.num_iterations,
        "random_state": config.seed,
    }
    return TSNE(2, init="pca", **options).fit_transform(np.asarray(vectors, np.float64))


if __name__ == "__main__":
    main(tyro.cli(Config))
