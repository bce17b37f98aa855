"""Figures hold what they were given, leave no global state, and refuse what cannot be drawn."""

import io
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

import flowkit.plotting as plotting


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


STEPS = np.arange(200)
HALF = np.tile(np.arange(20) < 10, (5, 1))
TIMES = np.linspace(0, 1, 5, dtype=np.float32)
HISTORY = {
    "loss": (STEPS, np.exp(-STEPS / 50) + 0.1),
    "flow": (STEPS, np.exp(-STEPS / 50)),
    "prior": (list(range(200)), [0.1] * 200),
    "chamfer": (STEPS[::50], [4.0, 3.0, 2.0, 1.5]),
    "explained_velocity": (STEPS[::50], [-0.5, 0.3, 0.5, 0.6]),
}


def pairs(*seeds, size=1):
    return tuple(normal(seed, 6, size) for seed in seeds)


LATENTS = plotting.LatentMap(
    train=pairs(0, 1), infer=pairs(0, 2), encode=pairs(1, 3), decode=pairs(3, 4)
)
PLANE = plotting.LatentMap(infer=pairs(0, 2, size=2), encode=pairs(1, 3, size=2))
PATHS = plotting.Paths(
    TIMES, normal(0, 7, 5, 1), normal(1, 9, 1), normal(2, 7, 1), pairs(3, 4)
)


def velocity(t, x):
    return t - x


def log_prob(x):
    return -x @ x


# Every figure once: the call, and how many panels it has.
FIGURES = {
    "point_clouds": (lambda **k: plotting.point_clouds(normal(0, 4, 20, 2), **k), 4),
    "point_clouds_3d": (lambda **k: plotting.point_clouds(normal(0, 3, 20, 3), **k), 3),
    "reconstructions": (
        lambda **k: plotting.reconstructions(
            normal(0, 2, 20, 2), normal(1, 2, 20, 2), **k
        ),
        4,
    ),
    "reconstructions_3d": (
        lambda **k: plotting.reconstructions(
            normal(0, 2, 20, 3), normal(1, 2, 20, 3), **k
        ),
        4,
    ),
    "masked_examples": (
        lambda **k: plotting.masked_examples(
            normal(0, 2, 20, 2), HALF[:2], grid_size=3, **k
        ),
        4,
    ),
    "masked_examples_3d": (
        lambda **k: plotting.masked_examples(
            normal(0, 2, 20, 3), HALF[:2], grid_size=2, **k
        ),
        4,
    ),
    "segmentations": (
        lambda **k: plotting.segmentations(
            normal(0, 2, 20, 2), 1 * HALF[:2], 2 * HALF[:2], **k
        ),
        4,
    ),
    "embedding": (
        lambda **k: plotting.embedding(normal(0, 30, 2), np.arange(30) % 3, **k),
        1,
    ),
    "latent_statistics": (
        lambda **k: plotting.latent_statistics(normal(0, 4), normal(1, 4) ** 2, **k),
        1,
    ),
    "latent_statistics_by_class": (
        lambda **k: plotting.latent_statistics(
            normal(0, 2, 4),
            normal(1, 2, 4) ** 2,
            normal(2, 3, 2, 4),
            normal(3, 3, 2, 4) ** 2,
            **k,
        ),
        5,  # with two color bars
    ),
    "samples_2d": (
        lambda **k: plotting.samples_2d(normal(0, 50, 2), normal(1, 60, 2), **k),
        3,
    ),
    "loss_trajectory": (
        lambda **k: plotting.loss_trajectory(
            {"a": {"loss": HISTORY["loss"]}, "b": {"loss": HISTORY["loss"]}}, **k
        ),
        1,
    ),
    "explained_velocity": (
        lambda **k: plotting.explained_velocity(TIMES, TIMES**2, **k),
        1,
    ),
    "trajectories_1d": (
        lambda **k: plotting.trajectories(TIMES, normal(0, 7, 5, 1), **k),
        1,
    ),
    "trajectories_2d": (
        lambda **k: plotting.trajectories(TIMES, normal(0, 7, 5, 2), **k),
        1,
    ),
    "trajectories_3d": (
        lambda **k: plotting.trajectories(TIMES, normal(0, 7, 5, 3), **k),
        1,
    ),
    "curvature": (
        lambda **k: plotting.curvature(TIMES, normal(0, 7, 5, 2), **k),
        1,
    ),
    "vector_field": (
        lambda **k: plotting.vector_field(velocity, times=(0.0, 1.0), **k),
        3,
    ),  # with the color bar
    "density_1d": (lambda **k: plotting.density_1d(normal(0, 100), **k), 1),
    "density_2d": (
        lambda **k: plotting.density_2d(normal(0, 100, 2), log_prob, resolution=9, **k),
        3,
    ),
    "snapshots_1d": (
        lambda **k: plotting.snapshots(TIMES, normal(0, 7, 5, 1), num=2, **k),
        2,
    ),
    "snapshots_2d": (
        lambda **k: plotting.snapshots(
            TIMES, normal(0, 7, 5, 2), target=normal(1, 9, 2), num=2, **k
        ),
        2,
    ),
    "latent_map_1d": (lambda **k: plotting.latent_map(LATENTS, **k), 1),
    "latent_map_2d": (lambda **k: plotting.latent_map(PLANE, **k), 1),
    "comparison_1d": (
        lambda **k: plotting.comparison(
            {"flow": PATHS, "decoder": LATENTS}, title="x", **k
        ),
        2,
    ),
    "comparison_2d": (
        lambda **k: plotting.comparison(
            {"a": plotting.Paths(TIMES, normal(0, 7, 5, 2)), "b": PLANE}, **k
        ),
        2,
    ),
}


def axes_of(figure) -> list[Any]:
    return list(figure.axes)


def offsets(axes):
    return np.concatenate(
        [c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)]
    )


# Styles of users, each of which would spoil a part of a figure that does not fix it.
STYLES = [
    "ggplot",
    "dark_background",
    {
        "font.size": 20,
        "lines.linewidth": 5,
        "xtick.top": True,
        "text.usetex": True,
        "savefig.bbox": "tight",
        "figure.autolayout": True,
        "legend.framealpha": 1,
    },
]


def picture(figure, **options):
    source = io.BytesIO()
    figure.savefig(source, format="png", **options)
    return plt.imread(io.BytesIO(source.getvalue()))


