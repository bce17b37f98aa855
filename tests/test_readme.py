"""The README and the documentation keep what they promise."""

import importlib
import inspect
import re
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st

import flowkit as fk


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = """
pip install -e ".[examples]" && python examples/point_clouds.py
pip install -e ".[dev]" && pytest
"""
NAMESPACES = [
    "few_step",
    "interop",
    "inverse",
    "latent",
    "nn",
    "pipelines",
    "training",
    "data",
    "metrics",
    "plotting",
    "testing",
]


def python_block() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return block


def moons_log_prob(x: np.ndarray, noise: float, num: int = 2000) -> np.ndarray:
    """The density of the moons: Gaussians along both half circles, by the midpoint rule
    on their angles."""
    angles = (np.arange(num) + 0.5) * np.pi / num
    outer = np.stack([np.cos(angles), np.sin(angles)], -1)
    centres = np.concatenate([outer, [1.0, 0.5] - outer])
    squares = np.sum((x[:, None] - centres) ** 2, -1)
    return (
        sp.logsumexp(-0.5 * squares / noise**2, axis=1)
        - np.log(2 * num)
        - np.log(2 * np.pi * noise**2)
    )


def test_commands():
    assert f"```{COMMANDS}```" in README


def test_block_is_short():
    lines = [line for line in python_block().splitlines() if line.strip()]
    assert lines[0] == "import flowkit as fk"
    assert len(lines) <= 10


@pytest.mark.slow
def test_block_runs_as_printed(monkeypatch, tmp_path):
    """The model is near the truth in both directions, and much nearer than a Gaussian:
    see the bounds in nats."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(python_block(), "README.md", "exec"), names)
    samples, log_prob, flow = names["samples"], names["log_prob"], names["flow"]
    assert samples.shape == (1000, 2)
    assert np.all(np.isfinite(samples))
    assert log_prob.shape == (1000,)

    x = np.asarray(fk.data.moons(1000, noise=0.1, key=jr.key(4)))
    model = np.asarray(jax.vmap(lambda x: fk.log_prob(flow, x))(x))
    gaussian = st.multivariate_normal.logpdf(x, np.mean(x, 0), np.cov(x.T))  # pyright: ignore
    exact = moons_log_prob(x, 0.1)
    # Means of these estimate Kullback-Leibler divergences, which are never negative.
    from_data = exact - model
    from_samples = log_prob - moons_log_prob(np.asarray(samples, float), 0.1)
    for terms, bound in ((from_data, 0.35), (from_samples, 1.0)):
        assert -3 * np.std(terms) / len(terms) ** 0.5 < np.mean(terms) < bound
    assert np.mean(exact - gaussian) > 0.8


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs" / "pages").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (
                f"{page}: {target}"
            )


@pytest.mark.parametrize("namespace", ["", *NAMESPACES])
def test_api_pages_list_every_public_name(namespace):
    module = importlib.import_module(f"flowkit.{namespace}".rstrip("."))
    names = [namespace] if namespace else ["basic", "advanced"]
    folder = ROOT / "docs" / "pages" / "api"
    text = "\n".join((folder / f"{name}.md").read_text() for name in names)
    listed = re.findall(
        rf"^::: {re.escape(module.__name__)}\.(\w+)$", text, re.MULTILINE
    )
    assert len(listed) == len(set(listed))
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    if namespace == "testing":  # a plain module: what it imports is there too
        public = {
            name for name in public if getattr(vars(module)[name], "__code__", None)
        }
    assert set(listed) == public


# The page on point clouds trains what the example trains, which takes minutes. That on
# inverse problems compiles a U-Net in seven methods, and that on sparse reconstruction a
# network of coordinates within a solver, for several samples of several images.
PAGES = [
    ROOT / "docs" / "pages" / f"{name}.md"
    for name in (
        "getting-started/install",
        "getting-started/your-own-data",
        "getting-started/save-restore-resume",
        "tutorials/toys",
        "tutorials/conditions-and-guidance",
        "tutorials/sampling",
        "tutorials/images",
        "tutorials/one-step-models",
        "tutorials/training-at-scale",
        "tutorials/data-sets",
        "how-to-choose/couplings",
        "how-to-choose/networks",
        "how-to-choose/solvers",
        "background/mathematics",
        "background/sets-and-masks",
        "background/latents-and-priors",
        "background/metrics",
        "extending",
        "results/explorer",
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_run(page, monkeypatch, tmp_path):
    """The blocks of a page run in their order, with few training steps."""
    monkeypatch.chdir(tmp_path)
    fit = fk.training.fit
    shorter = lambda *args, num_steps, **options: fit(
        *args, num_steps=min(num_steps, 10), **(options | {"progress": False})
    )
    monkeypatch.setattr(fk.training, "fit", shorter)
    monkeypatch.setattr("flowkit.training._loop.stages.fit", shorter)
    blocks = re.findall(
        r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    exec(compile("\n".join(blocks), page.name, "exec"), {"__name__": page.stem})


def test_pictures_of_benchmarks_are_those_of_their_results():
    pages = (ROOT / "docs" / "pages" / "images").glob("benchmark_*.png")
    copies = {path.name.removeprefix("benchmark_"): path for path in pages}
    assert copies
    for name, copy in copies.items():
        result = ROOT / "benchmarks" / "results" / name
        assert copy.read_bytes() == result.read_bytes(), name
