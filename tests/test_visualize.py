"""Sheets and boards: tiles lie where they should, whole and unchanged, and labels stay off them."""

import io

import numpy as np
import pytest
from PIL import Image

from tfvidgen import visualize


def coloured(shape, num_frames=4, size=(8, 12)):
    """uint8 (*shape, T, H, W, 3): every cell one colour of its own, no grey, changing a little from frame to frame."""
    count = int(np.prod(shape))
    videos = np.zeros((count, num_frames, *size, 3), np.uint8)
    for i in range(count):
        videos[i, ..., 0] = 5 * i + 3
        videos[i, ..., 1] = 250
        videos[i, ..., 2] = np.arange(num_frames)[:, None, None]
    return videos.reshape(*shape, *videos.shape[1:])


def places(image, colour):
    """(top, left, height, width) of the one box that pixels of a colour make up; fails if they make up no full box."""
    found = (image == colour).all(axis=-1)
    y, x = np.nonzero(found)
    assert len(y), f"no pixel of {colour}"
    box = found[y.min() : y.max() + 1, x.min() : x.max() + 1]
    assert box.all(), f"something covers the tile of {colour}"
    return y.min(), x.min(), *box.shape


# to_uint8 ------------------------------------------------------------------------------------------------------------


def test_to_uint8_is_the_fixed_rule():
    x = np.linspace(-1.5, 1.5, 1001)
    expected = np.round((np.clip(x.astype(np.float32), -1, 1) + 1) * np.float32(127.5))
    for values in (x, x.astype(np.float32)):
        pixels = visualize.to_uint8(values)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected)
    assert visualize.to_uint8(np.array([-9.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]


def test_to_uint8_gives_back_all_256_values():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(visualize.to_uint8(pixels.astype(np.float32) / 127.5 - 1), pixels)


def test_to_uint8_does_not_stretch_the_range():
    dim = np.full((2, 3, 4, 4, 3), 0.1, np.float32)
    assert set(visualize.to_uint8(dim).flat) == {140}


def test_to_uint8_takes_half_precision():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert visualize.to_uint8(np.array([-1, 0.5, 1], dtype)).tolist() == [0, 191, 255]


@pytest.mark.parametrize("wrong", [np.zeros(3, np.uint8), np.zeros(3, np.int64), np.zeros(3, bool)])
def test_to_uint8_refuses_integers(wrong):
    with pytest.raises(ValueError, match="floating-point"):
        visualize.to_uint8(wrong)


def test_to_uint8_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        visualize.to_uint8(np.array([0.0, np.nan]))


# save_png ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "least", "factor"),
    [((64, 64), 128, 2), ((65, 64), 128, 2), ((48, 90), 128, 3), ((128, 9999), 128, 1), ((1, 1), 256, 256)],
)
def test_small_frames_are_enlarged_as_far_as_needed(size, least, factor):
    assert visualize.enlargement(size, least) == factor


def test_enlarging_repeats_pixels():
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    enlarged = visualize.enlarged(video, 3)
    assert enlarged.shape == (2, 9, 12, 3) and enlarged.dtype == np.uint8
    for y, x in np.ndindex(3, 3):
        np.testing.assert_array_equal(enlarged[:, y::3, x::3], video)
    for scale in (0, 1.5):
        with pytest.raises(ValueError, match="`scale` must be a whole number of at least 1"):
            visualize.enlarged(video, scale)


def test_save_png_keeps_every_pixel_and_leaves_no_other_file(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    path = tmp_path / "new folder" / "äö sheet.png"
    for _ in range(2):  # the second time over the first
        visualize.save_png(path, image)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with Image.open(io.BytesIO(path.read_bytes())) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), image)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("a.jpg", np.zeros((2, 2, 3), np.uint8), ".png"),
        ("a.png", np.zeros((2, 2, 3), np.float32), "to_uint8"),
        ("a.png", np.zeros((2, 2), np.uint8), "uint8"),
        ("a.png", np.zeros((5, 2, 2, 3), np.uint8), "one frame"),
    ],
)
def test_save_png_refuses(tmp_path, name, image, message):
    with pytest.raises(ValueError, match=message):
        visualize.save_png(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


# contact_sheet -------------------------------------------------------------------------------------------------------


def test_contact_sheet_puts_clips_in_rows_and_spaced_frames_in_columns():
    videos = coloured((2,), num_frames=9)
    sheet = visualize.contact_sheet(videos, num_columns=5, scale=2)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    found = np.array([[places(sheet, videos[i, t, 0, 0]) for t in (0, 2, 4, 6, 8)] for i in range(2)])
    assert (found[..., 2:] == (16, 24)).all()
    assert (np.diff(found[..., 0], axis=1) == 0).all()
    assert (np.diff(found[..., 1], axis=0) == 0).all()
    assert (np.diff(found[..., 1], axis=1) > 24).all()  # with a gap
    assert (np.diff(found[..., 0], axis=0) > 16).all()
    assert (np.diff(found[..., 1], n=2, axis=1) == 0).all()
    for t in (1, 3, 5, 7):
        assert not (sheet == videos[0, t, 0, 0]).all(axis=-1).any()


def test_contact_sheet_keeps_every_pixel_of_a_frame():
    videos = np.random.default_rng(0).integers(0, 255, (1, 1, 6, 5, 3), dtype=np.uint8)
    sheet = visualize.contact_sheet(videos, scale=3)
    enlarged = videos[0, 0].repeat(3, axis=0).repeat(3, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, enlarged.shape)[:, :, 0]
    assert (windows == enlarged).all(axis=(2, 3, 4)).sum() == 1


def test_contact_sheet_shows_each_frame_of_a_short_clip_once():
    videos = coloured((1,), num_frames=3)
    sheet = visualize.contact_sheet(videos, num_columns=8)
    for t in range(3):
        assert places(sheet, videos[0, t, 0, 0])[2:] == (8, 12)


def test_contact_sheet_takes_clips_of_different_lengths():
    videos = coloured((2,), num_frames=6)
    sheet = visualize.contact_sheet([videos[0], videos[1, :2]], num_columns=3)
    for i, t in ((0, 0), (0, 2), (0, 5), (1, 0), (1, 1)):
        assert places(sheet, videos[i, t, 0, 0])[2:] == (8, 12)


def test_contact_sheet_of_one_column_shows_the_middle_frame():
    videos = coloured((1,), num_frames=5)
    assert places(visualize.contact_sheet(videos, num_columns=1), videos[0, 2, 0, 0])[2:] == (8, 12)


@pytest.mark.parametrize(
    "label", ["wave", "a label so long that it would cover many tiles of this size", "two\nlines\nor four\n"]
)
def test_labels_and_titles_never_touch_tiles(label):
    videos = coloured((3,))
    plain = visualize.contact_sheet(videos)
    sheet = visualize.contact_sheet(videos, row_labels=[label] * 3, title=label.replace("\n", " "))
    assert sheet.shape[0] > plain.shape[0]
    assert sheet.shape[1] > plain.shape[1]
    rows = [places(sheet, videos[i, 0, 0, 0]) for i in range(3)]
    assert all(row[2:] == (8, 12) for row in rows)
    left = rows[0][1]
    for (top, *_), next_top in zip(rows, [row[0] for row in rows[1:]] + [None], strict=True):
        band = sheet[top - 2 : next_top, :left]
        assert (band.min(axis=(1, 2)) < 128).any()  # its label stands beside it
    assert (sheet[:, -4:] == 255).all() and (sheet[:4] == 255).all() and (sheet[-4:] == 255).all()


def test_contact_sheet_keeps_groups_apart():
    videos = coloured((6,))
    sheet = visualize.contact_sheet(videos, group_sizes=[3, 1, 2])
    steps = np.diff([places(sheet, video[0, 0, 0])[0] for video in videos])
    assert steps[0] == steps[1] == steps[4] and steps[2] == steps[3] > steps[0] + 4
    assert (visualize.contact_sheet(videos, group_sizes=[6]) == visualize.contact_sheet(videos)).all()
    for sizes in ([3, 2], [6, 1], [7, -1], [6, 0], []):
        with pytest.raises(ValueError, match="group_sizes.*add up to the 6 clips"):
            visualize.contact_sheet(videos, group_sizes=sizes)


def test_sheets_are_white():
    assert (visualize.contact_sheet(coloured((1,)))[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


# side_by_side --------------------------------------------------------------------------------------------------------


def test_side_by_side_groups_clips_of_all_sources():
    videos = coloured((3, 2))
    sheet = visualize.side_by_side({"real": videos[0], "generated": videos[1], "baseline": videos[2]})
    tops = np.array([[places(sheet, videos[s, i, 0, 0, 0])[0] for s in range(3)] for i in range(2)])
    assert (np.diff(tops.ravel()) > 0).all()  # clip 0 of all sources in order, then clip 1
    within, between = np.diff(tops, axis=1), tops[1, 0] - tops[0, 2]
    assert (within == within[0, 0]).all()
    assert between > within[0, 0] + 4


def test_side_by_side_refuses_what_cannot_be_compared():
    videos = coloured((3,))
    with pytest.raises(ValueError, match="the same number of clips"):
        visualize.side_by_side({"real": videos, "generated": videos[:2]})
    with pytest.raises(ValueError, match="frame size"):
        visualize.side_by_side({"real": videos, "generated": videos[:, :, :4]})
    with pytest.raises(ValueError, match="at least one source"):
        visualize.side_by_side({})


# grid_video ----------------------------------------------------------------------------------------------------------


def test_grid_video_plays_all_clips_in_step():
    videos = coloured((5,), num_frames=3)
    grid = visualize.grid_video(videos, scale=2, pad=3)
    assert grid.shape == (3, 2 * 16 + 3 * 3 + 1, 3 * 24 + 4 * 3, 3)  # one line more, to be even
    for t in range(3):
        for i in range(5):
            top, left = 3 + i // 3 * 19, 3 + i % 3 * 27
            assert places(grid[t], videos[i, t, 0, 0]) == (top, left, 16, 24)
    assert (grid[:, :3] == 255).all() and (grid[:, :, :3] == 255).all()
    assert (grid[:, 22:38, 57:81] == 255).all()  # the place of a sixth clip


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("labels", [False, True])
def test_grid_video_has_even_sides(count, labels):
    videos = coloured((count,), num_frames=2, size=(5, 7))
    names = [f"video number {i}" for i in range(count)] if labels else None
    grid = visualize.grid_video(videos, num_columns=2, scale=1, pad=1, labels=names)
    assert grid.shape[1] % 2 == grid.shape[2] % 2 == 0
    for i in range(count):
        assert places(grid[1], videos[i, 1, 0, 0])[2:] == (5, 7)


def test_grid_video_writes_labels_under_their_tiles():
    videos = coloured((2,), size=(32, 32))
    grid = visualize.grid_video(videos, labels=["", "second clip"])
    top, left, height, width = places(grid[0], videos[1, 0, 0, 0])
    assert grid[0, top + height :, left : left + width].min() < 128
    assert (grid[0, top + height :, : left - 2] == 255).all()
    assert (grid[:, top + height :] == grid[:1, top + height :]).all()


def test_grid_video_refuses():
    videos = coloured((2,))
    with pytest.raises(ValueError, match="length"):
        visualize.grid_video([videos[0], videos[1, :2]])
    with pytest.raises(ValueError, match="pad"):
        visualize.grid_video(videos, pad=-1)
    with pytest.raises(ValueError, match="num_columns"):
        visualize.grid_video(videos, num_columns=0)
    with pytest.raises(ValueError, match="labels"):
        visualize.grid_video(videos, labels=["one"])


# board ---------------------------------------------------------------------------------------------------------------

ROWS, COLUMNS = ["wave", "bend"], ["ann", "bob", "eve"]
MARKS = [["trained", "held_out", "trained"], ["absent", "trained", "held_out"]]


def test_board_puts_identities_in_columns_and_actions_in_rows():
    cells = coloured((2, 3))
    board = visualize.board(cells, ROWS, COLUMNS, scale=2)
    assert len(board) == 4
    assert board.shape[1] % 2 == board.shape[2] % 2 == 0
    found = np.array([[places(board[1], cells[r, c, 1, 0, 0]) for c in range(3)] for r in range(2)])
    assert (found[..., 2:] == (16, 24)).all()
    assert (np.diff(found[..., 0], axis=1) == 0).all() and (np.diff(found[..., 0], axis=0) > 16).all()
    assert (np.diff(found[..., 1], axis=0) == 0).all() and (np.diff(found[..., 1], axis=1) > 24).all()


def test_board_plays_and_only_its_tiles_move():
    cells = coloured((2, 3))
    board = visualize.board(cells, ROWS, COLUMNS, MARKS)
    moving = (board != board[:1]).any(axis=(0, 3))
    tiles = np.zeros_like(moving)
    for at in np.ndindex(2, 3):
        for t in range(4):
            top, left, height, width = places(board[t], cells[at][t, 0, 0])
            tiles[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(moving, tiles)


def test_board_frames_cells_by_their_marks():
    cells = coloured((2, 3), size=(56, 56))
    board = visualize.board(cells, ROWS, COLUMNS, MARKS)
    for at in np.ndindex(2, 3):
        top, left, height, width = places(board[0], cells[at][0, 0, 0])
        ring = [board[:, top - 1, left - 1 : left + width + 1], board[:, top + height, left - 1 : left + width + 1]]
        ring += [board[:, top - 1 : top + height + 1, left - 1], board[:, top - 1 : top + height + 1, left + width]]
        mark = MARKS[at[0]][at[1]]
        share = np.mean([(side == visualize.MARK_COLOURS[mark]).all(axis=-1).mean() for side in ring])
        assert (0.35 < share < 0.65) if mark == "absent" else share == 1
        assert (board[:, top - 4, left : left + width] == 255).all()  # the frame has an end


def test_board_explains_only_what_it_shows():
    cells = coloured((2, 3))
    columns, plain = {}, visualize.board(cells, ROWS, COLUMNS)
    for mark, colour in visualize.MARK_COLOURS.items():
        board = visualize.board(cells, ROWS, COLUMNS, [[mark] * 3] * 2)
        bottom = max(places(board[0], cells[at][0, 0, 0])[0] for at in np.ndindex(2, 3)) + 8 + 4
        assert (board[0, bottom:] == colour).all(axis=-1).any()
        for other in set(visualize.MARK_COLOURS) - {mark}:
            assert not (board[0] == visualize.MARK_COLOURS[other]).all(axis=-1).any()
        columns[mark] = board.shape[1]
    assert min(columns.values()) > plain.shape[1]
    worded = visualize.board(cells, ROWS, COLUMNS, MARKS, legend={"held_out": "never seen: " + "a long story " * 9})
    assert worded.shape[2] > visualize.board(cells, ROWS, COLUMNS, MARKS).shape[2]


def test_board_hatches_missing_cells_and_says_so():
    cells = coloured((2, 3), size=(40, 40))
    kept = {at: cells[at] for at in np.ndindex(2, 3) if at != (1, 0)}
    board, full = (visualize.board(given, ROWS, COLUMNS) for given in (kept, cells))
    assert board.shape[1] > full.shape[1]  # a line that explains the hatching
    top, left, height, width = places(full[0], cells[1, 0, 0, 0, 0])
    tile = board[:, top : top + height, left : left + width]
    assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 2
    assert tile.min() > 180
    assert (tile == tile[:1]).all()
    for at in kept:
        assert places(board[2], cells[at][2, 0, 0])[:2] == places(full[2], cells[at][2, 0, 0])[:2]


def test_board_explains_missing_absent_cells_once():
    cells = coloured((2, 3))
    kept = {at: cells[at] for at in np.ndindex(2, 3) if at != (1, 0)}
    legend = {"empty": "an explanation that would widen the board " * 5}
    assert (
        visualize.board(kept, ROWS, COLUMNS, MARKS, legend).shape == visualize.board(kept, ROWS, COLUMNS, MARKS).shape
    )
    all_trained = [["trained"] * 3] * 2
    assert visualize.board(kept, ROWS, COLUMNS, all_trained, legend).shape[2] > 800


@pytest.mark.parametrize(
    "names", [["a", "b", "c"], ["Maximilian the third of his name"] * 3, ["Maximilian", "x", "Bob\nB"]]
)
def test_board_labels_stay_off_tiles_and_one_another(names):
    cells = coloured((2, 3), size=(16, 16))
    board = visualize.board(cells, ROWS, names, column_axis=None, row_axis=None)
    found = [places(board[0], cells[0, c, 0, 0, 0]) for c in range(3)]
    assert all(place[2:] == (16, 16) for place in found)
    top = found[0][0]
    ink = (board[0, :top] < 200).any(axis=(0, 2))  # columns of pixels in which label text stands
    middles = [left + 8 for _, left, *_ in found]
    for first, second in zip(middles, middles[1:], strict=False):
        assert not ink[first:second].all()


def test_board_names_its_axes():
    cells = coloured((2, 3))
    named = visualize.board(cells, ROWS, COLUMNS)
    unnamed = visualize.board(cells, ROWS, COLUMNS, row_axis=None, column_axis=None)
    assert named.shape[1] > unnamed.shape[1] and named.shape[2] > unnamed.shape[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": coloured((2, 3)).astype(np.float32)}, "to_uint8"),
        ({"cells": coloured((3, 2))}, "numbers of labels"),
        ({"cells": coloured((6,))}, "R, C, T, H, W, 3"),
        ({"cells": {}}, "at least one video"),
        ({"cells": {(2, 0): coloured((1,))[0]}}, "within"),
        ({"cells": {(0, 0): coloured((1,))[0], (0, 1): coloured((1,), 2)[0]}}, "length"),
        ({"marks": [["trained"] * 2] * 3}, "one entry per cell"),
        ({"marks": [["trained", "seen", "absent"]] * 2}, "seen"),
        ({"legend": {"seen": "seen"}}, "legend"),
        ({"scale": 0}, "scale"),
        ({"scale": 1.5}, "scale"),
    ],
)
def test_board_refuses(change, message):
    given = {"cells": coloured((2, 3)), "row_labels": ROWS, "column_labels": COLUMNS} | change
    for draw in (visualize.board, visualize.board_sheet):
        with pytest.raises(ValueError, match=message):
            draw(**given)


# board_sheet ---------------------------------------------------------------------------------------------------------


def test_board_sheet_shows_the_middle_frame():
    cells = coloured((2, 3), num_frames=5)
    sheet = visualize.board_sheet(cells, ROWS, COLUMNS, MARKS)
    assert sheet.ndim == 3
    for at in np.ndindex(2, 3):
        assert places(sheet, cells[at][2, 0, 0])[2:] == (8, 12)


def test_board_sheet_shows_frames_side_by_side():
    cells = coloured((2, 3), num_frames=7)
    sheet = visualize.board_sheet(cells, ROWS, COLUMNS, MARKS, scale=2, num_frames=3)
    for at in np.ndindex(2, 3):
        found = [places(sheet, cells[at][t, 0, 0]) for t in (0, 3, 6)]
        assert all(place[2:] == (16, 24) for place in found)
        assert [place[1] - found[0][1] for place in found] == [0, 25, 50]


# input ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [visualize.contact_sheet, visualize.grid_video])
@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (np.zeros((2, 3, 4, 4, 3), np.float32), "to_uint8"),
        (np.zeros((2, 3, 4, 4, 1), np.uint8), "grey"),
        (np.zeros((3, 4, 4, 3), np.uint8), "T, H, W, 3"),
        (np.zeros((0, 3, 4, 4, 3), np.uint8), "at least one"),
        (np.zeros((2, 0, 4, 4, 3), np.uint8), "T, H, W, 3"),
        ([np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 5, 4, 3), np.uint8)], "position 1"),
    ],
)
def test_wrong_videos_are_refused_with_a_remedy(draw, videos, message):
    with pytest.raises(ValueError, match=message):
        draw(videos)


def test_labels_must_be_one_text_each():
    videos = coloured((3,))
    for labels in (["a", "b"], "abc"):
        with pytest.raises(ValueError, match="row_labels"):
            visualize.contact_sheet(videos, row_labels=labels)


def test_inputs_are_left_alone():
    cells = coloured((2, 3))
    before = cells.copy()
    visualize.board(cells, ROWS, COLUMNS, MARKS, scale=1)
    visualize.contact_sheet(cells[0])
    visualize.grid_video(cells[0], scale=1)
    np.testing.assert_array_equal(cells, before)