@pytest.mark.parametrize(("make", "panels"), FIGURES.values(), ids=FIGURES)
def test_figure_is_made_and_saved(make, panels, tmp_path):
    """The same picture under every style of the user, made and drawn or only drawn under it."""
    path = tmp_path / "new" / "folder" / "figure.png"
    with plt.style.context(STYLES):
        styled = make(path=path)
    assert isinstance(styled, Figure)
    assert len(styled.axes) == panels
    image = plt.imread(path)
    np.testing.assert_allclose(
        image.shape[:2], styled.get_size_inches()[::-1] * 150, atol=1
    )
    assert image[..., :3].std() > 0.01
    np.testing.assert_array_equal(image, picture(make(), dpi=150))
    assert plt.get_fignums() == []


def test_frames_have_one_look():
    frames = lambda: plotting.comparison_frames(
        [("a", {"flow": PATHS}), ("b", {"flow": PATHS})], limits=(-4, 4), dpi=40
    )
    with plt.style.context(STYLES):
        styled = [np.asarray(frame.image) for frame in frames()]
        assert plt.rcParams["font.size"] == 20
    plain = [np.asarray(frame.image) for frame in frames()]
    np.testing.assert_array_equal(styled, plain)


def test_notebooks_show_figures():
    """IPython shows what `_repr_png_` returns; other hooks would show a figure twice."""
    figure = plotting.point_clouds(normal(0, 1, 20, 2))
    with plt.style.context(STYLES):
        data = figure._repr_png_()  # pyright: ignore
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        np.testing.assert_allclose(np.asarray(image) / 255, picture(figure), atol=1e-6)
        size = figure.get_size_inches() * figure.dpi
        np.testing.assert_allclose(image.size, size, atol=1)
    assert plt.get_fignums() == []
    hooks = [name for name in dir(figure) if name.startswith("_repr_")]
    shown = [name for name in hooks if getattr(figure, name)() is not None]
    assert shown == ["_repr_png_"]


