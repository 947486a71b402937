"""Networks that are trained here: they learn, repeat, are kept by the digest of their data, and refuse what does not fit."""

import dataclasses

import numpy as np
import pytest

from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.prepare import prepare_shards
from tfvidgen.data.sets.actors import actors
from tfvidgen.features.judge import (
    NETWORKS,
    ClassifierConfig,
    VideoClassifier,
    _held_out,
    judge_path,
    label_values,
    train_judge,
)

pytestmark = pytest.mark.usefixtures("quick_graphs")

TINY = ClassifierConfig(num_frames=4, size=16, width=4, steps=2, batch_size=4, dropout=0.0)


def moving_bars(count=24, frames=6, size=16, seed=0):
    """Bars that go down (0) or to the right (1), in any colour."""
    rng = np.random.default_rng(seed)
    videos = np.zeros((count, frames, size, size, 3), np.uint8)
    labels = np.arange(count) % 2
    for video, label in zip(videos, labels, strict=True):
        start, colour = rng.integers(0, 8), rng.integers(100, 256, 3)
        for t in range(frames):
            row = (start + 2 * t) % size
            if label:
                video[t, :, row : row + 3] = colour
            else:
                video[t, row : row + 3] = colour
    return videos, labels


def test_judge_learns_what_moves_and_tells_new_videos_apart():
    videos, labels = moving_bars()
    config = ClassifierConfig(num_frames=4, size=16, width=8, steps=30, batch_size=8, learning_rate=3e-3)
    classifier = VideoClassifier(2, config).fit(videos, labels)
    new_videos, new_labels = moving_bars(seed=1)
    assert classifier.accuracy(new_videos[:, :4], new_labels) > 0.9
    assert classifier.training["accuracy"] > 0.8 and classifier.training["videos"] == 24
    features, probabilities = classifier(new_videos[:, :4]), classifier.probabilities(new_videos[:, :4])
    assert features.shape == (24, 256) == (24, classifier.dim) and (features >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(1), classifier.predict(new_videos[:, :4]))


@pytest.fixture(scope="module")
def fitted():
    """A judge after two steps, and the videos it saw."""
    videos, labels = moving_bars(8)
    return VideoClassifier(2, TINY).fit(videos, labels), videos, labels


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_has_features_and_classes(network):
    classifier = VideoClassifier(3, TINY, network=network)
    videos = np.random.default_rng(0).integers(0, 256, (2, 4, 20, 24, 3), np.uint8)
    parts = next(classifier.stream_outputs(videos))
    assert parts["features"].shape == (2, classifier.dim) and parts["logits"].shape == (2, 3)
    assert np.abs(parts["logits"][0] - parts["logits"][1]).max() > 0
    assert classifier.name == f"{network}_16px_4f"


@pytest.mark.parametrize(
    "network", ["judge", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tsn", "resnet18_3d", "eco_lite"))]
)
def test_every_network_trains_all_its_weights(network):
    videos, labels = moving_bars(4)
    classifier = VideoClassifier(2, TINY, network=network, dropout=0.5, flip=True, steps=1)
    before = [variable.numpy() for variable in classifier._model.variables]
    classifier.fit(videos, labels)
    for variable, value in zip(classifier._model.variables, before, strict=True):
        assert np.abs(variable.numpy() - value).max() > 0, variable.path


@pytest.mark.long
def test_training_repeats_and_depends_on_its_seed(fitted):
    classifier, videos, labels = fitted
    assert VideoClassifier(2, TINY).fit(videos, labels).digest == classifier.digest
    assert VideoClassifier(2, TINY, seed=1).digest != VideoClassifier(2, TINY).digest


def test_frames_of_tsn_are_spread_over_the_clip():
    classifier = VideoClassifier(2, TINY, network="tsn", num_frames=16)
    videos = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 16, 3), np.uint8)
    changed = videos.copy()
    changed[:, 0::2] = 0  # of two frames each, the second is looked at
    np.testing.assert_array_equal(classifier(changed), classifier(videos))
    changed[:, 15] = 0
    assert np.abs(classifier(changed) - classifier(videos)).max() > 0


def test_trained_judge_is_kept(tmp_path):
    collection = actors(5, 4, 5, 16)
    judge = train_judge(collection, "action", TINY, cache_dir=tmp_path, held_out_share=0.25)
    assert judge.name == "judge_action_16px_4f" and judge.training["labels"] == "action"
    assert judge.training["videos"] == 15 and 0 <= judge.training["held_out_accuracy"] <= 1
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = train_judge(collection, "action", TINY, cache_dir=tmp_path, held_out_share=0.25)
    assert path.stat().st_mtime_ns == written and again.record() == judge.record()
    videos = collection.clips(4)
    np.testing.assert_array_equal(again(videos), judge(videos))
    path.write_bytes(path.read_bytes()[:200])
    assert train_judge(collection, "action", TINY, cache_dir=tmp_path, held_out_share=0.25).digest == judge.digest
    assert VideoClassifier.load(path).digest == judge.digest


