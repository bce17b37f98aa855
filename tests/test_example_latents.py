"""The example that analyzes latents: vectors, statistics, the map, a whole run."""

import dataclasses
import json

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.feature_selection import f_classif

import flowkit as fk

from .examples import loaded


@pytest.fixture(scope="module")
def example():
    with loaded("analyze_latents") as module:
        yield module


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_latents_become_vectors(example):
    latents = normal(0, 5, 4, 3)
    flat, rule = example.as_vectors(latents, None, "auto", local=False)
    assert rule == "flattened"
    np.testing.assert_array_equal(flat, latents.reshape(5, 12))
    local, _ = example.as_vectors(latents, None, "auto", local=True)
    np.testing.assert_allclose(local, latents.mean(1), rtol=1e-6)
    mean, _ = example.as_vectors(latents, None, "mean", local=False)
    np.testing.assert_allclose(mean, latents.mean(1), rtol=1e-6)
    flat, _ = example.as_vectors(latents, None, "flatten", local=True)
    assert flat.shape == (5, 12)


def test_latents_of_masked_points_do_not_count(example):
    latents, mask = (
        normal(0, 5, 4, 3),
        np.arange(4) < np.asarray([[1], [2], [3], [4], [4]]),
    )
    latents[~mask] = np.nan
    vectors, rule = example.as_vectors(latents, mask, "auto", local=True)
    assert rule == "mean over the valid points"
    np.testing.assert_allclose(vectors, np.nanmean(latents, 1), rtol=1e-6)


def test_slots_are_not_masked(example):
    """Also where there are as many slots as points."""
    latents = normal(0, 5, 4, 3)
    mask = np.arange(4) < np.asarray([[1], [2], [3], [4], [4]])
    flat, rule = example.as_vectors(latents, mask, "auto", local=False)
    assert (flat.shape, rule) == ((5, 12), "flattened")
    mean, _ = example.as_vectors(latents, mask, "mean", local=False)
    np.testing.assert_allclose(mean, latents.mean(1), rtol=1e-6)


def test_statistics_and_report(example):
    labels = np.arange(60) % 3
    vectors = normal(0, 60, 4) + np.asarray([0, 1, 2], np.float32)[labels][
        :, None
    ] * np.asarray([0, 0.3, 1, 5], np.float32)
    numbers = json.loads(json.dumps(example.statistics(vectors, labels)))
    np.testing.assert_allclose(
        numbers["overall"]["variance"], vectors.var(0), rtol=1e-4
    )
    np.testing.assert_allclose(
        numbers["classes"]["std"][1], vectors[labels == 1].std(0), rtol=1e-4
    )
    # The F statistic of the analysis of variance is made of the same two parts.
    between = np.asarray(numbers["between"])
    np.testing.assert_allclose(
        between / 2 / ((1 - between) / 57), f_classif(vectors, labels)[0], rtol=1e-3
    )
    text = example.report(numbers)
    assert text.count("Class ") == 3
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == 4 * 4
    assert float(rows[2][1]) == pytest.approx(vectors[:, 2].mean(), abs=1e-4)