def never(*_):
    raise AssertionError("work was done before the path was looked at")


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plotting.vector_field(never, path=path),
        lambda path: plotting.density_2d(normal(0, 9, 2), never, path=path),
        lambda path: plotting.point_clouds(normal(0, 1, 9, 2), path=path),
        lambda path: plotting.animate((never() for _ in range(2)), path),
    ],
    ids=["vector_field", "density_2d", "point_clouds", "animate"],
)
def test_files_that_cannot_be_written(draw, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.gif").mkdir()
    for path, message in (
        (
            tmp_path / "file" / "figure.gif",
            "`path`: the folder .*file cannot be written to",
        ),
        (tmp_path / "folder.gif", "`path` is .*folder.gif, which is a folder"),
        (tmp_path / "figure.mp4", "`path` is .*figure.mp4"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(path)
    assert len(list(tmp_path.iterdir())) == 2


def test_animations_are_gifs(tmp_path):
    for name in ("flow.mp4", "flow.png", "flow"):
        with pytest.raises(ValueError, match="must end in .gif"):
            plotting.animate((never() for _ in range(2)), tmp_path / name)


def test_colors_are_frozen():
    assert len(set(plotting.colors.values())) == len(plotting.colors) == 10
    assert plotting.colors["latent_z_hat"] == "#2ca02c"
    with pytest.raises(TypeError):
        plotting.colors["data_x"] = "red"  # pyright: ignore


# ---- clouds


def test_point_clouds_draw_the_valid_points():
    clouds = normal(0, 3, 20, 2)
    clouds[1, 4] = np.nan
    masks = np.arange(20) < np.asarray([[20], [10], [1]])
    figure = plotting.point_clouds(
        jnp.asarray(clouds), masks, titles=["a", "b", "c"], columns=3
    )
    for axes, cloud, mask in zip(axes_of(figure), clouds, masks, strict=False):
        expected = cloud[mask & np.isfinite(cloud).all(1)]
        np.testing.assert_allclose(offsets(axes), expected)
        assert axes.get_aspect() == 1
        assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert [a.get_title() for a in figure.axes] == ["a", "b", "c"]
    assert len({(a.get_xlim(), a.get_ylim()) for a in figure.axes}) == 1


def areas(figure):
    """The areas of the dots of a figure; crosses, which are no dots, are left out."""
    clouds = [
        c
        for a in axes_of(figure)
        for c in a.collections
        if isinstance(c, PathCollection)
        and len(c.get_offsets())
        and c.get_linewidth()[0] == 0  # pyright: ignore
    ]
    return np.concatenate([cloud.get_sizes() for cloud in clouds])


few, many = normal(0, 5, 2), normal(1, 500, 2)


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plotting.point_clouds([few, many], limits=(-2, 2)),
        lambda: plotting.reconstructions([few], [many]),
        lambda: plotting.samples_2d(few, many),
        lambda: plotting.snapshots(
            TIMES, normal(0, 7, 5, 2), target=many, num=2, limits=(-2, 2)
        ),
        lambda: plotting.comparison(
            {
                "few": plotting.Paths(TIMES, normal(0, 5, 5, 2)),
                "many": plotting.Paths(TIMES, normal(0, 200, 5, 2)),
                "map": PLANE,
            }
        ),
    ],
    ids=["point_clouds", "reconstructions", "samples_2d", "snapshots", "comparison"],
)
def test_dots_of_a_figure_have_one_size(figure):
    sizes = areas(figure())
    assert len(sizes) > 1
    assert sizes.min() == sizes.max() > 0


def test_dots_cover_a_fraction_of_the_panel():
    wide = plotting.point_clouds([few, many])
    np.testing.assert_allclose(areas(wide) * 500, 0.12 * (1.5 * 72) ** 2)


def test_weights_order_the_shades():
    weights = np.arange(20, dtype=np.float32)[None]
    axes = axes_of(plotting.point_clouds(normal(0, 1, 20, 2), weights=weights))[0]
    assert (np.diff(axes.collections[0].get_facecolor()[:, :3].sum(1)) < 0).all()
    plotting.point_clouds(normal(0, 1, 20, 2), np.zeros((1, 20), bool), weights=weights)
    plotting.point_clouds(normal(0, 1, 20, 2), weights=np.ones((1, 20), np.float32))


def rgb(axes):
    """The colours of the points of a panel."""
    return np.concatenate(
        [
            c.get_facecolor()[:, :3]
            for c in axes.collections
            if isinstance(c, PathCollection)
        ]
    )


DATA, SAMPLES, HIDDEN = (
    to_rgb(plotting.colors[role]) for role in ("data_x", "output_x_hat", "hidden_x")
)
GRAY = to_rgb("#b5b5b5")


def tab10(ids):
    return np.asarray(matplotlib.color_sequences["tab10"])[ids]


def test_hidden_points_are_marked():
    inputs, samples = normal(0, 1, 20, 2), normal(1, 1, 30, 2)
    seen = np.arange(20)[None] < 15
    valid = np.arange(20)[None] < 18
    left, right = axes_of(
        plotting.reconstructions(inputs, samples[:, :20], seen, valid)
    )
    np.testing.assert_allclose(offsets(left), inputs[0, :18])
    np.testing.assert_allclose(rgb(left), np.repeat([DATA, HIDDEN], [15, 3], axis=0))
    np.testing.assert_allclose(offsets(right), samples[0, :18])
    np.testing.assert_allclose(rgb(right), np.tile(SAMPLES, (18, 1)))
    assert len(plotting.reconstructions(inputs, samples).axes) == 2


def test_masked_examples_count_and_draw_cells():
    clouds, valid = normal(0, 1, 20, 2), np.arange(20)[None] < 18
    seen = np.arange(20)[None] % 3 == 0
    left, right = axes_of(plotting.masked_examples(clouds, seen, valid, grid_size=3))
    assert titles(left.figure) == ["original", "visible: 6 of 18"]
    np.testing.assert_allclose(rgb(left), np.tile(DATA, (18, 1)))
    np.testing.assert_allclose(rgb(right), np.where(seen[0, :18, None], DATA, HIDDEN))
    (lines,) = [c for c in right.collections if isinstance(c, LineCollection)]
    ends = np.concatenate(lines.get_segments())
    low, high = clouds[0, :18].min(0), clouds[0, :18].max(0)
    for axis in range(2):
        np.testing.assert_allclose(
            np.unique(ends[:, axis].round(5)),
            np.linspace(low, high, 4)[:, axis],
            atol=1e-5,
        )
    assert len(ends) == 2 * 8
    assert not [c for c in left.collections if isinstance(c, LineCollection)]
    assert len(plotting.masked_examples(clouds, seen).axes) == 2


def test_cells_in_space_are_drawn_behind_the_points():
    corners = np.stack(np.meshgrid(*[np.asarray([-1, 1], np.float32)] * 3), -1).reshape(
        1, 8, 3
    )
    figure = plotting.masked_examples(
        corners, np.ones((1, 8), bool), grid_size=2, view=(30, -60)
    )
    (lines,) = [
        c for c in axes_of(figure)[1].collections if isinstance(c, LineCollection)
    ]
    # Three faces of 3 + 3 lines; the three edges that two faces share are counted once.
    assert len(lines.get_segments()) == 15


def test_grids_are_nearly_square():
    figure = plotting.point_clouds(normal(0, 36, 5, 2))
    grids = {a.get_subplotspec().get_gridspec().get_geometry() for a in figure.axes}
    assert grids == {(6, 6)}
    assert len(figure.axes) == 36


def test_colors_of_clouds():
    shades = ["#123456", plotting.colors["data_x"]]
    figure = plotting.point_clouds(normal(0, 2, 5, 2), color=shades)
    for axes, shade in zip(axes_of(figure), shades, strict=True):
        np.testing.assert_allclose(rgb(axes), np.tile(to_rgb(shade), (5, 1)))
    default = axes_of(plotting.point_clouds(normal(0, 1, 5, 2)))[0]
    np.testing.assert_allclose(rgb(default), np.tile(SAMPLES, (5, 1)))


def test_point_labels_color_the_points():
    clouds, ids = (
        normal(0, 2, 6, 2),
        np.asarray([[0, 1, 2, 2, -1, 3], [3, 3, 3, 0, 0, 0]]),
    )
    first, second = axes_of(plotting.point_clouds(clouds, point_labels=ids))
    np.testing.assert_allclose(rgb(first), [*tab10([0, 1, 2, 2]), GRAY, *tab10([3])])
    np.testing.assert_allclose(rgb(second), tab10([3, 3, 3, 0, 0, 0]))
    masked = plotting.point_clouds(clouds, ids >= 2, point_labels=ids)
    np.testing.assert_allclose(rgb(axes_of(masked)[0]), tab10([2, 2, 3]))
    for number in (15, 40):  # more colours than tab10 has
        ids = np.arange(number)[None]
        figure = plotting.point_clouds(normal(0, 1, number, 2), point_labels=ids)
        assert len(np.unique(rgb(axes_of(figure)[0]), axis=0)) == number


def test_labels_may_be_bytes():
    clouds, ids = normal(0, 2, 6, 2), np.arange(12).reshape(2, 6) % 3

    def shades(dtype):
        labels = ids.astype(dtype)
        return [
            rgb(axes)
            for figure in (
                plotting.embedding(clouds[0], labels[0]),
                plotting.point_clouds(clouds, point_labels=labels),
                plotting.segmentations(clouds, labels, labels[::-1].copy()),
            )
            for axes in axes_of(figure)
        ]

    for shade, expected in zip(shades(np.uint8), shades(int), strict=True):
        np.testing.assert_array_equal(shade, expected)


def test_slots_take_the_colors_of_their_objects():
    objects = np.asarray([[5, 5, 5, 2, 2, 2, 2, -1]])
    slots = np.asarray([[7, 7, 0, 0, 0, 0, 4, -1]])
    left, right = axes_of(plotting.segmentations(normal(0, 1, 8, 2), objects, slots))
    np.testing.assert_allclose(rgb(left), [*tab10([5, 5, 5, 2, 2, 2, 2]), GRAY])
    np.testing.assert_allclose(
        rgb(right), [*tab10([5, 5, 2, 2, 2, 2, 0]), GRAY]
    )  # a third slot: the first colour left
    assert titles(left.figure) == ["objects", "slots"]


def test_renamed_slots_agree_as_well_as_any():
    from flowkit.plotting._pairs import match_ids

    rng = np.random.default_rng(0)
    true, found = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    best = max(
        np.mean(np.asarray(names)[found] == true)
        for names in itertools.permutations(range(4))
    )
    assert np.mean(match_ids(found, true) == true) == best


@pytest.mark.parametrize("up", [0, 1, 2])
def test_view_of_space(up):
    cloud = np.concatenate([np.zeros((1, 3)), np.eye(3), 2 * np.eye(3)[[up]]]).astype(
        np.float32
    )
    draw = lambda view: offsets(
        axes_of(plotting.point_clouds(cloud[None], up=up, view=view))[0]
    )
    # Ordered by depth, so points are looked up by where they must be.
    has = lambda flat, point: np.any(np.all(np.isclose(flat, point, atol=1e-6), 1))
    assert has(draw((0, -60)), (0, 2))  # upright
    first, second = (up + 1) % 3, (up + 2) % 3
    above = draw(
        (90, -90)
    )  # a map, the first horizontal axis to the right and the second one upwards
    assert has(above, (1, 0))
    assert has(above, (0, 1))
    assert np.sum(np.all(np.isclose(above, 0, atol=1e-6), 1)) == 3
    # A rotation: what is lost of a length is the depth along the direction of the eye.
    elevation, azimuth = np.radians((20, -60))
    eye = np.zeros(3)
    eye[[first, second, up]] = (
        np.cos(elevation) * np.cos(azimuth),
        np.cos(elevation) * np.sin(azimuth),
        np.sin(elevation),
    )
    seen = np.sqrt(np.maximum(np.sum(cloud**2, 1) - (cloud @ eye) ** 2, 0))
    np.testing.assert_allclose(
        np.sort(np.linalg.norm(draw((20, -60)), axis=1)), np.sort(seen), atol=1e-6
    )


def test_near_points_are_darker_and_drawn_last():
    cloud = np.asarray([[0, 0, 1], [0, 0, 0], [0, 0, 2]], np.float32)  # seen from above
    axes = axes_of(plotting.point_clouds(cloud[None], view=(90, 0), color="#000000"))[0]
    shades = rgb(axes)
    assert np.all(np.diff(shades[:, 0]) < 0)
    np.testing.assert_allclose(shades[-1], 0)
    assert (
        plotting.point_clouds(cloud[None], limits=(-1, 1)).axes[0].get_xlim()[0] < -1
    )  # the cube, seen from a corner


def test_samples_2d_overlay_holds_both():
    target, generated = normal(0, 50, 2), normal(1, 60, 2)
    left, middle, right = plotting.samples_2d(target, generated, limits=(-3, 3)).axes
    np.testing.assert_allclose(offsets(left), target)
    np.testing.assert_allclose(offsets(middle), generated)
    np.testing.assert_allclose(offsets(right), np.concatenate([target, generated]))


# ---- latents


def test_embedding_draws_every_point_in_the_color_of_its_class():
    xy, labels = normal(0, 30, 2), np.arange(30) % 3
    xy[4] = np.nan
    axes = axes_of(plotting.embedding(xy, labels, names=["a", "b", "c"]))[0]
    drawn, shades = (
        axes.collections[0].get_offsets(),
        axes.collections[0].get_facecolor()[:, :3],
    )
    expected = {
        tuple(point): tuple(shade)
        for point, shade in zip(xy, tab10(labels), strict=True)
    }
    assert len(drawn) == 29
    assert {
        tuple(np.float32(p)): tuple(c) for p, c in zip(drawn, shades, strict=True)
    }.items() <= expected.items()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b", "c"]
    assert axes_of(plotting.embedding(xy))[0].get_legend() is None


def test_latent_statistics_are_relative_to_all_examples():
    latents, labels = normal(0, 60, 5), np.arange(60) % 3
    by_class = [
        np.asarray(
            [m(latents[labels == k], 0) for k in range(3)] + [np.full(5, np.nan)]
        )
        for m in (np.mean, np.std)
    ]
    figure = plotting.latent_statistics(latents.mean(0), latents.std(0), *by_class)
    above, shift, spread = axes_of(figure)[:3]
    np.testing.assert_allclose(
        [b.get_y() for b in above.patches], latents.mean(0) - latents.std(0), atol=1e-6
    )
    np.testing.assert_allclose(
        [b.get_height() for b in above.patches], 2 * latents.std(0), rtol=1e-6
    )
    standardised = (latents - latents.mean(0)) / latents.std(0)
    for axes, moment in ((shift, np.mean), (spread, np.std)):
        expected = [moment(standardised[labels == k], 0) for k in range(3)]
        np.testing.assert_allclose(axes.images[0].get_array()[:3], expected, atol=1e-5)


# ---- training


def titles(figure):
    return [a.get_title() for a in figure.axes]


def test_loss_panels():
    figure = plotting.loss_trajectory(HISTORY)
    assert titles(figure) == [
        "loss",
        "components (log scale)",
        "metrics",
        "components (linear)",
        "explained velocity",
    ]
    total, components = axes_of(figure)[:2]
    raw, smooth = total.lines
    np.testing.assert_allclose(raw.get_ydata(), HISTORY["loss"][1])
    assert raw.get_alpha() < 1
    assert len(smooth.get_ydata()) == len(STEPS)
    assert components.get_yscale() == "log"
    assert len(figure.axes[2].lines) == 1  # short curves are not smoothed
    linear = axes_of(figure)[3]
    assert linear.get_yscale() == "linear"
    assert len(linear.lines) == len(components.lines) == 4


def test_bookkeeping_and_vectors_are_no_components():
    extra = {name: (STEPS, STEPS) for name in ("grad_norm", "skipped", "seconds")}
    extra["per_class"] = (STEPS, np.ones((200, 3)))
    history = {"loss": HISTORY["loss"]} | extra
    assert titles(plotting.loss_trajectory(history)) == ["loss"]
    chosen = plotting.loss_trajectory(history, panels={"norm": ["grad_norm"]})
    assert titles(chosen) == ["norm"]
    with pytest.raises(
        ValueError, match=r"'per_class', whose values have shape \(200, 3\)"
    ):
        plotting.loss_trajectory(history, panels={"x": ["per_class"]})
    with pytest.raises(ValueError, match="no curve of a loss or a metric"):
        plotting.loss_trajectory(extra)


def test_stages_follow_one_another():
    """Every curve of every stage, with the steps of the second stage counted on."""
    pick = lambda *names: {name: HISTORY[name] for name in names}
    stages = {"joint": pick("loss", "flow", "prior"), "prior": pick("loss", "prior")}
    figure = plotting.loss_trajectory(stages, smoothing=0)
    assert titles(figure) == ["loss", "components (log scale)", "components (linear)"]
    total, components, _ = axes_of(figure)
    curves = [line for line in total.lines if len(line.get_xdata()) == 200]
    for line, offset in zip(curves, (0, 199), strict=True):
        np.testing.assert_allclose(line.get_xdata(), STEPS + offset)
        np.testing.assert_allclose(line.get_ydata(), HISTORY["loss"][1])
    assert [t.get_text().strip() for t in total.texts] == ["joint", "prior"]
    assert [t.get_position()[0] for t in total.texts] == [0, 199]
    # Both pieces of the loss of the prior have one color and one entry in the legend.
    flow, first, second = (l for l in components.lines if len(l.get_xdata()) == 200)
    assert first.get_color() == second.get_color() != flow.get_color()
    assert [t.get_text() for t in components.get_legend().get_texts()] == [
        "flow",
        "prior",
    ]


def test_missing_and_chosen_panels():
    pick = lambda *names: {n: HISTORY[n] for n in names}
    assert titles(plotting.loss_trajectory(pick("loss"))) == ["loss"]
    assert titles(plotting.loss_trajectory(pick("loss", "chamfer"))) == [
        "loss",
        "metrics",
    ]
    four = plotting.loss_trajectory(pick("loss", "flow", "prior", "chamfer"))
    assert titles(four) == [
        "loss",
        "components (log scale)",
        "metrics",
        "components (linear)",
    ]
    chosen = plotting.loss_trajectory(
        HISTORY, panels={"mine": ["prior", "flow"]}, smoothing=0
    )
    assert titles(chosen) == ["mine"]
    assert len(chosen.axes[0].lines) == 2


def test_running_mean_is_the_mean_of_a_window():
    values = normal(0, 200).astype(np.float64)
    values[50] = np.nan
    figure = plotting.loss_trajectory({"loss": (STEPS, values)}, smoothing=0.05)
    smooth = axes_of(figure)[0].lines[1].get_ydata()
    expected = [np.nanmean(values[max(i - 5, 0) : i + 6]) for i in range(200)]
    np.testing.assert_allclose(smooth, expected)
    # A spike is in the means of its windows, and in no other.
    values[50] = 1e25
    figure = plotting.loss_trajectory({"loss": (STEPS, values)}, smoothing=0.05)
    smooth = axes_of(figure)[0].lines[1].get_ydata()
    apart = np.abs(STEPS - 50) > 5
    np.testing.assert_allclose(smooth[apart], np.asarray(expected)[apart])
    np.testing.assert_allclose(smooth[~apart], 1e25 / 11)


def test_curves_of_nan_and_negative_losses_are_drawn(tmp_path):
    history = {"loss": (STEPS, np.full(200, np.nan)), "nll": (STEPS, -STEPS / 10.0)}
    figure = plotting.loss_trajectory(history, path=tmp_path / "a.png")
    assert all(a.get_yscale() == "linear" for a in figure.axes)


def test_explained_velocity_of_several_steps():
    r2 = {f"step {k}": TIMES * k for k in (-5, 1)}
    axes = axes_of(plotting.explained_velocity(TIMES, r2))[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == list(r2)
    assert axes.get_ylim()[0] >= -1.05


# ---- flows


def test_trajectories_hold_their_paths():
    points = normal(0, 7, 5, 2)
    points[2, 3:] = np.inf
    axes = axes_of(plotting.trajectories(TIMES, points, target=normal(1, 9, 2)))[0]
    drawn = axes.collections[1].get_segments()
    np.testing.assert_allclose(drawn[0], points[0])
    np.testing.assert_allclose(drawn[2], points[2, :3])
    line = axes_of(
        plotting.trajectories(TIMES, points[..., :1], target=normal(1, 9, 1))
    )[0]
    np.testing.assert_allclose(line.collections[0].get_segments()[1][:, 0], TIMES)


def segments(axes):
    """The lines of an axes by their label."""
    found = [c for c in axes.collections if isinstance(c, LineCollection)]
    return {c.get_label(): np.asarray(c.get_segments()) for c in found}


def test_one_step_maps_lie_beside_their_paths():
    axes = axes_of(plotting.trajectories(**PATHS._asdict()))[0]
    starts, ends = PATHS.points[:, 0, 0], PATHS.one_step[:, 0]
    np.testing.assert_allclose(
        segments(axes)["one step"][..., 0], np.tile([0, 1], (7, 1))
    )
    np.testing.assert_allclose(
        segments(axes)["one step"][..., 1], np.stack([starts, ends], 1), rtol=1e-6
    )
    np.testing.assert_allclose(
        segments(axes)["training pairs"][..., 1],
        np.concatenate(PATHS.coupling, 1),
        rtol=1e-6,
    )
    gap = np.abs(PATHS.points[:, -1, 0] - ends)
    assert (
        axes.texts[0].get_text().splitlines()[1]
        == f"{gap.mean():.3f} ± {gap.std():.3f}"
    )
    assert {"data", "paths", "start", "end", "one step", "training pairs"} == {
        t.get_text() for t in axes.get_legend().get_texts()
    }
    # A path that diverged has no end to measure from.
    points = PATHS.points.copy()
    points[3, -1] = np.nan
    axes = axes_of(plotting.trajectories(**PATHS._replace(points=points)._asdict()))[0]
    gap = np.delete(gap, 3)
    text = f"{gap.mean():.3f} ± {gap.std():.3f}"
    assert axes.texts[0].get_text().splitlines()[1] == text
    for size in (2, 3):
        arrays = {"one_step": normal(1, 7, size), "coupling": pairs(2, 3, size=size)}
        axes = axes_of(plotting.trajectories(TIMES, normal(0, 7, 5, size), **arrays))[0]
        assert {"training pairs", "one step"} <= {
            c.get_label() for c in axes.collections
        }


def test_paths_of_a_map_in_one_step_are_straight():
    ends = normal(0, 6, 2, 2)
    axes = axes_of(plotting.trajectories(np.asarray([0.0, 1.0]), ends))[0]
    np.testing.assert_allclose(axes.collections[0].get_segments(), ends, rtol=1e-6)


def test_latent_map_connects_latents_and_examples():
    lines = segments(axes_of(plotting.latent_map(LATENTS))[0])
    expected = {
        "training pairs": LATENTS.train,
        "inference": LATENTS.infer,
        "encode": LATENTS.encode[::-1],
        "decode": LATENTS.decode,
    }
    assert lines.keys() == expected.keys()
    for label, (left, right) in expected.items():
        np.testing.assert_allclose(
            lines[label][..., 1], np.concatenate([left, right], 1), rtol=1e-6
        )
        np.testing.assert_allclose(
            lines[label][..., 0], np.tile([0, 1], (6, 1)), atol=0.03
        )
    plane = axes_of(plotting.latent_map(PLANE))[0]
    np.testing.assert_allclose(
        segments(plane)["encode"], np.stack(PLANE.encode[::-1], 1), rtol=1e-6
    )
    assert plane.get_aspect() == 1


def test_latent_map_uses_the_colors_of_the_roles():
    axes = axes_of(plotting.latent_map(LATENTS))[0]
    shades = {c.get_label(): c for c in axes.collections}
    roles = {
        "training pairs": "coupling_train",
        "inference": "coupling_infer",
        "encode": "encode_line",
        "decode": "decode_line",
        "latents of the prior": "prior_z",
        "encoded latents": "latent_z_hat",
        "data": "data_x",
        "output": "output_x_hat",
    }
    assert set(roles.values()) | {"one_step", "hidden_x"} == set(plotting.colors)
    for label, role in roles.items():
        color = (
            shades[label].get_color()
            if "Line" in type(shades[label]).__name__
            else shades[label].get_facecolor()
        )
        assert to_hex(color[0]) == plotting.colors[role], label


def test_comparison_shares_limits_and_legend():
    figure = plotting.comparison(
        {"flow": PATHS, "decoder": LATENTS, "again": PATHS}, columns=2, title="epoch 3"
    )
    assert titles(figure) == ["flow", "decoder", "again"]
    assert len({a.get_ylim() for a in figure.axes}) == 1
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels))
    assert {"start", "end", "paths", "inference", "encoded latents"} <= set(labels)
    assert figure.get_suptitle() == "epoch 3"
    fixed = plotting.comparison({"flow": PATHS}, limits=(-9, 9))
    assert fixed.axes[0].get_ylim() == (-9, 9)


