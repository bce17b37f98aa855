"""Several processes train one model, as the documentation says, and end together."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


SCRIPT = Path(__file__).parent / "processes.py"


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(num, placement, folder, *more):
    port = str(free_port())
    command = [sys.executable, str(SCRIPT)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [*command, str(i), str(num), port, placement, str(folder), *more], **pipes
        )
        for i in range(num)
    ]


def finish(processes, status=0):
    """What each of them printed at its end: the losses and the total of the weights."""
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == status, errors
    found = [re.search(r"losses \[(.*)\] total (.*)", out) for out, _ in outputs]
    return [
        np.array([*map(float, match[1].split(", ")), float(match[2])])
        for match in found
        if match
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    [result] = finish(start(1, "OneDevice", tmp_path_factory.mktemp("alone")))
    return result


def test_several_processes_are_one(alone, tmp_path):
    results = finish(start(4, "FullySharded", tmp_path))
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, results[0])
        np.testing.assert_allclose(result, alone, rtol=1e-5)


def test_sigterm_to_one_ends_all_at_the_same_step(alone, tmp_path):
    """The command that began the training then goes on with it."""
    processes = start(2, "Replicated", tmp_path, "0.2")
    for line in processes[0].stdout or []:
        if "step 4" in line:
            processes[1].send_signal(signal.SIGTERM)
            break
    assert finish(processes, 128 + signal.SIGTERM) == []
    steps = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert 4 < max(steps) < 20
    for result in finish(start(2, "Replicated", tmp_path)):
        np.testing.assert_allclose(result, alone, rtol=1e-5)
