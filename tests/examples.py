"""What the tests of all example programs do alike: load, parse, and check misuse and help."""

import contextlib
import dataclasses
import importlib
from pathlib import Path

import pytest

from flowkit import pipelines


FOLDER = Path(__file__).parents[1] / "examples"


@contextlib.contextmanager
def loaded(name):
    """The module of an example, with its folder on the path, as if it were run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module(name)


def parsed(example, text, **changes):
    """The configuration of a command line, with some fields replaced."""
    config = pipelines.parse(example.Config, text.split())
    return dataclasses.replace(config, **changes)


def options_of(example):
    """The options of all groups of the configuration, as the command line names them."""
    for group in dataclasses.fields(example.Config):
        if dataclasses.is_dataclass(group.type):
            for field in dataclasses.fields(group.type):
                yield f"{group.name}.{field.name.replace('_', '-')}"


def check_misuse(example, line, tmp_path, capsys):
    """`line` is `options: message`: the program says so in one line and ends with status 2."""
    command, _, message = line.partition(": ")
    output = tmp_path / "run"
    with pytest.raises(SystemExit) as ended, pipelines.exit_on_misuse():
        example.main(parsed(example, f"{command} --output {output}"))
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert message in said
    assert not output.exists()


def check_every_option_is_among(example, misuse):
    words = misuse.replace(".no-", ".").replace(":", " ")
    assert [name for name in options_of(example) if f"--{name} " not in words] == []


def check_help_names_every_option(example, capsys):
    with pytest.raises(SystemExit):
        parsed(example, "--help")
    text = capsys.readouterr().out
    assert [name for name in options_of(example) if f"--{name}" not in text] == []
    assert (
        "```" not in text
    )  # the example of a docstring, run together into one paragraph
