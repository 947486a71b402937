"""The folder of a published model: complete, checkable, and free of this machine's paths."""

import dataclasses
import hashlib
import importlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess

import numpy as np
import pytest

from export import card, public, publish, saved_model
from tests.export.conftest import assert_same_frames
from tests.systems import SYSTEMS
from tfvidgen import runs as library
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
    assert 'license: "apache-2.0"' in front and '- "navsynth"' in front
    assert "| `trained_videos.psnr` | 31.25 |" in card
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
    model = library.build_model(json.loads((published / "config.json").read_text()))
    model.load_weights(published / "model.weights.h5")
    expected, _ = runs.load_model(run.config.run_dir)
    np.testing.assert_array_equal(model.generate(2, seed=3), expected.generate(2, seed=3))


# ---------------------------------------------------------------- what stays at home
SECRET = "s3cret"
PLACES = (
    f"/home/{SECRET}/set",
    f"~{SECRET}/set",
    f"../{SECRET}/set",
    f"{SECRET}/set/",
    f"C:\\Users\\{SECRET}\\set",
    f"file:///home/{SECRET}/set",
    f"https://{SECRET}:{SECRET}@{SECRET}.org/set?key={SECRET}",
    f"grpc://{SECRET}:8500",
    f"i3d=/home/{SECRET}/w.pt,vgg16=/{SECRET}/set",
    f"--data_dir=/{SECRET}/set",
    f"{SECRET}@{SECRET}:/{SECRET}/set",
)
FREE_TEXT = [f"{SECRET}", f"python -m trainers.navsynth --data_dir={SECRET}", *PLACES]


def planted(content, text, path=()):
    """The content of a config.json with a text in the place of every text but those that a model is built from."""
    if isinstance(content, dict):
        return {key: planted(value, text, (*path, key)) for key, value in content.items()}
    if isinstance(content, list):
        return [planted(value, text, path) for value in content]
    return text if isinstance(content, str) and path[0] not in ("system", "model", "labels") else content


def with_secrets(description: dict, text: str, place: str) -> dict:
    """A run's description that names, wherever it can, what is nobody's business; `place` is where its data lies."""
    content = planted(description, text)
    content["data"]["source"] = place
    content["config"] |= {"dataset": place, "image_dataset": place, "a_new_setting": text, "init_from": text, text: 3}
    content["data"] |= {"host": text, text: text}
    content["versions"] |= {text: "1.0", "commit": text}
    content["environment"] = {"command": [text], "host": text, "user": text, "devices": {text: [text]}, "date": text}
    content["resolved"] = {"precision": "bfloat16", "data_dir": text}
    content["forms"] = {"settings": 2, "written_by": text}
    return content


@pytest.mark.parametrize("system", sorted({s.model_class.__module__.split(".")[-1] for s in SYSTEMS}))
def test_numbers_and_choices_are_public_and_other_text_is_not(system):
    config_class = importlib.import_module(f"trainers.{system}").Config
    config = dataclasses.asdict(config_class())
    public_settings = public.settings(system, config)
    for field in dataclasses.fields(config_class):
        if field.type != "str" or field.metadata["choices"] or field.name == "dataset":
            assert public_settings[field.name] == config[field.name], field.name
    description = {"system": system, "config": config, "data": {"source": "", "digest": "a" * 64}, "versions": {}}
    for place in PLACES:
        for text in FREE_TEXT:
            content = public.description(with_secrets(description, text, place))
            assert SECRET not in json.dumps(content), (text, place)
            assert content["data"]["source"] == content["config"]["dataset"] != ""
            assert content["resolved"] == {"precision": "bfloat16"} and content["forms"] == {"settings": 2}


def test_data_is_called_by_the_last_part_of_its_path():
    names = {"actors": "actors", "a/b.npz": "b.npz", "/data/My set (2)/": "My set (2)", "C:\\d\\clips": "clips"}
    names |= {"..": public.UNNAMED, "~": public.UNNAMED, "/": public.UNNAMED, "~me": public.UNNAMED}
    names |= {os.fsdecode(b"/data/caf\xe9"): "caf?"}
    assert {path: public.last_part(path) for path in names} == names