def test_statistics_without_classes(example, tmp_path):
    numbers = example.statistics(normal(0, 60, 4), None)
    assert "Class" not in example.report(numbers)
    example.draw_statistics(numbers, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_map_of_few_clouds(example):
    config = example.Config(num_iterations=250)
    perplexity = example.largest_perplexity(config, 20)
    assert perplexity == pytest.approx(19 / 3)
    xy = example.t_sne(normal(0, 20, 4), config, perplexity)
    assert xy.shape == (20, 2)
    assert np.isfinite(xy).all()


def test_options_that_cannot_be_honored_are_refused(example, tmp_path):
    """The default perplexity gives way to few clouds; one that was asked for does not."""
    with pytest.raises(ValueError, match="`perplexity` is 20, but at most 6.33333"):
        example.largest_perplexity(example.Config(perplexity=20.0), 20)
    with pytest.raises(ValueError, match="`perplexity` must be positive"):
        example.Config(perplexity=0.0)
    with pytest.raises(ValueError, match="`num_iterations` must be at least 250"):
        example.Config(num_iterations=10)
    with pytest.raises(
        FileNotFoundError, match="same command of point_clouds.py again"
    ):
        example.load(example.Config(model=str(tmp_path)))


def test_every_option_of_the_map_has_an_effect(example):
    vectors = normal(0, 20, 4)
    maps = [
        example.t_sne(vectors, example.Config(num_iterations=number, seed=seed), width)
        for number, seed, width in ((250, 42, 5.0), (260, 42, 5.0), (250, 42, 3.0))
    ]
    assert not np.allclose(maps[0], maps[1])
    assert not np.allclose(maps[0], maps[2])


def test_latents_of_one_number_have_a_map(example):
    config = example.Config(num_iterations=250)
    assert example.t_sne(normal(0, 20, 1), config, 5.0).shape == (20, 2)


def test_whole_analysis(example, monkeypatch, tmp_path, capsys):
    """With an untrained model in the place of the one that a run leaves behind."""
    encoder = fk.nn.PointNet(2, 6, hidden_sizes=(8,), key=jr.key(0))
    crn = fk.nn.AdaLNMLP(2, 6, width_size=8, depth=2, key=jr.key(1))
    model = fk.latent.SetFlow(encoder, fk.Flow(crn), fk.Normal())
    # No cloud has the class 0.
    seen = fk.data.PointSets(normal(0, 40, 12, 2), None, 1 + np.arange(40) % 4)
    fk.data.save_npz(tmp_path / "held_out.npz", seen)
    options = {"model": dataclasses.asdict(fk.pipelines.SetFlowConfig())}
    as_loaded = lambda folder: (model, options)
    monkeypatch.setattr(fk.pipelines, "load_set_flow", as_loaded)
    example.main(example.Config(model=str(tmp_path), num_iterations=250))
    folder = tmp_path / "latents"
    assert {p.name for p in folder.iterdir()} == {
        "statistics.txt",
        "statistics.json",
        "statistics.png",
        "t_sne.png",
    }
    text = (folder / "statistics.json").read_text()
    numbers = json.loads(text, parse_constant=pytest.fail)
    assert numbers["classes"]["mean"][0] == [None] * 6
    latents = np.stack(
        [np.asarray(model.encode(jnp.asarray(p)))[0] for p in seen.points]
    )
    np.testing.assert_allclose(numbers["overall"]["mean"], latents.mean(0), atol=1e-5)
    said = capsys.readouterr().out
    assert "40 held-out clouds, latents (1, 6), flattened: 6 numbers each" in said


@pytest.mark.parametrize("ragged", [False, True])
def test_sets_are_encoded_in_parts(ragged):
    """As one by one; a batch that does not divide the number of clouds changes nothing."""
    encoder = fk.nn.PointNet(2, 6, hidden_sizes=(8,), key=jr.key(0))
    crn = fk.nn.AdaLNMLP(2, 6, width_size=8, depth=1, key=jr.key(1))
    model = fk.latent.SetFlow(encoder, fk.Flow(crn), fk.Normal())
    points = normal(0, 7, 5, 2)
    mask = np.arange(5) < np.array([[1], [2], [3], [4], [5], [5], [2]])
    mask = mask if ragged else None
    latents = fk.latent.encode_sets(model, points, mask=mask, batch_size=3)
    for i, one in enumerate(latents):
        cloud = points[i] if mask is None else points[i][mask[i]]
        np.testing.assert_allclose(one, model.encode(cloud), atol=1e-6)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        fk.latent.encode_sets(model, points, batch_size=0)
    with pytest.raises(ValueError, match="`mask` leaves a cloud without any valid"):
        fk.latent.encode_sets(model, points, mask=np.zeros((7, 5), bool))
