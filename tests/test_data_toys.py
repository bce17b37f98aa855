"""Toys of several parts and of papers against integrals; points of your own; the registries."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats
from sklearn import datasets

import flowkit as fk
from flowkit import data


NUM = 40_000
REAL = Path(os.environ.get("FLOWKIT_DATA", "absent"), "datasaurus")
real = pytest.mark.skipif(not REAL.is_dir(), reason="FLOWKIT_DATA has no Datasaurus")

SQRT3, PI = 3**0.5, np.pi


def moments(points):
    points = np.asarray(points, np.float64)
    return points.mean(0), np.cov(points.T, bias=True)


def grid(num=2001):
    """The middles of so many equal parts of (0, 1): integrals by the midpoint rule."""
    return (np.arange(num) + 0.5) / num


def parts(*pieces):
    """Mean and covariance of a law that draws piece `(share, points)` with its probability."""
    shares = [share for share, _ in pieces]
    means, covariances = zip(*(moments(points) for _, points in pieces), strict=True)
    mean = np.average(means, axis=0, weights=shares)
    spread = [
        c + np.outer(m - mean, m - mean)
        for m, c in zip(means, covariances, strict=True)
    ]
    return mean, np.average(spread, axis=0, weights=shares)


def arc(low, high, radii=(1.0, 1.0), centre=(0.0, 0.0)):
    angle = np.radians(low + (high - low) * grid())
    return np.array(centre) + np.array(radii) * np.stack(
        [np.cos(angle), np.sin(angle)], -1
    )


def line(start, end):
    return np.array(start) + grid()[:, None] * (np.array(end) - np.array(start))


def curve(x, y):
    return np.stack([x(grid()), y(grid())], -1)


def moons_moments(noise):
    mean, covariance = parts((0.5, arc(0, 180)), (0.5, [1.0, 0.5] - arc(0, 180)))
    return mean, covariance + noise**2 * np.eye(2)


def scaled(moments, factor, shift=0.0):
    mean, covariance = moments
    factor = np.broadcast_to(factor, 2)
    return factor * mean + shift, covariance * np.outer(factor, factor)


def standardised(moments, factor, shift):
    mean, covariance = moments
    std = np.sqrt(np.diag(covariance))
    return np.broadcast_to(shift, 2), covariance * factor**2 / np.outer(std, std)


S_CURVE = (
    [0, 0],
    np.array([[0.5, -1 / (3 * PI)], [-1 / (3 * PI), 1.5 + 4 / (3 * PI)]])
    + 0.05**2 * np.eye(2),
)
WIDE = moons_moments(0.1)
WIDE_STD = np.sqrt(np.mean(np.diag(WIDE[1]) + (WIDE[0] - WIDE[0].mean()) ** 2))
LEGS = [
    ((-0.2, -0.3), (-0.15, -0.6), (-0.1, -0.8)),
    ((0.15, -0.3), (0.2, -0.6), (0.25, -0.8)),
]
TREX_PARTS = parts(
    (20, arc(0, 180, (0.3, 0.35), (0.8, 0.4))),
    (10, curve(lambda s: 0.5 + 0.6 * s, lambda s: 0.4 - 0.15 * np.sin(PI * s))),
    (8, line((0.5, 0.4), (0.3, 0.2))),
    (15, arc(0, 360, (0.35, 0.3))),
    (
        15,
        curve(
            lambda s: -0.35 - 0.8 * s, lambda s: 0.3 * np.sin(PI * s) * (1 - 0.7 * s)
        ),
    ),
    *[(6, line(a, b)) for leg in LEGS for a, b in zip(leg[:-1], leg[1:], strict=True)],
    (4, line((0.2, 0.15), (0.25, 0))),
    (4, line((0.25, 0.1), (0.3, -0.05))),
)
# The published moments of the Datasaurus, in units of its largest centred coordinate.
DINO_STD = np.array([16.765142, 26.935403]) * np.sqrt(141 / 142) / 51.654947
DINO = np.outer(DINO_STD, DINO_STD) * [[1, -0.064472], [-0.064472, 1]]

TOYS = {
    data.two_gaussians: ([-0.4, -0.4], [[4.26, 3.90], [3.90, 4.26]]),
    data.shifted_gaussians: ([5.5, -0.5], [[0.42, 0.06], [0.06, 0.42 + 6]]),
    data.two_centers: ([3, 0], [[0.09, 0], [0, 1.09]]),
    data.three_modes: ([0, 0], 2.04 * np.eye(2)),
    data.concentric: ([0, 0], (3 * 0.16 + 8 * 2.0025) / 11 * np.eye(2)),
    data.smiley: (
        [0, (1 - 1.5 * 3 * SQRT3 / PI) / 3],
        np.diag(
            [
                (1.01 + 2 * (2.25 * (0.5 - 3 * SQRT3 / (8 * PI)) + 0.0064)) / 3,
                (1.01 + 2 * (2.25 * (0.5 + 3 * SQRT3 / (8 * PI)) + 0.0064)) / 3
                - (1 - 1.5 * 3 * SQRT3 / PI) ** 2 / 9,
            ]
        ),
    ),
    data.shifted_moons: standardised(WIDE, 4, [2, 0]),
    data.trex: ([0, 0], DINO + 0.02**2 * np.eye(2)),
    data.trex_parametric: (TREX_PARTS[0] / 1.15, (TREX_PARTS[1] + 0.02**2 * np.eye(2)) / 1.15**2),
    data.tong_eight_gaussians: ([0, 0], 13.5 * np.eye(2)),
    data.tong_moons: scaled(moons_moments(0.05), 2, [-1, 0]),
    data.tong_s_curve: scaled(S_CURVE, 1.5),
    data.tong_wide_moons: scaled(WIDE, 7 / WIDE_STD, -7 * WIDE[0].mean() / WIDE_STD),
    data.tong_wide_gaussians: ([0, 0], (72 + 2.25) * np.eye(2)),
    data.c2ot_eight_gaussians: ([0, 0], (12.5 + 0.1**0.5) * np.eye(2)),
    data.c2ot_moons: scaled(
        (moons_moments(0)[0] + 0.1, moons_moments(0)[1] + 0.2**2 / 12 * np.ones((2, 2))), 3, -1
    ),
}  # fmt: skip
each_toy = pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)


@each_toy
def test_toys_have_their_moments(toy, key):
    mean, covariance = TOYS[toy]
    points = toy(NUM, key=key)
    assert points.shape == (NUM, 2)
    assert points.dtype == jnp.float32
    centred = np.asarray(points, np.float64) - mean
    for moment, exact in (
        (centred, 0),
        (centred[:, :, None] * centred[:, None, :], covariance),
    ):
        errors = moment.std(axis=0) / np.sqrt(len(moment))
        assert np.all(np.abs(moment.mean(axis=0) - exact) < 5 * errors)


@each_toy
def test_toys_follow_their_key(toy, key):
    points = toy(NUM, key=key)
    assert np.array_equal(points, toy(NUM, key=key))
    assert not np.array_equal(points, toy(NUM, key=jr.fold_in(key, 1)))


@pytest.mark.parametrize(
    ("toy", "mixture"),
    [
        (data.two_gaussians, data.TWO_GAUSSIANS),
        (data.shifted_gaussians, data.SHIFTED_GAUSSIANS),
        (data.two_centers, data.TWO_CENTERS),
        (data.three_modes, data.three_modes_mixture()),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_mixtures_are_their_density(toy, mixture, key):
    """Along random lines draws have the law of the exact mixture's own projection."""
    points = np.asarray(toy(NUM, key=key), np.float64)
    exact = fk.GaussianMixture(*mixture)
    means, covariances, weights = (
        np.asarray(a, np.float64)
        for a in (exact.means, exact.covariances, exact.weights)
    )
    for angle in (0.3, 1.7, 2.9):
        direction = np.array([np.cos(angle), np.sin(angle)])
        std = np.sqrt(direction @ covariances @ direction)
        cdf = lambda x, mean, std: stats.norm.cdf((x[:, None] - mean) / std) @ weights
        assert (
            stats.kstest(points @ direction, cdf, args=(means @ direction, std)).pvalue
            > 1e-4
        )