def test_judge_is_found_by_data_labels_and_config(tmp_path):
    collection = actors(4, 3, 4, 16)
    first = judge_path(tmp_path, collection, collection.action, TINY)
    assert first == judge_path(tmp_path, collection, collection.action.copy(), dataclasses.replace(TINY))
    others = [
        judge_path(tmp_path, actors(4, 3, 4, 17), collection.action, TINY),
        judge_path(tmp_path, collection, collection.identity, TINY),
        judge_path(tmp_path, collection, collection.action, dataclasses.replace(TINY, seed=1)),
        judge_path(tmp_path, collection, collection.action, TINY, held_out_share=0.2),
    ]
    assert len({first, *others}) == 5


@pytest.mark.long
def test_prepared_videos_give_the_same_judge(tmp_path):
    """Of videos on disk, which may be shorter than a clip."""
    videos, labels = moving_bars(20)
    for label, name in enumerate(("down", "right")):
        (tmp_path / "videos" / name).mkdir(parents=True)
        np.save(tmp_path / "videos" / name / "all.npy", videos[labels == label])
    prepared = prepare_shards(tmp_path / "videos", tmp_path / "prepared", size=16, num_workers=1)
    judges = [
        train_judge(source, "action", TINY, num_frames=8, short_clip="loop", held_out_share=0.1)
        for source in (prepared, prepared.collection())
    ]
    assert judges[0].digest == judges[1].digest
    assert judges[0].training == {**judges[1].training, "seconds": judges[0].training["seconds"]}
    assert judges[0].training["held_out_accuracy"] is not None and judges[0].training["videos"] == 18


def test_the_last_video_of_a_class_is_not_held_out():
    labels = np.repeat([0, 1, 2], [20, 9, 1])
    for seed in range(20):
        is_held_out = _held_out(labels, 0.3, seed)
        assert is_held_out.sum() == 9 and not is_held_out[29]
    assert _held_out(labels, 0.3, 0).tolist() != _held_out(labels, 0.3, 1).tolist()
    assert _held_out(np.arange(30), 0.3, 0).sum() == 0 and _held_out(labels[:19], 0.3, 0).sum() == 0


def test_labels_of_a_collection():
    collection = actors(3, 2, 4, 16)
    cells, kind = label_values(collection, "cell")
    assert kind == "cell" and sorted(cells) == list(range(6))
    np.testing.assert_array_equal(label_values(collection, "identity")[0], collection.identity)
    own, kind = label_values(collection, collection.action[::-1])
    assert kind == "own" and own.tolist() == collection.action[::-1].tolist()


def test_saved_classifier_is_the_same(fitted, tmp_path):
    classifier, videos, _ = fitted
    classifier.save(tmp_path / "deep" / "judge.npz")
    loaded = VideoClassifier.load(tmp_path / "deep" / "judge.npz")
    assert loaded.record() == classifier.record() and loaded.config == classifier.config
    np.testing.assert_array_equal(loaded(videos[:, :4]), classifier(videos[:, :4]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["judge.npz"]
    (tmp_path / "other.npz").write_bytes(b"nothing")
    for name in ("other.npz", "nowhere.npz"):
        with pytest.raises(ValueError, match=f"{name}' holds no trained classifier.*train it again"):
            VideoClassifier.load(tmp_path / name)


@pytest.mark.long
def test_loaded_under_a_strategy_it_gives_the_same_features(fitted, two_replicas, tmp_path):
    classifier, videos, labels = fitted
    classifier.save(tmp_path / "judge.npz")
    with two_replicas.scope():
        spread = VideoClassifier.load(tmp_path / "judge.npz")
        with pytest.raises(ValueError, match="trained on one device"):
            spread.fit(videos, labels)
    np.testing.assert_allclose(spread(videos[:7, :4]), classifier(videos[:7, :4]), atol=1e-5)


def test_labels_that_do_not_fit_are_refused():
    videos, labels = moving_bars(4)
    classifier = VideoClassifier(2, TINY)
    for wrong, message in (
        (labels[:3], r"one per video. Received int64 \(3,\) for 4 videos"),
        (labels + 1, r"lie in 0..1.*Received 1..2"),
        (labels * 0, "at least two classes"),
        (labels / 2, "must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.fit(videos, wrong)
    with pytest.raises(ValueError, match="at least 4 frames. Received videos of 3"):
        classifier.fit(videos[:, :3], labels)
    with pytest.raises(ValueError, match=r"one label per video. Received \(3,\) for 4"):
        classifier.accuracy(videos[:, :4], labels[:3])
    unlabelled = VideoCollection.from_videos(list(videos))
    with pytest.raises(ValueError, match="needs action labels.*has no labels.*one folder per class"):
        train_judge(unlabelled, config=TINY)
    with pytest.raises(ValueError, match="'colour'"):
        train_judge(unlabelled, "colour", TINY)
    with pytest.raises(ValueError, match="videos are shorter than the 4 frames"):
        train_judge(actors(2, 2, 3, 16), "action", TINY)


def test_wrong_options_are_refused():
    for changes, message in (
        ({"network": "vgg"}, "`network` must be one of judge, tsn"),
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"size": 8}, "`size` must be at least 16"),
        ({"short_clip": "drop"}, "`short_clip` must be one of .*'drop'"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoClassifier(2, TINY, **changes)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        VideoClassifier(1)


def test_diverging_training_is_reported():
    videos, labels = moving_bars(4)
    with pytest.raises(ValueError, match="loss of the judge classifier is (nan|inf).*lower learning_rate"):
        VideoClassifier(2, TINY, learning_rate=1e30, steps=10).fit(videos, labels)
