"""Make the data sets of point clouds: digits, moved or not, and scenes of several digits.

    python examples/make_datasets.py --dataset rotated
    python examples/make_datasets.py --dataset scenes --num-scenes 20000 --num-points 500
    python examples/make_datasets.py --images digits

By default the digits are those of MNIST, from the folder that `FLOWKIT_DATA` names or
downloaded once (12 MB). `--images digits` takes the 1797 small digits of scikit-learn, which
need no download.

Each data set is one `.npz` file and one picture in `artifacts/make_datasets/`.
`fk.data.load_npz` reads it, and `fk.data.train_test_split` splits it.
"""

import dataclasses
import time
from pathlib import Path
from typing import Literal

import jax
import jax.random as jr
import numpy as np

import flowkit as fk
from flowkit import pipelines


@dataclasses.dataclass(frozen=True)
class Config:
    """Make data sets of point clouds from images of digits, with their pictures."""

    dataset: Literal[
        "single",
        "rotated",
        "translated",
        "rotated-translated",
        "scenes",
        "scenes-rotated",
        "scenes-rotated-scaled",
        "all",
    ] = "all"
    """One digit in each cloud: as it is, rotated by any angle, translated by up to 1.5, or
    both. Scenes of several digits, each translated by up to 3: as they are, rotated, or
    rotated and scaled by 0.5 to 1.5. Or all of these."""
    images: Literal["mnist", "digits"] = "mnist"
    """The training images of MNIST, or scikit-learn's digits."""
    num_sets: pipelines.Count = 60_000
    """Number of clouds of one digit. If there are fewer images, they are used repeatedly."""
    num_scenes: pipelines.Count = 20_000
    """Number of scenes."""
    num_points: pipelines.Count = 500
    """Points per digit."""
    min_objects: pipelines.Count = 1
    """Smallest number of digits in a scene."""
    max_objects: pipelines.Count = 4
    """Largest number of digits in a scene. A scene has room for that many times the number
    of points."""
    weighted: bool = False
    """Whether pixels are drawn with probability proportional to their intensity. Otherwise
    all pixels above one half are equally likely."""
    seed: int = 0
    """Random seed."""
    output: str = "artifacts/make_datasets"
    """Folder for the files and pictures."""


def check(config: Config) -> None:
    """Invalid options and options without effect are errors, before any work."""
    idle = {}
    if config.dataset in fk.data.DIGIT_POSES:
        reason = f"the clouds of `{config.dataset}` are single digits"
        idle |= dict.fromkeys(("num_scenes", "min_objects", "max_objects"), reason)
    if config.dataset in fk.data.SCENE_POSES:
        idle["num_sets"] = f"the clouds of `{config.dataset}` are scenes"
    pipelines.check_options(config, idle)


def main(config: Config) -> None:
    check(config)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    images = load_images(config)
    names = [*fk.data.DIGIT_POSES, *fk.data.SCENE_POSES]
    for name in names if config.dataset == "all" else [config.dataset]:
        start = time.perf_counter()
        # A key of its own, so that a data set does not depend on which others are made.
        sets = make(
            name, images, config, key=jr.fold_in(jr.key(config.seed), names.index(name))
        )
        made = time.perf_counter() - start
        path = output / f"{name}.npz"
        fk.data.save_npz(path, sets)
        draw(sets, path.with_suffix(".png"))
        print(
            f"{path}: points {sets.points.shape}, {path.stat().st_size / 1e6:.0f} MB, "
            f"made in {made:.1f} s",
            flush=True,
        )


def load_images(config: Config) -> fk.data.Images:
    """The images to draw from. The test images of MNIST are left out."""
    if config.images == "mnist":
        return fk.data.load_mnist().train
    split = fk.data.load_digits(seed=config.seed)
    return fk.data.Images(
        *(np.concatenate(parts) for parts in zip(*split, strict=True))
    )


def make(
    name: str, images: fk.data.Images, config: Config, *, key: jax.Array
) -> fk.data.PosedSets | fk.data.Scenes:
    if name in fk.data.DIGIT_POSES:
        turns = np.arange(config.num_sets) % len(images.images)
        chosen = fk.data.Images(images.images[turns], images.labels[turns])
        return fk.data.image_clouds(
            chosen,
            config.num_points,
            weighted=config.weighted,
            **fk.data.DIGIT_POSES[name],
            key=key,
        )
    return fk.data.scenes(
        images,
        config.num_scenes,
        config.num_points,
        num_objects=(config.min_objects, config.max_objects),
        weighted=config.weighted,
        **fk.data.SCENE_POSES[name],
        key=key,
    )


def draw(sets: fk.data.PosedSets | fk.data.Scenes, path: Path) -> None:
    """The first 36 clouds, or the first 16 scenes with a color for each object."""
    if isinstance(sets, fk.data.PosedSets):
        color = fk.plotting.colors["data_x"]
        fk.plotting.point_clouds(sets.points[:36], color=color, path=path)
    else:
        fk.plotting.point_clouds(
            sets.points[:16],
            sets.mask[:16],
            point_labels=sets.object_ids[:16],
            path=path,
        )


if __name__ == "__main__":
    with pipelines.exit_on_misuse():
        main(pipelines.parse(Config))
