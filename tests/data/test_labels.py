"""A folder's own labels: `labels.csv`, folders of identities and actions, and the split."""

import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from tfvidgen.data import hold_out_cells, load_videos, prepare_shards, scan
from tfvidgen.data.shards import ShardedVideos


def clip(level: int) -> np.ndarray:
    return np.full((4, 16, 16, 3), level, np.uint8)


def make(root: pathlib.Path, *names: str) -> pathlib.Path:
    """Arrays of these names; the pixels of each tell which it is."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, clip(10 * i))
    return root


CELLS = ("ann/run/1.npy", "ann/walk/1.npy", "bob/run/1.npy", "bob/walk/1.npy")
FLAT = ("a.npy", "b.npy", "c.npy", "d.npy")
TABLE = """\
file,identity,action,split
a.npy,ann,run,trained
b.npy,ann,walk,held_out
c.npy,bob,run,trained
d.npy,bob,walk,trained
"""


def test_folders_of_identities_and_actions(tmp_path):
    videos = load_videos(make(tmp_path / "set", *CELLS))
    assert (videos.identity_names, videos.action_names) == (("ann", "bob"), ("run", "walk"))
    assert videos.identity.tolist() == [0, 0, 1, 1] and videos.action.tolist() == [0, 1, 0, 1]
    report = scan(tmp_path / "set")
    assert report.identities == {"ann": 2, "bob": 2} and report.labelled_by == "folders identity/action"
    assert "labels from" in report.to_text()


def test_frame_folders_are_told_from_class_folders_by_what_lies_in_them(tmp_path):
    for root, folders, expected in (
        ("classes", ("run/1", "walk/1"), (None, ("run", "walk"))),
        ("cells", ("ann/run/1", "bob/walk/1"), (("ann", "bob"), ("run", "walk"))),
    ):
        for folder in folders:
            (tmp_path / root / folder).mkdir(parents=True)
            for frame in clip(30):
                Image.fromarray(frame).save(
                    tmp_path / root / folder / f"{len(list((tmp_path / root / folder).iterdir()))}.png"
                )
        videos = load_videos(tmp_path / root)
        assert (videos.identity_names, videos.action_names) == expected


@pytest.mark.parametrize("change", [str, lambda text: text.replace(",", ";"), lambda text: "\ufeff" + text + "\n\n"])
def test_a_table_gives_labels_and_split(tmp_path, change):
    root = make(tmp_path / "set", *FLAT)
    (root / "labels.csv").write_text(change(TABLE), encoding="utf-8")
    videos = load_videos(root)
    assert [videos.identity_names[i] for i in videos.identity] == ["ann", "ann", "bob", "bob"]
    assert [videos.action_names[i] for i in videos.action] == ["run", "walk", "run", "walk"]
    assert hold_out_cells(videos).tolist() == [True, False, True, True]
    report = scan(root)
    assert (report.labelled_by, report.num_held_out, report.ignored) == ("labels.csv", 1, ())
    cached = load_videos(root, cache_dir=tmp_path / "cache")
    prepared = prepare_shards(root, tmp_path / "out", size=16, num_workers=1)
    assert isinstance(prepared, ShardedVideos)
    for other in (cached, prepared, prepared.collection(), videos.subset([0, 1, 2, 3]), videos.cut(2)):
        assert (
            other.held_out.tolist() == [False, True, False, False] * 1 if len(other) == 4 else other.held_out.sum() == 2
        )
    assert prepared.digest == videos.digest
    (root / "labels.csv").write_text(TABLE.replace("b.npy,ann,walk,held_out", "b.npy,ann,walk,trained"))
    assert not load_videos(root, cache_dir=tmp_path / "cache").held_out.any()


def test_a_table_wins_over_folders_and_adds_to_them(tmp_path):
    root = make(tmp_path / "set", "run/1.npy", "walk/1.npy")
    (root / "labels.csv").write_text("file,identity\nrun\\1.npy,ann\n./walk/1.npy,bob\n")
    videos = load_videos(root)
    assert (videos.identity_names, videos.action_names) == (("ann", "bob"), ("run", "walk")) and videos.held_out is None
    assert scan(root).labelled_by == "labels.csv and folders action"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "first line .* must name the columns file and any of identity, action and split"),
        ("name,action\na.npy,run\n", "Received 'name,action'"),
        ("file,action,action\n", "each once"),
        ("file,action\na.npy\n", "line 2 of .* lacks action: every line needs a value for every column"),
        ("file,action\na.npy,run,walk\n", "line 2 of .* has 3 values for 2 columns"),
        ("file,split\na.npy,test\n", "`split` must be one of trained, held_out. Received 'test' in line 2"),
        ("file,action\na.npy,run\na.npy,run\n", "line 3 .* lists 'a.npy' a second time"),
        ("file,action\na.npy,run\n", "videos that it does not list: b.npy, c.npy, d.npy"),
        (TABLE + "e.npy,ann,run,trained\n", "files that are not there: e.npy"),
        ("file,action\na.npy,caf\u00e9\n".encode("latin-1"), "is not UTF-8 text .*: save it as UTF-8"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, table, message):
    root = make(tmp_path / "set", *FLAT)
    (root / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    for read in (load_videos, scan):
        with pytest.raises(ValueError, match=message):
            read(root)


@pytest.mark.parametrize(
    ("table", "counts", "message"),
    [
        (TABLE, (1, 0), "says itself which videos are held out: leave out num_held_out"),
        (TABLE.replace(",trained", ",held_out"), (0, 0), "holds out all of its videos"),
        (TABLE.replace("a.npy,ann,run,trained", "a.npy,ann,run,held_out"), (0, 0), "every video of the identity 'ann'"),
    ],
)
def test_splits_that_cannot_be_trained_are_refused(tmp_path, table, counts, message):
    root = make(tmp_path / "set", *FLAT)
    (root / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        hold_out_cells(load_videos(root), *counts)


def test_archives_are_not_mistaken_for_nothing(tmp_path):
    for name in ("clips.zip", "folder/clips.zip", "beside/clips.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.txt", "x")
    with pytest.raises(ValueError, match="clips.zip: it is a zip archive: unpack it"):
        load_videos(tmp_path / "clips.zip")
    with pytest.raises(ValueError, match=r"saw 1 other files, such as clips.zip \(a zip archive: unpack it\)"):
        load_videos(tmp_path / "folder")
    make(tmp_path / "beside", "a.npy")
    assert scan(tmp_path / "beside").ignored == ("clips.zip (a zip archive: unpack it)",)