def test_moons_of_papers_are_those_of_scikit_learn(key):
    theirs = np.asarray(datasets.make_moons(NUM, noise=0.1, random_state=0)[0])
    centred = theirs - theirs.mean()
    expected = {
        data.tong_wide_moons: centred / centred.std() * 7,
        data.shifted_moons: (theirs - theirs.mean(0)) / theirs.std(0) * 4 + [2, 0],
    }
    for toy, points in expected.items():
        ours = np.asarray(toy(NUM, key=key))
        for direction in ([1, 0], [0, 1], [1, 1]):
            assert stats.kstest(ours @ direction, points @ direction).pvalue > 1e-4


# ---- T-Rex and its relatives


def test_trex_is_the_published_dinosaur():
    points = np.asarray(data.TREX, np.float64) * 51.654947 + [54.263273, 47.832253]
    assert points.shape == (142, 2)
    np.testing.assert_allclose(points.sum(0), [7705.3848, 6792.1799], atol=2e-3)
    np.testing.assert_allclose(points.std(0, ddof=1), [16.765142, 26.935403], atol=2e-5)
    assert np.asarray(np.corrcoef(points.T))[0, 1] == pytest.approx(-0.064472, abs=2e-6)
    assert np.abs(data.TREX).max() == 1
    with pytest.raises(ValueError, match="read-only"):
        data.TREX[0] = 0


