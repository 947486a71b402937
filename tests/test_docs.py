"""What the documents say of the code is so: links, commands, files, systems."""

import ast
import importlib
import importlib.util
import inspect
import pathlib
import re
import shlex

import pytest

import tfvidgen
import tfvidgen.models
from export import client
from trainers import cli

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("tfvidgen", "trainers", "export")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
}
# What is said of earlier versions may name what is gone.
PRESENT = {name: text for name, text in PAGES.items() if name != "CHANGELOG.md"}


def located(path: str) -> pathlib.Path:
    """A file of the repository; one of a package where that is installed."""
    package, _, rest = path.partition("/")
    return pathlib.Path(importlib.util.find_spec(package).origin).parent / rest if package in PACKAGES else ROOT / path


def blocks(text: str) -> str:
    """The fenced and the indented code of a page, one command a line, without comments."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^ {4}(\S.*(?:\n {5,}\S.*)*)", text, re.MULTILINE))
    return re.sub(r" {2,}#.*$", "", re.sub(r"\\\n\s*", "", f"{fenced}\n{indented}"), flags=re.MULTILINE)


# ---------------------------------------------------------------- links
def anchors(text: str) -> set[str]:
    headings = re.findall(
        r"^#+ +(.*?) *$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        if re.match(r"https?://", link):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for link in re.findall(r"\]\(([^)\s#]+\.md)[)#]", PAGES[page]):
            found = str(((ROOT / page).parent / link).resolve().relative_to(ROOT.resolve()))
            waiting += [found] if found not in reached else []
    assert reached == set(PAGES)


# ---------------------------------------------------------------- commands
COMMANDS = sorted(
    {
        (module, arguments)
        for text in PRESENT.values()
        for module, arguments in re.findall(
            r"python -m ((?:trainers|export|benchmarks)\.\w+)(.*)$", blocks(text), re.MULTILINE
        )
    }
)


@pytest.mark.parametrize(("module", "arguments"), COMMANDS, ids=[" ".join(command) for command in COMMANDS])
def test_a_command_is_taken_by_its_program(module, arguments):
    """It is parsed; where a program has a parser of its own, its flags are looked up."""
    given = [part for part in shlex.split(re.sub(r"[\[\]]", "", arguments)) if part != "..."]
    program = importlib.import_module(module)
    if hasattr(program, "argparse"):
        known = set(re.findall(r'"--(\w+)"', inspect.getsource(program)))
        assert {flag[2:].partition("=")[0] for flag in given if flag.startswith("--")} <= known
        return
    config_class = client.COMMANDS[given.pop(0)] if program is client else program.Config
    presets = getattr(program, "PRESETS", {})
    given = [part for part in given if not part.startswith("--config=")]  # that run is not here
    cli.parse(config_class, presets, given, arguments="PATH")


def test_programs_and_targets_that_are_named_exist():
    text = "\n".join(PRESENT.values())
    for module in {*re.findall(r"python -m ((?:trainers|export|benchmarks)\.\w+)", text)}:
        assert 'if __name__ == "__main__"' in inspect.getsource(importlib.import_module(module)), module
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {
        *re.findall(r"`make (\w+)`", text),
        *re.findall(r"^(?: {4}|(?=make \w+(?: {2}|$)))make (\w+)", text, re.MULTILINE),
    } <= targets


@pytest.mark.parametrize("page", [page for page, text in PRESENT.items() if "```python" in text])
def test_imports_of_examples_work(page):
    for example in re.findall(r"^```python\n(.*?)^```", PRESENT[page], re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(ast.unparse(node), {})
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("tfvidgen."):
                eval(ast.unparse(node), {"tfvidgen": tfvidgen})


# ---------------------------------------------------------------- files and names
def test_files_and_modules_that_are_named_exist():
    missing = []
    for page, text in PRESENT.items():
        named = re.findall(r"`((?:docs|tests|benchmarks|\.ci|tfvidgen|trainers|export)/[\w./-]+)`", text)
        missing += [
            f"{page}: {path}" for path in named if not re.search(r"\bx\.py|_x\.py", path) and not located(path).exists()
        ]
        for name in re.findall(r"`((?:tfvidgen|trainers|export)(?:\.\w+)+)`", text):
            parent, _, last = name.rpartition(".")
            try:
                found = hasattr(importlib.import_module(parent), last) or importlib.util.find_spec(name)
            except ModuleNotFoundError:  # the parent is a class, or is not there
                found = False
            missing += [] if found or last in ("X", "x") else [f"{page}: {name}"]
    assert not missing


def layout() -> dict[str, str]:
    """Folder of a package -> the lines of architecture.md's Layout that are about what lies in it."""
    lines = re.search(r"## Layout\n(.*?)\n## ", PAGES["docs/architecture.md"], re.DOTALL)[1].splitlines()
    lines = [line.split("benchmarks/")[0] for line in lines if line.startswith("    ")]
    found, stack = {}, []  # stack: (indentation, folder)
    for line in lines:
        indent = len(line) - len(line.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        parent = stack[-1][1] if stack else ""
        found[parent] = found.get(parent, "") + line + "\n"
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            if name.endswith("/"):
                folder = f"{parent}{name}"
                stack.append((indent, folder))
                found[folder] = line + "\n"
    return {folder: text for folder, text in found.items() if folder.partition("/")[0] in PACKAGES}


def test_the_layout_of_the_architecture_is_that_of_the_packages():
    described, systems = layout(), set(tfvidgen.models.systems().values())
    assert set(PACKAGES) <= {folder.rstrip("/") for folder in described}
    wrong = []
    for folder, text in described.items():
        # one line may name files of a folder, a folder in it and the files of that
        near = [other for other in described if other.startswith(folder) or folder.startswith(other)]
        for name in re.findall(r"(?<![\w/.])(\w+\.py)\b", text):
            if not any((located(other) / name).exists() for other in near):
                wrong.append(f"{folder}{name} is not there")
        for path in located(folder).glob("[a-z]*.py"):
            if not re.search(rf"\b{path.stem}\b", text) and not (path.stem in systems and "..." in text):
                wrong.append(f"{folder}{path.name} is not named")
    for package in PACKAGES:
        for path in located(f"{package}/").rglob("__init__.py"):
            folder = "/".join([package, *path.parent.relative_to(located(f"{package}/")).parts]) + "/"
            wrong += [] if folder in described else [f"{folder} is not named"]
    assert not wrong


# ---------------------------------------------------------------- systems
def rows() -> list[list[str]]:
    table = re.search(r"\| system \|.*?\n\|[-|]+\n(.*?)\n\n", PAGES["docs/papers.md"], re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_systems_are_those_of_the_files_the_papers_and_the_trainers():
    systems = tfvidgen.models.systems()
    modules = {path.stem for path in located("tfvidgen/models").glob("*.py")} - {"__init__", "base"}
    assert set(systems.values()) == modules
    assert {row[0]: row[3] for row in rows()} == {
        name: f"`python -m trainers.{module}`" for name, module in systems.items() if name.lower() == module
    }
    assert {row[0].lower() for row in rows()} == modules
    for module in modules:
        trainer = importlib.import_module(f"trainers.{module}")
        assert "smoke" in trainer.PRESETS and trainer.Config and trainer.build_model, module


def test_every_system_is_a_name_of_the_library():
    """What the files are read for is what they define; the documents name all of it."""
    systems = tfvidgen.models.systems()
    for module in set(systems.values()):
        defined = importlib.import_module(f"tfvidgen.models.{module}")
        public = {
            name
            for name, value in vars(defined).items()
            if inspect.isclass(value) and issubclass(value, tfvidgen.VideoGenerator)
            if value.__module__ == defined.__name__ and not name.startswith("_")
        }
        assert public == {name for name in systems if systems[name] == module}
        for name in public:
            assert getattr(tfvidgen, name) is getattr(defined, name)
            assert name in dir(tfvidgen)
            assert name in PAGES["docs/papers.md"]
