"""TensorBoard: what is in the files is what its plugins show, and a killed run leaves no doubled curve."""

import io
import os
import shutil

import keras
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.image.metadata import PLUGIN_NAME
from tensorboard.util import img_mime_type_detector, tensor_util

from tests import systems
from tfvidgen import data
from trainers import navsynth, runs, tensorboard
from trainers.engine import loop

FPS = 10.0


def read(folder) -> EventAccumulator:
    """What TensorBoard itself reads from a run folder."""
    return EventAccumulator(str(folder / tensorboard.FOLDER)).Reload()


def curve(folder, name: str) -> dict[int, float]:
    return {event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in read(folder).Tensors(name)}


def gif(folder, name: str, step: int) -> Image.Image:
    """The picture that the image plugin would send to the browser."""
    [event] = [event for event in read(folder).Tensors(name) if event.step == step]
    width, height, picture = event.tensor_proto.string_val
    assert img_mime_type_detector.from_bytes(picture) == "image/gif"
    image = Image.open(io.BytesIO(picture))
    assert image.size == (int(width), int(height))
    return image


def test_curves_are_the_logs(tmp_path):
    events = tensorboard.EventLog(tmp_path)
    for step in (5, 10):
        events.scalars(step, {"colour_loss": 1.0 / step, "static_loss": 2.0})
    assert curve(tmp_path, "colour_loss") == pytest.approx({5: 0.2, 10: 0.1})
    assert curve(tmp_path, "static_loss") == {5: 2.0, 10: 2.0}
    assert read(tmp_path).SummaryMetadata("colour_loss").plugin_data.plugin_name == "scalars"


def test_a_clip_plays_in_the_image_tab(tmp_path):
    video = np.zeros((6, 12, 16, 3), np.uint8)
    for t in range(6):
        video[t, :, 2 * t : 2 * t + 3, 0] = 255
    tensorboard.EventLog(tmp_path).clip(3, "clips/new", video, FPS)
    assert read(tmp_path).SummaryMetadata("clips/new").plugin_data.plugin_name == PLUGIN_NAME
    image = gif(tmp_path, "clips/new", 3)
    assert image.is_animated and image.n_frames == 6 and image.info["loop"] == 0
    for t in range(6):
        image.seek(t)
        assert image.info["duration"] == 1000 / FPS
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), video[t])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A trained run with its events: four steps of `tests/systems.py`'s clips."""
    run_dir, model = tmp_path_factory.mktemp("run"), tiny_model()
    loop.run(
        model,
        lambda start: data.make_dataset(systems.collection(), 4, systems.NUM_FRAMES, seed=7, start_step=start),
        run_dir,
        4,
        steps_per_loop=2,
        checkpoint_every_steps=4,
        actions=actions(model, run_dir),
        report=lambda line: None,
    )
    return run_dir


def tiny_model():
    keras.utils.set_random_seed(3)
    model = systems.SYSTEMS[0].build()
    systems.SYSTEMS[0].compile(model, keras.optimizers.Adam)
    return model


def actions(model, run_dir, **changes) -> list[loop.Action]:
    videos = systems.collection()
    run_data = runs.RunData(videos, np.ones(len(videos), bool), videos)
    config = navsynth.Config(
        size=systems.SIZE, num_frames=systems.NUM_FRAMES, steps_per_loop=2, sample_every_steps=4, **changes
    )
    return tensorboard.actions(tensorboard.EventLog(run_dir), model, run_data, config)


def test_a_run_writes_curves_and_clips(run_folder):
    for name in ("reconstruction_loss", "static_loss", "triplet_loss"):
        assert set(curve(run_folder, name)) == {2, 4}
    for name, tiles in (("clips/new", 4), ("clips/trained_above_reconstructed", 8)):
        image = gif(run_folder, name, 4)
        assert image.n_frames > 1, name
        assert image.width * image.height >= tiles * (2 * systems.SIZE) ** 2, name


def test_trained_clips_stand_above_their_reconstructions(run_folder):
    image = gif(run_folder, "clips/trained_above_reconstructed", 4)
    image.seek(1)
    pixels = np.asarray(image.convert("RGB")).astype(int)
    side = 2 * systems.SIZE  # a tile, doubled, two pixels of white round it
    videos = systems.collection()
    for i, video_id in enumerate((0, 2, 3, 5)):
        tile = pixels[2 : 2 + side : 2, 2 + i * (side + 2) : 2 + i * (side + 2) + side : 2]
        assert np.abs(tile - videos.video(video_id)[1]).mean() < 8  # one palette for all frames and tiles
    assert np.abs(pixels[4 + side : 4 + 2 * side] - pixels[2 : 2 + side]).mean() > 20


def test_new_events_take_the_place_of_a_killed_process_s(tmp_path):
    killed = tensorboard.EventLog(tmp_path)
    for step in (2, 4, 6, 8):
        killed.scalars(step, {"loss_a": float(step)})
    killed.clip(8, "clips/new", np.full((2, 8, 8, 3), 9, np.uint8), FPS)
    [path] = (tmp_path / tensorboard.FOLDER).glob("events*")
    path.write_bytes(path.read_bytes()[:-7])  # its last record is cut off
    resumed = tensorboard.EventLog(tmp_path)
    resumed.rewind(4)  # to a checkpoint
    resumed.scalars(6, {"loss_a": 60.0})
    assert curve(tmp_path, "loss_a") == {2: 2.0, 4: 4.0, 6: 60.0}
    values = [event.step for event in read(tmp_path).Tensors("loss_a")]
    assert values == [2, 4, 6] and "clips/new" not in read(tmp_path).Tags()["tensors"]
    assert not list((tmp_path / tensorboard.FOLDER).glob(".*"))


def test_events_are_written_under_any_path(tmp_path):
    folder = tmp_path / os.fsdecode(b"lr[1e-3] caf\xe9")
    killed = tensorboard.EventLog(folder)
    for step in (2, 4):
        killed.scalars(step, {"loss_a": float(step)})
    resumed = tensorboard.EventLog(folder)
    resumed.rewind(2)
    resumed.scalars(4, {"loss_a": 40.0})
    shutil.copytree(folder, tmp_path / "plain")
    assert curve(tmp_path / "plain", "loss_a") == {2: 2.0, 4: 40.0}


def test_events_before_the_checkpoint_are_left_untouched(tmp_path):
    tensorboard.EventLog(tmp_path).scalars(2, {"loss_a": 1.0})
    [path] = (tmp_path / tensorboard.FOLDER).glob("events*")
    before = path.read_bytes(), path.stat().st_mtime_ns
    tensorboard.EventLog(tmp_path).scalars(4, {"loss_a": 2.0})
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert curve(tmp_path, "loss_a") == {2: 1.0, 4: 2.0}


def test_random_clips_have_no_reconstruction_beside_them(tmp_path):
    for action in actions(tiny_model(), tmp_path, clip_start="random"):
        action.run(4, {"reconstruction_loss": 1.0})
    assert set(read(tmp_path).Tags()["tensors"]) == {"clips/new", "reconstruction_loss"}
