"""The explorer's page holds the arrays, and a browser draws them as the sliders say."""

import base64
import json
import re
import shutil
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import flowkit as fk
from flowkit.plotting import explorer, ExplorerStage


TIMES = np.linspace(0, 1, 9, dtype=np.float32)
LABEL = "</script> step 1"
rng = np.random.default_rng(0)
TARGET = {d: rng.normal(size=(50, d)).astype(np.float32) for d in (1, 2)}


def turn(t, x):
    """A velocity that depends on time."""
    return jnp.stack([-x[1], x[0]]) * (1 + t)


def stages_of(size: int) -> list[ExplorerStage]:
    """One step of a flow map, and the paths of a flow."""
    x0 = rng.normal(size=(120, size)).astype(np.float32)
    x0[3] = np.nan
    flow = fk.exact_flow(
        fk.GaussianMixture(
            np.linspace(-1.5, 1.5, 2 * size, dtype=np.float32).reshape(2, size), 0.1
        )
    )
    # As a vmapped solve saves them, (n, t, d).
    t = TIMES[:, None]
    paths = (1 - t) * x0[:, None] + t**2 * np.roll(x0, 1, axis=0)[:, None]
    one_step = np.stack([x0, 2 * x0], 1)
    velocity = turn if size == 2 else lambda t, x: t - x
    return [
        ExplorerStage("one step", TIMES[[0, -1]], one_step, velocity),
        ExplorerStage(LABEL, TIMES, paths, flow),
    ]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """For each dimension the stages and the page of them."""
    folder = tmp_path_factory.mktemp("explorer") / "new"
    stages = {d: stages_of(d) for d in (1, 2)}
    write = lambda d: explorer(
        stages[d],
        target=TARGET[d],
        limits=(-3, 3),
        title="a <b> c",
        path=folder / f"{d}.html",
    )
    return {d: (stages[d], write(d)) for d in (1, 2)}


def data_of(page) -> dict:
    (text,) = re.findall(
        r'<script id="data" type="application/json">(.*?)</script>',
        page.read_text("utf-8"),
    )
    return json.loads(text)


def decoded(entry):
    return np.frombuffer(base64.b64decode(entry["base64"]), "<f4").reshape(
        entry["shape"]
    )


@pytest.mark.parametrize("size", [1, 2])
def test_page_holds_the_arrays(pages, size):
    stages, page = pages[size]
    data = data_of(page)
    np.testing.assert_array_equal(decoded(data["target"]), TARGET[size])
    assert (data["lows"], data["highs"]) == ([-3] * size, [3] * size)
    grid, times = decoded(data["grid"]), decoded(data["field_times"])
    assert np.abs(grid).max() < 3
    assert len(np.unique(grid, axis=0)) == 20**size
    assert [stage["label"] for stage in data["stages"]] == [
        stage.label for stage in stages
    ]
    speeds = []
    for stage, entry in zip(stages, data["stages"], strict=True):
        np.testing.assert_array_equal(decoded(entry["times"]), stage.times)
        np.testing.assert_array_equal(decoded(entry["points"]), stage.points)
        field = jax.vmap(jax.vmap(stage.velocity, (None, 0)), (0, None))(times, grid)
        np.testing.assert_allclose(decoded(entry["field"]), field, rtol=1e-4, atol=1e-5)
        speeds.append(np.linalg.norm(field, axis=-1))
    np.testing.assert_allclose(data["speed"], np.quantile(speeds, 0.95), rtol=1e-4)
    assert page.stat().st_size < 6e6


class Dropped(eqx.Module):
    dropout: eqx.nn.Dropout

    def __call__(self, t, x):
        return self.dropout(x)


def test_velocity_is_in_inference_mode(tmp_path):
    data = data_of(
        explorer(
            [flat(5, 2, 1, velocity=Dropped(eqx.nn.Dropout()))],
            path=tmp_path / "page.html",
        )
    )
    np.testing.assert_array_equal(
        decoded(data["stages"][0]["field"]), np.tile(decoded(data["grid"]), (21, 1, 1))
    )


def test_limits_are_those_of_all_that_is_drawn(tmp_path):
    points = np.asarray([[[0, 0], [1, 5]], [[np.nan, 9], [-1, np.inf]]], np.float32)
    page = explorer([ExplorerStage("", [0, 1], points)], path=tmp_path / "page.html")
    data = data_of(page)
    low, high = np.asarray(data["lows"]), np.asarray(data["highs"])
    np.testing.assert_allclose((low + high) / 2, [0.5, 2.5])
    np.testing.assert_allclose(high - low, 5 * 1.12)
    assert data["stages"][0]["field"] is None
    assert data["target"] is None


