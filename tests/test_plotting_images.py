"""Figures of images hold the right pixels, and refuse what cannot be drawn."""

from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

import flowkit.plotting as plotting


def uniform(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


UNSEEN = to_rgb("#a3aebf")
TRUTH, FOUND = uniform(0, 2, 5, 4, 3), uniform(1, 2, 6, 5, 4, 3)
SEEN = uniform(2, 2, 5, 4) < 0.4
WANTED = ~SEEN & (uniform(3, 2, 5, 4) < 0.6)
TIMES = np.linspace(0, 1, 5, dtype=np.float32)

FIGURES = {
    "image_grid": lambda **k: plotting.image_grid(TRUTH, titles=["a", "b"], **k),
    "image_reconstructions": lambda **k: plotting.image_reconstructions(
        TRUTH, SEEN, FOUND, **k
    ),
    "image_errors": lambda **k: plotting.image_errors(TRUTH, FOUND[:, 0], SEEN, **k),
    "pixel_flow": lambda **k: plotting.pixel_flow(TIMES, uniform(4, 7, 5, 3), **k),
}


def axes_of(figure) -> list[Any]:
    return list(figure.axes)


def drawn(axes):
    """What the only image of a panel holds."""
    (image,) = axes.get_images()
    assert image.get_interpolation() == "nearest"
    return image.get_array()


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_figure_is_saved_and_blind_to_styles(make, tmp_path):
    plain, styled = tmp_path / "plain.png", tmp_path / "new" / "styled.png"
    make(path=plain)
    with plt.style.context(["dark_background", {"font.size": 20, "image.cmap": "hot"}]):
        figure = make(path=styled)
    image = plt.imread(plain)
    np.testing.assert_array_equal(plt.imread(styled), image)
    np.testing.assert_allclose(
        image.shape[:2], figure.get_size_inches()[::-1] * 150, atol=1
    )
    assert plt.get_fignums() == []


def cells(axes):
    """Row and column of each image of a grid, whose sides are those of the last one."""
    left, right, bottom, top = axes.get_images()[-1].get_extent()
    pitch = np.array([abs(bottom - top), right - left]) / 0.96
    extents = np.array([image.get_extent() for image in axes.get_images()])
    centers = np.stack([extents[:, 2:].mean(1), extents[:, :2].mean(1)], axis=1)
    return centers / pitch - 0.5


def test_grid_maps_values_to_colors():
    images = np.stack([np.full((2, 3, 3), v, np.float32) for v in (-2, -1, 0, 0.5, 3)])
    images[3, 0, 0, 1] = np.nan
    (axes,) = axes_of(plotting.image_grid(jnp.asarray(images), columns=3))
    assert not axes.axison
    shown = [image.get_array() for image in axes.get_images()]
    for colors, value in zip(shown, (0, 0, 0.5, 0.75, 1), strict=True):
        np.testing.assert_allclose(colors[1:], np.full((1, 3, 3), value))
        np.testing.assert_allclose(colors[0, 1:], np.full((2, 3), value))
    np.testing.assert_allclose(shown[3][0, 0], UNSEEN)
    expected = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    np.testing.assert_allclose(cells(axes), expected, atol=1e-12)


def test_grid_of_gray_images():
    images = uniform(5, 4, 28, 14, 1)
    figure = plotting.image_grid(images, low=0.0, titles=list("abcd"))
    (axes,) = axes_of(figure)
    assert [text.get_text() for text in axes.texts] == list("abcd")
    for shown, image, text in zip(axes.get_images(), images, axes.texts, strict=True):
        np.testing.assert_allclose(shown.get_array(), np.tile(image, 3))
        left, right, _, top = shown.get_extent()
        assert text.get_position()[0] == pytest.approx((left + right) / 2)
        assert text.get_position()[1] < top
    # The aspect of the panels is that of the images, with a line for each title.
    width, height = figure.get_size_inches()
    assert height - 2 * 0.25 == pytest.approx(2 * width)
    large = plotting.image_grid(uniform(6, 1, 150, 300, 1))
    np.testing.assert_allclose(large.get_size_inches(), [4, 2])


def test_reconstructions_show_truth_samples_and_spread():
    figure = plotting.image_reconstructions(TRUTH, SEEN, FOUND, low=0.0, num_shown=2)
    names = ["truth", "observed", "sample 1", "sample 2", "mean", "std"]
    assert titles(figure) == [*names, *[""] * 6, ""]

    panels = np.asarray(figure.axes[:-1]).reshape(2, 6)
    for i in range(2):
        observed = np.where(SEEN[i][..., None], TRUTH[i], UNSEEN)
        columns = [TRUTH[i], observed, FOUND[i, 0], FOUND[i, 1], FOUND[i].mean(0)]
        for axes, expected in zip(panels[i], columns, strict=False):
            np.testing.assert_allclose(drawn(axes), expected, atol=1e-6)
        deviation = np.sqrt(FOUND[i].astype(float).var(0).mean(-1))
        np.testing.assert_allclose(drawn(panels[i, 5]), deviation)

    # All rows have the scale of the color bar.
    highest = np.sqrt(FOUND.var(1).mean(-1).max())
    for axes in panels[:, 5]:
        np.testing.assert_allclose(axes.get_images()[0].get_clim(), (0, highest))
    assert axes_of(figure)[-1].get_ylabel() == "standard deviation"


def test_samples_that_diverged_leave_holes():
    samples = FOUND.copy()
    samples[0, 0, 0, 0, 0] = np.inf
    samples[0, 1, 0, 0, 0] = -np.inf
    panels = axes_of(plotting.image_reconstructions(TRUTH, SEEN, samples))
    for axes in (panels[2], panels[6]):
        np.testing.assert_allclose(drawn(axes)[0, 0], UNSEEN)
    holes = np.argwhere(np.ma.getmaskarray(drawn(panels[7])))
    np.testing.assert_array_equal(holes, [[0, 0]])


def test_one_reconstruction_has_no_spread():
    figure = plotting.image_reconstructions(TRUTH, SEEN, FOUND[:, :1])
    assert titles(figure) == ["truth", "observed", "sample", "", "", ""]


def test_errors_are_those_of_the_target_pixels():
    prediction = FOUND[:, 0].copy()
    # Far outside the range: its color is clipped, its error is not.
    row, column = np.argwhere(WANTED[0])[0]
    prediction[0, row, column] = 5
    figure = plotting.image_errors(
        2 * TRUTH - 1, 2 * prediction - 1, SEEN, jnp.asarray(WANTED)
    )
    panels = np.asarray(figure.axes[:-1]).reshape(2, 5)
    for i in range(2):
        target = WANTED[i][..., None]
        columns = [
            TRUTH[i],
            np.where(SEEN[i][..., None], TRUTH[i], UNSEEN),
            np.where(target, TRUTH[i], UNSEEN),
            np.where(target, np.clip(prediction[i], 0, 1), UNSEEN),
        ]
        for axes, expected in zip(panels[i], columns, strict=False):
            np.testing.assert_allclose(drawn(axes), expected, atol=1e-6)

        error = np.abs(prediction[i] - TRUTH[i])
        shown = drawn(panels[i, 4])
        np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~WANTED[i])
        expected = error.mean(-1)[WANTED[i]]
        np.testing.assert_allclose(shown.compressed(), expected, atol=1e-6)
        assert panels[i, 4].get_title() == f"MAE {error[WANTED[i]].mean():.3f}"
        assert panels[i, 4].get_images()[0].get_clim() == (0, 0.5)
        assert panels[i, 4].get_images()[0].get_cmap().name == "hot"


