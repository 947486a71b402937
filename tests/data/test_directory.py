"""A folder of clips as a dataset for `fit`: what is in a batch, epochs, splits, and what is refused."""

import inspect

import keras
import numpy as np
import pytest

import tfvidgen
from tfvidgen import data

LENGTHS = {"run": (4, 5, 6), "walk": (7, 8)}  # frames of the videos of each class
TINY = {"image_size": (16, 16), "num_frames": 4, "batch_size": 2, "verbose": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five videos in two class folders: frame t of the i-th is of colour 40 i + t."""
    root = tmp_path_factory.mktemp("clips")
    number = 0
    for action, lengths in LENGTHS.items():
        (root / action).mkdir()
        for length in lengths:
            frames = np.arange(length, dtype=np.uint8)[:, None, None, None] + np.uint8(40 * number)
            np.save(root / action / f"{number}.npy", np.tile(frames, (1, 16, 16, 3)))
            number += 1
    return root


def drawn(dataset) -> list[dict[str, np.ndarray]]:
    return list(dataset.as_numpy_iterator())


def ids(dataset) -> list[int]:
    return [int(i) for batch in drawn(dataset) for i in batch["video_id"]]


def starts(dataset) -> list[int]:
    """The frame at which each clip begins."""
    return [int(v[0, 0, 0, 0]) - 40 * i for b in drawn(dataset) for v, i in zip(b["video"], b["video_id"], strict=True)]


def test_an_epoch_has_every_video_once_with_its_label(folder):
    dataset = data.video_dataset_from_directory(folder, **TINY)
    assert len(dataset) == 3 and dataset.class_names == ["run", "walk"]
    assert dataset.file_paths == ["run/0.npy", "run/1.npy", "run/2.npy", "walk/3.npy", "walk/4.npy"]
    batches = drawn(dataset)
    assert [batch["video"].shape for batch in batches] == [(2, 4, 16, 16, 3)] * 2 + [(1, 4, 16, 16, 3)]
    assert sorted(i for batch in batches for i in batch["video_id"]) == [0, 1, 2, 3, 4]
    for batch in batches:
        assert set(batch) == {"video", "video_id", "action"}
        assert (batch["video"].dtype, batch["video_id"].dtype, batch["action"].dtype) == ("uint8", "int32", "int32")
        np.testing.assert_array_equal(batch["action"], batch["video_id"] >= 3)
        expected = 40 * batch["video_id"][:, None] + np.arange(4)
        np.testing.assert_array_equal(batch["video"][:, :, 0, 0, 0], expected)


def test_every_epoch_has_another_order_and_the_seed_decides_them(folder):
    def epochs(seed):
        dataset = data.video_dataset_from_directory(folder, seed=seed, **TINY)
        return [ids(dataset) for _ in range(4)]

    assert len({tuple(order) for order in epochs(3)}) > 1
    assert epochs(3) == epochs(3) != epochs(4)
    plain = data.video_dataset_from_directory(folder, shuffle=False, **TINY)
    assert ids(plain) == ids(plain) == [0, 1, 2, 3, 4]


def test_clips_begin_where_sampling_says_and_random_ones_anew(folder):
    def begins(sampling, epochs=1):
        dataset = data.video_dataset_from_directory(folder, sampling=sampling, shuffle=False, seed=1, **TINY)
        return [starts(dataset) for _ in range(epochs)]

    assert begins("first") == [[0, 0, 0, 0, 0]]
    assert begins("centre") == [[0, 0, 1, 1, 2]]
    epochs = begins("random", 6)
    for video, room in enumerate((0, 1, 2, 3, 4)):
        assert {epoch[video] for epoch in epochs} <= set(range(room + 1))
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert epochs == begins("random", 6)


def test_strides_and_short_videos(folder):
    long = {**TINY, "num_frames": 3, "stride": 2, "shuffle": False}
    with pytest.raises(ValueError, match="1 of 5 videos are shorter than the 5 frames"):
        data.video_dataset_from_directory(folder, **long)
    held = drawn(data.video_dataset_from_directory(folder, short_clip="hold", **long))
    assert held[0]["video"][:, :, 0, 0, 0].tolist() == [[0, 2, 3], [40, 42, 44]]
    kept = data.video_dataset_from_directory(folder, short_clip="drop", **long)
    assert ids(kept) == [0, 1, 2, 3] and kept.file_paths[0] == "run/1.npy"


def test_subsets_are_parts_of_one_split(folder):
    split = {"validation_split": 0.4, "seed": 5, **TINY}
    training, validation = data.video_dataset_from_directory(folder, subset="both", **split)
    assert len(training.file_paths) == 3 and len(validation.file_paths) == 2
    assert (
        sorted(training.file_paths + validation.file_paths)
        == data.video_dataset_from_directory(folder, **TINY).file_paths
    )
    for name, part in (("training", training), ("validation", validation)):
        assert data.video_dataset_from_directory(folder, subset=name, **split).file_paths == part.file_paths
    assert sorted(ids(validation)) == [0, 1]
    last = data.video_dataset_from_directory(folder, subset="validation", shuffle=False, validation_split=0.4, **TINY)
    assert last.file_paths == ["walk/3.npy", "walk/4.npy"]


def test_the_split_of_a_table_is_kept(folder, tmp_path):
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", np.zeros((4, 16, 16, 3), np.uint8))
    table = "file,identity,split\na.npy,ann,trained\nb.npy,ann,held_out\nc.npy,bob,trained\n"
    (tmp_path / "labels.csv").write_text(table)
    assert data.video_dataset_from_directory(tmp_path, **TINY).file_paths == ["a.npy", "c.npy"]
    held_out = data.video_dataset_from_directory(tmp_path, subset="validation", **TINY)
    assert held_out.file_paths == ["b.npy"] and drawn(held_out)[0]["identity"].tolist() == [0]
    with pytest.raises(ValueError, match="says itself which videos are held out"):
        data.video_dataset_from_directory(tmp_path, subset="both", validation_split=0.5, **TINY)


def test_labels_in_another_order_or_none(folder):
    dataset = data.video_dataset_from_directory(folder, class_names=["walk", "run"], shuffle=False, **TINY)
    assert dataset.class_names == ["walk", "run"]
    assert [int(a) for batch in drawn(dataset) for a in batch["action"]] == [1, 1, 1, 0, 0]
    for none in ({"labels": None}, {"label_mode": None}):
        dataset = data.video_dataset_from_directory(folder, **none, **TINY)
        assert dataset.class_names is None and set(dataset.element_spec) == {"video", "video_id"}


def test_a_prepared_folder_has_the_same_clips(folder, tmp_path):
    data.prepare_shards(folder, tmp_path / "prepared", size=16, resize="centre_crop")
    arguments = {"shuffle": False, "sampling": "random", "seed": 2, **TINY}
    decoded, read = (data.video_dataset_from_directory(path, **arguments) for path in (folder, tmp_path / "prepared"))
    assert isinstance(read.videos, data.ShardedVideos) and len(read) == 3
    for a, b in zip(drawn(decoded), drawn(read), strict=True):
        for name in ("video", "action", "video_id"):
            np.testing.assert_array_equal(a[name], b[name])


def test_what_was_found_is_printed(folder, capsys):
    arguments = {**TINY, "verbose": True}
    data.video_dataset_from_directory(folder, **arguments)
    data.video_dataset_from_directory(folder, subset="both", validation_split=0.2, **arguments)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Found 5 videos, belonging to 2 classes."
    assert out[1] == "Found 5 videos, belonging to 2 classes. Using 4 for training and 1 for validation."


def test_a_broken_file_is_named_or_left_out(folder, tmp_path):
    np.save(tmp_path / "good.npy", np.zeros((4, 16, 16, 3), np.uint8))
    (tmp_path / "bad.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"bad.npy: (?s:.*)skip_bad=True"):
        data.video_dataset_from_directory(tmp_path, **TINY)
    with pytest.warns(UserWarning, match="Skipped 1 unreadable.*bad.npy"):
        dataset = data.video_dataset_from_directory(tmp_path, skip_bad=True, **TINY)
    assert dataset.file_paths == ["good.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"color_mode": "grayscale"}, "`color_mode` must be 'rgb'.*Received 'grayscale'"),
        ({"interpolation": "nearest"}, "`interpolation` must be 'bicubic'"),
        ({"data_format": "channels_first"}, "`data_format` must be 'channels_last'"),
        ({"follow_links": False}, "`follow_links` must be True"),
        ({"label_mode": "categorical"}, "`label_mode` must be 'int'"),
        ({"labels": [0, 1, 0, 1, 0]}, "`labels` must be 'inferred' or None.*labels.csv"),
        ({"class_names": ["run"]}, "must be the actions of .* in some order: run, walk. Received run"),
        ({"class_names": ["run", "walk"], "labels": None}, "leave it out"),
        ({"batch_size": None}, "`batch_size` must be an int of at least 1"),
        ({"pad_to_aspect_ratio": True}, "crop_to_aspect_ratio=False"),
        ({"subset": "test"}, "`subset` must be one of training, validation, both"),
        ({"subset": "training"}, "needs `validation_split`"),
        ({"validation_split": 0.5}, "needs `subset`"),
        ({"validation_split": 1.0, "subset": "both"}, "must lie between 0 and 1"),
        ({"validation_split": 0.1, "subset": "both"}, "leaves one side empty"),
        ({"validation_split": 0.5, "subset": "training"}, "needs a `seed`"),
        ({"sampling": "middle"}, "`clip_start` must be one of"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.video_dataset_from_directory(folder, **{**TINY, **arguments})


def test_the_arguments_of_keras_s_function_are_there():
    """With its names, in its order, so that a call of it works here; what it lacks comes after them, by name only."""
    theirs, ours = (
        arguments_of(keras.utils.image_dataset_from_directory),
        arguments_of(data.video_dataset_from_directory),
    )
    shared = [name for name in theirs if name != "format"]
    assert [name for name in ours if name in theirs] == shared
    assert ours[len(shared) :] == ["num_frames", "stride", "sampling", "short_clip", "skip_bad"]


def arguments_of(function) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.long
@pytest.mark.usefixtures("quick_graphs")
def test_two_systems_are_fitted(folder):
    """A last batch of one clip included; every code of NAVSynth is trained in an epoch."""
    dataset = data.video_dataset_from_directory(folder, **TINY)
    model = tfvidgen.NAVSynth(
        num_videos=len(dataset.videos),
        num_frames=4,
        size=16,
        width=2,
        rnn_units=3,
        static_dim=2,
        transient_dim=2,
        motion_dim=2,
    )
    model.build()
    model.compile(triplet_weight=0.0, update="joint", loss="l2")
    before = model.static.rows.numpy()
    history = model.fit(dataset, epochs=2, verbose=0)
    assert (
        len(history.history["reconstruction_loss"]) == 2 and np.isfinite(history.history["reconstruction_loss"]).all()
    )
    assert (np.abs(model.static.rows.numpy() - before).max(axis=1) > 0).all()

    model = tfvidgen.MoCoGAN(
        num_frames=4,
        size=16,
        width=2,
        discriminator_width=2,
        temporal_taps=2,
        num_categories=2,
        content_dim=2,
        motion_dim=2,
    )
    model.build()
    model.compile()
    history = model.fit(dataset, epochs=2, verbose=0)
    assert np.isfinite(history.history["generator_loss"]).all()