def flat(*shape, times=(0.0, 1.0), velocity=None):
    return ExplorerStage(
        "", np.asarray(times, np.float32), np.zeros(shape, np.float32), velocity
    )


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ([], {}, "`stages` is empty"),
        (
            [flat(5, 2, 2), flat(5, 2, 3)],
            {},
            r"`stages\[1\].points` has 3 dimensions; the explorer draws 1 or 2",
        ),
        (
            [flat(5, 2, 2), flat(5, 2, 1)],
            {},
            r"`stages\[1\].points` has 1 dimensions and that of the first stage 2",
        ),
        ([flat(5, 2)], {}, r"`stages\[0\]` has points of shape \(5, 2\)"),
        ([flat(5, 3, 2)], {}, r"times of shape \(2,\)"),
        ([flat(0, 2, 2)], {}, "not empty"),
        (
            [flat(5, 2, 2, times=(1, 0))],
            {},
            r"`stages\[0\].times` must be two or more increasing",
        ),
        (
            [flat(5, 1, 2, times=(0,))],
            {},
            r"`stages\[0\].times` must be two or more increasing",
        ),
        (
            [flat(5, 2, 2, times=(0, 1.5))],
            {},
            r"`stages\[0\].times` must be two or more increasing",
        ),
        (
            [flat(5, 2, 2)],
            {"target": TARGET[1]},
            r"`target` has shape \(50, 1\).*\(m, 2\)",
        ),
        ([flat(5, 2, 2)], {"target": TARGET[2][:0]}, r"`target` has shape \(0, 2\)"),
        ([flat(5, 2, 2)], {"limits": (1, 1)}, "`limits` is"),
        (
            [flat(5, 2, 2, velocity=lambda t, x: t)],
            {},
            r"`stages\[0\].velocity` gives shape \(\) for one point",
        ),
    ],
)
def test_wrong_use(stages, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        explorer(stages, path=tmp_path / "page.html", **options)
    assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be_written(tmp_path):
    def velocity(t, x):
        raise AssertionError("work was done before the path was looked at")

    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "file" / "page.html", "cannot be written"),
        (tmp_path, "is a folder"),
        (tmp_path / "page.png", r"ends in '.png' cannot be written, only .htm, .html"),
    ):
        with pytest.raises(ValueError, match=message):
            explorer([flat(5, 2, 2, velocity=velocity)], path=path)


def test_without_plotly_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"flowkit-jax\[explorer\]"):
        explorer([flat(5, 2, 2)], path=tmp_path / "page.html")


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    """One headless browser for all tests, which can reach no host."""
    program = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=900,1000",
    ):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


def opened(browser, page):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(page.as_uri())
    # `get` may return while the page is still loading.
    drawn = (
        "return location.href === arguments[0] "
        "&& Boolean(document.getElementById('plot')?.data)"
    )
    WebDriverWait(browser, 60).until(
        lambda _: browser.execute_script(drawn, page.as_uri())
    )
    assert (
        browser.execute_script("return performance.getEntriesByType('resource').length")
        == 0
    )
    assert browser.title == "a <b> c"
    return Page(browser)


class Page:
    """What a reader does and sees."""

    def __init__(self, browser):
        self.browser = browser

    def element(self, name):
        return self.browser.find_element("id", name)

    def press(self, name, keys):
        self.element(name).send_keys(keys)

    def traces(self) -> dict:
        """What is drawn, by name; a gap between lines is NaN."""
        script = (
            "return document.getElementById('plot').data"
            ".map(({name, x, y, z}) => ({name, x, y, z}))"
        )
        arrays = lambda trace: {
            k: np.asarray(trace[k], float) for k in "xyz" if trace[k] is not None
        }
        return {
            trace["name"]: arrays(trace)
            for trace in self.browser.execute_script(script)
        }

    def check_quiet(self):
        assert self.browser.get_log("browser") == []


def points_of(trace):
    return np.stack([trace["x"], trace["y"]], -1)


def pieces(trace, length):
    """The lines `(number, length, 2)` of a trace, each followed by a gap."""
    corners = points_of(trace).reshape(-1, length + 1, 2)
    assert np.isnan(corners[:, -1]).all()
    return corners[:, :-1]


def at_time(times, values, t):
    """Linear interpolation over the first axis."""
    index = min(np.searchsorted(times, t, "right"), len(times) - 1)
    weight = (t - times[index - 1]) / (times[index] - times[index - 1])
    return (1 - weight) * values[index - 1] + weight * values[index]


