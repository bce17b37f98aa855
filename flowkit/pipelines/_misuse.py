"""How a program tells its user what went wrong."""

import contextlib
import io
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar


Config = TypeVar("Config")

_MISUSE = (ValueError, OSError, ImportError, FloatingPointError)
_OURS = ("flowkit", "__main__")

# About what the user named or has not installed, wherever they are raised.
_OF_USERS = (
    FileExistsError,
    FileNotFoundError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


@contextlib.contextmanager
def exit_on_misuse(*, interrupted: str = "Interrupted.") -> Iterator[None]:
    """Ends the program with one line and exit status 2 if it was used wrongly.

    ```python
    if __name__ == "__main__":
        with fk.pipelines.exit_on_misuse():
            main(fk.pipelines.parse(Config))
    ```

    An error counts as misuse if flowkit or the program itself raised it (a `ValueError`, an
    `OSError` such as a missing file, a missing extra, a diverged run). Any other error is a
    fault and keeps its traceback. Ctrl-C ends with `interrupted` and exit status 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        # 128 plus the number of the signal, as shells report it.
        raise SystemExit(130) from None
    except _MISUSE as error:
        if not _is_ours(error):
            raise
        message = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_ours(error: BaseException) -> bool:
    """Whether the innermost frame of the error lies in flowkit or in the program."""
    if isinstance(error, _OF_USERS):
        return True
    # A traceback ends with the frame that raised the error.
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _OURS


def parse(
    config: type[Config], arguments: Sequence[str] | None = None, default: Any = None
) -> Config:
    """A dataclass of options from the command line, by tyro.

    A wrong option is a `ValueError`, which `exit_on_misuse` reports in one line.

    **Arguments:**

    - `config`: the dataclass.
    - `arguments`: the words of the command line, by default those of the program.
    - `default`: an instance that holds the default values.
    """
    try:
        import tyro
    except ImportError as error:
        raise ImportError(
            'Command lines are read by tyro: `pip install "flowkit-jax[examples]"`.'
        ) from error
    options: dict[str, Any] = {} if default is None else {"default": default}
    # tyro prints its message and exits; the message is caught to become that of an
    # error.
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config, args=arguments, **options)
    except SystemExit as ended:
        if not ended.code:  # as after --help
            raise
        raise ValueError(_first_paragraph(said.getvalue())) from None


def _first_paragraph(box: str) -> str:
    """What tyro says in a box, up to the first line across it."""
    words = []
    for line in box.splitlines():
        if not line.startswith("│"):
            continue
        line = line.strip("│ ")
        if line.startswith("─"):
            break
        words.append(line)
    return " ".join(words) or box