def test_trex_parts_have_their_shares(key):
    points = (
        np.asarray(data.trex_parametric(NUM, noise=0.0, key=key), np.float64) * 1.15
    )
    x, y = points.T
    head = np.isclose(
        ((x - 0.8) / 0.3) ** 2 + ((y - 0.4) / 0.35) ** 2, 1, atol=1e-4
    ) & (y >= 0.4)
    body = np.isclose((x / 0.35) ** 2 + (y / 0.3) ** 2, 1, atol=1e-4)
    tail = (x < -0.35) & ~body
    legs = (y < -0.3 + 1e-6) & ~body
    counts = [part.sum() for part in (head, body, tail, legs)]
    counts.append(NUM - sum(counts))
    assert (
        stats.chisquare(counts, NUM * np.array([0.20, 0.15, 0.15, 0.24, 0.26])).pvalue
        > 1e-4
    )


@real
def test_datasaurus_shapes_share_their_statistics(monkeypatch, key):
    monkeypatch.setenv("FLOWKIT_DATA", str(REAL.parent))
    shapes = data.load_datasaurus()
    assert tuple(shapes) == data.DATASAURUS
    for points in shapes.values():
        np.testing.assert_allclose(points.mean(0), [54.26, 47.83], atol=0.01)
        np.testing.assert_allclose(points.std(0, ddof=1), [16.77, 26.94], atol=0.01)
    np.testing.assert_allclose(
        data.fit_unit_box(shapes["dino"])[0], data.TREX, atol=1e-6
    )
    star = data.toy("datasaurus_star")(200, noise=0.0, key=key)
    exact = data.fit_unit_box(shapes["star"])[0]
    assert np.all(np.abs(np.asarray(star)[:, None] - exact).sum(-1).min(1) < 1e-6)


