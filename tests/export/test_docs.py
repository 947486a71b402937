"""Commands of the documents are taken by the programs that they name."""

import importlib
import pathlib
import re
import shlex

import pytest

from export import client
from trainers import cli

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "serving.md").read_text()
COMMANDS = re.findall(r"^    python -m (export\.\S+) (.*?)(?:  +#.*)?$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("module", "arguments"), COMMANDS, ids=[" ".join(command) for command in COMMANDS])
def test_a_command_is_taken(module, arguments):
    given = shlex.split(arguments)
    config_class = (
        client.COMMANDS[given.pop(0)] if module == "export.client" else importlib.import_module(module).Config
    )
    config, _ = cli.parse(config_class, {}, given)
    assert config != config_class()  # or the example would be one of nothing


def test_there_are_commands():
    assert {module for module, _ in COMMANDS} == {
        f"export.{name}" for name in ("saved_model", "serve", "client", "formats", "publish")
    }
