"""The folder of a published model: complete, checkable, and free of this machine's paths."""

import hashlib
import importlib
import json
import os
import stat
import subprocess

import numpy as np
import pytest

from export import publish
from tests.export.conftest import assert_same_frames
from trainers import runs


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "mine"
    folder.mkdir()  # an empty folder is taken
    return publish.build(run.config.run_dir, folder, license="apache-2.0", repo="me/mine")


def test_the_folder_is_complete(published):
    top = {path.name for path in published.iterdir()}
    files = {"README.md", "LICENSE", "SHA256SUMS", "config.json", "evaluation.json", "model.weights.h5", "sample.gif"}
    assert top == files | {"saved_model"}
    assert (published / "saved_model" / "1" / "saved_model.pb").is_file()
    assert "Apache License" in (published / "LICENSE").read_text()
    assert stat.S_IMODE(published.stat().st_mode) == 0o755


def test_every_file_has_its_sum(published):
    lines = (published / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert set(sums) == files - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((published / name).read_bytes()).hexdigest() == digest


def test_the_card_has_front_matter_and_numbers(published):
    card = (published / "README.md").read_text()
    front = card.split("---")[1]
    assert "license: apache-2.0" in front and "- navsynth" in front
    assert "| trained_videos.psnr | 31.25 |" in card
    assert 'snapshot_download("me/mine")' in card


def test_the_cards_example_runs_where_the_card_is(published, run, monkeypatch):
    (code,) = (
        part for part in (published / "README.md").read_text().split("```python\n") if "saved_model.load" in part
    )
    monkeypatch.chdir(published)
    names: dict = {}
    exec(code.partition("```")[0], names)
    assert_same_frames(names["video"].numpy(), runs.load_model(run.config.run_dir)[0].generate(1, seed=7))


def test_the_weights_go_on_with_tfvidgen(published, run):
    """As the card says, without the download."""
    description = json.loads((published / "config.json").read_text())
    module = importlib.import_module(f"tfvidgen.models.{description['system']}")
    model = getattr(module, description["model"]["class"]).from_config(description["model"]["config"])
    model.build()
    model.load_weights(published / "model.weights.h5")
    expected, _ = runs.load_model(run.config.run_dir)
    np.testing.assert_array_equal(model.generate(2, seed=3), expected.generate(2, seed=3))


def test_no_path_of_this_machine_is_published(published, run):
    folder = os.path.dirname(run.config.run_dir)
    assert folder in runs.read(run.config.run_dir)["config"]["run_dir"]
    for path in published.rglob("*"):
        if path.is_file():
            assert folder.encode() not in path.read_bytes(), path


def test_wrong_settings_are_one_message(run, published, tmp_path, capsys):
    given = [f"--run_dir={run.config.run_dir}", f"--out={tmp_path / 'out'}"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, status, reason in (
        ([], 2, "--run_dir and --out are needed"),
        (given, 1, "--license is missing"),
        ([*given, "--license=cc-by-4.0"], 1, "name a file with it"),
        ([*given, "--license=apache-2.0", "--to=hf"], 1, "--repo must be user/name"),
        ([*given, "--license=apache-2.0", "--to=kaggle", "--repo=me/mine"], 1, "user/model/tensorFlow2/variation"),
        ([*given, "--license=apache-2.0", "--upload"], 2, "--upload needs --to"),
        ([given[0], f"--out={tmp_path / 'full'}", "--license=apache-2.0"], 1, "is not an empty folder"),
    ):
        assert publish.main(arguments) == status, arguments
        assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_commands_are_the_hubs_own(tmp_path):
    assert publish.upload_command("hf", tmp_path, "me/mine") == ["hf", "upload", "me/mine", str(tmp_path), "."]
    command = publish.upload_command("kaggle", tmp_path, "me/mine/tensorFlow2/base")
    assert command[1] == "-c" and command[3:] == ["me/mine/tensorFlow2/base", str(tmp_path)]
    compile(command[2], "command", "exec")


def test_uploading_runs_the_tool_that_is_installed(run, tmp_path, monkeypatch, capfd):
    """A program called `hf` that says what it was given, and then fails."""
    tool = tmp_path / "bin" / "hf"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "got $*"\n[ -e "$4/README.md" ] && exit 4\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    common = [f"--run_dir={run.config.run_dir}", "--license=apache-2.0", "--to=hf", "--repo=me/mine"]
    out = tmp_path / "out"
    assert publish.main([*common, f"--out={out}", "--upload"]) == 1
    captured = capfd.readouterr()
    assert f"got upload me/mine {out} ." in captured.out
    assert "ended with status 4; the folder is kept" in captured.err
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
