"""The course of a trainer: where the batches come from, and what the settings resolve to."""

import dataclasses
import json
import pathlib
import socket

import numpy as np
import pytest
import tensorflow as tf

from tests import systems
from tfvidgen import data
from trainers import navsynth, runs, train

pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The six tiny clips of `tests/systems.py` as strips, in a folder per action."""
    from tfvidgen import visualize

    root = tmp_path_factory.mktemp("strips")
    videos = systems.collection()
    for i, name in enumerate(videos.names):
        (root / videos.action_names[videos.action[i]]).mkdir(exist_ok=True)
        strip = np.concatenate(list(videos.video(i)), axis=1)
        visualize.save_png(root / videos.action_names[videos.action[i]] / f"{name}.png", strip)
    return root


def config(dataset, run_dir, **changes) -> navsynth.Config:
    tiny = {
        **navsynth.PRESETS["smoke"],
        "dataset": str(dataset),
        "num_frames": systems.NUM_FRAMES,
        "run_dir": str(run_dir),
        "num_identities": 0,
        "num_actions": 0,
        "triplet_weight": 0.0,
        "evaluate": False,
    }
    return navsynth.Config(**{**tiny, **changes})


def trained_weights(settings) -> list[np.ndarray]:
    model = train.train("navsynth", settings, navsynth.build_model, report=lambda line: None)
    return [weight.numpy() for weight in model.weights]


def test_videos_prepared_on_disk_train_the_same_weights(folder, tmp_path):
    data.prepare_shards(folder, tmp_path / "prepared", size=systems.SIZE, num_workers=1)
    in_memory = trained_weights(config(folder, tmp_path / "memory"))
    from_disk = trained_weights(config(tmp_path / "prepared", tmp_path / "disk"))
    for a, b in zip(in_memory, from_disk, strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs.read(tmp_path / "memory")["data"]["digest"] == runs.read(tmp_path / "disk")["data"]["digest"]


def test_a_data_service_makes_the_same_batches(folder, tmp_path):
    dispatcher = tf.data.experimental.service.DispatchServer()
    worker = tf.data.experimental.service.WorkerServer(
        tf.data.experimental.service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
    )
    here = trained_weights(config(folder, tmp_path / "here"))
    served = trained_weights(config(folder, tmp_path / "served", data_service=dispatcher.target))
    del worker
    for a, b in zip(here, served, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_data_service_that_is_not_there_is_refused(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        for address in (f"grpc://127.0.0.1:{taken.getsockname()[1]}", "grpc://localhost"):
            settings = config(folder, tmp_path / "run", data_service=address)
            with pytest.raises(ValueError, match=f"--data_service={address} cannot be reached .*start the service"):
                train.train("navsynth", settings, navsynth.build_model, report=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_prepared_folder_of_another_size_is_refused(folder, tmp_path):
    data.prepare_shards(folder, tmp_path / "prepared", size=systems.SIZE, num_workers=1)
    with pytest.raises(ValueError, match="16.*32|32.*16"):
        runs.load_data(config(tmp_path / "prepared", tmp_path / "run", size=32))


def test_precision_auto_becomes_one_that_exists():
    assert train.resolve_precision("float32") == "float32"
    assert train.resolve_precision("bfloat16") == "bfloat16"
    assert train.resolve_precision("auto") in ("float32", "bfloat16")


def check_refused(settings, dry, message):
    """Neither a dry run nor a training begins, and no run folder is made."""
    with pytest.raises(ValueError, match=message):
        if dry:
            train.dry_run(settings, navsynth.build_model)
        else:
            train.train("navsynth", settings, navsynth.build_model, report=lambda line: None)
    assert not pathlib.Path(settings.run_dir).exists()


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="only refused without a GPU")
@pytest.mark.parametrize("dry", [False, True])
def test_float16_on_a_cpu_is_refused_with_the_reason(folder, tmp_path, dry):
    settings = config(folder, tmp_path / "run", precision="float16")
    check_refused(settings, dry, "precision=float16 is for GPUs.* 13 times slower .*precision=auto")


@pytest.mark.parametrize("dry", [False, True])
def test_a_batch_that_replicas_cannot_share_is_refused(folder, tmp_path, dry):
    settings = config(folder, tmp_path / "run", strategy="mirrored", devices="CPU:0,CPU:1", batch_size=3)
    check_refused(settings, dry, "batch_size=3 cannot be divided by 2 replicas")


@pytest.mark.parametrize("dry", [False, True])
def test_fewer_videos_than_a_batch_are_refused(folder, tmp_path, dry):
    settings = config(folder, tmp_path / "run", batch_size=8)
    check_refused(settings, dry, "--batch_size=8 is more than the 6 videos that are trained.*lower it")


def test_a_batch_may_hold_all_videos(folder, tmp_path):
    settings = config(folder, tmp_path / "run", batch_size=6)
    train.check_batch(settings, runs.load_data(settings), num_replicas=2)


def test_a_run_is_gone_on_with_only_as_it_was_asked(folder, tmp_path):
    def begin(**changes):
        return train.train(
            "navsynth", config(folder, tmp_path / "run", **changes), navsynth.build_model, report=lambda line: None
        )

    with pytest.raises(ValueError, match=r"resume=must, and there is no checkpoint under .*run: name the folder"):
        begin(resume="must")
    assert not (tmp_path / "run").exists()
    begin(resume="never")
    begin(resume="must")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(ValueError, match=r"already holds .*ckpt-4: go on with resume=auto, or name another run folder"):
        begin(resume="never")
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="mirrored takes the GPUs, however many")
@pytest.mark.slow
def test_two_replicas_train_draw_and_measure_an_average(folder, tmp_path, two_replicas):
    settings = {"update": "joint", "ema_decay": 0.9, "evaluate": True, "num_frames": 4, "size": 16, "tensorboard": True}
    evaluations = []
    for strategy in ("none", "mirrored"):
        run = config(folder, tmp_path / strategy, strategy=strategy, **settings)
        train.train("navsynth", run, navsynth.build_model, report=lambda line: None)
        evaluations.append(json.loads((tmp_path / strategy / "evaluation.json").read_text()))
        assert (tmp_path / strategy / "samples" / "step_0000004.png").is_file()
    for name in ("psnr", "ssim", "fcs"):
        one, two = (evaluation["trained_videos"][name] for evaluation in evaluations)
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("changes", [{"size": 8}, {"num_frames": 1}])
def test_what_cannot_be_evaluated_is_refused_before_training(folder, tmp_path, changes):
    settings = config(folder, tmp_path / "run", evaluate=True, **changes)
    with pytest.raises(ValueError, match="at least 2 frames of 11 pixels"):
        train.train("navsynth", settings, navsynth.build_model, report=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_message(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    flags = [
        f"--{name}={value}" for name, value in dataclasses.asdict(config(folder, tmp_path / "file" / "run")).items()
    ]
    assert navsynth.main(flags) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_run_measures_itself_and_keeps_its_best_checkpoint(folder, tmp_path):
    settings = config(folder, tmp_path / "run", evaluate_metrics="acd4", evaluate_every_steps=2)
    trained_weights(settings)
    records = [json.loads(line) for line in (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()]
    assert [record["protocol"]["generated"]["step"] for record in records] == [2, 4]
    assert {record["metric"] for record in records} == {"acd4_4f"}
    best = min(records, key=lambda record: record["loss"])["protocol"]["generated"]["step"]
    assert (tmp_path / "run" / "best" / "checkpoints" / f"ckpt-{best}.index").exists()
    with pytest.raises(ValueError, match="multiple"):
        trained_weights(config(folder, tmp_path / "other", evaluate_metrics="acd4", evaluate_every_steps=3))
    assert not (tmp_path / "other" / "checkpoints").exists()
