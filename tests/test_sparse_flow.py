"""Reconstruction from some pixels, against flows whose samples are known in closed form."""

import json
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from PIL import Image

import flowkit as fk
from flowkit.pipelines._sparse_flow_parts import OnGrid, WithMean


IMAGES = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)
PIXELS = fk.data.sparse_pixels(IMAGES, input_ratio=0.25, key=jr.key(0))


def still(t, x, cond):
    """A velocity of zero: samples are what the flow starts from."""
    return jnp.zeros_like(x)


class Levels(eqx.Module):
    """A process whose samples have the same value everywhere, one of some levels."""

    levels: tuple[float, ...]

    def sample(self, coords, values, query_coords, *, key):
        shape = (len(query_coords), values.shape[-1])
        chosen = jnp.asarray(self.levels)[jr.randint(key, (), 0, len(self.levels))]
        return jnp.full(shape, chosen), jnp.full(shape, chosen)

    def sample_image(self, coords, values, h, w, *, key):
        return self.sample(coords, values, jnp.zeros((h * w, 2)), key=key)


def constant(level, grid=None):
    return fk.pipelines.SparseFlow(fk.Flow(still), Levels((level,)), grid)


def input_mask():
    mask = np.zeros((4, 64), bool)
    np.put_along_axis(mask, np.asarray(PIXELS.input_indices), True, axis=1)
    return mask.reshape(4, 8, 8)


@pytest.mark.parametrize("grid", [None, (8, 8)])
def test_loss_is_that_of_the_wanted_pixels(grid):
    """With a velocity of zero it is the mean square of what is left to go."""
    wanted = IMAGES if grid else np.asarray(PIXELS.output_values)
    loss = constant(0.25, grid).loss(IMAGES, PIXELS, key=jr.key(1))
    assert loss == pytest.approx(np.mean((wanted - 0.25) ** 2), rel=1e-5)


@pytest.mark.parametrize(("level", "expected"), [(0.25, 0.25), (1.5, 1.0)])
def test_samples_are_intensities(level, expected):
    coords = fk.data.pixel_coords(3, 5)
    values = constant(level).sample(
        PIXELS.input_coords, PIXELS.input_values, coords, num_steps=1, key=jr.key(1)
    )
    np.testing.assert_array_equal(values, np.full((4, 15, 1), expected, np.float32))


def test_trajectories_lead_from_the_start_to_the_end():
    model = fk.pipelines.SparseFlow(
        fk.Flow(lambda t, x, cond: jnp.ones_like(x)), Levels((0.5,))
    )
    times = np.linspace(0, 1, 5, dtype=np.float32)
    seen = (PIXELS.input_coords, PIXELS.input_values)
    paths = model.trajectories(
        *seen, PIXELS.output_coords, times, num_steps=4, key=jr.key(1)
    )
    assert paths.shape == (4, 5, 12, 1)
    np.testing.assert_allclose(paths[0, :, 0, 0], 0.5 + times, atol=1e-6)


def observed_image(t, x, cond):
    return cond[..., :1]


def observed_mask(t, x, cond):
    return cond[..., 1:]


@pytest.mark.parametrize("network", [observed_image, observed_mask])
def test_observed_pixels_become_an_image_and_a_mask(network):
    """An image that is not square, so that rows and columns cannot be exchanged."""
    images = IMAGES[:, :6]
    pixels = fk.data.sparse_pixels(images, key=jr.key(3))
    shown = np.zeros((48, 1), np.float32)
    rows = np.asarray(pixels.input_indices[0])
    whole = images if network is observed_image else np.ones_like(images)
    shown[rows] = whole[0].reshape(48, 1)[rows]

    coords = fk.data.pixel_coords(6, 8)
    seen = fk.nn.Observed(coords, pixels.input_coords[0], pixels.input_values[0])
    out = OnGrid(network, 6, 8)(0.5, jnp.zeros((48, 1)), seen)
    np.testing.assert_array_equal(out, shown)


def test_masked_observations_have_no_influence():
    """Padding may hold anything."""
    coords, values = (np.asarray(leaf[0]) for leaf in PIXELS[:2])
    pad = lambda rows: np.concatenate([rows, np.full_like(rows, np.nan)])
    mask = np.arange(2 * len(coords)) < len(coords)
    grid = fk.data.pixel_coords(8, 8)
    seen = fk.nn.Observed(grid, coords, values)
    padded = fk.nn.Observed(grid, pad(coords), pad(values), mask)

    # The values and their mask; before them, the deviations.
    network = WithMean(OnGrid(lambda t, x, cond: cond[..., 1:2] + cond[..., 2:], 8, 8))
    mean = jnp.zeros((64, 1))
    expected = network(0.5, mean, (seen, mean))
    assert np.count_nonzero(expected) == len(coords)
    found = network(0.5, mean, (padded, mean))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["state", "observed"])