def test_settings_that_are_names_are_public():
    given = {"augmentation": "colour, cutout", "image_dataset": "/data/faces"}
    assert public.settings("rjgan", given) == {"augmentation": "colour, cutout", "image_dataset": "faces"}
    assert "augmentation" not in public.settings("rjgan", {"augmentation": f"colour,{SECRET}"})


def test_of_an_evaluation_its_numbers_and_protocol_are_public():
    results = {
        "step": 7,
        "new_videos": {"fcs": 0.5, "run": SECRET, f"/{SECRET}": 1.0},
        "protocol": {"size": 64, "psnr": "range 255", "weights": f"i3d=/{SECRET}"},
        "versions": {"numpy": "2.4.0", "host": SECRET},
        "command": SECRET,
        "held_out_cells": None,
    }
    assert public.evaluation(results) == {
        "step": 7,
        "new_videos": {"fcs": 0.5},
        "protocol": {"size": 64, "psnr": "range 255"},
        "versions": {"numpy": "2.4.0"},
        "held_out_cells": None,
    }


@pytest.fixture(scope="module")
def secretive(run, tmp_path_factory):
    """A run folder whose files are full of what is nobody's business, in a place that is nobody's business either."""
    run_dir = tmp_path_factory.mktemp(SECRET) / "run"
    shutil.copytree(run.config.run_dir, run_dir, ignore=shutil.ignore_patterns("export"))
    place = os.fsdecode(f"/home/{SECRET}/caf".encode() + b"\xe9")
    description = runs.read(run_dir)
    content = {
        **with_secrets(description, f"/home/{SECRET}/set", place),
        "forms": description["forms"],
    }  # text is refused there
    (run_dir / "config.json").write_text(json.dumps(content))
    measured = json.loads((run_dir / "evaluation.json").read_text())
    (run_dir / "evaluation.json").write_text(json.dumps({**measured, "run": SECRET, "protocol": {"host": SECRET}}))
    return run_dir


def assert_says_nothing(folder, run_dir):
    repository = os.path.dirname(os.path.dirname(publish.__file__))
    host, user = socket.gethostname(), os.path.expanduser("~")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for known in (SECRET, str(run_dir), repository, *([host] if len(host) > 4 else []), user):
            assert known.encode() not in content, (path, known)


def test_no_published_byte_tells_of_this_machine(secretive, run, tmp_path):
    folder = publish.build(secretive, tmp_path / "mine", license="apache-2.0")
    assert_says_nothing(folder, secretive)
    description = json.loads((folder / "config.json").read_text())
    metadata = json.loads((folder / "saved_model" / "1" / "metadata.json").read_text())
    assert description["data"]["source"] == metadata["config"]["dataset"] == "caf?"
    assert "videos of `caf?`" in (folder / "README.md").read_text()
    assert description["config"]["learning_rate"] == run.config.learning_rate
    test_the_weights_go_on_with_tfvidgen(folder, run)


@pytest.mark.long
def test_no_exported_byte_tells_of_this_machine(secretive):
    assert_says_nothing(saved_model.export_run(secretive), secretive)


@pytest.mark.parametrize("name", ["lr[1e-3]", os.fsdecode(b"caf\xe9")])
@pytest.mark.long
def test_any_folder_is_published_to(run, tmp_path, name):
    folder = publish.build(run.config.run_dir, tmp_path / name, license="apache-2.0")
    test_every_file_has_its_sum(folder)
    test_the_weights_go_on_with_tfvidgen(folder, run)
    assert [path.name for path in tmp_path.iterdir()] == [name]


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


