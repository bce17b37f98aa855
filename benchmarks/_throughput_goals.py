"""What the steps of `throughput.py` are meant to reach, next to what they reach."""

from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A row and a column of a table, and the limit of the number there."""

    table: str
    row: str
    column: str
    limit: float
    at_least: bool = True


SMALL = "MLP 3 x 64"
WIDE = "MLP [128, 256, 256, 128]"
PLANS = "exact plans"

GOALS = [
    Goal("steps", SMALL, "torch / flowkit", 3),
    Goal("steps", f"{SMALL}, {PLANS}", "torch / flowkit", 2),
    Goal("steps", SMALL, "torch.compile / flowkit", 1.5),
    Goal("steps", WIDE, "torch / flowkit", 3),
    Goal("steps", f"{WIDE}, {PLANS}", "torch / flowkit", 2),
    Goal("steps", WIDE, "torch.compile / flowkit", 1.5),
    Goal("steps", "PointNet, AdaLN MLP", "torch / flowkit", 2),
    Goal("steps", "as Flow-Mix", "plain Equinox / flowkit", 3),
    Goal("roofline", WIDE, "part of the peak", 0.6),
    Goal("roofline", "main job", "step / products", 1.6, at_least=False),
    Goal("surroundings", "+ JsonLines", "part of a step", 0.05, at_least=False),
    Goal("surroundings", "+ checkpoints", "part at its pace", 0.02, at_least=False),
]


def goals(tables: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every goal, with what was measured and whether that meets it."""
    rows = []
    for goal in GOALS:
        # The first column of a table names its rows.
        table = tables.get(goal.table, [])
        of = {next(iter(row.values())): row for row in table}
        value = of.get(goal.row, {}).get(goal.column)
        if value is None:
            continue
        met = value >= goal.limit if goal.at_least else value <= goal.limit
        sign = ">=" if goal.at_least else "<="
        rows.append(
            {
                "goal": f"{goal.row}: {goal.column}",
                "asked": f"{sign} {goal.limit}",
                "measured": value,
                "met": met,
            }
        )
    return rows
