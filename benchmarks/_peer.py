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


class Peer:
    """A script that stays alive, so that what it compiles serves all requests.

    It is given a request as a line of JSON, and answers with a line of JSON.
    """

    def __init__(self, python: str, script: str, *arguments: str):
        self._script = script
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request."""
        process: Any = self._process
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._script} has ended; its message is above.")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the script."""
        self._process.communicate()
