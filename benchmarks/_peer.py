"""Another library, which runs in its own Python."""

import json
import subprocess
from pathlib import Path
from typing import Any


def run_peer(python: str | None, script: str, *arguments: str) -> dict[str, Any]:
    """What a script of this folder prints as JSON in its last line."""
    file = Path(__file__).with_name(script)
    command = [str(python), str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} cannot run {script}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peer_versions(python: str | None, script: str) -> dict[str, str]:
    """Versions of the libraries of the peer, if there is one."""
    return {} if python is None else run_peer(python, script, "versions")
