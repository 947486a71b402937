"""What each metric gives: the value of the library's arithmetic, its interval, and what stands beside it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.metrics.sides import NUM_FRAMES, SIZE, Drift, MeanColour, colours, noise, one, own, plain
from tfvidgen.data.collection import VideoCollection
from tfvidgen.features.networks import Networks
from tfvidgen.metrics import consistency, disentanglement, distances, diversity, s3
from tfvidgen.metrics.evaluate import evaluate
from tfvidgen.metrics.sampling import ModelClips, VideoClips, as_clips
from tfvidgen.models.base import LatentSpec, VideoGenerator


def test_frechet_distance_of_plain_colours_is_that_of_the_colours():
    """A stub network closes the pipeline: clips of one colour on each side are as far apart as the colours."""
    result = one("fvd6_4f", plain([[200, 100, 50]] * 6), plain([[100, 100, 100]] * 12), own())
    shift = np.array([100, 0, -50]) / 255
    assert result.value == pytest.approx(shift @ shift, rel=1e-4)
    assert result.values["floor"] == pytest.approx(0, abs=1e-9)
    assert result.protocol["floor_clips"] == 6


def test_frechet_distance_and_its_variant_are_those_of_the_library():
    made, real = plain(colours(40)), plain(colours(100, 1, 100))
    extractor = MeanColour()
    clips = VideoClips(as_clips(real).videos, clip_start="first")
    features = extractor(np.concatenate(list(clips.batches(100, NUM_FRAMES))))
    generated = extractor(np.concatenate(list(as_clips(made).batches(40, NUM_FRAMES))))
    for name, ddof in (("fvd40_4f", 1), ("fvd40_4f_covn", 0)):
        result = one(name, made, clips, own(i3d=extractor))
        assert result.value == pytest.approx(distances.frechet_distance(features[:40], generated, ddof), rel=1e-9)
        floor = distances.frechet_distance(features[:40], features[40:80], ddof)
        assert result.values["floor"] == pytest.approx(floor, rel=1e-9)
        assert result.interval[0] < result.value < result.interval[1]
        assert result.notes == ()


def test_the_floor_is_of_halves_where_real_clips_are_few():
    result = one("fvd20_4f", plain(colours(20)), plain(colours(30, 1)))
    assert result.protocol["floor_clips"] == 15
    assert "real-real floor" in result.beside and "at 15 clips" in result.beside


def test_the_interval_of_fvd_covers_the_spread_over_sets_of_clips():
    """Twenty sets of the same distributions: the intervals hold the mean of the twenty values about as often as they say."""
    found = [one("fvd100_2f", plain(colours(100, s, 140), 2), plain(colours(200, 50 + s), 2)) for s in range(20)]
    mean = np.mean([result.value for result in found])
    inside = [result.interval[0] <= mean <= result.interval[1] for result in found]
    assert 15 <= sum(inside) <= 20
    widths = [result.interval[1] - result.interval[0] for result in found]
    assert 0.5 < np.mean(widths) / (2 * 2.26 * np.std([result.value for result in found])) < 2


def test_kernel_coverage_and_score_are_those_of_the_library():
    made, real = plain(colours(60)), plain(colours(60, 1, 100))
    extractor = MeanColour()
    clips = [as_clips(videos) for videos in (real, made)]
    features = [extractor(np.concatenate(list(side.batches(60, NUM_FRAMES)))) for side in clips]
    results = {
        result.protocol["family"]: result
        for result in evaluate("kvd60_4f,prdc60_4f,judge_is60_4f,fvdinf60_4f", *reversed(clips), own())
    }
    assert results["kvd"].value == pytest.approx(distances.kernel_distance(*features).value, rel=1e-9)
    expected = diversity.precision_recall(*features, 5)
    assert {name: results["prdc"].values[name] for name in dataclasses.asdict(expected)} == dataclasses.asdict(expected)
    assert results["prdc"].value == expected.coverage and results["prdc"].loss == -expected.coverage
    limit = distances.frechet_infinity(features[0].astype(float), features[1].astype(float))
    assert results["fvdinf"].value == pytest.approx(limit.value, rel=1e-9)
    score = results["is"]
    assert 1 < score.value < 2 and score.values["real"] > 1
    assert score.value == pytest.approx(
        math.exp(score.values["marginal_entropy"] - score.values["conditional_entropy"]), rel=1e-9
    )


def test_two_replicas_give_the_same_results(two_replicas):
    """Odd numbers of clips, so that the replicas' shares are filled up."""
    names = "pixels_prdc21_4f,fvd21_4f"
    made, real = noise(21), noise(35, 1)
    expected = evaluate(names, made, real, own())
    with two_replicas.scope():
        extractor = MeanColour()
    found = evaluate(names, made, real, Networks(extractors={"i3d": extractor}, scope=two_replicas.scope))
    for one_device, two in zip(expected, found, strict=True):
        assert two.values == pytest.approx(one_device.values, rel=1e-5)
        assert two.interval == pytest.approx(one_device.interval, rel=1e-4)


