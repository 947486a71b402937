"""A run folder and an export of version 0.1 work with this version (`tests/data_0_1/README.md`)."""

import dataclasses
import json
import pathlib
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from export import saved_model
from tfvidgen.data import order
from trainers import cli, evaluate, generate, navsynth, runs, train
from trainers.engine import checkpoints

ARCHIVE = pathlib.Path(__file__).parents[1] / "data_0_1" / "navsynth.tar.gz"
pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> pathlib.Path:
    """The run folder, not to be written."""
    folder = tmp_path_factory.mktemp("of_0_1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(folder)
    return folder / "run"


@pytest.fixture
def run_dir(unpacked, tmp_path) -> pathlib.Path:
    """A copy of the run, without its export."""
    for path in unpacked.rglob("*"):
        if path.is_file() and "export" not in path.parts:
            copy = tmp_path / "run" / path.relative_to(unpacked)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "run"


def settings(run_dir, **changes) -> navsynth.Config:
    """The flags that it was begun with."""
    flags = [
        *("--preset=smoke", "--width=2", "--rnn_units=3", "--static_dim=2", "--transient_dim=2", "--motion_dim=2"),
        *("--num_frames=4", "--triplet_weight=0", "--ema_decay=0.9", "--update=joint", "--precision=auto"),
        *("--notensorboard", "--static_by=identity", "--transient_by=action", "--num_held_out_cells=1"),
    ]
    config, _ = cli.parse(navsynth.Config, navsynth.PRESETS, flags)
    return dataclasses.replace(config, run_dir=str(run_dir), **changes)


def values(run_dir) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(checkpoints.latest(pathlib.Path(run_dir) / "checkpoints"))
    others = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter")
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if not name.startswith(others)}


def test_it_is_small():
    assert ARCHIVE.stat().st_size < 1_000_000


@pytest.mark.parametrize("precision", ["auto", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_it_goes_on(run_dir, precision, monkeypatch):
    monkeypatch.setattr(order, "shuffled", None)  # the order of its batches is that of form 1
    before, digest = values(run_dir), runs.read(run_dir)["data"]["digest"]
    going = settings(run_dir, total_steps=6, precision=precision, resume="must", evaluate=False)
    model = train.train("navsynth", going, navsynth.build_model, report=lambda line: None)
    assert checkpoints.latest(run_dir / "checkpoints").endswith("ckpt-6")
    after = values(run_dir)
    assert set(before) <= set(after) and any(np.any(before[name] != after[name]) for name in before)
    assert model.dtype_policy.name == "mixed_bfloat16"  # what its `auto` was
    description = runs.read(run_dir)
    assert description["config"]["precision"] == precision and description["resolved"] == {"precision": "bfloat16"}
    assert description["forms"] == {"settings": 1, "data_order": 1, "digest": 1, "network": 1}
    assert description["config"]["data_order_form"] == 1 and description["data"]["digest"] == digest
    assert [again["step"] for again in description["environment"]["resumed"]] == [4]
    assert [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6]


def test_its_data_order_is_still_made(run_dir):
    """Form 1 of the data order: these videos and no others are in the first batches of a run with seed 0."""
    going = runs.going_on(settings(run_dir))
    batches = train._dataset_fn(going, runs.load_own_data(run_dir, going))(0).take(6)
    assert [batch["video_id"].numpy().tolist() for batch in batches] == [[2, 0], [1, 0], [1, 2], [2, 0], [1, 2], [1, 0]]


def test_other_settings_are_refused(run_dir):
    before = (run_dir / "config.json").read_bytes()
    for changes, difference in (
        ({"precision": "float32"}, "precision: was 'bfloat16', now 'float32'"),
        ({"schedule": "cosine"}, "schedule: was 'constant', now 'cosine'"),
    ):
        with pytest.raises(ValueError, match=difference):
            train.train("navsynth", settings(run_dir, **changes), navsynth.build_model, report=lambda line: None)
    assert (run_dir / "config.json").read_bytes() == before


def test_it_generates(unpacked, tmp_path, capsys):
    assert generate.main([f"--run_dir={unpacked}", "--num_videos=2", f"--out={tmp_path}"]) == 0
    assert "at step 4" in capsys.readouterr().out
    assert np.load(tmp_path / "new.npy").shape == (2, 4, 16, 16, 3)


def test_it_evaluates(run_dir):
    before = json.loads((run_dir / "evaluation.json").read_text())
    after = evaluate.evaluate_run(run_dir, report=lambda line: None)
    assert after["step"] == 4 and after["protocol"].keys() == before["protocol"].keys()
    # other processors round bfloat16 otherwise
    assert after["trained_videos"]["psnr"] == pytest.approx(before["trained_videos"]["psnr"], abs=0.05)


def test_it_exports(unpacked, tmp_path):
    folder = saved_model.export_run(unpacked, tmp_path / "export")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["step"] == 4 and metadata["system"] == "navsynth"


def test_its_export_still_serves(unpacked):
    model, _ = runs.load_model(unpacked)
    served = tf.saved_model.load(str(unpacked / "export" / "1")).signatures
    video = served["lookup"](video_id=tf.constant([2, 0]))["video"]
    assert video.dtype == tf.uint8 and video.shape == (2, 4, 16, 16, 3)
    expected = np.round((np.asarray(model.decode(model.lookup(np.array([2, 0], np.int32)))) + 1) * 127.5)
    assert np.abs(video.numpy().astype(int) - expected).max() <= 2  # of bfloat16 on another processor
    new = served["serving_default"](seed=tf.constant([3], tf.int64))["video"]
    assert new.dtype == tf.uint8 and new.shape[1:] == (4, 16, 16, 3)


@pytest.mark.long
def test_it_is_repeated(run_dir, tmp_path):
    again = tmp_path / "again"
    flags = [f"--config={run_dir}", f"--run_dir={again}", "--noevaluate"]
    assert navsynth.main(flags) == 0
    changes = {"run_dir": str(again), "evaluate": False, "data_order_form": 1}
    assert runs.read_config(again) == dataclasses.replace(runs.read_config(run_dir), **changes)
    assert runs.read(again)["forms"]["data_order"] == 1
