"""The picture of `solver_accuracy.py`: two panels for each flow.

The upper one has errors against evaluations, the lower one against time. Solvers that would
lie on the lines of others, as Heun's method on those of the midpoint rule, are in the table
alone.
"""

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter


COLUMNS = 4


class Line(NamedTuple):
    """The rows that a line is drawn through, by their values, and how it looks."""

    label: str
    values: dict[str, str]
    style: dict[str, Any]


def uniform(solver: str, color: str) -> Line:
    values = {"library": "flowkit", "solver": solver, "steps": "uniform"}
    style = {"color": color, "linestyle": "--", "marker": ".", "markersize": 4}
    return Line(f"{solver}, grid", values, style)


def adaptive(
    solver: str,
    color: str,
    library: str = "flowkit",
    batching: str = "lockstep",
    label: str | None = None,
) -> Line:
    values = {
        "library": library,
        "solver": solver,
        "steps": "adaptive",
        "batching": batching,
    }
    style = {"color": color, "marker": ".", "markersize": 5}
    return Line(label or f"{solver}, adaptive", values, style)


def fitted(steps: str, marker: str) -> Line:
    style = {"color": "black", "linestyle": "", "marker": marker, "markersize": 7}
    return Line(steps, {"library": "flowkit", "steps": steps}, style)


def peer(library: str, solver: str, color: str, steps: str = "adaptive") -> Line:
    values = {"library": library, "solver": solver, "steps": steps}
    style = {"color": color, "marker": "x", "markersize": 4}
    if steps == "uniform":
        style |= {"linestyle": "--"}
    return Line(f"{library}, {solver}", values, style)


FITTED = [fitted("fitted grid", "D"), fitted("fitted steps", "*")]

BY_EVALUATIONS = [
    uniform("Euler", "#9a9a9a"),
    uniform("Midpoint", "#6baed6"),
    uniform("Adams-Bashforth 2", "#9467bd"),
    uniform("Bosh3", "#2171b5"),
    uniform("RK4", "#31a354"),
    uniform("Tsit5", "#e6550d"),
    uniform("Dopri8", "#a50f15"),
    adaptive("Bosh3", "#2171b5"),
    adaptive("Tsit5", "#e6550d"),
    adaptive("Dopri8", "#a50f15"),
    *FITTED,
]

BY_TIME = [
    uniform("RK4", "#31a354"),
    adaptive("Tsit5", "#e6550d", label="Tsit5, lockstep"),
    adaptive("Tsit5", "#fdae6b", batching="refilled slots", label="Tsit5, slots"),
    adaptive("Tsit5", "#8c2d04", batching="shared step", label="Tsit5, shared step"),
    adaptive("Dopri5", "#d62ebf", batching="shared step", label="Dopri5, shared step"),
    peer("torchdiffeq", "dopri5", "#08519c"),
    peer("torchdiffeq", "rk4", "#08519c", "uniform"),
    peer("torchdyn", "dopri5", "#17becf"),
    peer("flow_matching", "dopri5", "#7f7f7f"),
    *FITTED,
]

OWN = ("#222222", "#d62ebf", "#8c564b", "#bcbd22")


def own_lines(rows: list[dict[str, Any]]) -> list[Line]:
    """The lines of the user's solvers, whose names have a colon."""
    names = dict.fromkeys(row["solver"] for row in rows if ":" in row["solver"])
    lines = []
    for i, name in enumerate(names):
        color = OWN[i % len(OWN)]
        grid = Line(
            name, {"solver": name, "steps": "own"}, {"color": color, "marker": "*"}
        )
        lines += [uniform(name, color), adaptive(name, color), grid]
    return lines


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Two panels for each flow, four flows next to each other."""
    flows = list(dict.fromkeys(row["flow"] for row in rows))
    columns = min(COLUMNS, len(flows))
    bands = -(-len(flows) // columns)
    width = max(3.3 * columns, 8)
    figure = Figure(figsize=(width, 5.6 * bands + 1.2), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)

    own = own_lines(rows)
    drawn: dict[str, dict[str, Line2D]] = {"evaluations": {}, "ms": {}}
    for i, flow in enumerate(flows):
        band, column = divmod(i, columns)
        of_flow = [row for row in rows if row["flow"] == flow]
        upper = axes[2 * band, column]
        lower = axes[2 * band + 1, column]
        drawn["evaluations"] |= draw(
            upper, [*BY_EVALUATIONS, *own], of_flow, "evaluations"
        )
        drawn["ms"] |= draw(lower, [*BY_TIME, *own], of_flow, "ms")
        upper.set_title(flow)
        upper.set_xlabel("evaluations per sample")
        upper.set_xlim(left=3)
        lower.set_xlabel("milliseconds of a call")
        if column == 0:
            upper.set_ylabel("error")
            lower.set_ylabel("error")

    places: dict[str, Any] = {
        "evaluations": "outside upper center",
        "ms": "outside lower center",
    }
    for quantity, place in places.items():
        lines = drawn[quantity]
        figure.legend(
            list(lines.values()),
            list(lines),
            loc=place,
            ncols=int(width / 2.1),
            frameon=False,
        )
    return figure


def draw(
    ax: Axes, lines: list[Line], rows: list[dict[str, Any]], quantity: str
) -> dict[str, Line2D]:
    """Draws the lines that have rows, and returns them by their labels."""
    ax.set_visible(True)
    drawn = {}
    for line in lines:
        chosen = [
            row
            for row in rows
            if all(row[name] == value for name, value in line.values.items())
        ]
        if not chosen:
            continue
        places = [row[quantity] for row in chosen]
        errors = [row["error"] for row in chosen]
        (drawn[line.label],) = ax.plot(places, errors, linewidth=1.3, **line.style)

    ax.set_xscale("log")
    ax.set_yscale("log")
    # Where an axis has less than a decade, its labels would cover each other.
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, color="#e9e9e9")
    return drawn