@pytest.mark.parametrize("size", [1, 2])
def test_frames_are_the_pictures_of_comparisons(size):
    """The pixels of a figure of its own; panels are cut out without the title."""
    moved = plotting.LatentMap(
        *((first, second + 1) for first, second in filter(None, LATENTS))
    )
    shown = [
        {"flow": PATHS, "decoder": LATENTS},
        {"flow": PATHS._replace(points=-PATHS.points), "decoder": moved},
    ]
    if size == 2:
        shown = [
            {"a": plotting.Paths(TIMES, normal(k, 7, 5, 2)), "b": PLANE}
            for k in range(2)
        ]
    steps = [(f"epoch {k}", panels) for k, panels in enumerate(shown)]
    frames = list(plotting.comparison_frames(steps, limits=(-4, 4), dpi=60))
    for (title, panels), frame in zip(steps, frames, strict=True):
        source = io.BytesIO()
        plotting.comparison(panels, limits=(-4, 4), title=title).savefig(source, dpi=60)
        with Image.open(source) as picture:
            expected = np.asarray(picture.convert("RGB"), int)
        image = np.asarray(frame.image, int)
        assert np.abs(image - expected).max() <= 8
        assert [*frame.panels] == [*panels]
        for name, part in frame.panels.items():
            assert part.size == frames[0].panels[name].size
            assert np.asarray(part).min() < 255
            assert part.size[0] < image.shape[1] / 2 + 10
            assert part.size[1] < image.shape[0]
    assert not np.array_equal(np.asarray(frames[0].image), np.asarray(frames[1].image))