def test_plane_in_a_browser(pages, browser):
    from selenium.webdriver.common.keys import Keys

    stages, path = pages[2]
    data = data_of(path)
    grid, field_times = (
        decoded(data["grid"]).astype(float),
        decoded(data["field_times"]).astype(float),
    )
    page = opened(browser, path)

    def check(stage, field, t):
        traces = page.traces()
        assert page.element("time-text").text == f"t = {t:.2f}"
        assert page.element("stage-text").text == stage.label
        particles = at_time(
            stage.times, np.moveaxis(np.asarray(stage.points, float), 1, 0), t
        )
        np.testing.assert_allclose(points_of(traces["particles"]), particles, atol=1e-5)
        valid = particles[np.isfinite(particles).all(1)]
        x, y = (traces["density"][k] for k in "xy")
        kernel = lambda axis, at: st.norm.pdf(
            at[:, None], valid[:, axis], data["bandwidth"]
        )
        np.testing.assert_allclose(
            traces["density"]["z"],
            kernel(1, y) @ kernel(0, x).T / len(valid),
            atol=1e-6,
        )
        # Arrows start on the grid, point along the velocity, and have its length up to one cell.
        arrows = pieces(traces["field"], 5)
        velocity = at_time(field_times, decoded(field).astype(float), t)
        cell = grid[1, 0] - grid[0, 0]
        speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
        expected = cell * velocity / speed * np.minimum(speed / data["speed"], 1)
        np.testing.assert_allclose(arrows[:, 0], grid, atol=1e-6)
        np.testing.assert_allclose(arrows[:, 1] - arrows[:, 0], expected, atol=1e-5)
        np.testing.assert_allclose(
            pieces(traces["paths"], len(stage.times)), stage.points[:100], atol=1e-6
        )
        np.testing.assert_allclose(points_of(traces["target"]), TARGET[2])
        return arrows

    check(stages[1], data["stages"][1]["field"], 0)
    page.press("time", Keys.PAGE_UP * 4 + Keys.ARROW_LEFT * 3)
    later = check(stages[1], data["stages"][1]["field"], 0.37)
    page.press("stage", Keys.HOME)
    assert (
        np.abs(check(stages[0], data["stages"][0]["field"], 0.37) - later).max() > 0.01
    )
    page.press("time", Keys.END)
    check(stages[0], data["stages"][0]["field"], 1)
    page.check_quiet()


# The time at which the slider has moved by itself, and after some frames more.
PLAY_AND_PAUSE = """
const [done] = arguments;
const time = document.getElementById("time"), play = document.getElementById("play");
const frame = requestAnimationFrame;
const later = (frames, then) => (frames ? frame(() => later(frames - 1, then)) : then());
const moved = () => time.valueAsNumber > 0;
const whenMoved = (then) => (moved() ? then() : frame(() => whenMoved(then)));
play.click();
whenMoved(() => {
  const at = time.valueAsNumber;
  play.click();
  later(3, () => done([at, time.valueAsNumber]));
});
"""


def test_line_in_a_browser(pages, browser):
    from selenium.webdriver.common.keys import Keys

    stages, path = pages[1]
    data = data_of(path)
    page = opened(browser, path)
    page.press("time", Keys.PAGE_UP * 4 + Keys.ARROW_LEFT * 3)
    traces = page.traces()
    particles = at_time(TIMES, np.asarray(stages[1].points[..., 0], float).T, 0.37)
    np.testing.assert_allclose(traces["particles"]["y"], particles, atol=1e-5)
    np.testing.assert_allclose(traces["particles"]["x"], 0.37)
    for name, values in (
        ("density", particles[np.isfinite(particles)]),
        ("target", TARGET[1][:, 0]),
    ):
        exact = np.mean(
            st.norm.pdf(traces[name]["y"][:, None], values, data["bandwidth"]), 1
        )
        np.testing.assert_allclose(traces[name]["x"], exact, atol=1e-6)
    # Dashes are centred at the grid of times and points, and have the slope of the paths.
    dashes = pieces(traces["field"], 2)
    grid, times = decoded(data["grid"])[:, 0], decoded(data["field_times"])
    centres = np.stack([np.repeat(times, len(grid)), np.tile(grid, len(times))], -1)
    np.testing.assert_allclose(dashes.mean(1), centres, atol=1e-6)
    run, rise = (dashes[:, 1] - dashes[:, 0]).T
    np.testing.assert_allclose(
        rise / run, decoded(data["stages"][1]["field"]).ravel(), rtol=1e-4, atol=1e-5
    )

    page.element("show-paths").click()
    page.element("show-field").click()
    assert set(page.traces()) == {"particles", "density", "target"}
    page.press("time", Keys.HOME)
    moved, paused = browser.execute_async_script(PLAY_AND_PAUSE)
    assert 0 < moved < 1
    assert paused == moved
    # The slider shows hundredths.
    np.testing.assert_allclose(
        page.traces()["particles"]["x"], moved, rtol=0, atol=0.00501
    )
    page.check_quiet()