@pytest.mark.parametrize(("license", "name"), [("apache-2.0", "Apache 2.0"), ("cc-by-4.0", "cc-by-4.0")])
def test_kaggle_is_given_the_licence(tmp_path, license, name):
    """A module called `kagglehub` that says what it was given."""
    (tmp_path / "kagglehub.py").write_text(
        "def model_upload(*given, license_name): print(*given, license_name, sep='|')"
    )
    command = publish.upload_command("kaggle", tmp_path / "out", "me/mine/tensorFlow2/base", license)
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == f"me/mine/tensorFlow2/base|{tmp_path / 'out'}|{name}"


@pytest.mark.parametrize(
    "kind",
    [
        "link",
        "dangling",
        "folder",
        pytest.param("pipe", marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")),
    ],
)
def test_what_is_no_file_of_the_run_is_not_published(run, tmp_path, kind):
    copied = tmp_path / "run"
    shutil.copytree(run.config.run_dir, copied, ignore=shutil.ignore_patterns("export"))
    (tmp_path / "other").write_text(SECRET)
    sample = copied / "new.png"
    if kind in ("link", "dangling"):
        sample.symlink_to(tmp_path / ("other" if kind == "link" else "nothing"))
    elif kind == "folder":
        sample.mkdir()
    else:
        os.mkfifo(sample)
    with pytest.raises(ValueError, match="is a link" if sample.is_symlink() else "not a regular file"):
        publish.build(copied, tmp_path / "out", license="apache-2.0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("license", ["mit\nlibrary_name: evil", "<b>", "a b", "1.0", "no: yes", ""])
def test_a_licence_is_an_identifier(run, tmp_path, license):
    (tmp_path / "text").write_text("any")
    with pytest.raises(ValueError, match="--license"):
        publish.build(run.config.run_dir, tmp_path / "out", license, str(tmp_path / "text"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("repo", ['me/"); evil("', "me/mine\n", "-x/y", "../mine"])
def test_a_repository_is_names_alone(run, tmp_path, repo):
    with pytest.raises(ValueError, match="--repo"):
        publish.build(run.config.run_dir, tmp_path / "out", "apache-2.0", repo=repo)
    with pytest.raises(ValueError, match="--repo"):
        publish.upload_command("hf", tmp_path, repo)


NASTY = (
    "<script>evil</script>",
    "a\n\n# evil\n---",
    "`<i>evil</i>`",
    "evil | <b>",
    "[evil](javascript:evil)",
    "\x1b[31mevil",
    "``",
)


def test_a_card_shows_what_others_wrote_as_text(published):
    """Names, labels, versions, metrics and protocol are code spans on one line, and the front matter is strings."""
    metadata = json.loads((published / "saved_model" / "1" / "metadata.json").read_text())
    del metadata["versions"], metadata["labels"]

    def written(texts) -> str:
        given = {
            **metadata,
            "labels": {"identity_names": list(texts)},
            "data": {**metadata["data"], "source": texts[0], "digest": texts[1]},
            "versions": {"numpy": texts[2]},
            "metrics": {"new": {texts[3]: 1.0}, "protocol": {"psnr": texts[4]}},
            "system": texts[1],
        }
        return card.model_card(given, license=texts[1])

    nasty, plain = written(NASTY), written(["plain"] * len(NASTY))
    assert nasty.count("\n") == plain.count("\n") and "\x1b" not in nasty
    _, front, body = nasty.split("---\n", 2)
    for line in (line for line in front.splitlines() if "evil" in line):
        assert json.loads(re.sub(r"^(license: |- )", "", line)) == NASTY[1]
    assert front.count("evil") == 2
    spans = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)")
    rest = "\n".join(spans.sub("", line) for line in body.replace("```", "").splitlines())
    assert body.count("evil") >= 2 * len(NASTY) and "evil" not in rest and "<" not in rest
    assert "evil \\| <b>` |" in nasty
    with pytest.raises(ValueError, match="pass --name"):
        card.model_card({**metadata, "name": "x; evil"})


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
    assert "exited with status 4; the folder is kept" in captured.err
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
