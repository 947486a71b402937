"""Codecs are told from files, by the names that videos have."""

import numpy as np
import pytest
from PIL import Image

from tfvidgen import data
from tfvidgen.data.codecs import folder_codecs
from tfvidgen.data.video_io import write_gif, write_mp4

VIDEO = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def mp4(folder):
    write_mp4(folder / "walk" / "clip[1].mp4", VIDEO, 8)
    return folder, {"codec": "h264 (yuv420p)", "container": ".mp4"}


def gif(folder):
    write_gif(folder / "clip", VIDEO, 8)
    return folder, {"codec": "gif", "container": "none"}


def arrays(folder):
    np.save(folder / "videos.npy", VIDEO[None])
    return folder, {"codec": "none", "container": ".npy"}


def one_array(folder):
    np.save(folder / "videos.npy", VIDEO[None])
    return folder / "videos.npy", {"codec": "none", "container": ".npy"}


def strips(folder):
    Image.fromarray(np.concatenate(VIDEO, axis=1)).save(folder / "strip.png")
    return folder, {"codec": "none", "container": ".png"}


def frames(folder):
    clip = folder / "walk" / "clip"
    clip.mkdir(parents=True)
    (clip / ".hidden").write_text("")
    (clip / "0 is empty.txt").write_text("")
    (clip / "0 read me.txt").write_text("what this is")
    for index, frame in enumerate(VIDEO):
        Image.fromarray(frame).save(clip / f"{index}.jpg")
    return folder, {"codec": "jpeg", "container": ".jpg"}


def one_folder_of_frames(folder):
    root, expected = frames(folder)
    return root / "walk" / "clip", expected


def two(folder):
    write_mp4(folder / "clip.mp4", VIDEO, 8)
    write_gif(folder / "clip.gif", VIDEO, 8)
    return folder, {"codec": "gif, h264 (yuv420p)", "container": ".gif, .mp4"}


@pytest.mark.parametrize("write", [mp4, gif, arrays, one_array, strips, frames, one_folder_of_frames, two])
def test_codecs_by_the_names_of_loaded_videos(tmp_path, write):
    path, expected = write(tmp_path)
    assert folder_codecs(path, data.load_videos(path).names) == expected


def test_files_that_are_gone_are_unknown(tmp_path):
    assert folder_codecs(tmp_path, ["clip.mp4"]) == {"codec": "unknown", "container": ".mp4"}
