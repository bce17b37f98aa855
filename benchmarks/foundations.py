"""What importing flowkit costs beside the libraries below it.

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
    # Alternating, so that both see the same machine.
    pairs = [
        (import_seconds(BELOW), import_seconds("import flowkit"))
        for _ in range(REPEATS)
    ]
    below, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    imports = {"below_seconds": below, "flowkit_seconds": ours, "ratio": ours / below}
    _report.show("import", [imports])
    _report.save("foundations", seed=0, imports=imports)


if __name__ == "__main__":
    main()