def test_networks_see_the_mean_of_a_process(name):
    """The second of the channels: the mean at the queries, the value where it is known.

    In the middle of the time, the velocity of the process itself is 0.
    """

    def second_channel(t, x, cond):
        return (x if name == "state" else cond.values)[:, ::-1]

    one = [np.asarray(leaf[0]) for leaf in PIXELS]
    seen = fk.nn.Observed(one[0], one[0], one[1])
    state = np.zeros_like(one[1])
    mean = np.full_like(one[1], 0.75)
    out = WithMean(second_channel)(0.5, state, (seen, mean))
    expected = mean if name == "state" else one[1]
    np.testing.assert_allclose(out, 0.1 * expected, rtol=1e-6)


def test_new_networks_have_the_velocity_of_the_process():
    """If start and data are draws of one normal distribution: cov(v, x) cov(x)^-1 (x - mean)."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    covariance = root @ root.T
    mean = rng.normal(size=(5, 1))
    x = rng.normal(size=(5, 1))
    t = 0.3
    of_velocity = t * covariance - (1 - t) * covariance
    of_state = t**2 * covariance + (1 - t) ** 2 * covariance
    expected = of_velocity @ np.linalg.solve(of_state, x - mean)

    one = [np.asarray(leaf[0, :5]) for leaf in PIXELS]
    seen = fk.nn.Observed(one[0], one[0], one[1])
    untrained = lambda t, x, cond: jnp.zeros_like(x)
    state = jnp.asarray(x, jnp.float32)
    found = WithMean(untrained)(t, state, (seen, jnp.asarray(mean, jnp.float32)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("network", ["pixel-field", "unet"])
def test_flows_start_from_a_process(network):
    """New networks are the velocity 0, so that the samples are those of the process."""
    small = {"width_size": 8, "num_latents": 2, "depth": 1, "num_heads": 2}
    if network == "unet":
        small = {"width_size": 8, "multipliers": (1,), "patch_size": 4}
    config = fk.pipelines.SparseFlowConfig(shape=(8, 8, 1), network=network, **small)
    model = config.build(process=Levels((0.25,)))
    seen = (PIXELS.input_coords, PIXELS.input_values)
    coords = fk.data.pixel_coords(8, 8)
    values = model.sample(*seen, coords, num_steps=1, key=jr.key(0))
    np.testing.assert_array_equal(values, np.full((4, 64, 1), 0.25))


def test_flows_start_from_a_gaussian_process_given_the_observed_pixels():
    """New networks are the velocity 0, so that samples at observed pixels are their values."""
    small = {"width_size": 8, "num_latents": 2, "depth": 1, "num_heads": 2}
    config = fk.pipelines.SparseFlowConfig(
        shape=(8, 8, 1), start="gaussian-process", length_scale=0.5, **small
    )
    model = config.build()
    assert model.process.length_scale == 0.5
    with pytest.raises(
        ValueError, match="`length_scale` has no.*`process` has its own"
    ):
        config.build(process=model.process)
    seen = (PIXELS.input_coords, PIXELS.input_values)
    values = model.sample(*seen, PIXELS.input_coords, num_steps=1, key=jr.key(0))
    np.testing.assert_allclose(values, PIXELS.input_values, atol=0.05)


def test_mirrored_samples_lie_on_the_other_side_of_the_mean():
    """New networks move the deviations along a straight line."""
    config = fk.pipelines.SparseFlowConfig(
        shape=(8, 8, 1), network="unet", width_size=8, multipliers=(1,), patch_size=4
    )
    model = config.build()
    coords = fk.data.pixel_coords(8, 8)
    seen = (PIXELS.input_coords, 0.45 + 0.1 * np.asarray(PIXELS.input_values))
    options = {"num_steps": 1, "key": jr.key(0)}
    samples = model.sample(*seen, coords, **options)
    mirrored = model.sample(*seen, coords, mirrored=True, **options)
    mean = jax.vmap(lambda *seen: model.process.mean(*seen, coords))(*seen)
    assert np.max(np.abs(samples - mean)) > 0.01
    np.testing.assert_allclose((samples + mirrored) / 2, mean, atol=1e-5)

    noise = fk.pipelines.SparseFlow(fk.Flow(still))
    samples = noise.sample(*seen, coords, **options)
    mirrored = noise.sample(*seen, coords, mirrored=True, **options)
    assert np.all((samples == 0) | (mirrored == 0))


def test_sampling_ends():
    """Two factorizations, or a Fourier transform, would wait for each other on two cores.

    In a process of its own, which can be ended.
    """
    program = """
