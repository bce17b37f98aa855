"""The example that makes data sets: every set has its poses, and does not depend on the others."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from flowkit import data


SPEC = importlib.util.spec_from_file_location(
    "make_datasets", Path(__file__).parents[1] / "examples/make_datasets.py"
)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)


SIZES = {"num_sets": 40, "num_points": 20}
SCENES = {"num_scenes": 16, "min_objects": 2, "max_objects": 2}


def make(folder, dataset, **sizes):
    options = {"images": "digits", "output": str(folder)} | SIZES | sizes
    example.main(example.Config(dataset=dataset, **options))


@pytest.mark.parametrize(
    ("dataset", "sizes", "message"),
    [
        ("single", {"num_scenes": 3}, "--num-scenes has no effect.*are single digits"),
        ("single", {"max_objects": 9}, "--max-objects has no effect"),
        ("scenes", {}, "--num-sets has no effect here: the clouds of `scenes`"),
        ("all", {"num_points": 0}, "--num-points must be at least 1, got 0"),
    ],
)
def test_misuse_is_an_error_before_any_work(tmp_path, dataset, sizes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, dataset, **sizes)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_data_sets(tmp_path, capsys):
    make(tmp_path / "all", "all", **SCENES)
    names = [*data.DIGIT_POSES, *data.SCENE_POSES]
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert {path.name for path in (tmp_path / "all").iterdir()} == {
        f"{n}.{e}" for n in names for e in ("npz", "png")
    }
    for name in names:
        sets = data.load_npz(
            tmp_path / "all" / f"{name}.npz",
            data.Scenes if "scenes" in name else data.PosedSets,
        )
        assert sets.points.shape == ((16, 40, 2) if "scenes" in name else (40, 20, 2))
        assert np.any(sets.rotations != 0) == ("rotated" in name)
        assert np.any(sets.scales != 1) == ("scaled" in name)
        assert np.any(sets.translations != 0) == (
            "translated" in name or "scenes" in name
        )
    make(tmp_path / "one", "rotated")
    one, among_all = (
        data.load_npz(tmp_path / folder / "rotated.npz") for folder in ("one", "all")
    )
    assert np.array_equal(one.points, among_all.points)
