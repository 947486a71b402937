"""Messages that `docs/troubleshooting.md` explains are those that the programs print."""

import ast
import pathlib
import re

import pytest

import export
import tfvidgen
import trainers

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "\0"  # where a message has a value


def texts() -> list[str]:
    """Every text in the code of the programs, with a gap where a value is put into it."""
    found = []
    folders = [
        pathlib.Path(package.__file__).parent for package in (tfvidgen, trainers, export)
    ]  # of an installed wheel, too
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else GAP for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted() -> list[str]:
    headings = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("### ")]
    return [part for line in headings for part in re.findall(r"`([^`]+)`", line) if " " in part]


@pytest.fixture(scope="module")
def code() -> str:
    return "\n".join(texts())


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_of_the_code(code, message):
    """Each piece between two values stands in the code; a message may be put together at its colons and full stops."""
    pieces = [piece.strip(" .,;:()'") for piece in re.split(r"\.\.\.|: |\. ", message)]
    pieces = [piece for piece in pieces if len(piece.split()) > 1]
    assert pieces, "the quote has nothing to look for"
    for piece in pieces:
        assert piece in code, piece


def test_flags_that_are_named_exist():
    from export import saved_model
    from trainers import compare, evaluate, generate, mocogan, navsynth, prepare_data

    programs = (navsynth.Config, mocogan.Config, evaluate.Config, generate.Config, saved_model.Config, compare.Config)
    known = {name for program in programs for name in program.__dataclass_fields__} | {"dry_run", "config", "preset"}
    known |= set(re.findall(r'"--(\w+)"', pathlib.Path(prepare_data.__file__).read_text(encoding="utf-8")))
    for page in (PAGE, ROOT / "docs" / "scaling.md"):
        text = re.sub(
            r"^.*(#SBATCH|srun|sbatch|kill-on|--wait).*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        unknown = set(re.findall(r"(?<![\w-])--(\w+)(?![\w-])", text)) - known
        assert unknown <= {"signal", "requeue"}, f"{page.name}: {sorted(unknown)}"