def test_inception_score_counts_the_runs_of_its_variant():
    made = plain(colours(65), 4)
    result = one("is_c3d_tganv2_20_4f", made, plain(colours(30, 1)))
    assert result.protocol["runs"] == 3 and result.protocol["clips"] == 20
    assert any("10 run(s) of 2048 samples" in note for note in result.notes)


def test_motion_consistency_is_that_of_all_clips_at_once():
    made, real = noise(13, 0, frames=3), noise(11, 1, frames=3)
    networks = Networks({"vgg16": "random"})
    maps = networks.get("vgg16", 3, 1)
    result = one("mcs13_3f", made, real, networks)
    expected = consistency.motion_consistency(*(np.stack([maps(clip) for clip in side]) for side in (real, made)))
    assert result.value == pytest.approx(expected.signed.mcs, rel=1e-9)
    assert result.values["absolute_mcs"] == pytest.approx(expected.absolute.mcs, rel=1e-9)
    assert result.values["signed_mcs1"] == pytest.approx(expected.signed.mcs1, rel=1e-9)
    assert result.interval[0] < result.value < result.interval[1]
    assert result.protocol["network"]["weights_sha256"] == maps.record()["weights_sha256"]
    assert any("random weights: an untrained network" in note for note in result.notes)
    frozen = plain(colours(4), 3)
    assert one("mcs4_3f", frozen, frozen, networks).value == -math.inf


def test_metrics_of_pixels_are_those_of_the_library():
    made, real = noise(9, 0, 0, 200), noise(7, 1)
    real[2] = made[4]
    made[8] = made[4]
    results = {r.protocol["family"]: r for r in evaluate("fcs9_4f,acd9_4f,motion9_4f,duplicates9_4f", made, real)}
    fcs = consistency.frame_consistency(real, made)
    assert results["fcs"].values["difference"] == pytest.approx(fcs.difference, rel=1e-9)
    assert results["fcs"].values["generated_with_first"] == pytest.approx(fcs.generated_with_first, rel=1e-9)
    acd = diversity.average_content_distance(diversity.mean_colours(made))
    assert results["acd"].value == pytest.approx(acd.all_pairs.mean(), rel=1e-9)
    assert results["acd"].values["consecutive"] == pytest.approx(acd.consecutive.mean(), rel=1e-9)
    assert results["motion"].value == pytest.approx(diversity.motion_energy_ratio(real, made), rel=1e-6)
    assert results["duplicates"].values == {"repeated": 1 / 9, "equal_to_real": 2 / 9, "different": 8}
    assert any("1 of 9 generated clips are exact copies of another" in note for note in results["fcs"].notes)
    for result in results.values():
        assert result.interval[0] <= result.value <= result.interval[1]


def test_real_clips_that_stand_still_give_no_ratio_of_motion():
    result = one("motion4_4f", noise(4), plain(colours(4)))
    assert math.isnan(result.value) and "do not move" in result.notes[0]
    assert json.loads(json.dumps(result.record()))["value"] == "nan"


def test_copies_are_found_and_drawn(tmp_path):
    real = noise(30)
    made = noise(12, 1)
    made[:6] = real[10:16]
    made[:6, 0, 0, 0] += 1
    (result,) = evaluate("pixels_nearest12_4f", made, real, sheet_dir=tmp_path)
    assert 0.5 <= result.values["share_below"] < 0.7, "the six copies, and few others"
    copies = one("pixels_nearest6_4f", made[:6], real)
    assert copies.value < 0.1 and copies.values["copying_z"] < -3
    honest = one("pixels_nearest12_4f", noise(12, 2), real)
    assert abs(honest.values["copying_z"]) < 3 and honest.value == pytest.approx(1, abs=0.2)
    with Image.open(tmp_path / "pixels_nearest12_4f.png") as sheet:
        assert sheet.height > 6 * 4 * SIZE, "six clips, each above three real ones"


def test_held_out_clips_are_the_reference_of_the_copying_test():
    real, held_out = noise(20), noise(9, 1)
    result = one("pixels_nearest8_4f", noise(8, 2), real, held_out=as_clips(held_out))
    assert result.protocol["reference"] == "8 real clips that were not trained on"


