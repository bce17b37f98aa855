"""The rules that hold the code together: layers, abstract or final, imports, docstrings."""

import ast
import functools as ft
import importlib.util
import inspect
import pkgutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.random as jr
import jaxtyping
import pytest

import flowkit as fk


ROOT = Path(fk.__file__).parent
SATELLITES = ["nn", "data", "training", "metrics", "plotting", "testing"]
MODULES = [name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "flowkit.")]

PUBLIC = [name for name in MODULES if "._" not in name]

# What each floor may import from flowkit (docs: contributing); the table runs upward.
GROUND = {
    "_types": set(),
    "_typecheck": set(),
    "_compat": set(),
    "_files": set(),
    "_namespace": set(),
    "_print": set(),
    "_checks": {"_types"},
    "_devices": {"_types"},
    "_blocks": {"_types", "_checks", "_devices"},
    "_masks": {"_types", "_checks"},
    "_distances": {"_types"},
}
CORE = GROUND | {
    "_distributions": {*GROUND},
    "_transport": {*GROUND},
    "_flow": {*GROUND, "_distributions"},
    "_couplings": {*GROUND, "_distributions", "_transport"},
    "_losses": {*GROUND, "_distributions", "_flow", "_couplings"},
    "_solve": {*GROUND, "_distributions", "_flow"},
}
FAMILIES = ["solvers", "guidance", "inverse", "few_step", "latent", "interop"]
ALLOWED = (
    CORE
    | {name: {*CORE} for name in FAMILIES}
    | {name: {*GROUND} for name in SATELLITES}
)
# One method that classifier-free training shares with MeanFlow's own guidance.
ALLOWED["few_step"] = {*CORE, "guidance"}
ALLOWED["metrics"] = {*GROUND, "_transport"}
# Whole jobs, made of all other namespaces.
ALLOWED["pipelines"] = {*CORE, *FAMILIES, *SATELLITES}


PROJECT = ROOT.parent
EVERYTHING = [
    ROOT,
    PROJECT / "examples",
    PROJECT / "benchmarks",
    PROJECT / "tests",
]


class Page(NamedTuple):
    """One file, and the numbers of the lines of its docstrings."""

    path: Path
    lines: list[str]
    tree: ast.Module
    docs: set[int]

    def code(self, first=1, last=None):
        """The lines from `first` to `last` that belong to no docstring."""
        numbered = enumerate(self.lines[first - 1 : last], first)
        return [line for number, line in numbered if number not in self.docs]

    def nodes(self, kind) -> list[Any]:
        return [node for node in ast.walk(self.tree) if isinstance(node, kind)]


@ft.cache
def page(path):
    text = path.read_text()
    tree = ast.parse(text)
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs |= set(range(node.lineno, node.end_lineno + 1))
    return Page(path, text.splitlines(), tree, docs)


def pages(*folders):
    return [page(path) for folder in folders for path in sorted(folder.rglob("*.py"))]


class Function(NamedTuple):
    """Where a function is, and its lines without those of the docstring."""

    name: str
    lines: list[str]
    body: list[str]


def functions(of):
    found = []
    for node in of.nodes(ast.FunctionDef | ast.AsyncFunctionDef):
        lines = of.code(node.lineno, node.end_lineno)
        body = of.code(node.body[0].lineno, node.end_lineno)
        found.append(Function(f"{of.path}:{node.lineno}", lines, body))
    return found


def is_comment(line):
    return line.lstrip().startswith("#")


def share(condition, lines):
    return sum(map(condition, lines)) / len(lines)


def flowkit_imports(module: str) -> set[str]:
    """The first component below `flowkit` of everything that a module imports from it."""
    path = ROOT.joinpath(*module.split(".")[1:])
    package = module if path.is_dir() else module.rpartition(".")[0]
    source = (
        path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    ).read_text()
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name(
                "." * node.level + (node.module or ""), package
            )
            found |= (
                {f"{base}.{alias.name}" for alias in node.names}
                if base == "flowkit"
                else {base}
            )
    return {name.split(".")[1] for name in found if name.startswith("flowkit.")}


@pytest.mark.parametrize("module", MODULES)
def test_layers(module):
    part = module.split(".")[1]
    assert part in ALLOWED, f"{module} has no place in the table of layers"
    assert flowkit_imports(module) <= {part, *ALLOWED[part]}


def modules_of_flowkit():
    return [
        sub
        for sub in eqx.Module.__subclasses__()
        if sub.__module__.startswith("flowkit")
    ]


def all_subclasses(cls):
    return {
        cls,
        *(below for sub in cls.__subclasses__() for below in all_subclasses(sub)),
    }


