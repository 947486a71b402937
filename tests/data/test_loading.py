"""A name or a path becomes a collection."""

import numpy as np
import pytest

from tfvidgen import data
from tfvidgen.data.loading import NAMED


def test_actors_are_drawn_as_asked():
    collection = data.load("actors", size=16, num_frames=3, num_identities=2, num_actions=2)
    assert len(collection) == 4
    assert collection.size == (16, 16)
    np.testing.assert_array_equal(collection.lengths, 3)
    assert (len(collection.identity_names), len(collection.action_names)) == (2, 2)
    assert collection.source == "actors"


def test_zero_means_the_default_number_of_actors():
    from tfvidgen.data.sets.actors import actors

    collection, default = data.load("actors", size=16, num_frames=1), actors(size=16, num_frames=1)
    assert collection.digest == default.digest


def test_a_folder_of_videos(tmp_path):
    frames = np.zeros((3, 8, 12, 3), np.uint8)
    frames[..., 2:-2, :] = 200  # a white square between black bars
    for folder, name in (("bow", "a"), ("jump", "b")):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / f"{name}.npy", frames)
    collection = data.load(str(tmp_path), size=8)
    assert len(collection) == 2
    assert collection.action_names == ("bow", "jump")
    assert collection.size == (8, 8)
    assert collection.frames.min() > 150  # the bars are cropped away
    squashed = data.load(str(tmp_path), size=8, resize="squash")
    assert squashed.frames[:, :, 0].max() < 100


def test_unreadable_files_are_skipped_only_when_asked(tmp_path):
    np.save(tmp_path / "good.npy", np.full((3, 8, 8, 3), 9, np.uint8))
    (tmp_path / "bad.gif").write_bytes(b"GIF89a and no more")
    with pytest.raises(ValueError, match=r"bad\.gif"):
        data.load(str(tmp_path), size=8)
    with pytest.warns(UserWarning, match=r"bad\.gif"):
        assert len(data.load(str(tmp_path), size=8, skip_bad=True)) == 1


def test_decoded_frames_are_kept_where_asked(tmp_path):
    (tmp_path / "clips").mkdir()
    np.save(tmp_path / "clips" / "a.npy", np.full((3, 8, 8, 3), 9, np.uint8))
    first = data.load(str(tmp_path / "clips"), size=8, cache_dir=str(tmp_path / "cache"))
    assert any((tmp_path / "cache").iterdir())
    assert data.load(str(tmp_path / "clips"), size=8, cache_dir=str(tmp_path / "cache")).digest == first.digest


def test_an_unknown_name_is_named_beside_the_known_ones():
    with pytest.raises(ValueError, match="'actresses'.*actors, shapes, sprites, weizmann"):
        data.load("actresses")


@pytest.mark.parametrize("name", [name for name in NAMED if name != "actors"])
def test_sets_on_disk_need_their_folder(name):
    with pytest.raises(ValueError, match=f"{name!r} is read from a folder.*--data_dir"):
        data.load(name)


def test_sprites_have_one_size(tmp_path):
    with pytest.raises(ValueError, match=r"64x64.*size=32"):
        data.load("sprites", data_dir=str(tmp_path), size=32)


@pytest.mark.parametrize("size", [16, 64])
def test_weizmann(shared, size):
    collection = data.load("weizmann", data_dir=str(shared / "data" / "weizmann"), size=size)
    assert collection.size == (size, size)
    assert collection.identity is not None and collection.action is not None


def test_sprites(shared):
    collection = data.load("sprites", data_dir=str(shared / "data" / "sprites"), num_identities=2)
    assert collection.size == (64, 64)
    assert len(collection.identity_names) == 2