def test_frames_have_the_same_panels():
    frames = [("", {"a": PATHS}), ("", {"b": PATHS})]
    drawn = plotting.comparison_frames(frames, limits=(-4, 4))
    assert next(drawn).image.size[0] > 0
    with pytest.raises(
        ValueError,
        match=r"frame 1 of `frames` has the panels \['b'\], the first \['a'\]",
    ):
        next(drawn)
    with pytest.raises(ValueError, match="`panels` is empty"):
        plotting.comparison_frames([], limits=(-4, 4))
    with pytest.raises(ValueError, match="`dpi` is 0"):
        plotting.comparison_frames(frames, limits=(-4, 4), dpi=0)


def test_snapshots_take_evenly_spaced_steps():
    times, points = np.linspace(0, 1, 11), normal(0, 30, 11, 2)
    points[3, 5] = np.nan
    figure = plotting.snapshots(times, points, num=3, limits=(-4, 4))
    assert titles(figure) == ["t = 0.00", "t = 0.50", "t = 1.00"]
    for axes, step in zip(axes_of(figure), (0, 5, 10), strict=True):
        np.testing.assert_allclose(
            offsets(axes), points[np.isfinite(points[:, step, 0]), step]
        )

    target = np.asarray([[0, 1], [np.nan, 2], [3, np.inf]])
    for axes in axes_of(plotting.snapshots(times, points, target=target, num=3)):
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), target[:1])


