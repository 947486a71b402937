"""`tfvidgen.load`: a run folder becomes its model again, without its data and without a training program."""

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfvidgen
from tests.marks import first
from tests.systems import SYSTEMS
from tfvidgen import runs
from tfvidgen.models.navsynth import NAVSynth
from trainers import runs as trainer_runs
from trainers.engine.checkpoints import Checkpoints
from trainers.engine.ema import WeightAverage

ROOT = pathlib.Path(__file__).parents[1]  # holds docs/, also where the packages come from an installed wheel
pytestmark = pytest.mark.usefixtures("quick_graphs")


def write_run(run_dir: pathlib.Path, model, system: str, steps=(3,), decay: float = 0.0) -> None:
    """A run folder as its trainer would leave it, with another model at each step."""
    description = {
        "system": system,
        "config": {},
        "data": {"source": "actors", "digest": "0" * 64, "num_videos": 6, "fps": 8.0},
        "model": {"class": type(model).__name__, "config": trainer_runs._plain(model.get_config())},
    }
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(description))
    average = WeightAverage(model, decay) if decay else None
    for step in steps:
        for variable in model.weights:  # so that a model that was not loaded could not pass
            if "float" in variable.dtype:
                variable.assign(variable + 0.125)
        state = {"step": tf.Variable(step, dtype=tf.int64), **runs.model_state(model)}
        if average is not None:
            average.update()
            state |= average.state
        Checkpoints(state, run_dir, keep_every=1).save(step)


def state(model) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in runs.model_state(model).items()}


def assert_same(model, expected) -> None:
    found, expected = state(model), state(expected)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """A run of NAVSynth with an average, and checkpoints of steps 3, 5 and 8; not to be written."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    write_run(run_dir, SYSTEMS[1].build(), "navsynth", (3, 5, 8), decay=0.5)
    return run_dir


@pytest.fixture
def run_dir(saved, tmp_path) -> pathlib.Path:
    return shutil.copytree(saved, tmp_path / "run")


# ---- what is loaded -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", first(4, SYSTEMS), ids=lambda system: system.name)
def test_it_is_the_model_that_was_saved(system, tmp_path):
    model = system.build()
    write_run(tmp_path / "run", model, system.model_class.__module__.rpartition(".")[2])
    keras.utils.set_random_seed(99)
    loaded = tfvidgen.load(tmp_path / "run")
    assert type(loaded) is type(model) and loaded.step == 3
    assert_same(loaded, model)
    again, step = trainer_runs.load_model(tmp_path / "run")
    assert step == 3
    assert_same(again, loaded)
    np.testing.assert_array_equal(loaded.generate(2, seed=1), model.generate(2, seed=1))


def test_a_checkpoint_of_another_step(saved):
    for step in (3, 5):
        model = tfvidgen.load(saved, step=step)
        assert model.step == step
        assert_same(model, trainer_runs.load_model(saved, step=step)[0])
    with pytest.raises(ValueError, match="no checkpoint of step 4 under .*: 3, 5, 8"):
        tfvidgen.load(saved, step=4)


def test_the_average_unless_raw_weights_are_asked_for(saved):
    averaged, raw = tfvidgen.load(saved), tfvidgen.load(saved, raw_weights=True)
    expected = runs.read_values(saved / "checkpoints" / "ckpt-8")
    for name, value in state(raw).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    weight = averaged.trainable_variables[0]
    name = runs.variable_name(weight)
    mean = expected[f"average.{name}"] / expected["average.mass"]
    np.testing.assert_array_equal(weight.numpy(), mean)
    assert np.abs(mean - expected[name]).max() > 0.01
    assert_same(averaged, trainer_runs.load_model(saved)[0])


def test_a_run_of_version_0_1(tmp_path):
    with tarfile.open(ROOT / "tests" / "data_0_1" / "navsynth.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(tmp_path)
    model = tfvidgen.load(tmp_path / "run")
    assert isinstance(model, NAVSynth) and model.step == 4
    assert_same(model, trainer_runs.load_model(tmp_path / "run")[0])


# ---- what is refused ------------------------------------------------------------------------------------------------
def test_a_damaged_newest_checkpoint_is_passed_over(run_dir, capsys):
    before = tfvidgen.load(run_dir, step=5)
    path = run_dir / "checkpoints" / "ckpt-8.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:100])
    files = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    model = tfvidgen.load(run_dir)
    said = capsys.readouterr().err
    assert model.step == 5 and "ckpt-8 is damaged" in said and "going back 3 steps" in said
    assert_same(model, before)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == files  # reading changes nothing
    with pytest.raises(ValueError, match="ckpt-8 is damaged .*choose another step of 3, 5, 8"):
        tfvidgen.load(run_dir, step=8)
    for step in (3, 5):
        (run_dir / "checkpoints" / f"ckpt-{step}.index").write_bytes(b"")
    with pytest.raises(ValueError, match="No other one under .* is intact: restore"):
        tfvidgen.load(run_dir)


def test_folders_that_hold_no_run(run_dir, tmp_path):
    with pytest.raises(ValueError, match="nothing is not a run folder: it has no config.json"):
        tfvidgen.load(tmp_path / "nothing")
    (run_dir / "config.json").rename(run_dir / "kept.json")
    with pytest.raises(ValueError, match="holds checkpoints but .*config.json is missing.*Restore the file"):
        tfvidgen.load(run_dir)
    (run_dir / "kept.json").rename(run_dir / "config.json")
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(ValueError, match="No checkpoint under .*train first"):
        tfvidgen.load(run_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"system": "navsynt"},
            "config.json does not describe a run .*'navsynt', not one of .*Did you mean 'navsynth'",
        ),
        ({"forms": {"network": 9}}, "has form 9 of the network .*knows forms up to 1: use that version"),
        ({"forms": {"settings": 9}}, "config.json has form 9 of the settings .*use that version"),
        ({"model": {"class": "Other", "config": {}}}, "written by another version: navsynth has no model 'Other'"),
        ({"model": {"class": "NAVSynth", "config": {"heads": 3}}}, r"config.json does not describe a run \(model: "),
        (
            {"system": "no_package.x", "model": {"class": "X", "config": {}}},
            "model.class is 'X', which is not an import path",
        ),
        (
            {"system": "no_package.x", "model": {"class": "no_package.x.X", "config": {}}},
            "its module no_package.x cannot be imported .*No module named 'no_package'.* Install .* PYTHONPATH",
        ),
        (
            {"system": "json.tool", "model": {"class": "json.JSONDecoder", "config": {}}},
            "json.tool has no model 'json.JSONDecoder'",
        ),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_description_that_cannot_be_followed_is_refused_by_name(run_dir, change, message):
    path = run_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        tfvidgen.load(run_dir)


# ---- what it needs --------------------------------------------------------------------------------------------------
def python(*arguments, folder: pathlib.Path | None = None) -> str:
    """Runs Python in a fresh process that sees the same packages, and those in `folder`; returns what it printed."""
    path = [str(folder)] if folder else []
    path += [entry or os.getcwd() for entry in sys.path]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
def test_it_needs_no_training_program(saved):
    code = (
        "import sys; sys.modules.update(trainers=None, export=None); import tfvidgen; "
        "tfvidgen.runs.read(sys.argv[1]); assert not {'tensorflow', 'keras'} & set(sys.modules); "
        "model = tfvidgen.load(sys.argv[1]); print(type(model).__name__, model.step)"
    )
    assert python("-c", code, saved).split() == ["NAVSynth", "8"]


def test_the_library_never_imports_its_programs():
    """Nor in a function, where it would only fail when that is called."""
    found = set()
    for path in pathlib.Path(tfvidgen.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {f"{path.name}: {name}" for name in names if name.partition(".")[0] in ("trainers", "export")}
    assert not found


# ---- systems from outside the package -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> pathlib.Path:
    """A folder with the package of `docs/extending.md` and a run of its system, `run`."""
    folder = tmp_path_factory.mktemp("outside")
    code, *_ = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text("")
    (folder / "my_package" / "glo.py").write_text(code, encoding="utf-8")
    flags = ("--preset=smoke", "--run_dir=run", "--noevaluate", "--notensorboard", "--strategy=none", "--ema_decay=0.5")
    python("-m", "my_package.glo", *flags, folder=folder)
    return folder


@pytest.mark.long
def test_a_system_from_outside_is_recorded_by_its_import_path(outside):
    description = json.loads((outside / "run" / "config.json").read_text())
    assert description["system"] == "my_package.glo"
    assert description["model"]["class"] == "my_package.glo.LinearGLO"


@pytest.mark.long
def test_a_system_from_outside_does_what_others_do(outside):
    """In one process, since each takes seconds to start; training and this one are two."""
    code = """
