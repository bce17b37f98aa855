"""Look at the latents of a trained model of point clouds: moments, classes, and a map.

    python examples/point_clouds.py
    python examples/analyze_latents.py
    python examples/analyze_latents.py --model artifacts/point_clouds --pooling mean

Encodes the held-out clouds of a run and writes to the folder `latents` within the run's:
`statistics.txt`, `statistics.json`, `statistics.png`, and `t_sne.png`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.manifold import TSNE

import flowkit as fk


@dataclasses.dataclass(frozen=True)
class Config:
    """Analyze the latents of held-out clouds."""

    model: str = "artifacts/point_clouds"
    """Folder of a run of `point_clouds.py`, with its checkpoints and held-out clouds."""
    data: str | None = None
    """An .npz file with other clouds to encode, in the units of training."""
    pooling: Literal["auto", "flatten", "mean"] = "auto"
    """How the latents of a cloud become one vector. Flatten: one after the other. Mean: over
    the latents, which suits slots, since they have no order. Auto: the mean if every point
    has a latent, flattened otherwise."""
    perplexity: float = 30.0
    """Perplexity of the t-SNE: about how many neighbors count. The maximum is a third of the
    number of clouds."""
    num_iterations: int = 1000
    """Iterations of the t-SNE, at least 250."""
    seed: int = 42
    """Random seed of the t-SNE."""

    def __post_init__(self):
        if self.perplexity <= 0:
            raise ValueError(f"`perplexity` must be positive, got {self.perplexity}.")
        if self.num_iterations < 250:
            raise ValueError(
                f"`num_iterations` must be at least 250, got {self.num_iterations}."
            )


def main(config: Config) -> None:
    run = Path(config.model)
    model, options = fk.pipelines.load_set_flow(run)
    local = fk.pipelines.SetFlowConfig.from_json(options["model"]).is_local
    points, mask, labels = load(config)
    latents = fk.latent.encode_sets(model, points, mask=mask)
    vectors, rule = as_vectors(np.asarray(latents), mask, config.pooling, local=local)
    perplexity = largest_perplexity(config, len(vectors))

    folder = run / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    heading = (
        f"{len(latents)} held-out clouds, latents {latents.shape[1:]}, {rule}: "
        f"{vectors.shape[1]} numbers each"
    )
    numbers = statistics(vectors, labels)
    # A class without a cloud has NaN, which JSON does not have.
    plain = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
    text = json.dumps({"latents": heading, **plain}, indent=1)
    (folder / "statistics.json").write_text(text + "\n")
    text = f"{heading}\n\n{report(numbers)}"
    (folder / "statistics.txt").write_text(text)
    draw_statistics(numbers, folder / "statistics.png")

    xy = t_sne(vectors, config, perplexity)
    title = "t-SNE of the latents"
    fk.plotting.embedding(xy, labels, title=title, path=folder / "t_sne.png")
    print(f"{text}\nFigures and statistics are in {folder}/.")


def load(config: Config) -> fk.data.PointSets:
    """The clouds that the run held out, or those that were asked for."""
    if config.data is not None:
        return fk.data.load_npz(config.data)
    path = Path(config.model) / "held_out.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: give the same command of point_clouds.py again, which writes "
            "it and trains nothing further, or name clouds with --data."
        )
    return fk.data.load_npz(path)


def largest_perplexity(config: Config, number: int) -> float:
    """The perplexity that was asked for; its default value gives way to few clouds."""
    most = max(1.0, (number - 1) / 3)
    if config.perplexity != Config.perplexity and config.perplexity > most:
        raise ValueError(
            f"`perplexity` is {config.perplexity:g}, but at most {most:g} for {number} clouds."
        )
    return min(config.perplexity, most)


def as_vectors(
    latents: np.ndarray, mask: np.ndarray | None, pooling: str, *, local: bool
) -> tuple[np.ndarray, str]:
    """One vector for every cloud, and how it was made.

    If they are `local`, one for each point, those of masked points do not count.
    """
    if pooling == "flatten" or (pooling == "auto" and not local):
        return latents.reshape(len(latents), -1), "flattened"
    if local and mask is not None:
        total = np.sum(np.where(mask[..., None], latents, 0), axis=1)
        return total / np.sum(mask, axis=1, keepdims=True), "mean over the valid points"
    return latents.mean(axis=1), f"mean over {latents.shape[1]}"


def statistics(vectors: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """Moments of every dimension, and the fraction of the variance between classes."""
    overall = fk.metrics.latent_statistics(vectors)
    if labels is None:
        return {"overall": as_lists(overall), "classes": None, "between": None}

    classes = fk.metrics.latent_statistics(vectors, labels, int(np.max(labels)) + 1)
    counts = np.asarray(classes.count)[:, None]
    shifts = np.asarray(classes.mean) - np.asarray(overall.mean)
    # The mean of a class without clouds is NaN.
    squares = np.where(counts > 0, counts * shifts**2, 0)
    variance = np.asarray(overall.variance)
    between = np.sum(squares, 0) / len(vectors) / np.where(variance > 0, variance, 1)
    return {
        "overall": as_lists(overall),
        "classes": as_lists(classes),
        "between": between.tolist(),
    }


def as_lists(moments: Any) -> dict[str, Any]:
    return {
        name: np.asarray(value).tolist() for name, value in moments._asdict().items()
    }


def report(numbers: dict[str, Any]) -> str:
    """The statistics as text: a table over dimensions for all clouds, then for each class."""
    classes = numbers["classes"]
    if classes is None:
        return "\n".join(["All clouds", *table(numbers["overall"], None)]) + "\n"

    lines = ["All clouds; between: fraction of the variance that is between classes"]
    lines += table(numbers["overall"], numbers["between"])
    for k in range(len(classes["count"])):
        moments = {name: values[k] for name, values in classes.items()}
        lines += ["", f"Class {k}: {int(moments['count'])} clouds"]
        if moments["count"]:
            lines += table(moments, None)
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
    moments = [np.asarray(numbers["overall"][name]) for name in ("mean", "std")]
    if numbers["classes"] is not None:
        moments += [np.asarray(numbers["classes"][name]) for name in ("mean", "std")]
    fk.plotting.latent_statistics(*moments, path=path)


def t_sne(vectors: np.ndarray, config: Config, perplexity: float) -> np.ndarray:
    """A map `(b, 2)` in which clouds with similar latents are neighbors."""
    # A single number has no second principal component to start from.
    start = "pca" if vectors.shape[1] > 1 else "random"
    method = TSNE(
        2,
        init=start,
        perplexity=perplexity,
        max_iter=config.num_iterations,
        random_state=config.seed,
    )
    return method.fit_transform(np.asarray(vectors, np.float64))


if __name__ == "__main__":
    with fk.pipelines.exit_on_misuse():
        main(fk.pipelines.parse(Config))