def test_roles_have_one_color():
    """Noise, data, paths, one step and samples of flows, in every figure of them."""
    ends = normal(1, 7, 2)
    flow = plotting.Paths(
        TIMES, normal(0, 7, 5, 2), normal(1, 9, 2), ends, (ends, ends)
    )
    roles = {
        "data": "data_x",
        "target": "data_x",
        "generated": "output_x_hat",
        "start": "prior_z",
        "end": "output_x_hat",
        "one step": "one_step",
        "paths": "coupling_infer",
        "training pairs": "coupling_train",
    }
    seen = set()
    for figure in (
        plotting.trajectories(**flow._asdict()),
        plotting.comparison({"line": PATHS, "again": PATHS}),
        plotting.samples_2d(few, many),
    ):
        for artist in (c for axes in axes_of(figure) for c in axes.collections):
            label = artist.get_label()
            if label.startswith("_"):
                continue
            seen.add(label)
            dots = isinstance(artist, PathCollection)
            color = artist.get_facecolor() if dots else artist.get_color()
            if not len(color):  # crosses have no faces
                color = artist.get_edgecolor()
            assert to_hex(color[0]) == plotting.colors[roles[label]], label
    assert seen == set(roles)
    behind = [
        axes.collections[0]
        for axes in axes_of(
            plotting.snapshots(TIMES, flow.points, target=flow.target, num=3)
        )
    ]
    field = plotting.vector_field(lambda t, x: x, times=(0.0,), points=flow.target)
    for artist in (*behind, axes_of(field)[0].collections[0]):
        assert to_hex(artist.get_facecolor()[0]) == plotting.colors["data_x"]


def test_snapshots_are_noise_then_paths_then_samples():
    for size in (1, 2):
        figure = plotting.snapshots(TIMES, normal(0, 7, 5, size), num=3)
        for axes, role in zip(
            axes_of(figure), ("prior_z", "coupling_infer", "output_x_hat"), strict=True
        ):
            artist = (axes.patches if size == 1 else axes.collections)[-1]
            shade = np.reshape(artist.get_facecolor(), (-1, 4))[0]
            assert to_hex(shade) == plotting.colors[role]


def test_curvature_of_parabolas():
    """x = a t^2 / 2 has the second derivative a, which differences give exactly at any times."""
    times = np.asarray([0, 0.1, 0.4, 0.5, 1])
    slopes = normal(0, 6, 3).astype(np.float64)
    bends = normal(1, 6, 3).astype(np.float64)
    paths = slopes[:, None] * times[:, None] + bends[:, None] * times[:, None] ** 2 / 2
    broken = np.concatenate([paths, np.full_like(paths[:1], np.nan)])
    straight = slopes[:, None] * times[:, None]
    axes = axes_of(plotting.curvature(times, {"bent": broken, "straight": straight}))[0]
    bent, zero = (line.get_ydata() for line in axes.lines)
    expected = np.linalg.norm(bends, axis=-1).mean()
    np.testing.assert_allclose(bent, np.full(3, expected), rtol=1e-6)
    np.testing.assert_allclose(zero, np.zeros(3), atol=1e-9)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), times[1:-1])