import json, pathlib, sys
import numpy as np, tensorflow as tf
import tfvidgen
from export import saved_model
from trainers import evaluate, generate
from my_package import glo

model = tfvidgen.load("run")
assert type(model) is glo.LinearGLO and model.step == 4
assert evaluate.main(["--run_dir=run", "--metrics=acd4", "--cache_dir=none"]) == 0
assert json.loads(pathlib.Path("run/evaluation.json").read_text())["trained_videos"]["psnr"] > 0
assert generate.main(["--run_dir=run", "--mode=lookup", "--ids=0,1"]) == 0
assert saved_model.main(["--run_dir=run"]) == 0
served = tf.saved_model.load("run/export/1").signatures["lookup"](video_id=tf.constant([1]))["video"].numpy()
expected = (np.asarray(model.decode(model.lookup(np.array([1], np.int32)))) + 1) * 127.5
assert np.abs(served - expected).max() <= 1
metadata = json.loads(pathlib.Path("run/export/1/metadata.json").read_text())
assert (metadata["name"], metadata["system"]) == ("glo", "my_package.glo")
again = ["--config=run", "--run_dir=again", "--init_from=run", "--total_steps=2", "--noevaluate", "--notensorboard"]
assert glo.main(again) == 0 and glo.main([*again[:3], "--total_steps=4", *again[4:]]) == 0
assert tfvidgen.load("again").step == 4
"""
    python("-c", code, folder=outside)


@pytest.mark.long
def test_a_system_that_cannot_be_imported_is_refused_by_name(outside):
    for read in (tfvidgen.load, trainer_runs.read, trainer_runs.load_model):
        with pytest.raises(ValueError, match="module my_package.glo cannot be imported .* Install .* to PYTHONPATH"):
            read(outside / "run")


def test_a_module_without_settings_and_a_name_of_nothing_are_refused():
    with pytest.raises(ValueError, match="the module json.tool of the system has no `Config`"):
        trainer_runs.config_class("json.tool")
    with pytest.raises(ValueError, match="a system is one of mocogan, .* import path .* Received 'navsynt'"):
        trainer_runs.config_class("navsynt")


def test_a_model_that_could_not_be_found_again_is_refused():
    class Local(NAVSynth):
        pass

    model = Local.__new__(Local)
    with pytest.raises(ValueError, match="which cannot be imported by that name.*python -m my_package.glo"):
        trainer_runs._recorded_class("my_package.glo", model)
