"""Prepared folders: the pixels and labels of what was decoded, and what is said of damage."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tests.data.prepared import LENGTHS, SIZE, assert_same, damage_end
from tfvidgen import data
from tfvidgen.data import shards
from tfvidgen.data.shards import ShardedVideos
from tfvidgen.data.sources import load_videos, scan


def test_the_same_as_decoding(prepared, collection):
    videos = ShardedVideos.open(prepared)
    assert len(videos.shards) > 2
    assert sorted(os.listdir(prepared)) == sorted([shard.file for shard in videos.shards] + ["index.json"])
    assert_same(videos.collection(), collection)
    assert videos.digest == collection.digest and videos.names == collection.names
    for index in range(len(videos)):
        np.testing.assert_array_equal(videos.video(index), collection.video(index))
    np.testing.assert_array_equal(videos.clips(9, 2, "centre"), collection.clips(9, 2, "centre"))
    np.testing.assert_array_equal(videos.clips(80, 1, "first", "loop"), collection.clips(80, 1, "first", "loop"))


def test_a_shard_is_a_tfrecord_file_that_others_can_read(prepared, collection):
    videos = ShardedVideos.open(prepared)
    files = [str(prepared / shard.file) for shard in videos.shards]
    frames = [np.frombuffer(record, np.uint8) for record in tf.data.TFRecordDataset(files).as_numpy_iterator()]
    np.testing.assert_array_equal(np.reshape(frames, collection.frames.shape), collection.frames)


def test_load_and_scan_know_a_prepared_folder(prepared, collection):
    assert_same(load_videos(prepared), collection)
    assert_same(data.load(str(prepared), size=SIZE), collection)
    short = load_videos(prepared, max_videos=2, max_frames=7)
    assert short.lengths.tolist() == [7, 7]
    np.testing.assert_array_equal(short.video(1), collection.video(1)[:7])
    report = scan(prepared)
    assert report.layout.startswith("prepared") and report.num_frames == sum(LENGTHS.values())
    assert report.classes == {"gehen": 3, "跳": 3}
    assert "height x width" in report.to_text()


@pytest.mark.parametrize("arguments", [{"size": 32}, {"size": SIZE, "resize": "squash"}])
def test_other_pixels_than_were_prepared_are_not_made_up(prepared, arguments):
    with pytest.raises(ValueError, match="prepared with frames of 64x64.*resize=centre_crop.*another folder"):
        load_videos(prepared, **arguments)


def test_a_folder_of_something_else_is_none(tmp_path):
    (tmp_path / "index.json").write_text('{"videos": []}')
    assert not shards.is_prepared(tmp_path) and not shards.is_prepared(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="No videos in"):
        load_videos(tmp_path)
    with pytest.raises(ValueError, match=r"index.json.*damaged.*KeyError"):
        ShardedVideos.open(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match=r"has no index.json.*prepare_data"):
        ShardedVideos.open(tmp_path)


def test_a_video_cut_while_it_is_open(copy):
    videos = ShardedVideos.open(copy)
    damage_end(copy / videos.shards[0].file)
    with pytest.raises(ValueError, match="is truncated"):
        for index in range(len(videos)):
            videos.video(index)


@pytest.mark.parametrize(
    "content", ['{"format": "tfvidgen shards", "ver', '{"format": "tfvidgen shards", "version": 1}']
)
def test_a_damaged_index(copy, content):
    (copy / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index.json' is damaged.*delete.*prepare the videos again"):
        load_videos(copy)
