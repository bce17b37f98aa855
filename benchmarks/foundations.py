"""The time to import flowkit, compared with the libraries below it.

    python benchmarks/foundations.py

Prints the medians of alternating runs, and writes them with machine and versions to
`benchmarks/results/foundations.json`.
"""

import statistics
import subprocess
import sys
import time

import _report


REPEATS = 7
BELOW = "import jax, equinox, diffrax, optax"


def import_seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    below_times = []
    flowkit_times = []

    # In turn, so that both see the same machine.
    for _ in range(REPEATS):
        below_times.append(import_seconds(BELOW))
        flowkit_times.append(import_seconds("import flowkit"))

    below = statistics.median(below_times)
    ours = statistics.median(flowkit_times)
    imports = {"below_seconds": below, "flowkit_seconds": ours, "ratio": ours / below}

    _report.show("import", [imports])
    _report.save("foundations", seed=0, imports=imports)


if __name__ == "__main__":
    main()