def test_a_judge_matches_classes_by_name():
    red, green = [230, 20, 20], [20, 230, 20]
    real = VideoCollection.from_videos(
        list(plain([red] * 6 + [green] * 6)), action=[0] * 6 + [1] * 6, action_names=("red", "green")
    )
    made = VideoCollection.from_videos(
        list(plain([green] * 5 + [red] * 3)), action=[0] * 5 + [1] * 3, action_names=("green", "red")
    )
    result = one("judge_accuracy8_4f", made, real)
    assert result.value == 1.0 and result.values["real_accuracy"] == 1.0
    wrong = dataclasses.replace(made, action=1 - made.action)
    assert one("judge_accuracy8_4f", wrong, real).value == 0.0
    with pytest.raises(ValueError, match="classes that real ones lack: blue"):
        one("judge_accuracy8_4f", dataclasses.replace(made, action_names=("blue", "red")), real)
    with pytest.raises(ValueError, match="class of every clip, but the generated ones have none"):
        one("judge_accuracy8_4f", plain([red] * 8), real)

    model = Drift(labels=True)
    straight, swapped, strange = (
        ModelClips(model, label_names=names) for names in (("red", "green"), ("green", "red"), ("red", "blue"))
    )
    judged = one("judge_accuracy8_4f", straight, real).value
    assert one("judge_accuracy8_4f", ModelClips(model), real).value == judged
    assert one("judge_accuracy8_4f", swapped, real).value == 1 - judged
    with pytest.raises(ValueError, match="classes that real ones lack: blue"):
        one("judge_accuracy8_4f", strange, real)
    with pytest.raises(ValueError, match="has class 1, but there are 1 classes.*no more categories"):
        one("judge_accuracy8_4f", ModelClips(model, label_names=("red",)), real)


class Codes(VideoGenerator):
    """Two identities, red and green, that its latent of content holds, and two actions, blue or not, in that of motion.

    Args:
        mixed: Whether the latent of motion holds the identity as well, and that of content is not looked at.
    """

    def __init__(self, identity, action, mixed=False):
        super().__init__()
        self.of_video, self.mixed = np.stack([identity, action]), mixed

    @property
    def latent_spec(self):
        return {
            "looks": LatentSpec((2,), "float32", "uniform", "content"),
            "moves": LatentSpec((4,), "float32", "uniform", "motion"),
        }

    def codes(self, identity, action):
        return {"looks": tf.one_hot(identity, 2), "moves": tf.one_hot(2 * identity + action, 4)}

    def lookup(self, video_id):
        return self.codes(*self.of_video[:, np.asarray(video_id)])

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        draw = tf.random.stateless_uniform((2, num_videos), [seed, 0], 0, 2, tf.int32)
        return self.codes(draw[0], draw[1])

    def decode(self, latents, training=False):
        cell = tf.argmax(latents["moves"], -1, tf.int32)
        identity = cell // 2 if self.mixed else tf.argmax(latents["looks"], -1, tf.int32)
        colour = tf.stack([identity == 0, identity == 1, cell % 2 == 1], -1)
        return tf.tile(2.0 * tf.cast(colour, tf.float32)[:, None, None, None] - 1.0, (1, NUM_FRAMES, SIZE, SIZE, 1))


def test_swapped_codes_show_what_each_holds():
    class Blue(MeanColour):
        def outputs(self, videos):
            blue = super().outputs(videos)["features"][:, 2]
            return {"features": blue[:, None], "logits": 30.0 * tf.stack([0.5 - blue, blue - 0.5], 1)}

    identity, action = np.arange(40) % 2, np.arange(40) // 2 % 2
    videos = VideoCollection.from_videos(
        list(plain(np.zeros((40, 3)))),
        identity=identity,
        action=action,
        identity_names=("a", "b"),
        action_names=("c", "d"),
    )
    real = VideoClips(videos, seed=1, origin={"split": "trained"})
    networks = own(judge_identity=MeanColour(), judge_action=Blue())
    result = one("judge_swap40_4f", ModelClips(Codes(identity, action)), real, networks)
    values = result.values
    assert result.value == values["action_accuracy_motion_kept"] == values["identity_accuracy_content_kept"] == 1.0
    for swapped in ("identity_accuracy_motion_kept", "action_accuracy_content_kept"):
        assert 0.25 < values[swapped] < 0.75, swapped
    assert values["inception_score"] == pytest.approx(2, rel=1e-5) and "chance 0.500" in result.beside
    assert set(result.protocol["judges"]) == {"identity", "action"} and result.protocol["source_videos"] == 40
    entangled = one("judge_swap40_4f", ModelClips(Codes(identity, action, mixed=True)), real, networks).values
    assert entangled["identity_accuracy_motion_kept"] == 1.0 and entangled["identity_accuracy_content_kept"] < 0.75

    with pytest.raises(ValueError, match="Drift has no content and motion latents for a given video"):
        one("judge_swap8_4f", ModelClips(Drift()), real, networks)
    with pytest.raises(ValueError, match="evaluate a run, against the videos it was trained on"):
        one("judge_swap8_4f", ModelClips(Codes(identity, action)), VideoClips(videos), networks)
    with pytest.raises(ValueError, match="generates clips of 4 frames, but 3 frames at stride 2 need 5"):
        one("judge_swap8_3f_stride2", ModelClips(Codes(identity, action), short_clip="hold"), real, networks)