def area_under(patch):
    corners = patch.get_path().vertices
    return abs(
        0.5
        * np.sum(corners[:-1, 0] * corners[1:, 1] - corners[1:, 0] * corners[:-1, 1])
    )


def test_snapshots_on_the_line_are_densities():
    axes = axes_of(
        plotting.snapshots(TIMES, normal(0, 50, 5, 1), target=normal(1, 40, 1), num=2)
    )[1]
    assert [area_under(patch) for patch in axes.patches] == [pytest.approx(1)] * 2


def test_density_2d_is_a_density_at_its_place():
    samples = normal(0, 4000, 2) * [0.5, 1] + [1, -1]
    log_prob = lambda x: (
        jnp.log(x[0] > 0) + jnp.log(x[1] > 0)
    )  # one on the first quadrant
    figure = plotting.density_2d(
        {"a": samples.astype(np.float32)}, log_prob, resolution=20, limits=(-4, 4)
    )
    ours, exact = (a.images[0] for a in axes_of(figure)[:2])
    assert np.sum(ours.get_array()) * 0.4**2 == pytest.approx(1, abs=1e-3)
    centres = -4 + 0.4 * (np.arange(20) + 0.5)
    for axis, expected in ((0, 1), (1, -1)):  # columns are x, rows are y
        assert np.sum(ours.get_array(), axis=axis) @ centres * 0.4**2 == pytest.approx(
            expected, abs=0.05
        )
    assert exact.get_extent() == [-4, 4, -4, 4]
    np.testing.assert_array_equal(exact.get_array(), np.outer(centres > 0, centres > 0))
    assert ours.get_clim() == exact.get_clim()


def test_animation_holds_its_frames(tmp_path):
    figure = lambda k: plotting.trajectories(
        TIMES[:k], normal(0, 7, 5, 2)[:, :k], limits=(-3, 3)
    )
    figure(5).savefig(tmp_path / "last.png", dpi=40)
    frames = (
        f()
        for f in (lambda: figure(2), lambda: figure(3), lambda: tmp_path / "last.png")
    )
    path = plotting.animate(frames, tmp_path / "new" / "flow.gif", fps=20, dpi=40)
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0
        durations, images = zip(
            *(
                (f.info["duration"], np.asarray(f.convert("RGB"), int))
                for f in ImageSequence.Iterator(gif)
            ),
            strict=True,
        )
    assert durations == (50, 50, 50)
    with Image.open(tmp_path / "last.png") as last:
        off = np.abs(images[-1] - np.asarray(last.convert("RGB"), int))
    assert off.mean() < 2  # 256 colours
    assert plt.get_fignums() == []


def test_animation_refuses_before_it_writes(tmp_path):
    small, large = (
        plotting.density_1d(normal(0, 9)),
        plotting.samples_2d(normal(0, 9, 2), normal(1, 9, 2)),
    )
    for frames, options, message in (
        ([], {}, "`frames` is empty"),
        ([small, large], {}, "`frames` must have one size, but frame 1"),
        ([small], {"fps": 0}, "`fps` is 0"),
        ([small], {"fps": 60}, "`fps` is 60"),
        ([small], {"dpi": 0}, "`dpi` is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.animate(frames, tmp_path / "flow.gif", **options)
    assert not list(tmp_path.iterdir())


def test_vector_field_arrows():
    figure = plotting.vector_field(
        lambda t, x: t * x,
        (-1, 1),
        np.array([0, 1], np.float32),
        resolution=4,
        points=normal(0, 9, 2),
    )
    still, moving = (a.collections[-1] for a in axes_of(figure)[:2])
    assert len(still.U) == 16
    assert not np.any(still.U)
    np.testing.assert_allclose(
        np.stack([moving.U, moving.V], 1), np.stack([moving.X, moving.Y], 1)
    )


def test_vector_field_of_a_module_traces_once():
    traces = []

    class Field(eqx.Module):
        weight: jax.Array

        def __call__(self, t, x):
            traces.append(1)
            return self.weight @ x

    plotting.vector_field(Field(jnp.eye(2)))
    plotting.vector_field(Field(2 * jnp.eye(2)))
    assert len(traces) == 1


def test_density_has_unit_mass():
    samples = normal(0, 500)
    axes = axes_of(
        plotting.density_1d({"a": samples, "b": samples + 1}, (TIMES, TIMES), bins=30)
    )[0]
    corners = axes.patches[0].get_path().vertices
    area = 0.5 * np.sum(
        corners[:-1, 0] * corners[1:, 1] - corners[1:, 0] * corners[:-1, 1]
    )
    assert abs(area) == pytest.approx(1)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), TIMES)


