"""Weizmann strips: numbers to cells, formats by content, mirror images; and what the real set holds."""

import itertools

import numpy as np
import pytest
from PIL import Image

from tfvidgen.data.sets.weizmann import ACTION_NAMES, weizmann

FOLDERS = {"one_hand_wave": "0", "two_hand_wave": "1", "jumping_jack": "3", "bend": "4"}


def save_strip(path, frames: np.ndarray) -> None:
    """RGBA PNG whatever the name says, as in the public files; alpha is noise that must not reach the pixels."""
    strip = np.concatenate(list(frames), axis=1)
    alpha = np.random.RandomState(0).randint(0, 256, (*strip.shape[:2], 1), np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate([strip, alpha], -1)).save(path, format="PNG")


@pytest.fixture
def strips(tmp_path):
    """Two people, each cell but (0, bend), with mirror images. Maps (identity, action) -> frames."""
    random = np.random.RandomState(1)
    videos = {}
    for identity, (position, name) in itertools.product((0, 5), enumerate(FOLDERS)):
        if (identity, name) == (0, "bend"):
            continue
        video = random.randint(0, 256, (3 + position, 12, 12, 3), np.uint8)
        videos[identity, name] = video
        number = identity * 8 + position * 2
        save_strip(tmp_path / FOLDERS[name] / f"{number:08d}.jpg", video)
        save_strip(tmp_path / FOLDERS[name] / f"{number + 1:08d}.jpg", video[:, :, ::-1])
    return tmp_path, videos


def test_cells(strips):
    root, videos = strips
    collection = weizmann(root)
    assert len(collection) == len(videos) == 7
    for index, name in enumerate(collection.names):
        identity, action = int(collection.identity[index]), ACTION_NAMES[collection.action[index]]
        assert name == f"person{identity}_{action}"
        np.testing.assert_array_equal(collection.video(index), videos[identity, action])
    assert sorted(collection.identity.tolist()) == collection.identity.tolist()
    assert collection.identity_names == tuple(f"person{i}" for i in range(9))
    assert collection.action_names == tuple(FOLDERS)
    assert (collection.fps, collection.source) == (25.0, "weizmann")


def test_mirror_images(strips):
    root, _ = strips
    collection = weizmann(root, mirrored=True)
    assert len(collection) == 14
    for index, name in enumerate(collection.names):
        if name.endswith("_mirrored"):
            original = collection.names.index(name.removesuffix("_mirrored"))
            np.testing.assert_array_equal(collection.video(index), collection.video(original)[:, :, ::-1])
            assert collection.identity[index] == collection.identity[original]
            assert collection.action[index] == collection.action[original]


def test_resizes_each_frame_for_itself(tmp_path):
    """Neighbouring frames of a strip do not bleed into each other."""
    flat = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 255, 40)])
    for folder in FOLDERS.values():
        save_strip(tmp_path / folder / f"{8 * int(folder):08d}.jpg", flat)
    collection = weizmann(tmp_path, size=8)
    assert collection.size == (8, 8)
    np.testing.assert_array_equal(collection.video(0), flat[:, ::2, ::2])
    with pytest.raises(ValueError, match="size"):
        weizmann(tmp_path, size=0)


def test_missing_folder(strips):
    root, _ = strips
    with pytest.raises(ValueError, match=r"nowhere.*0, 1, 3, 4"):
        weizmann(root / "nowhere")
    for path in (root / "3").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"3.*00000002\.jpg.*jumping_jack"):
        weizmann(root)


def test_only_mirror_images(strips):
    root, _ = strips
    for path in root.glob("*/*.jpg"):
        if int(path.stem) % 2 == 0:
            path.unlink()
    with pytest.raises(ValueError, match="mirrored=True"):
        weizmann(root)
    assert len(weizmann(root, mirrored=True)) == 7


@pytest.mark.parametrize("name", ["00000072.jpg", "clip.jpg"])
def test_foreign_file(strips, name):
    root, _ = strips
    save_strip(root / "0" / name, np.zeros((2, 12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match=rf"0\.\.71.*{name}"):
        weizmann(root)


def test_broken_files(strips):
    root, _ = strips
    path = root / "0" / "00000000.jpg"
    Image.new("RGB", (30, 12)).save(path, format="PNG")
    with pytest.raises(ValueError, match=r"00000000\.jpg.*12 high cannot be 30 wide"):
        weizmann(root)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"Cannot read .*00000000\.jpg"):
        weizmann(root)


def test_real_strips(shared):
    root = shared / "data" / "weizmann"
    collection = weizmann(root)
    assert len(collection) == 30
    assert collection.size == (64, 64)
    assert (collection.lengths.min(), collection.lengths.max()) == (51, 146)
    present = {(int(i), ACTION_NAMES[a]) for i, a in zip(collection.identity, collection.action, strict=True)}
    assert set(itertools.product(range(9), ACTION_NAMES)) - present == {
        (0, "jumping_jack"),
        (2, "two_hand_wave"),
        (4, "bend"),
        (5, "one_hand_wave"),
        (7, "jumping_jack"),
        (8, "two_hand_wave"),
    }
    both = weizmann(root, mirrored=True)
    assert len(both) == 60
    for name in collection.names:
        original, mirror = (both.video(both.names.index(n)) for n in (name, f"{name}_mirrored"))
        np.testing.assert_array_equal(mirror, original[:, :, ::-1], err_msg=name)