def test_classes_are_abstract_or_final():
    """Abstract names say so; final classes have no subclasses; no concrete method is overridden."""
    for name in MODULES:
        importlib.import_module(name)
    classes = {cls for root in modules_of_flowkit() for cls in all_subclasses(root)}
    classes = {cls for cls in classes if cls.__module__.startswith("flowkit")}
    assert len(classes) > 30
    for cls in classes:
        abstract = inspect.isabstract(cls) or bool(
            getattr(cls, "__abstractvars__", ()) or _abstract_class_vars(cls)
        )
        named_abstract = cls.__name__.lstrip("_").startswith("Abstract")
        assert abstract == named_abstract, (
            f"{cls} is {'abstract' if abstract else 'final'}, against its name"
        )
        if not named_abstract:
            assert not [
                sub
                for sub in cls.__subclasses__()
                if sub.__module__.startswith("flowkit")
            ], f"{cls} is final"
        for base in cls.__mro__[1:]:
            if not base.__module__.startswith("flowkit"):
                continue
            concrete = {
                key
                for key, value in vars(base).items()
                if inspect.isfunction(
                    inspect.unwrap(getattr(value, "__wrapped__", value))
                )
                and not getattr(value, "__isabstractmethod__", False)
                and not key.startswith("__")
            }
            assert not concrete & set(vars(cls)), (
                f"{cls} overrides {concrete & set(vars(cls))} of {base}"
            )


def _abstract_class_vars(cls):
    return getattr(cls, "__abstractclassvars__", ())


@pytest.mark.parametrize(
    "module",
    ["flowkit", *PUBLIC],
)
def test_public_names_are_documented(module):
    namespace = importlib.import_module(module)
    for name, value in vars(namespace).items():
        if name.startswith("_") or inspect.ismodule(value) or not callable(value):
            continue
        if getattr(value, "__module__", "").startswith("flowkit"):
            assert value.__doc__, f"{module}.{name} has no docstring"


def test_files_and_functions_keep_their_size():
    library = pages(ROOT)
    every = [function for of in library for function in functions(of)]
    assert not [function.name for function in every if len(function.lines) > 45]

    lengths = {of.path: len(of.lines) for of in library}
    assert not [path for path, length in lengths.items() if length > 400]
    assert statistics.median(lengths.values()) <= 160


def test_lines_fit_the_page():
    long = [
        f"{of.path}:{number}"
        for of in pages(*EVERYTHING, PROJECT / "docs")
        for number, line in enumerate(of.lines, 1)
        if len(line) > 100
    ]
    assert not long


def test_lines_hold_one_thought():
    """On average 34 characters, without the indentation."""
    code = [line.strip() for of in pages(ROOT) for line in of.code()]
    code = [line for line in code if line and not is_comment(line)]
    assert statistics.mean(map(len, code)) <= 34


def test_steps_are_apart_and_traps_are_marked():
    code = [line for of in pages(ROOT) for line in of.code() if line.strip()]
    assert share(is_comment, code) >= 0.03

    bodies = [function.body for of in pages(ROOT) for function in functions(of)]
    long = [line for body in bodies if len(body) >= 10 for line in body]
    assert share(lambda line: not line.strip(), long) >= 0.08


def test_unrelated_values_are_assigned_apart():
    """`a, b = x, y` is two statements, unless it exchanges two names."""
    found = []
    for of in pages(ROOT, PROJECT / "examples", PROJECT / "benchmarks"):
        for node in of.nodes(ast.Assign):
            target = node.targets[0]
            if not (
                isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            ):
                continue
            if elements(target) != elements(node.value):
                found.append(f"{of.path}:{node.lineno}")
    assert not found


def elements(node):
    return {ast.unparse(element) for element in node.elts}


def test_conditional_expressions_are_not_nested():
    found = []
    for of in pages(*EVERYTHING):
        for node in of.nodes(ast.IfExp):
            inner = [part for part in ast.walk(node) if isinstance(part, ast.IfExp)]
            if len(inner) > 1:
                found.append(f"{of.path}:{node.lineno}")
    assert not found


def test_annotations_are_objects():
    """With annotations as strings the run-time checks would not see them."""
    assert not [
        path
        for path in ROOT.rglob("*.py")
        if "from __future__ import annotations" in path.read_text()
    ]


def test_importing_touches_no_device_and_loads_satellites_late():
    program = """
import sys, jax
import flowkit as fk
late = ["grain", "orbax", "matplotlib", "scipy.optimize", "numpyro"]
names = "data few_step interop latent metrics nn pipelines plotting testing training"
late += [f"flowkit.{name}" for name in names.split()]
loaded = [name for name in late if name in sys.modules]
assert not loaded, loaded
assert not jax._src.xla_bridge._backends, "a device was touched"
fk.data, fk.training, fk.plotting, fk.metrics, fk.testing, fk.nn, fk.latent, fk.few_step
fk.interop
assert not jax._src.xla_bridge._backends, "a device was touched"
assert not {"matplotlib.pyplot", "numpyro"} & set(sys.modules)
assert {"data", "nn", "sample"} <= set(dir(fk))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing"):
        fk.nothing  # noqa: B018


@pytest.mark.parametrize("namespace", ["flowkit", *PUBLIC])
def test_dir_shows_public_names(namespace):
    names = dir(importlib.import_module(namespace))
    hidden = [name for name in names if name.startswith("_")]
    assert namespace == "flowkit.testing" or (names and not hidden)
    assert "jaxtyping" not in names


def test_errors_of_types_do_not_print_networks():
    flow = fk.Flow(fk.nn.AdaLNMLP(2, 32, key=jr.key(0)))
    assert "AdaLNMLP" in str(flow)
    assert "\n" not in str(flow)
    with pytest.raises(jaxtyping.TypeCheckError) as caught:
        fk.log_prob(flow, "not an array")
    assert "modulation" not in str(caught.value)