import jax.random as jr, numpy as np, flowkit as fk
config = fk.pipelines.SparseFlowConfig(
    shape=(32, 32, 3), network="unet", width_size=32, patch_size=2
)
images = np.random.default_rng(0).random((16, 32, 32, 3), np.float32)
pixels = fk.data.sparse_pixels(images, output_ratio=0, key=jr.key(1))
seen = (pixels.input_coords, pixels.input_values)
coords = fk.data.pixel_coords(32, 32)
values = config.build().sample(*seen, coords, num_steps=1, key=jr.key(2))
assert np.isfinite(np.asarray(values)).all()
"""
    subprocess.run([sys.executable, "-c", program], timeout=300, check=True)


def test_networks_of_images_answer_for_whole_images():
    coords = fk.data.pixel_coords(4, 4)
    seen = (PIXELS.input_coords, PIXELS.input_values)
    with pytest.raises(ValueError, match="`query_coords` are 16 points.*8 x 8 pixels"):
        constant(0.5, (8, 8)).sample(*seen, coords, key=jr.key(0))


class Known(eqx.Module):
    """A process that knows the first image, whatever was observed."""

    def sample_image(self, coords, values, h, w, *, key):
        image = jnp.asarray(IMAGES[0]).reshape(64, 1)
        return image, image


@pytest.mark.parametrize("grid", [None, (8, 8)])
def test_images_of_another_size(grid):
    """Twice as many intervals: every other pixel is one of the image's own.

    Between those lies what kriging makes of them. A network of coordinates needs none.
    """
    model = fk.pipelines.SparseFlow(fk.Flow(still), Known(), grid)
    if grid is None:
        model = constant(0.25)
    seen = (PIXELS.input_coords, PIXELS.input_values)
    options = {"num_steps": 1, "key": jr.key(0)}
    found = np.asarray(model.sample_image(*seen, 15, 15, **options))
    if grid is None:
        np.testing.assert_array_equal(found, np.full((4, 15, 15, 1), 0.25))
        return

    # The process takes its pixels for noisy, by a hundredth of its scale.
    np.testing.assert_allclose(found[2, ::2, ::2], IMAGES[0], atol=3e-3)
    pixels = (fk.data.pixel_coords(8, 8), IMAGES[0].reshape(64, 1))
    queries = fk.data.pixel_coords(15, 15)
    between = fk.inverse.GaussianProcess(0.3).mean(*pixels, queries)
    expected = np.clip(between, 0, 1).reshape(15, 15, 1)
    np.testing.assert_allclose(found[2], expected, atol=1e-5)
    own = model.sample_image(*seen, 8, 8, **options)
    np.testing.assert_array_equal(own[1], IMAGES[0])


def test_output_pixels_of_a_whole_image():
    """The process knows the image: the output pixels are those of the image."""
    one = fk.data.SparsePixels(*(leaf[:1] for leaf in PIXELS))
    model = fk.pipelines.SparseFlow(fk.Flow(still), Known(), (8, 8))
    found = model.predict(one, num_steps=1, key=jr.key(0))
    np.testing.assert_array_equal(found, one.output_values)


@pytest.mark.parametrize("keep", [True, False])
def test_scores_of_a_constant(keep, tmp_path):
    """Every score in closed form: all samples are 0.5."""
    report = fk.pipelines.SparseFlowReport(
        IMAGES, PIXELS, batch_size=2, keep_observed=keep
    )
    options = {"num_batches": 9, "num_samples": 2, "num_steps": 1, "resolution": 5}
    numbers = report.write(constant(0.5), tmp_path, **options, key=jr.key(0))

    mask = input_mask()[..., None]
    error = np.where(mask & keep, 0, np.abs(IMAGES - 0.5))
    mse = np.mean(error**2, axis=(1, 2, 3))
    assert numbers["images"] == 4
    assert numbers["mse"] == pytest.approx(mse.mean(), rel=1e-5)
    assert numbers["mae"] == pytest.approx(error.mean(), rel=1e-5)
    for name in ("psnr", "psnr_of_mean"):
        assert numbers[name] == pytest.approx(np.mean(-10 * np.log10(mse)), rel=1e-5)
    hidden = np.abs(IMAGES - 0.5)[~mask[..., 0]]
    assert numbers["crps"] == pytest.approx(hidden.mean(), rel=1e-5)
    # Too few samples for a central interval of 90%.
    assert "coverage_90" not in numbers
    names = "reconstruction samples errors pixel_flow resolution"
    assert {path.stem for path in tmp_path.iterdir()} == set(names.split())


def test_coverage_of_intervals(tmp_path):
    """Samples are 0 or 1, so that the interval between them holds every truth."""
    report = fk.pipelines.SparseFlowReport(IMAGES, PIXELS, batch_size=4)
    model = fk.pipelines.SparseFlow(fk.Flow(still), Levels((0.0, 1.0)))
    options = {"num_samples": 19, "num_steps": 1}
    numbers = report.write(model, tmp_path, **options, key=jr.key(0))
    assert numbers["coverage_90"] == 1


def test_report_without_hidden_pixels(tmp_path):
    ratios = {"input_ratio": 1.0, "output_ratio": 0.0}
    pixels = fk.data.sparse_pixels(IMAGES, **ratios, key=jr.key(0))
    report = fk.pipelines.SparseFlowReport(
        IMAGES, pixels, batch_size=4, keep_observed=False
    )
    options = {"num_samples": 19, "num_steps": 1}
    numbers = report.write(constant(0.5), tmp_path, **options, key=jr.key(0))
    assert numbers["mae"] == pytest.approx(np.mean(np.abs(IMAGES - 0.5)), rel=1e-5)
    assert not {"crps", "coverage_90"} & set(numbers)
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"reconstruction", "samples"}


def test_flows_from_a_process_need_an_observation():
    ratios = {"input_ratio": 0.0, "output_ratio": 0.5}
    pixels = fk.data.sparse_pixels(IMAGES, **ratios, key=jr.key(0))
    model = fk.pipelines.SparseFlow(fk.Flow(still), fk.inverse.GaussianProcess(0.3))
    with pytest.raises(ValueError, match='`coords` is empty.*start="noise"'):
        model.loss(IMAGES, pixels, key=jr.key(0))
    noise = fk.pipelines.SparseFlow(fk.Flow(still))
    assert np.isfinite(noise.loss(IMAGES, pixels, key=jr.key(0)))


def test_errors_of_output_pixels_while_training(tmp_path):
    report = fk.pipelines.SparseFlowReport(IMAGES, PIXELS, batch_size=2)
    numbers = report.monitor(constant(0.5), num_steps=1, key=jr.key(0))
    error = np.abs(np.asarray(PIXELS.output_values) - 0.5)
    assert numbers["test_mse"] == pytest.approx(np.mean(error**2), rel=1e-5)
    assert numbers["test_mae"] == pytest.approx(np.mean(error), rel=1e-5)

    path = tmp_path / "figure.png"
    report.draw_predictions(constant(0.5), path, num_steps=1, key=jr.key(0))
    with Image.open(path) as figure:
        assert figure.width > figure.height / 2


def test_report_refuses_batches_that_are_too_large():
    with pytest.raises(ValueError, match="`batch_size` must be between 1 and the 4"):
        fk.pipelines.SparseFlowReport(IMAGES, PIXELS)


def test_images_of_bytes_are_refused():
    with pytest.raises(ValueError, match="`images` must be.*by 255"):
        fk.pipelines.SparseFlowReport(255 * IMAGES, PIXELS, batch_size=2)
    with pytest.raises(ValueError, match="`images` must be.*by 255"):
        constant(0.5).loss(255 * IMAGES, PIXELS, key=jr.key(0))


def count(config):
    model = eqx.filter_eval_shape(config.build)
    arrays = eqx.filter(model.flow.network, lambda leaf: hasattr(leaf, "dtype"))
    leaves = eqx.filter(arrays, lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact))
    return sum(leaf.size for leaf in jax.tree.leaves(leaves))


def test_network_of_the_original():
    """512 latents of width 512, six blocks of 8 heads, 256 frequencies: each layer counted."""
    w = 512
    linear = lambda i, o: i * o + o
    norm = 2 * w
    attention = 4 * linear(w, w)
    block = 2 * attention + linear(w, 4 * w) + linear(4 * w, w) + 3 * norm
    tokens = linear(2 * 256 + 3, w) + norm
    queries = linear(2 * 256, w) + norm
    out = attention + linear(w, 3)
    time = 2 * linear(w, w)
    config = fk.pipelines.SparseFlowConfig(
        shape=(32, 32, 3),
        network="perceiver",
        start="noise",
        width_size=512,
        num_latents=512,
        depth=6,
        num_heads=8,
        num_frequencies=256,
        frequency_scale=10.0,
        dropout=0.1,
    )
    assert count(config) == w * w + 6 * block + tokens + queries + out + time


def test_configurations_go_through_json():

    config = fk.pipelines.SparseFlowConfig(network="unet", multipliers=(1, 2, 2))
    config = config.for_data((8, 8, 1), 12)
    stored = json.loads(json.dumps(vars(config)))
    assert fk.pipelines.SparseFlowConfig.from_json(stored) == config
    assert config.state_tokens is None
    field = fk.pipelines.SparseFlowConfig().for_data((8, 8, 1), 12)
    assert field.state_tokens == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`shape` is missing"),
        ({"shape": (8, 8, 1), "width_size": 0}, "`width_size` must be at least 1"),
        ({"shape": (8, 8, 1), "num_heads": 3}, "`width_size` 64 must be divisible by"),
        ({"shape": (8, 8, 1), "multipliers": (1,)}, "`multipliers` has no effect here"),
        ({"network": "unet", "shape": (8, 8, 1), "depth": 1}, "`depth` has no effect"),
        (
            {"network": "unet", "shape": (8, 8, 1), "patch_size": 3},
            "`patch_size` 3 need sides divisible by 6",
        ),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        fk.pipelines.SparseFlowConfig(**options).build()


def test_shapes_must_agree():
    config = fk.pipelines.SparseFlowConfig(shape=(8, 8, 1))
    with pytest.raises(ValueError, match="`shape` is .* leave it out"):
        config.for_data((32, 32, 3), 204)


def test_images_by_name():
    with pytest.raises(ValueError, match="`name` must be one of digits, mnist"):
        fk.pipelines.small_images("faces")
    train, test = fk.pipelines.small_images("digits")
    assert train.shape == (1617, 8, 8, 1)
    assert test.shape == (180, 8, 8, 1)
    assert (train.min(), train.max()) == (0, 1)


def test_color_images_are_found_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWKIT_DATA", str(tmp_path))
    assert fk.pipelines.found_images() == "digits"
    record = bytes([3]) + bytes(range(256)) * 12
    (tmp_path / "data_batch_1.bin").write_bytes(2 * record)
    (tmp_path / "test_batch.bin").write_bytes(record)
    assert fk.pipelines.found_images() == "cifar10"
    train, test = fk.pipelines.small_images("cifar10")
    assert train.shape == (2, 32, 32, 3)
    assert test[0, 0, 1, 0] == pytest.approx(1 / 255)
    monkeypatch.delenv("FLOWKIT_DATA")
    assert fk.pipelines.found_images() == "digits"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, v, q: (7 * c, v, q), r"`coords` must be in \[0, 1\]"),
        (lambda c, v, q: (c, 255 * v, q), "`values` must be in"),
        (lambda c, v, q: (c, 2 * v - 1, q), r"`values` must be in \[0, 1\], got -"),
        (lambda c, v, q: (c, 2 * v, q), r"`values` must be in \[0, 1\], got 0 to 1\."),
        (lambda c, v, q: (c, np.nan * v, q), r"`values` must be in \[0, 1\], got nan"),
        (lambda c, v, q: (c, v, q[::-1]), "`query_coords` are not those of the pixels"),
    ],
)
def test_what_sampling_cannot_take_is_named(change, message):
    """Also where the network is one of images, which would take other pixels for it."""
    coords = fk.data.pixel_coords(8, 8)
    arguments = change(PIXELS.input_coords, PIXELS.input_values, coords)
    with pytest.raises(ValueError, match=message):
        constant(0.5, (8, 8)).sample(*arguments, num_steps=1, key=jr.key(0))


def test_images_from_minus_one_are_refused():
    with pytest.raises(ValueError, match=r"`images` must be in \[0, 1\], got -"):
        constant(0.5).loss(2 * IMAGES - 1, PIXELS, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`images` must be in \[0, 1\], got -"):
        fk.pipelines.SparseFlowReport(2 * IMAGES - 1, PIXELS, batch_size=2)


def test_refined_processes_need_a_network_of_images():
    process = fk.pipelines.RefinedProcess(
        (8, 8, 1), width_size=8, multipliers=(1,), key=jr.key(0)
    )
    config = fk.pipelines.SparseFlowConfig(shape=(8, 8, 1), network="pixel-field")
    with pytest.raises(
        ValueError, match='`process` is a RefinedProcess.*network="unet"'
    ):
        config.build(process=process)