def test_datasaurus_says_what_is_missing(monkeypatch, tmp_path, key):
    monkeypatch.delenv("FLOWKIT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="which is not set.*datasauRus"):
        data.load_datasaurus()
    monkeypatch.setenv("FLOWKIT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="its subfolder datasaurus"):
        data.datasaurus(5, "star", key=key)
    with pytest.raises(ValueError, match="`shape` must be one of dino, away"):
        data.datasaurus(5, "stars", key=key)
    for text, message in (
        ("x,y\n1,2\n", "must have the columns"),
        ("dataset,x,y\ndino,1,2\n", "has 1 points of 'dino'"),
        ("dataset,x,y\ndino,1,a\n", "line 2 is not a shape and two numbers"),
        ("dataset,x,y\ndinosaur,1,2\n", "line 2 is not a shape"),
    ):
        (tmp_path / "datasaurus_dozen.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            data.load_datasaurus()


# ---- points of your own


def test_csv_gives_the_numbers(tmp_path):
    path, numbers = (
        tmp_path / "points.csv",
        np.random.default_rng(0).normal(size=(7, 3)),
    )
    np.savetxt(path, numbers, delimiter=",")
    points = data.load_csv(path)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, numbers, rtol=1e-6)
    path.write_bytes(
        b"\xef\xbb\xbfname; x ;y\r\na;1;2\r\n\r\nb;-3e1;.5\r\n"
    )  # as a spreadsheet writes it
    np.testing.assert_array_equal(
        data.load_csv(path, ("y", "x"), delimiter=";"), [[2, 1], [0.5, -30]]
    )


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("x,y\n1,2\n3,four\n", None, "'four' in line 3, column 2 is not a number"),
        ("1,2\n\n3,nan\n", None, "'nan' in line 3, column 2 is not finite"),
        ("1,2\n3,1e99\n", None, "'1e99' in line 2, column 2 is not finite"),
        ("x,y\n1,2\n", None, r"has 1 point\(s\)"),
        ("", None, r"has 0 point\(s\)"),
        ("x,y\n", None, r"has 0 point\(s\)"),
        ("1,2\n3\n", None, "line 2 has 1 entries, line 1 has 2"),
        ("1;2\n3;4\n", None, "'3;4' in line 2, column 1 is not a number.*`delimiter`"),
        ("1,\n2,3\n", None, "'' in line 1, column 2 is not a number"),
        ("x,y\n1,2\n3,4\n", ("z",), r"`columns` must be among \['x', 'y'\]"),
        ("x,y,x\n1,2,3\n4,5,6\n", ("x", "y"), r"has 2 columns 'x'.*0 \.\.\. 2"),
        ("x,y\n1,2\n3,4\n", "yx", r"`columns` is the text 'yx'; give a tuple"),
        ("1,2\n3,4\n", ("x",), "has no header"),
        (b"\x89PNG\r\n\x1a\n\xff", None, "is not a text file of numbers"),
    ],
)  # fmt: skip
def test_csv_that_holds_no_points(content, columns, message, tmp_path):
    path = tmp_path / "points.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        data.load_csv(path, columns)


