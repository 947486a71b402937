import numpy as np
import pytest
from PIL import Image

from tfvidgen import data
from tfvidgen.data.sets.shapes import ACTION_NAMES, shapes


@pytest.fixture
def strips(tmp_path):
    """Three strips upwards, two to the left; alpha is noise that must not reach the pixels."""
    random = np.random.default_rng(0)
    videos = {}
    for folder, count in (("0", 3), ("1", 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            video = random.integers(0, 256, (4, 12, 12, 3), np.uint8)
            strip = np.concatenate([np.concatenate(list(video), 1), random.integers(0, 256, (12, 48, 1), np.uint8)], -1)
            Image.fromarray(strip).save(tmp_path / folder / f"{number:08d}.png")
            videos[f"{ACTION_NAMES[int(folder)]}_{number:08d}"] = video
    return tmp_path, videos


def test_frames_and_actions(strips):
    root, videos = strips
    collection = shapes(root)
    assert collection.names == tuple(videos)
    for index, name in enumerate(collection.names):
        np.testing.assert_array_equal(collection.video(index), videos[name])
        assert name.startswith(collection.action_names[collection.action[index]])
    assert collection.identity is None and collection.source == "shapes"


def test_by_name_and_at_another_size(strips):
    collection = data.load("shapes", data_dir=str(strips[0]), size=8)
    assert collection.size == (8, 8) and len(collection) == 5


def test_part_of_the_set_has_both_actions(strips):
    assert shapes(strips[0], num_videos=2).action.tolist() == [0, 1]
    with pytest.raises(ValueError, match="1..5.*Received 6"):
        shapes(strips[0], num_videos=6)


def test_missing_folder_and_wrong_strip_are_named(strips):
    root, _ = strips
    Image.fromarray(np.zeros((12, 30, 3), np.uint8)).save(root / "0" / "00000009.png")
    with pytest.raises(ValueError, match="00000009.png.*12 high cannot be 30 wide"):
        shapes(root)
    with pytest.raises(ValueError, match="No strips in .*/0'"):
        shapes(root / "1")
    with pytest.raises(ValueError, match="--data_dir"):
        data.load("shapes")


def test_the_real_set_moves_as_its_folders_say(shared):
    collection = shapes(shared / "data" / "shapes", num_videos=40)
    assert collection.size == (64, 64) and set(collection.lengths) == {32}
    for index in range(len(collection)):
        first, last = (np.argwhere(frame.max(-1) > 20).mean(0) for frame in collection.video(index)[[0, -1]])
        axis = (0, 1)[collection.action[index]]  # rows for up, columns for left
        assert last[axis] - first[axis] < -40