def test_pixel_flow_draws_channels_and_ends():
    values, truth = uniform(7, 6, 5, 3), np.asarray([0.1, 0.5, 0.9], np.float32)
    (axes,) = axes_of(plotting.pixel_flow(TIMES, values, truth, title="x"))
    lines = axes.get_lines()
    paths = [line for line in lines if len(line.get_xdata()) == 5]
    assert len(lines) == 18 + 3
    assert axes.get_title() == "x"
    # Channel by channel, each in the color in which it is strongest.
    for i, line in enumerate(paths):
        np.testing.assert_allclose(line.get_ydata(), values[i % 6, :, i // 6])
        assert np.argmax(to_rgb(line.get_color())) == i // 6

    clouds = [c for c in axes.collections if isinstance(c, PathCollection)]
    dots = np.stack([c.get_offsets() for c in clouds[:3]])
    np.testing.assert_allclose(dots[..., 1], values[:, -1].T)
    np.testing.assert_allclose(dots[..., 0], 1)
    marks = np.concatenate([c.get_offsets() for c in clouds[3:6]])
    np.testing.assert_allclose(marks[:, 1], truth)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["red", "green", "blue", "truth"]
    gray = axes_of(plotting.pixel_flow(TIMES, values[..., :1]))[0]
    assert len(gray.get_lines()) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.image_grid(TRUTH[:0]), "`images` is empty"),
        (lambda: plotting.image_grid(TRUTH[..., :2]), "channels last"),
        (lambda: plotting.image_grid(TRUTH, low=1), "`low` is 1"),
        (lambda: plotting.image_grid(255 * TRUTH), "`images` must be.* by 255"),
        (lambda: plotting.image_grid(TRUTH, titles=["a"]), "`titles` must have one"),
        (lambda: plotting.image_grid(TRUTH, columns=0), "`columns` is 0"),
        (
            lambda: plotting.image_reconstructions(TRUTH, SEEN, FOUND, num_shown=0),
            "`num_shown` is 0",
        ),
        (
            lambda: plotting.image_errors(TRUTH, FOUND[:, 0], SEEN, SEEN & False),
            "`target_mask` leaves an image without",
        ),
        (
            lambda: plotting.pixel_flow(TIMES, uniform(0, 2, 5, 2)),
            "`values` has shape",
        ),
        (
            lambda: plotting.pixel_flow(TIMES[:1], uniform(0, 2, 1, 3)),
            "`times` holds one time",
        ),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call()