# ---- wrong use


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.point_clouds([]), "`clouds` is empty"),
        (
            lambda: plotting.point_clouds(normal(0, 2, 5, 4)),
            r"`clouds` has a cloud of shape \(5, 4\)",
        ),
        (
            lambda: plotting.point_clouds(normal(0, 2, 5, 2), titles=["a"]),
            "`titles` must have one entry",
        ),
        (
            lambda: plotting.point_clouds(normal(0, 1, 5, 2), np.ones((1, 4), bool)),
            r"shape \(4,\)",
        ),
        (
            lambda: plotting.point_clouds(normal(0, 1, 5, 2), weights=normal(0, 1, 4)),
            "`weights` has 4",
        ),
        (
            lambda: plotting.point_clouds(normal(0, 1, 5, 2), limits=(1, 0)),
            "lower limit comes first",
        ),
        (
            lambda: plotting.point_clouds([normal(0, 5, 2), normal(0, 5, 3)]),
            "same dimension",
        ),
        (
            lambda: plotting.reconstructions(normal(0, 2, 5, 2), normal(0, 3, 5, 2)),
            "`samples` has 3 clouds",
        ),
        (lambda: plotting.point_clouds(normal(0, 1, 5, 3), up=3), "`up` is 3"),
        (
            lambda: plotting.point_clouds(
                normal(0, 1, 5, 2), point_labels=HALF[:1, :4] * 1
            ),
            "`point_labels` has 4",
        ),
        (
            lambda: plotting.point_clouds(
                normal(0, 5, 20, 2), weights=1.0 * HALF, point_labels=1 * HALF
            ),
            "`weights` and `point_labels`",
        ),
        (
            lambda: plotting.point_clouds(normal(0, 2, 5, 2), columns=0),
            "`columns` is 0",
        ),
        (
            lambda: plotting.reconstructions(
                normal(0, 5, 9, 2), normal(0, 5, 9, 2), HALF
            ),
            r"`input_masks` has a mask",
        ),
        (
            lambda: plotting.masked_examples(normal(0, 5, 9, 2), HALF),
            r"`visible_masks` has a mask of shape \(20,\)",
        ),
        (
            lambda: plotting.masked_examples(normal(0, 4, 20, 2), HALF),
            "`visible_masks` must have one entry",
        ),
        (
            lambda: plotting.masked_examples(normal(0, 5, 20, 2), None),
            "`visible_masks` is missing",
        ),
        (
            lambda: plotting.masked_examples(normal(0, 5, 20, 2), HALF, grid_size=0),
            "`grid_size` is 0",
        ),
        (
            lambda: plotting.segmentations(normal(0, 5, 20, 2), 1 * HALF, 1 * HALF[:4]),
            "`slots` must have one entry",
        ),
        (
            lambda: plotting.embedding(normal(0, 5, 2), np.arange(5) - 1),
            "negative numbers",
        ),
        (
            lambda: plotting.embedding(normal(0, 5, 2), np.arange(5), names=["a"]),
            "`names` must name all 5",
        ),
        (
            lambda: plotting.latent_statistics(normal(0, 4), normal(0, 3)),
            "have 4 and 3 entries",
        ),
        (
            lambda: plotting.latent_statistics(
                normal(0, 4), normal(0, 4), normal(0, 2, 4)
            ),
            "belong together",
        ),
        (
            lambda: plotting.latent_statistics(
                *[normal(0, 4)] * 2, *[normal(0, 2, 3)] * 2
            ),
            r"have shape \(2, 3\)",
        ),
        (
            lambda: plotting.latent_statistics(
                *[normal(0, 4)] * 2, normal(0, 2, 4), normal(0, 3, 4)
            ),
            "have 2 and 3 classes",
        ),
        (lambda: plotting.loss_trajectory({}), "`history` is empty"),
        (lambda: plotting.loss_trajectory({"a": ([1, 2], [1.0])}), r"`history\['a'\]`"),
        (
            lambda: plotting.loss_trajectory(HISTORY, panels={"x": ["y"]}),
            "`panels` names 'y'",
        ),
        (lambda: plotting.loss_trajectory(HISTORY, smoothing=2), "`smoothing` is 2"),
        (
            lambda: plotting.explained_velocity(TIMES, {"a": TIMES[1:]}),
            "has 4 bins and `times` has 5",
        ),
        (
            lambda: plotting.trajectories(TIMES, normal(0, 0, 5, 2)),
            "at least one trajectory",
        ),
        (
            lambda: plotting.trajectories(TIMES, normal(0, 7, 5, 4)),
            "`points` has 4 dimensions",
        ),
        (
            lambda: plotting.comparison({"a": PATHS._replace(times=TIMES[1:])}),
            "5 steps for 4 `times`",
        ),
        (
            lambda: plotting.comparison(
                {"a": PATHS._replace(one_step=normal(0, 6, 1))}
            ),
            "`one_step` must have one end",
        ),
        (
            lambda: plotting.comparison(
                {"a": PATHS._replace(coupling=(TIMES[:, None], TIMES[1:, None]))}
            ),
            "5 starts and",
        ),
        (lambda: plotting.comparison({}), "`panels` is empty"),
        (
            lambda: plotting.comparison({"a": PATHS, "b": PLANE}),
            "one dimension, 1 or 2; got {'a': 1, 'b': 2}",
        ),
        (lambda: plotting.comparison({"a": PATHS}, columns=0), "`columns` is 0"),
        (
            lambda: plotting.comparison({"a": plotting.Paths(TIMES, normal(0, 5, 2))}),
            r"`points` has shape \(5, 2\); paths are \(n, t, d\)",
        ),
        (
            lambda: plotting.comparison(
                {"a": plotting.Paths(TIMES, normal(0, 7, 5, 2), normal(0, 7, 1))}
            ),
            "`target`",
        ),
        (lambda: plotting.latent_map(plotting.LatentMap()), "has no pairs"),
        (
            lambda: plotting.latent_map(
                plotting.LatentMap(infer=(normal(0, 5, 1), normal(0, 6, 1)))
            ),
            "`infer` of",
        ),
        (
            lambda: plotting.latent_map(plotting.LatentMap(infer=pairs(0, 1, size=3))),
            "all must have 1 or all 2",
        ),
        (
            lambda: plotting.loss_trajectory({"a": HISTORY, "b": ([1], [2.0])}),
            "`history` mixes curves and stages",
        ),
        (
            lambda: plotting.loss_trajectory({"a": {"loss": ([1, 2], [1.0])}}),
            r"`history\['a'\]\['loss'\]` has steps",
        ),
        (
            lambda: plotting.point_clouds(normal(0, 2, 5, 2), color=["red"]),
            "`color` must have one entry",
        ),
        (
            lambda: plotting.curvature(TIMES[:2], normal(0, 7, 2, 2)),
            "three or more increasing times, got 2",
        ),
        (
            lambda: plotting.curvature(TIMES, normal(0, 7, 4, 2)),
            r"must be \(n, 5, d\), and not empty",
        ),
        (lambda: plotting.snapshots(TIMES, normal(0, 7, 5, 2)), "`num` is 6"),
        (
            lambda: plotting.snapshots(TIMES, normal(0, 7, 5, 3)),
            "`points` has 3 dimensions",
        ),
        (
            lambda: plotting.snapshots(TIMES, normal(0, 7, 5, 2), num=2, columns=0),
            "`columns` is 0",
        ),
        (
            lambda: plotting.density_2d(normal(0, 9, 2), resolution=1),
            "`resolution` is 1",
        ),
        (
            lambda: plotting.density_2d({"a": np.full((3, 2), np.nan)}),
            "`samples` holds no finite value",
        ),
        (
            lambda: plotting.density_2d(normal(0, 9, 2), lambda x: x),
            "`log_prob` must give one number",
        ),
        (
            lambda: plotting.vector_field(lambda t, x: t, times=(0.0,)),
            "`velocity` gives shape",
        ),
        (lambda: plotting.vector_field(lambda t, x: x, times=()), "`times` is empty"),
        (
            lambda: plotting.vector_field(lambda t, x: x, times=(0.0, 2.0)),
            r"`times` must be in \[0, 1\].*got 2.0",
        ),
        (lambda: plotting.density_1d(TIMES, bins=0), "`bins` is 0"),
        (
            lambda: plotting.curvature(TIMES, np.full((7, 5, 2), np.nan)),
            "holds no finite path",
        ),
        (
            lambda: plotting.density_1d(np.full(3, np.nan)),
            "`samples` holds no finite value",
        ),
        (
            lambda: plotting.density_1d(TIMES, (TIMES, TIMES[1:])),
            "`density` has shapes",
        ),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call()
