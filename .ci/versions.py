"""Tests a slice on the lowest and on the newest supported versions, each in an environment of its own.

    python .ci/versions.py FOLDER      # environments and runs go there

The versions stand in pyproject.toml and nowhere else: the lowest and the newest Python of `requires-python`, and on the
lowest one every package that `dependencies` names at its floor. Interpreters are taken from the PATH and from pyenv; one
that is not there, or does not start, is said and left out.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
# The slice: all contracts and exports of a system with learned codes and of an adversarial one with recurrent latents, in
# the forms that the tests list; and, in `check`, a smoke run with its export from the command line.
TESTS = ("tests/conformance", "tests/export/test_saved_model.py")
SYSTEMS = "navsynth or mocogan_categorical_patch"


def project() -> dict:
    """The `project` table of pyproject.toml."""
    try:
        import tomllib
    except ImportError:  # Python 3.10, where pytest brings it
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pythons(requires: str) -> tuple[str, str]:
    """Lowest and newest Python of e.g. ">=3.10,<3.14": ("3.10", "3.13")."""
    low, above = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", requires).groups()
    return f"3.{low}", f"3.{int(above) - 1}"


def floors(dependencies: list[str]) -> list[str]:
    """The requirement of each dependency that names a lowest version, at that version: "keras>=3.8" -> "keras==3.8"."""
    found = (re.match(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in dependencies)
    return [f"{match[1]}=={match[2]}" for match in found if match]


def candidates(version: str) -> Iterator[str]:
    """Programs that may be a Python of that version: of the PATH, then of pyenv."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        program = shutil.which(f"python{version}", path=folder or os.curdir)
        if program:
            yield program
    if shutil.which("pyenv"):
        listed = _output("pyenv", "versions", "--bare")
        for name in reversed([line for line in listed.split() if re.fullmatch(rf"{re.escape(version)}\.\d+", line)]):
            prefix = _output("pyenv", "prefix", name).strip()
            if prefix:
                yield str(pathlib.Path(prefix) / "bin" / "python3")


def _output(*command: str) -> str:
    """What a program prints; nothing where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def find(version: str) -> str | None:
    """The first program that starts, is a Python of that version and can make environments. A shim may refuse to start."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    return next((p for p in candidates(version) if _output(p, "-c", code).strip() == version), None)


def run(*command: str | pathlib.Path) -> None:
    """Runs a program in the root of the repository. Raises CalledProcessError."""
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def check(version: str, python: str, folder: pathlib.Path, pins: list[str]) -> None:
    """Makes an environment and runs the slice in it. Raises CalledProcessError."""
    environment = folder / version
    run(python, "-m", "venv", environment)
    own = environment / "bin" / "python"
    constraints = folder / f"{version}.txt"
    constraints.write_text("\n".join(pins))
    tools = ["pytest", "pytest-xdist"]
    run(own, "-m", "pip", "install", "--quiet", "-c", constraints, *tools, ".")
    installed = _output(str(own), "-m", "pip", "list", "--format=freeze").split()
    print(*(line for line in installed if re.match(r"(tensorflow|keras|numpy|scipy|h5py)==", line)), flush=True)
    run(own, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder", *TESTS, "-k", SYSTEMS)
    smoke = folder / f"smoke-{version}"
    run(own, "-m", "trainers.navsynth", "--preset=smoke", f"--run_dir={smoke}")
    run(own, "-m", "export.saved_model", f"--run_dir={smoke}", f"--out={smoke / 'model'}")


def main() -> int:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    described = project()
    lowest, newest = pythons(described["requires-python"])
    failed = []
    for version, pins in ((lowest, floors(described["dependencies"])), (newest, [])):
        name = f"Python {version} with {'the lowest' if pins else 'the newest'} packages"
        python = find(version)
        if python is None:
            print(f"{name}: not tested, there is no python{version} here that starts", flush=True)
            continue
        print(f"{name}: {python}", flush=True)
        start = time.monotonic()
        try:
            check(version, python, folder, pins)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}", flush=True)
            failed.append(name)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
