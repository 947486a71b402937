"""Sprites: indices, split, cells and compositing against a slow reference, on made-up sheets and on the real ones."""

import functools
import itertools

import numpy as np
import pytest
from PIL import Image

from tfvidgen.data.sets.sprites import ACTION_NAMES, NUM_CHARACTERS, character, published_split, sprites

WALK, SPELLCAST, SLASH = (8, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3, 4, 5, 4, 6), (0, 1, 2, 3, 4, 5, 4, 0)
# motion -> row and columns of the sheets' cells, typed out from the published script
CELLS = {
    "walk_front": (10, WALK),
    "walk_left": (9, WALK),
    "walk_right": (11, WALK),
    "spellcast_front": (2, SPELLCAST),
    "spellcast_left": (1, SPELLCAST),
    "spellcast_right": (3, SPELLCAST),
    "slash_front": (14, SLASH),
    "slash_left": (13, SLASH),
    "slash_right": (15, SLASH),
}


@functools.lru_cache(maxsize=8)
def composed_sheet(root, index: int) -> Image.Image:
    """A whole sheet, composed as the published script does."""
    body, rest = divmod(index, 216)
    bottomwear, rest = divmod(rest, 36)
    topwear, hair = divmod(rest, 6)
    layers = [f"body/{body}", f"bottomwear/{bottomwear}", f"topwear/{topwear}", f"hair/{hair}", "shoes/1"]
    sheet = Image.new("RGBA", (832, 1344), "black")
    for layer in layers:
        sheet = Image.alpha_composite(sheet, Image.open(root / f"{layer}.png").convert("RGBA"))
    return sheet


def slow_reference(root, index: int, motion: str) -> np.ndarray:
    sheet = composed_sheet(root, index)
    row, columns = CELLS[motion]
    cells = [sheet.crop((64 * c, 64 * row, 64 * c + 64, 64 * row + 64)).convert("RGB") for c in columns]
    return np.stack([np.asarray(cell) for cell in cells])


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """Sheets of blocks in random colours, some see-through; one layer is a palette picture, as most real ones are."""
    root = tmp_path_factory.mktemp("sprites")
    random = np.random.RandomState(0)
    names = [f"{kind}/{i}" for kind in ("body", "bottomwear", "topwear", "hair") for i in range(6)] + ["shoes/1"]
    for name in names:
        blocks = random.randint(0, 256, (42, 26, 4), np.uint8)  # a block is half a cell high and half a cell wide
        blocks[..., 3] = random.choice([0, 0, 83, 255], blocks.shape[:2])
        picture = Image.fromarray(blocks.repeat(32, 0).repeat(32, 1))
        if name == "body/1":
            picture = picture.convert("RGB").quantize(16)
        path = root / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path, compress_level=1)
    return root


def test_every_index_is_one_character():
    characters = [character(index) for index in range(NUM_CHARACTERS)]
    assert NUM_CHARACTERS * len(ACTION_NAMES) == 11_664
    assert characters[0].name == "body0_bottom0_top0_hair0"
    assert characters[1].name == "body0_bottom0_top0_hair1"
    assert characters[2 * 216 + 0 * 36 + 5 * 6 + 1].name == "body2_bottom0_top5_hair1"
    digits = [(c.body, c.bottomwear, c.topwear, c.hair) for c in characters]
    assert digits == list(itertools.product(range(6), repeat=4))


@pytest.mark.parametrize("index", [-1, 1296])
def test_index_out_of_range(index):
    with pytest.raises(ValueError, match=rf"0\.\.1295.*{index}"):
        character(index)


def test_published_split():
    train, test = published_split()
    assert (len(train), len(test)) == (1000, 296)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1296))
    np.testing.assert_array_equal(train[:5], [1116, 1135, 17, 469, 1293])  # numpy.random.seed(423), NumPy 1 and 2
    assert not np.array_equal(published_split(seed=0)[0], train)


def test_motions():
    assert ACTION_NAMES == tuple(CELLS)


def test_pixels_are_those_of_the_slow_reference(sheets):
    indices = [1 * 216 + 2 * 36 + 3 * 6 + 4, 1295, 0]
    collection = sprites(sheets, identities=indices)
    assert collection.frames.shape == (3 * 9 * 8, 64, 64, 3)
    for video, (index, motion) in enumerate(itertools.product(indices, ACTION_NAMES)):
        np.testing.assert_array_equal(collection.video(video), slow_reference(sheets, index, motion), err_msg=motion)


def test_labels_and_names(sheets):
    collection = sprites(sheets, identities=[7, 3])
    assert collection.identity_names == ("body0_bottom0_top1_hair1", "body0_bottom0_top0_hair3")
    assert collection.action_names == ACTION_NAMES
    assert collection.names[0] == "body0_bottom0_top1_hair1_walk_front"
    np.testing.assert_array_equal(collection.identity, [0] * 9 + [1] * 9)
    np.testing.assert_array_equal(collection.action, [*range(9)] * 2)
    assert set(collection.lengths.tolist()) == {8}
    assert collection.source == "sprites"


def test_num_identities_takes_from_the_training_split(sheets):
    train, _ = published_split()
    collection = sprites(sheets, num_identities=4)
    assert collection.identity_names == tuple(character(index).name for index in train[:4])
    assert collection.digest == sprites(sheets, identities=train[:4]).digest
    other = sprites(sheets, num_identities=4, seed=1)
    assert other.identity_names == tuple(character(index).name for index in published_split(1)[0][:4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_identities": 0}, r"1\.\.1000.*0"),
        ({"num_identities": 1001}, r"1\.\.1000.*1001"),
        ({"num_identities": 2, "identities": [0]}, "not both"),
        ({"identities": []}, "at least one"),
        ({"identities": [4, 4]}, r"each once.*\[4, 4\]"),
        ({"identities": [1296]}, r"0\.\.1295.*1296"),
    ],
)
def test_bad_arguments(sheets, arguments, message):
    with pytest.raises(ValueError, match=message):
        sprites(sheets, **arguments)


def test_missing_folder_and_sheet(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*body/0\.\.5\.png.*shoes/1\.png"):
        sprites(tmp_path / "nowhere", identities=[0])
    with pytest.raises(ValueError, match=r"body.0\.png.*832x1344"):
        sprites(tmp_path, identities=[0])


def test_broken_sheets(tmp_path):
    (tmp_path / "body").mkdir()
    Image.new("RGBA", (64, 128)).save(tmp_path / "body" / "0.png")
    with pytest.raises(ValueError, match=r"0\.png.*832x1344.*64x128"):
        sprites(tmp_path, identities=[0])
    (tmp_path / "body" / "0.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ValueError, match=r"Cannot read .*0\.png"):
        sprites(tmp_path, identities=[0])


def test_real_sheets(shared):
    root = shared / "data" / "sprites"
    collection = sprites(root, num_identities=2)
    for video, (index, motion) in enumerate(itertools.product(published_split()[0][:2], ACTION_NAMES)):
        np.testing.assert_array_equal(collection.video(video), slow_reference(root, int(index), motion))
    moving = [np.ptp(collection.video(i).astype(int), axis=0).max() for i in range(len(collection))]
    assert min(moving) > 50
