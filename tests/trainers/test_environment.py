"""Where a run was trained: the commit of a checkout without `git`, and processors of any kind."""

import os
import pathlib
import shutil
import subprocess

import pytest

from trainers import environment

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def without_git(monkeypatch, tmp_path):
    """What is read must be there without the program."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def repository(root: pathlib.Path, **files: str) -> pathlib.Path:
    for name, text in files.items():
        path = root / ".git" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "files",
    [
        {"HEAD": f"{COMMIT}\n"},
        {"HEAD": "ref: refs/heads/a/b\n", "refs/heads/a/b": f"{COMMIT}\n"},
        {"HEAD": "ref: refs/heads/main\n", "packed-refs": f"# pack-refs with: peeled\n{COMMIT} refs/heads/main\n"},
        {
            "HEAD": "ref: refs/heads/main\n",
            "packed-refs": f"{COMMIT[::-1]} refs/heads/a/refs/heads/main\n{COMMIT} refs/heads/main\n",
        },
        {
            "HEAD": "ref: refs/heads/main\n",
            "refs/heads/main": COMMIT,
            "packed-refs": f"{COMMIT[::-1]} refs/heads/main\n",
        },
    ],
    ids=["detached", "branch", "packed", "packed beside another", "branch wins over packed"],
)
def test_the_commit_of_a_checkout(tmp_path, files):
    assert environment.git(repository(tmp_path, **files)) == {"commit": COMMIT, "modified": None}


def test_the_commit_of_a_worktree(tmp_path):
    main = repository(
        tmp_path / "main",
        **{
            "HEAD": "ref: refs/heads/main\n",
            "refs/heads/side": COMMIT,
            "worktrees/side/HEAD": "ref: refs/heads/side\n",
            "worktrees/side/commondir": "../..\n",
        },
    )
    for target in (main / ".git" / "worktrees" / "side", pathlib.Path("../main/.git/worktrees/side")):
        side = tmp_path / "side"
        side.mkdir(exist_ok=True)
        (side / ".git").write_text(f"gitdir: {target}\n")
        assert environment.git(side)["commit"] == COMMIT


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"HEAD": ""},
        {"HEAD": "ref: refs/heads/main\n"},  # no commit yet
        {"HEAD": "ref: refs/heads/.invalid\n"},  # reftable
        {"HEAD": "not a commit\n"},
        {"HEAD": "ref: refs/heads/main\n", "packed-refs": "cut refs/heads/main\n\n refs/heads/main\n"},
    ],
)
def test_odd_repositories_have_no_commit(tmp_path, files):
    assert environment.git(repository(tmp_path, **files)) is None


def test_files_that_are_no_text_have_no_commit(tmp_path):
    (tmp_path / ".git").write_bytes(b"\xff\xfe")
    assert environment.git(tmp_path) is None
    (tmp_path / ".git").write_text("gitdir: /nowhere")
    assert environment.git(tmp_path) is None


def test_folders_above_are_not_looked_at(tmp_path):
    repository(tmp_path, HEAD=COMMIT)
    (tmp_path / "site-packages").mkdir()
    assert environment.git(tmp_path / "site-packages") is None


def test_tracked_files_that_differ_from_the_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    if not shutil.which("git"):
        pytest.skip("needs git")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as in a hook
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    (tmp_path / "untracked").write_text("1")
    assert environment.git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (tmp_path / "file").write_text("22")
    assert environment.git(tmp_path)["modified"] is True
    git("pack-refs", "--all")
    assert environment.git(tmp_path)["commit"] == git("rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("text", "name", "units"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu sse4_2 avx2 avx512f amx_bf16\n",
            "Some CPU @ 2 GHz",
            ("sse4_2", "avx2", "avx512f", "amx_bf16"),
        ),
        ("processor : 0\nFeatures\t: fp asimd sve bf16\n", None, ("asimd", "sve", "bf16")),
        ("", None, ()),
    ],
)
def test_processors_of_any_kind(monkeypatch, text, name, units):
    monkeypatch.setattr(environment, "_cpuinfo", lambda: text)
    assert environment.vector_units() == units
    found = environment.processor()
    assert found["vector_units"] == list(units) and found["cores"] >= 1
    assert found["name"] == name or name is None and isinstance(found["name"], str)
