"""What a user meets first: importing, asking for help, installing."""

import ast
import importlib.metadata
import importlib.resources
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it there
    import tomli as tomllib

import tfvidgen

ROOT = pathlib.Path(__file__).parents[1]  # holds pyproject.toml, also where the packages come from an installed wheel
PACKAGES = ("tfvidgen", "trainers", "export")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def sources(package: str) -> list[pathlib.Path]:
    folder = pathlib.Path(importlib.util.find_spec(package).origin).parent
    return sorted(folder.rglob("*.py"))


def programs() -> list[str]:
    """Modules of `trainers` and `export` that are run with `python -m`."""
    return [
        f"{package}.{path.stem}"
        for package in ("trainers", "export")
        for path in sources(package)
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh process that sees the same packages."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def distributions(requirements: list[str]) -> set[str]:
    """Names of the required distributions, in the normalised form."""
    return {normalised(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_import_is_light():
    done = python("import sys, tfvidgen; print(sorted({'tensorflow', 'keras', 'sklearn', 'scipy'} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_data_and_pictures_need_no_tensorflow():
    block = "import sys; sys.modules.update(tensorflow=None, keras=None)"
    done = python(f"{block}; import tfvidgen.visualize, tfvidgen.data.collection")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", programs())
def test_help_answers_without_tensorflow(program):
    block = "import runpy, sys; sys.modules.update(tensorflow=None, keras=None); sys.argv[0] = sys.argv[1]; "
    done = python(block + "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)", program, "--help")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3
    assert not done.stderr


def test_there_are_programs():
    assert "trainers.navsynth" in programs()


# ---------------------------------------------------------------- version
def test_the_version_has_one_source(project):
    assert "version" in project["dynamic"]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["dynamic"]["version"] == {"attr": "tfvidgen.__version__"}
    assert f"\nversion: {tfvidgen.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_changelog_is_that_of_this_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", tfvidgen.__version__]


# ---------------------------------------------------------------- dependencies
# Where the name of a distribution is not that of what is imported, but for case and hyphens.
MODULES = {
    "absl-py": "absl",
    "grpcio": "grpc",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "tensorflow-serving-api": "tensorflow_serving",
}
# Run or needed by name, and not imported here: where to find that name.
NOT_IMPORTED = {
    "build": (".ci/run", "-m build"),
    "myst-parser": ("docs/conf.py", '"myst_parser"'),
    "pytest-xdist": ("Makefile", "pytest -n"),
    "ruff": ("Makefile", "bin/ruff"),
    "setuptools": ("docs/dependencies.md", "tensorflow-hub imports `pkg_resources`"),
}


def imported_modules(paths) -> set[str]:
    """Dotted names of what files import, with all their parents; `pytest.importorskip` and `find_spec` count."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("importorskip", "find_spec")):
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            else:
                continue
            for name in names:
                parts = name.split(".")
                found |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    return found


def test_every_dependency_is_used(project):
    """What users install is imported by the packages; the extras of development by tests or tools."""
    packages = imported_modules(path for package in PACKAGES for path in sources(package))
    tools = imported_modules(
        path for folder in ("tests", "benchmarks", "docs", ".ci") for path in sorted((ROOT / folder).rglob("*.py"))
    )
    unused = []
    for extra, requirements in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        used = tools if extra in ("bench", "dev", "docs") else packages
        for name in sorted(distributions(requirements) - {"tfvidgen"}):
            if name in NOT_IMPORTED:
                file, words = NOT_IMPORTED[name]
                if words not in (ROOT / file).read_text(encoding="utf-8"):
                    unused.append(f"{name}: no {words!r} in {file}")
            elif MODULES.get(name, name.replace("-", "_")) not in used:
                unused.append(f"{name}: declared {f'in [{extra}]' if extra else 'as needed'} and not imported")
    assert not unused


def test_names_that_are_mapped_are_declared(project):
    declared = distributions(project["dependencies"] + sum(project["optional-dependencies"].values(), []))
    assert {*MODULES, *NOT_IMPORTED} <= declared


def test_every_import_is_declared(project):
    declared = distributions(project["dependencies"] + sum(project["optional-dependencies"].values(), []))
    providers = importlib.metadata.packages_distributions()
    undeclared = {}
    for path in (path for package in PACKAGES for path in sources(package)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - set(PACKAGES):
                if not {normalised(provider) for provider in providers.get(name, [name])} & declared:
                    undeclared.setdefault(name, path.name)
    assert not undeclared, "imported but not in pyproject.toml"


def test_every_dependency_has_its_reason(project):
    reasons = normalised((ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8"))
    requirements = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    assert [name for name in sorted(distributions(requirements) - {"tfvidgen"}) if f"`{name}`" not in reasons] == []


def test_extras_that_are_asked_for_exist(project):
    """By the documents, the programs' messages and the Makefile."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md", ROOT / "Makefile"]
    texts = [path.read_text(encoding="utf-8") for path in [*pages, *(p for name in PACKAGES for p in sources(name))]]
    asked = set(re.findall(r"(?:tfvidgen|pip install (?:-e )?'\.)\[(\w+)\]", "\n".join(texts)))
    assert "serving" in asked and asked <= set(project["optional-dependencies"])


def test_licence_is_stated_and_shipped(project):
    assert project["license"] == "Apache-2.0"
    for name in project["license-files"]:
        assert "Apache License" in (ROOT / name).read_text(encoding="utf-8")


def test_hooks_before_a_commit_are_those_of_make_lint():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"repo: (\S+)", text)) == {
        "local"
    }  # what runs is the environment's own, and nothing is fetched
    linted = re.findall(r"bin/ruff (\w+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert re.findall(r"entry: \.venv/bin/ruff (\w+)", text) == linted == ["check", "format"]


def test_type_checkers_are_told_of_the_annotations():
    for package in PACKAGES:  # where tests run against an installed wheel, of that
        assert (importlib.resources.files(package) / "py.typed").is_file(), package
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["package-data"] == {"*": ["py.typed"]}


# ---------------------------------------------------------------- supported versions
@pytest.fixture(scope="module")
def versions():
    """The script that tests the lowest and the newest versions in CI."""
    found = importlib.util.spec_from_file_location("versions", ROOT / ".ci" / "versions.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_supported_pythons_are_the_same_everywhere(project, versions):
    lowest, newest = versions.pythons(project["requires-python"])
    low, high = (int(version.partition(".")[2]) for version in (lowest, newest))
    classified = {line.rpartition(" ")[2] for line in project["classifiers"] if ":: Python :: 3." in line}
    assert classified == {f"3.{minor}" for minor in range(low, high + 1)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"(3, {low}) <= v <= (3, {high})" in makefile
    assert makefile.count(f"{lowest} to {newest}") == 2
    assert f"Python {lowest} to {newest}" in (ROOT / "README.md").read_text(encoding="utf-8")
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert ruff["target-version"] == f"py3{low}"


def test_every_needed_package_has_a_floor(project, versions):
    assert distributions(versions.floors(project["dependencies"])) == distributions(project["dependencies"])
    assert versions.floors(["a>=1.2,<3", "b-c>=0.16.1", "d[x]>=2", "e<4"]) == ["a==1.2", "b-c==0.16.1"]


def test_an_interpreter_that_does_not_start_is_passed_over(versions, tmp_path, monkeypatch):
    """A shim of a version manager is on the PATH and refuses; another of that name starts and is of another version."""
    this = "{}.{}".format(*sys.version_info[:2])
    for name, script in {
        "refuses": "exit 127",
        "lies": "echo 2.7",
        "starts": f'exec "{sys.executable}" "$@"',
    }.items():
        (tmp_path / name).mkdir()
        program = tmp_path / name / f"python{this}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    folders = [str(tmp_path / name) for name in ("refuses", "lies", "starts")]
    monkeypatch.setenv("PATH", os.pathsep.join(folders[:2]))
    assert versions.find(this) is None
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    assert versions.find(this) == str(tmp_path / "starts" / f"python{this}")


def test_an_interpreter_of_a_version_manager_is_found_by_its_folder(versions, tmp_path, monkeypatch):
    this = "{}.{}".format(*sys.version_info[:2])
    home = tmp_path / "versions" / f"{this}.1" / "bin"
    home.mkdir(parents=True)
    (home / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pyenv").write_text(
        f'#!/bin/sh\ncase "$1" in versions) echo 2.7.18; echo {this}.1;; prefix) echo "{home.parent}";; esac\n'
    )
    for program in (home / "python3", tmp_path / "bin" / "pyenv"):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert versions.find(this) == str(home / "python3")
    assert versions.find("2.7") is None  # what stands in that folder is another version


def test_ci_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