def test_attributes_of_composed_identities():
    names = tuple(f"body{b}_bottom0_hair{h}" for b in (2, 5) for h in (0, 1, 3))
    videos = VideoCollection.from_videos(
        list(noise(6)), identity=np.arange(6), action=np.arange(6) % 2, identity_names=names, action_names=("a", "b")
    )
    found = disentanglement._attributes(videos)
    assert {name: labels.tolist() for name, labels in found.items()} == {
        "action": [0, 1, 0, 1, 0, 1],
        "body": [0, 0, 0, 1, 1, 1],
        "hair": [0, 1, 2, 0, 1, 2],
    }
    found = disentanglement._attributes(
        dataclasses.replace(videos, identity_names=tuple(f"person{i}" for i in range(6)))
    )
    assert list(found) == ["action", "identity"]


def test_two_clips_have_values_without_intervals():
    names = "fvd2_4f,kvd2_4f,judge_is2_4f,fcs2_4f,duplicates2_4f,pixels_nearest2_4f"
    results = {result.protocol["family"]: result for result in evaluate(names, noise(2), noise(2, 1), own())}
    assert all(math.isfinite(result.value) for result in results.values())
    assert {family for family, result in results.items() if result.interval is None} == {"fvd", "kvd", "is"}


def test_s3_takes_as_many_of_each_class_as_there_are_real_ones():
    made, real = np.array([0, 2, 0, 1, 0, 1, 2]), np.array([0, 0, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(s3._class_matched(made, real)), [0, 1, 2, 3])
    with pytest.warns(UserWarning, match="are 2 of 5 short.*SeR is biased downwards"):
        np.testing.assert_array_equal(
            np.flatnonzero(s3._class_matched(np.array([0, 1, 1]), np.array([0, 0, 0, 1, 1]))), [0, 1, 2]
        )


@pytest.mark.parametrize("made", [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 0, 1]])
def test_s3_of_too_few_clips_is_refused(made):
    real = np.array([0, 0, 0, 1, 1, 1, 0, 1])[: len(made)]
    names = ("a", "b", "c")
    sides = [
        VideoCollection.from_videos(list(noise(len(each))), action=each, action_names=names) for each in (made, real)
    ]
    with pytest.raises(ValueError, match="too few clips: .* real and .* generated ones.*at least three per class"):
        one("s3_eco_4f", *sides)


@pytest.mark.slow
def test_s3_of_copies_is_near_one_and_of_shuffled_labels_far_below():
    """A bright square that moves down or right: what a real clip teaches, a copy teaches too."""
    random = np.random.default_rng(0)

    def videos(count):
        clips = random.integers(0, 60, (count, NUM_FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
        for index, clip in enumerate(clips):
            row, column = random.integers(0, 5, 2)
            for t in range(NUM_FRAMES):
                down, right = (2 * t, 0) if index % 2 else (0, 2 * t)
                clip[t, row + down : row + down + 5, column + right : column + right + 5] = 220
        return clips

    def collection(clips, labels):
        return VideoCollection.from_videos(list(clips), action=labels, action_names=("right", "down"))

    networks = Networks(classifier={"steps": 60, "size": 16, "width": 8, "dropout": 0.0})
    labels = np.arange(48) % 2
    real = collection(videos(48), labels)
    more = collection(videos(64), np.arange(64) % 2).subset(np.r_[0:48, 49:64:2])  # 24 and 32
    good = one("s3_eco48_4f", more, real, networks)
    assert good.value > 0.8 and good.values["rer"] > 0.8
    assert good.protocol["training_clips"] == {"real": 32, "generated": 32}, "as many of each class"
    assert good.protocol["test_clips"] == {"real": 16, "generated": 16} and good.notes == ()
    mixed = one("s3_eco48_4f", collection(videos(48), random.permutation(labels)), real, networks)
    assert mixed.value < 0.75 * good.value