def test_csv_with_a_name_twice(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y,x\n1,2,3\n4,5,6\n")
    np.testing.assert_array_equal(data.load_csv(path), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(data.load_csv(path, ("y", 2)), [[2, 3], [5, 6]])


def test_unit_box_and_back():
    points = np.random.default_rng(0).normal(size=(50, 3)) * [1, 5, 2] + 30
    inside, units = data.fit_unit_box(points)
    np.testing.assert_allclose(inside.mean(0), 0, atol=1e-6)
    assert np.abs(inside).max() == 1
    np.testing.assert_allclose(
        inside.std(0) / inside.std(),
        points.std(0) / inside.std() / units.scale,
        rtol=1e-5,
    )
    np.testing.assert_allclose(units.undo(inside), points, rtol=1e-5)
    np.testing.assert_allclose(units.apply(points), inside, atol=1e-5)


def test_resample_is_the_mixture_around_its_points(key):
    centres = np.array([[0.0, 0], [1, 0], [5, 5]], np.float32)
    draws = np.asarray(data.resample(centres, NUM, key=key))
    found = (draws[:, None] == centres).all(-1)
    assert found.any(1).all()
    assert stats.chisquare(found.sum(0)).pvalue > 1e-4
    blurred = np.asarray(data.resample(centres, NUM, noise=0.3, key=key))
    cdf = lambda x: stats.norm.cdf((x[:, None] - centres[:, 0]) / 0.3).mean(1)
    assert stats.kstest(blurred[:, 0], cdf).pvalue > 1e-4


# ---- by name


def test_registries_hold_every_sampler(key):
    samplers = {toy.__name__: toy for toy in TOYS}
    assert samplers.items() <= data.TOYS_2D.items()
    for toys, size in ((data.TOYS_1D, 1), (data.TOYS_2D, 2)):
        for name, sampler in toys.items():
            assert data.toy(name) is sampler
            if not name.startswith("datasaurus"):
                assert jax.eval_shape(
                    lambda key, draw=sampler: draw(3, key=key), key
                ).shape == (3, size)
    with pytest.raises(TypeError):
        data.TOYS_2D["mine"] = data.trex  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda key: data.toy("t-rex"),
            "`name` must be one of mixture_1d, trex, .*did you mean 'trex'",
        ),
        (lambda key: data.trex(0, key=key), "`num` must be at least 1"),
        (
            lambda key: data.trex_parametric(5, noise=-1.0, key=key),
            "`noise` must be a finite number",
        ),
        (
            lambda key: data.c2ot_moons(5, shift=-1.0, key=key),
            "`shift` must be a finite number",
        ),
        (lambda key: data.two_gaussians(0, key=key), "`num`"),
        (
            lambda key: data.resample(np.full((2, 2), np.nan, np.float32), 5, key=key),
            "`points` holds NaN",
        ),
        (
            lambda key: data.resample(np.zeros((0, 2), np.float32), 5, key=key),
            "at least one point",
        ),
        (
            # The mean of ten times 0.1 in float64 is not 0.1.
            lambda key: data.fit_unit_box(np.full((10, 2), 0.1)),
            "all in one place",
        ),
        (
            lambda key: data.load_csv("a.csv", delimiter=", "),
            "`delimiter` must be one character",
        ),
    ],
)
def test_wrong_use(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(key)


# ---- headers and columns of files as users have them


POINTS = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


def write_points(path, header, points=POINTS):
    lines = [",".join(map(repr, map(float, point))) for point in points]
    path.write_text("\n".join([header, *lines] if header else lines))
    return path


@pytest.mark.parametrize("header", ["0,1", "2020,2021", "1990, 2020"])
def test_csv_header_of_numbers(tmp_path, header):
    path = write_points(tmp_path / "points.csv", header)
    with pytest.raises(ValueError, match=r"line 1, .* `header=True` or `header=False`"):
        data.load_csv(path)
    np.testing.assert_array_equal(data.load_csv(path, header=True), POINTS)
    first = header.split(",")[1].strip()
    named = data.load_csv(path, (first,), header=True)
    np.testing.assert_array_equal(named, POINTS[:, 1:])
    with_first = data.load_csv(path, header=False)
    np.testing.assert_array_equal(with_first[1:], POINTS)
    assert with_first[0].tolist() == [float(number) for number in header.split(",")]


@pytest.mark.parametrize(
    "lines", ["3,1\n0.5,2.5\n", "0,1\n2,3\n", "0.0,1.0\n0.5,2.5\n", "-1,1\n0.5,2.5\n"]
)
def test_csv_without_header_is_read_as_it_is(tmp_path, lines):
    """First lines that name no columns, and whole numbers in every line."""
    (tmp_path / "points.csv").write_text(lines)
    expected = [[float(x) for x in line.split(",")] for line in lines.split()]
    np.testing.assert_array_equal(data.load_csv(tmp_path / "points.csv"), expected)


@pytest.mark.parametrize("columns", [(2, 0), ("2", "0"), (np.int64(2), 0)])
@pytest.mark.parametrize("header", ["", "a,b,c"])
def test_csv_columns_by_position(tmp_path, columns, header):
    points = np.concatenate([POINTS, POINTS[:, :1] + 1], axis=1)
    path = write_points(tmp_path / "points.csv", header, points)
    np.testing.assert_array_equal(data.load_csv(path, columns), points[:, [2, 0]])
    with pytest.raises(ValueError, match=r"positions in 0 \.\.\. 2"):
        data.load_csv(path, (3,))
    with pytest.raises(ValueError, match=r"positions in 0 \.\.\. 2"):
        data.load_csv(path, (-1,))
    with pytest.raises(ValueError, match="`columns` is empty"):
        data.load_csv(path, ())


def test_toys_under_strict_ranks():
    """Traced only, which needs no compilation; NumPy integers are sizes."""
    names = [
        n for n in (*data.TOYS_1D, *data.TOYS_2D) if not n.startswith("datasaurus")
    ]
    with jax.numpy_rank_promotion("raise"):
        for name in names:
            sampler = functools.partial(data.toy(name), np.int64(6))
            shape = jax.eval_shape(lambda key, f=sampler: f(key=key), jr.key(0)).shape
            assert shape == (6, 1 if name in data.TOYS_1D else 2)
        images = np.ones((3, 4, 4), np.float32)
        for kind in (images, images > 0):
            data.images_to_points(
                kind, np.int64(5), empty=data.wide_normal, key=jr.key(0)
            )
