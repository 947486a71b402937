"""Names of metrics, the clips they measure, what they give, and what they refuse."""

import dataclasses
import json
import math
import pathlib
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import stats

from tfvidgen.data.collection import VideoCollection
from tfvidgen.features.base import FeatureExtractor
from tfvidgen.features.networks import Networks
from tfvidgen.metrics import consistency, disentanglement, distances, diversity, s3, statistics
from tfvidgen.metrics.evaluate import evaluate
from tfvidgen.metrics.families import FAMILIES
from tfvidgen.metrics.protocols import Protocol, parse, parse_all, table
from tfvidgen.metrics.rows import RowStore
from tfvidgen.metrics.sampling import BATCH, Clips, ModelClips, VideoClips, as_clips, to_bytes
from tfvidgen.models.base import LatentSpec, VideoGenerator

SIZE, NUM_FRAMES = 16, 4


class MeanColour(FeatureExtractor):
    """A network whose features are known: the mean colour of a clip in [0, 1]. Its classes are red and the others."""

    name, dim, num_classes, min_frames, digest = "mean_colour", 3, 2, 2, "of nothing"

    def __init__(self):
        super().__init__()
        self.seen = []

    def outputs(self, videos):
        features = tf.reduce_mean(tf.cast(videos, tf.float32) / 255.0, axis=(1, 2, 3))
        return {"features": features, "logits": 30.0 * tf.stack([features[:, 0], features[:, 1]], 1)}

    def stream_outputs(self, batches, outputs=("features", "logits")):
        for batch in [batches] if isinstance(batches, np.ndarray) else batches:
            self.seen.append(len(batch))
            yield from super().stream_outputs([batch], outputs)


class Drift(VideoGenerator):
    """A generator that is known: a grey that a seed draws, brighter from frame to frame, of any length."""

    def __init__(self, num_frames=NUM_FRAMES, free_length=True, labels=False):
        super().__init__()
        self.num_frames, self.free_length, self.labels = num_frames, free_length, labels

    @property
    def latent_spec(self):
        spec = {"grey": LatentSpec((), "float32", "uniform"), "time": LatentSpec((None,), "float32", "0, 1, ...")}
        return {**spec, "label": LatentSpec((), "int32", "uniform")} if self.labels else spec

    def sample_latents(self, num_videos, num_frames=None, seed=0):
        if num_frames not in (None, self.num_frames) and not self.free_length:
            raise ValueError("another length")
        grey = tf.random.stateless_uniform((num_videos,), [seed, 0], -0.9, 0.5)
        time = tf.tile(tf.range(num_frames or self.num_frames, dtype=tf.float32)[None], (num_videos, 1))
        latents = {"grey": grey, "time": time}
        if self.labels:
            latents["label"] = tf.random.stateless_uniform((num_videos,), [seed, 1], 0, 2, tf.int32)
        return latents

    def decode(self, latents, training=False):
        level = latents["grey"][:, None] + 0.01 * latents["time"]
        return tf.tile(level[:, :, None, None, None], (1, 1, SIZE, SIZE, 3))


def noise(count, seed=0, low=0, high=256, frames=NUM_FRAMES, size=SIZE):
    return np.random.default_rng(seed).integers(low, high, (count, frames, size, size, 3)).astype(np.uint8)


def plain(colours, frames=NUM_FRAMES) -> np.ndarray:
    """A clip of one colour for each colour."""
    colours = np.asarray(colours, np.uint8)
    return np.broadcast_to(colours[:, None, None, None], (len(colours), frames, SIZE, SIZE, 3)).copy()


def colours(count, seed=0, mean=120):
    return np.clip(np.random.default_rng(seed).normal(mean, 30, (count, 3)), 0, 255).astype(np.uint8)


def counted(count=6, frames=9) -> VideoCollection:
    """Videos of which each frame tells which it is: 10 * video + frame."""
    values = 10 * np.arange(count)[:, None] + np.arange(frames)
    videos = np.broadcast_to(values[:, :, None, None, None], (count, frames, SIZE, SIZE, 3)).astype(np.uint8)
    return VideoCollection.from_videos(list(videos), action=np.arange(count) % 2, action_names=("down", "right"))


def own(**extractors) -> Networks:
    return Networks(extractors=extractors or {"i3d": MeanColour(), "judge": MeanColour(), "c3d_tgan2": MeanColour()})


def one(name, generated, real, networks=None, **options):
    (result,) = evaluate(name, generated, real, networks or own(), **options)
    return result


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fvd2048_16f", Protocol("fvd", "i3d", 2048, 16)),
        ("fvd256_16f_stride4", Protocol("fvd", "i3d", 256, 16, 4)),
        ("fvd2048_16f_halfpixel_covn", Protocol("fvd", "i3d", 2048, 16, 1, ("halfpixel", "covn"))),
        ("judge_fvd256_16f", Protocol("fvd", "judge", 256, 16)),
        ("mcs", Protocol("mcs")),
        ("mcs500", Protocol("mcs", "", 500)),
        ("mcs_8f", Protocol("mcs", "", None, 8)),
        ("vfid5000_16f", Protocol("vfid", "resnext101", 5000, 16)),
        ("vfid_r3d18_5000_16f", Protocol("vfid_r3d18", "r3d18", 5000, 16)),
        ("is_c3d_tganv2_2048_16f", Protocol("is_c3d_tganv2", "c3d_tgan2", 2048, 16)),
        ("is_c3d_tgan9984_16f", Protocol("is_c3d_tgan", "c3d_tgan", 9984, 16)),
        ("pixels_prdc64_16f", Protocol("prdc", "pixels", 64, 16)),
    ],
)
def test_a_name_says_clips_frames_and_stride(name, expected):
    assert parse(name) == expected
    assert expected.name == name


def test_every_family_reads_its_own_full_name():
    for family, rules in FAMILIES.items():
        for network in rules.networks or ("",):
            protocol = Protocol(family, network, 12, 3, 5, rules.variants)
            assert parse(protocol.name) == protocol


def test_the_judge_flag_reads_names_as_if_judge_stood_before_them():
    assert parse("fvd256_16f", features="judge").name == "judge_fvd256_16f"
    assert parse("fcs64", features="judge").name == "fcs64"
    assert [p.name for p in parse_all("fvd8_16f, judge_fvd8_16f,mcs", "judge")] == ["judge_fvd8_16f", "mcs"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fdv2048_16f", "Unknown metric 'fdv2048_16f'. Did you mean 'fvd'.*fvd2048_16f.*Families: fvd, fvdinf, kvd"),
        ("fvd2048_16", "Unknown metric"),
        ("fvd2048f", "Unknown metric"),
        ("judge_fdv16", "Did you mean 'judge_fvd'"),
        ("judge_mcs500", "mcs does not run on judge features.*write mcs"),
        ("fvd2048_16f_halfpixl", "Unknown variant 'halfpixl'.*fvd has: halfpixel, covn"),
        ("fvd64_16f_covn_covn", "Unknown variant 'covn'"),
        ("fvd1_16f", "1 clips: at least 2"),
        ("fvd16_0f", "0 frames: at least 1"),
        ("fvd16_16f_stride0", "0 stride: at least 1"),
    ],
)
def test_other_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_what_a_name_leaves_out_is_filled_in_and_said():
    made, real = plain(colours(30), 12), plain(colours(20, 1), 12)
    assert one("fcs", made, real, default_frames=5).name == "fcs20_5f"
    assert one("judge_fvd", made, real, default_frames=5).name == "judge_fvd20_5f"
    assert one("fvd", plain(colours(30), 16), plain(colours(30), 16), default_frames=5).name == "fvd30_16f"
    result = one("acd7", made, real, default_frames=12)
    assert result.name == "acd7_12f" and result.protocol["clips"] == 7


def test_results_come_in_the_order_of_the_names():
    names = ["acd8_4f", "fcs6_4f", "judge_fvd8_4f", "fcs8_4f", "acd8_2f"]
    results = evaluate(names, noise(8), noise(8, 1), own())
    assert [result.name for result in results] == names


# ---------------------------------------------------------------- which clips
def first_values(clips: Clips, *arguments) -> np.ndarray:
    """The value of every frame of the clips, (N, T)."""
    return np.concatenate([batch[:, :, 0, 0, 0] for batch in clips.batches(*arguments)]).astype(int)


def test_real_clips_are_drawn_by_a_seed():
    videos = counted(20)
    values = first_values(VideoClips(videos, seed=3), 20, 4)
    np.testing.assert_array_equal(values, first_values(VideoClips(videos, seed=3), 20, 4))
    np.testing.assert_array_equal(values[:7], first_values(VideoClips(videos, seed=3), 7, 4))
    other = first_values(VideoClips(videos, seed=4), 20, 4)
    assert (values[:, 0] // 10 != other[:, 0] // 10).any()
    for found in (values, other):
        assert sorted(found[:, 0] // 10) == list(range(20)), "one clip of every video"
        np.testing.assert_array_equal(np.diff(found, axis=1), 1)
    starts = first_values(VideoClips(counted(20, 9), seed=0), 20, 8)[:, 0] % 10
    assert set(starts) == {0, 1}, "both places where 8 of 9 frames can begin"


def test_starts_strides_and_short_videos():
    videos = counted(5, 9)
    order = first_values(VideoClips(videos, clip_start="first"), 5, 1)[:, 0]
    np.testing.assert_array_equal(
        first_values(VideoClips(videos, clip_start="first"), 5, 2, 3) - order[:, None], [[0, 3]] * 5
    )
    np.testing.assert_array_equal(
        first_values(VideoClips(videos, clip_start="centre", stride=2), 5, 2, 2) - order[:, None], [[2, 6]] * 5
    )
    loop, hold = (
        first_values(VideoClips(videos, clip_start="first", short_clip=policy), 5, 11) - order[:, None]
        for policy in ("loop", "hold")
    )
    np.testing.assert_array_equal(loop[:, 8:], [[8, 0, 1]] * 5)
    np.testing.assert_array_equal(hold[:, 8:], [[8, 8, 8]] * 5)


def test_labels_and_pictures_follow_the_order_of_clips():
    clips = VideoClips(counted(6), seed=2, clip_start="first")
    numbers = first_values(clips, 6, 2)[:, 0] // 10
    np.testing.assert_array_equal(clips.labels(6), numbers % 2)
    np.testing.assert_array_equal([clip[0, 0, 0, 0] // 10 for clip in clips.take([4, 1], 2)], numbers[[4, 1]])
    assert clips.name(3) == f"video_{numbers[3]:05d}"


def test_a_models_clips_do_not_depend_on_how_many_there_are():
    clips = ModelClips(Drift(), seed=5)
    values = first_values(clips, 40, NUM_FRAMES)
    np.testing.assert_array_equal(values[:20], first_values(clips, 20, NUM_FRAMES))
    np.testing.assert_array_equal(values, first_values(ModelClips(Drift(), seed=5), 40, NUM_FRAMES))
    assert (values != first_values(ModelClips(Drift(), seed=6), 40, NUM_FRAMES)).mean() > 0.9
    assert len(set(values[:, 0])) > 30
    taken = clips.take([3, 37], NUM_FRAMES)
    np.testing.assert_array_equal([clip[:, 0, 0, 0] for clip in taken], values[[3, 37]])


def test_a_model_that_is_measured_again_is_not_traced_again():
    class Counted(Drift):
        traced = 0

        def decode(self, latents, training=False):
            self.traced += 1
            return super().decode(latents)

    model = Counted()
    for seed in range(3):
        list(ModelClips(model, seed).batches(2, NUM_FRAMES))
    assert model.traced == 1


def test_a_model_of_free_length_is_asked_for_longer_clips():
    clips = ModelClips(Drift())
    longer = first_values(clips, 20, 4, 3)
    np.testing.assert_array_equal(longer[:, :1], first_values(clips, 20, 1))
    np.testing.assert_allclose(np.diff(longer, axis=1), 3 * 0.01 * 127.5, atol=1)


def test_a_model_of_one_length_says_so_or_repeats():
    model = Drift(free_length=False)
    with pytest.raises(
        ValueError, match="Drift makes clips of 4 frames, and 9 frames at stride 1 need 9.*loop or hold"
    ):
        list(ModelClips(model).batches(2, 9))
    values = first_values(ModelClips(model, short_clip="loop"), 2, 6)
    np.testing.assert_array_equal(values[:, 4:], values[:, :2])
    values = first_values(ModelClips(model, short_clip="hold"), 2, 6)
    np.testing.assert_array_equal(values[:, 4:], values[:, [3, 3]])


def test_labels_of_a_model_are_those_that_its_clips_were_made_of():
    assert ModelClips(Drift()).labels(3) is None
    labels = ModelClips(Drift(labels=True), seed=1).labels(24)
    assert labels.shape == (24,) and set(labels) == {0, 1}
    np.testing.assert_array_equal(labels[:5], ModelClips(Drift(labels=True), seed=1).labels(5))


# ---------------------------------------------------------------- values
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


def test_jackknife_of_a_mean_is_the_textbook_interval_of_group_means():
    values = np.random.default_rng(0).normal(3, 2, (10, 7))
    left_out = [np.delete(values, g, axis=0).mean() for g in range(10)]
    low, high = statistics.jackknife_interval(values.mean(), left_out)
    half = stats.t.ppf(0.975, 9) * values.mean(1).std(ddof=1) / math.sqrt(10)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-9)
    assert statistics.jackknife_interval(1.0, [1.0, 1.0]) is None


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
    assert any("1 of 9 generated clips repeat another one" in note for note in results["fcs"].notes)
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
    with pytest.raises(ValueError, match="classes that real ones have not: blue"):
        one("judge_accuracy8_4f", dataclasses.replace(made, action_names=("blue", "red")), real)
    with pytest.raises(ValueError, match="class of every clip, and the generated ones have none"):
        one("judge_accuracy8_4f", plain([red] * 8), real)

    model = Drift(labels=True)
    straight, swapped, strange = (
        ModelClips(model, label_names=names) for names in (("red", "green"), ("green", "red"), ("red", "blue"))
    )
    judged = one("judge_accuracy8_4f", straight, real).value
    assert one("judge_accuracy8_4f", ModelClips(model), real).value == judged
    assert one("judge_accuracy8_4f", swapped, real).value == 1 - judged
    with pytest.raises(ValueError, match="classes that real ones have not: blue"):
        one("judge_accuracy8_4f", strange, real)
    with pytest.raises(ValueError, match="of class 1, and there are 1 classes.*no more categories"):
        one("judge_accuracy8_4f", ModelClips(model, label_names=("red",)), real)


class Codes(VideoGenerator):
    """Two identities, red and green, that its static code holds, and two actions, blue or not, in its transient code.

    Args:
        mixed: Whether the transient code holds the identity as well, and the static code is not looked at.
    """

    def __init__(self, identity, action, mixed=False):
        super().__init__()
        self.of_video, self.mixed = np.stack([identity, action]), mixed

    @property
    def latent_spec(self):
        return {"static": LatentSpec((2,), "float32", "uniform"), "transient": LatentSpec((4,), "float32", "uniform")}

    def codes(self, identity, action):
        return {"static": tf.one_hot(identity, 2), "transient": tf.one_hot(2 * identity + action, 4)}

    def lookup(self, video_id):
        return self.codes(*self.of_video[:, np.asarray(video_id)])

    def sample_latents(self, num_videos, num_frames=None, seed=0):
        draw = tf.random.stateless_uniform((2, num_videos), [seed, 0], 0, 2, tf.int32)
        return self.codes(draw[0], draw[1])

    def decode(self, latents, training=False):
        cell = tf.argmax(latents["transient"], -1, tf.int32)
        identity = cell // 2 if self.mixed else tf.argmax(latents["static"], -1, tf.int32)
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

    with pytest.raises(ValueError, match="Drift learns none per video.*navsynth"):
        one("judge_swap8_4f", ModelClips(Drift()), real, networks)
    with pytest.raises(ValueError, match="measure a run, against the videos it was trained on"):
        one("judge_swap8_4f", ModelClips(Codes(identity, action)), VideoClips(videos), networks)
    with pytest.raises(ValueError, match="makes clips of 4 frames, and 3 frames at stride 2 need 5"):
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
    with pytest.warns(UserWarning, match="lack 2 of 5.*SeR is biased downwards"):
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
    with pytest.raises(ValueError, match="too few clips: .* real and .* generated ones.*at least three of a class"):
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


# ---------------------------------------------------------------- the record
def test_a_record_holds_the_whole_protocol():
    made, real = plain(colours(20)), counted(24, 7)
    origin = {"codec": "none", "split": "trained", "resize": "squash"}
    sides = (
        VideoClips(as_clips(made).videos, origin={"codec": "none"}, clip_start="first"),
        VideoClips(real, 3, origin=origin),
    )
    record = json.loads(json.dumps(one("fvd20_2f_stride2", *sides).record(), allow_nan=False))
    assert record["metric"] == "fvd20_2f_stride2"
    protocol = record["protocol"]
    assert {
        name: protocol[name] for name in ("clips", "frames", "stride", "resolution", "covariance", "real_clips")
    } == {
        "clips": 20,
        "frames": 2,
        "stride": 2,
        "resolution": [SIZE, SIZE],
        "covariance": "divided by N - 1",
        "real_clips": 20,
    }
    assert protocol["network"]["name"] == "mean_colour" and protocol["network"]["weights_sha256"] == "of nothing"
    assert protocol["real"]["digest"] == real.digest
    assert protocol["real"]["seed"] == 3 and protocol["real"]["split"] == "trained"
    assert "start: random" in protocol["real"]["sampling"] and protocol["real"]["resize"] == "squash"
    assert protocol["generated"]["codec"] == "none"
    assert set(record["versions"]) >= {"tfvidgen", "tensorflow", "numpy", "scipy", "python"}
    assert record["seconds"] >= 0 and record["pass_seconds"] >= 0


def test_a_table_shows_values_intervals_and_each_note_once():
    results = evaluate("fvd3_4f,judge_fvd3_4f,acd3_4f", noise(3), noise(2, 1), own())
    lines = table(results)
    assert lines[0].split() == ["metric", "value", "95", "%", "interval", "beside"]
    assert lines[3].startswith("acd3_4f ") and "[" in lines[3] and "a frozen video has 0" in lines[3]
    wide = dataclasses.replace(results[2], interval=(-1.234e-05, 5.678e-05))
    assert "[-1.234e-05, 5.678e-05]  real clips" in table([wide])[1]
    notes = [line for line in lines if line.startswith("note (")]
    assert len(notes) == len(set(notes)) == 2
    assert all("fvd3_4f, judge_fvd3_4f" in note for note in notes)


# ---------------------------------------------------------------- what is kept
def test_features_of_real_clips_are_computed_once(tmp_path):
    made, real = plain(colours(20)), VideoClips(counted(40))
    first, second = MeanColour(), MeanColour()
    before = one("fvd20_4f", made, real, own(i3d=first), cache_dir=tmp_path)
    assert sum(first.seen) == 20 + 40
    after = one("fvd20_4f", made, real, own(i3d=second), cache_dir=tmp_path)
    assert sum(second.seen) == 20, "only the generated clips"
    assert (before.value, before.values) == (after.value, after.values)
    for other in (
        VideoClips(counted(40), seed=1),
        VideoClips(counted(40), clip_start="first"),
        VideoClips(counted(40), stride=2),
        VideoClips(counted(41)),
    ):
        again = MeanColour()
        one("fvd20_4f", made, other, own(i3d=again), cache_dir=tmp_path)
        assert sum(again.seen) > 20, other.origin
    renamed = MeanColour()
    renamed.digest = "other weights"
    one("fvd20_4f", made, real, own(i3d=renamed), cache_dir=tmp_path)
    assert sum(renamed.seen) == 60


def test_metrics_without_a_network_keep_nothing(tmp_path):
    evaluate("fcs4_4f,duplicates4_4f", noise(4), noise(4, 1), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_store_holds_an_entry_whole_or_not_at_all(tmp_path):
    store = RowStore(tmp_path)
    key = {"of": "test", "size": [1, 2]}
    with pytest.raises(RuntimeError):
        with store.writer(key) as rows:
            rows.add(np.ones((2, 3), np.float32))
            raise RuntimeError
    assert store.read(key) is None and not list(tmp_path.iterdir())
    blocks = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    with store.writer(key) as rows:
        rows.add(blocks[:4])
        with store.writer(key) as other:  # a faster process
            other.add(blocks)
        rows.add(blocks[4:])
    np.testing.assert_array_equal(store.read({"size": [1, 2], "of": "test"}), blocks)
    assert isinstance(store.read(key), np.memmap)
    assert store.read({**key, "of": "other"}) is None
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="as the first"):
        with store.writer({"of": "mixed"}) as rows:
            rows.add(blocks)
            rows.add(blocks[:, :2])
    with pytest.raises(ValueError, match="no clips"):
        with store.writer({"of": "nothing"}):
            pass


@pytest.mark.parametrize("damage", ["rows.npy", "key.json"])
def test_a_damaged_entry_is_named(tmp_path, damage):
    store = RowStore(tmp_path)
    with store.writer({"of": "test"}) as rows:
        rows.add(np.ones((2, 3), np.float32))
    (store.path({"of": "test"}) / damage).write_text('{"of": "another"}')
    with pytest.raises(ValueError, match="damaged.*delete that folder"):
        store.read({"of": "test"})


class Endless(Clips):
    """As many clips as one likes, a batch at a time."""

    origin = {"source": "endless", "codec": "none"}

    def batches(self, num_clips, num_frames, stride=1):
        for first in range(0, num_clips, BATCH):
            yield noise(min(BATCH, num_clips - first), first, frames=num_frames, size=32)


def test_memory_does_not_grow_with_the_number_of_clips():
    class Numbers(MeanColour):
        def stream_outputs(self, batches, outputs=("features", "logits")):
            for batch in batches:
                yield {"features": batch.mean((1, 2, 3), dtype=np.float32) / 255}

    peaks = []
    for count in (128, 1024):
        tracemalloc.start()
        one(f"fvd{count}_4f", Endless(), noise(8, size=32), own(i3d=Numbers()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 1024 * 4 * 32 * 32 * 3 > 10 * 2**20
    assert peaks[1] < peaks[0] + 2**20


# ---------------------------------------------------------------- what is refused, and what is said
def test_missing_weights_are_named_with_source_licence_and_flag():
    networks = Networks(hint="Use --weights={name}=PATH.")
    for name, words in (
        ("fvd4_16f", ("i3d-kinetics-400", "Apache-2.0", "kaggle.com", "--weights=i3d=PATH")),
        ("vfid4_16f", ("resnext-101-kinetics.pth", "MIT", "github.com", "--weights=resnext101=PATH")),
        ("is_c3d_tgan4_16f", ("conv3d_deepnetA_ucf.npz", "MIT", "pfnet-research/tgan", "--weights=c3d=PATH")),
        ("mcs4_16f", ("vgg16_weights_tf", "CC BY", "torchvision", "--weights=vgg16=PATH")),
        ("lpips4_16f", ("vgg.pth", "BSD", "pypi.org", "--weights=vgg16=PATH")),
    ):
        with pytest.raises(ValueError) as error:
            evaluate(name, noise(4, frames=16), noise(4, 1, frames=16), networks)
        for word in words:
            assert word in str(error.value), (name, word)
    with pytest.raises(ValueError, match="needs a judge.*--features=judge"):
        evaluate("judge_fvd4_4f", noise(4), noise(4, 1), networks)


def test_arrays_out_of_range_are_refused():
    videos = np.random.default_rng(0).random((4, NUM_FRAMES, SIZE, SIZE, 3)).astype(np.float32) * 2 - 1
    assert np.abs(to_bytes(videos, "x").astype(int) - np.round((videos + 1) * 127.5)).max() == 0
    with pytest.raises(ValueError, match=r"\[-1, 1\]; the array reach from .* to 25\d.*divide by 127.5 and subtract 1"):
        evaluate("acd4_4f", (videos + 1) * 127.5, noise(4))
    with pytest.raises(ValueError, match="reach from -1.9"):
        evaluate("acd4_4f", noise(4), videos * 1.999)
    with pytest.raises(ValueError, match="NaN or infinity.*diverged"):
        evaluate("acd4_4f", np.where(videos > 0.99, np.nan, videos), noise(4))
    with pytest.raises(ValueError, match="uint8 with values 0..255, or floats.*int64"):
        evaluate("acd4_4f", noise(4).astype(np.int64), noise(4))
    with pytest.raises(ValueError, match=r"\(N, T, H, W, 3\).*\(4, 16, 16, 3\)"):
        evaluate("acd4_4f", noise(4)[0], noise(4))
    with pytest.warns(UserWarning, match=r"as if it were in \[0, 1\].*2 \* x - 1"):
        as_clips((videos + 1) / 2)


def test_a_model_that_diverged_is_refused():
    class Diverged(Drift):
        def decode(self, latents, training=False):
            return super().decode(latents) * float("nan")

    with pytest.raises(ValueError, match="the frames of Diverged are NaN"):
        one("acd4_4f", ModelClips(Diverged()), noise(4))


def test_bytes_that_were_fractions_are_doubted():
    result = one("fvd4_4f", noise(4, 0, 0, 2), noise(8, 1))
    assert any("multiply by 255" in note for note in result.notes)


def test_too_few_clips_and_frames():
    with pytest.raises(ValueError, match="9 clips are asked for and 'array' has 4 videos"):
        one("acd9_4f", noise(4), noise(9, 1))
    with pytest.raises(
        ValueError, match="shorter than the 7 frames that 4 frames at stride 2 need: video_.*loop or hold"
    ):
        one("acd4_4f_stride2", noise(4), noise(4, 1))
    with pytest.raises(ValueError, match="At least 2 real clips"):
        one("acd4_4f", noise(4), noise(1, 1))
    with pytest.raises(ValueError, match="At least 2 clips.*Received 1 of 'array' and 4 of 'array'"):
        one("acd", noise(1), noise(4, 1), default_frames=4)
    with pytest.raises(ValueError, match="mean_colour needs at least 2 frames"):
        one("fvd4_1f", noise(4), noise(4, 1))


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"Real clips are 16x16 pixels and generated ones 20x20.*--size"):
        one("acd4_4f", noise(4, size=20), noise(4, 1))

    class Mixed(Endless):
        def batches(self, num_clips, num_frames, stride=1):
            yield noise(1, size=16)
            yield noise(1, size=18)

    with pytest.raises(ValueError, match="generated side differ in size: 18x18 after 16x16.*--size"):
        one("acd2_4f", Mixed(), noise(4, 1))


def test_copied_files_are_refused_and_a_poor_model_is_noted():
    videos = noise(6)
    videos[4] = videos[1]
    collection = VideoCollection.from_videos(list(videos), names=tuple("abcdef"))
    with pytest.raises(ValueError, match="1 of 6 generated clips.*('b' and 'e'|'e' and 'b').*--allow_duplicates"):
        one("acd6_4f", VideoClips(collection, refuse_duplicates=True), noise(6, 1))
    result = one("acd6_4f", VideoClips(collection), noise(6, 1))
    assert "fewer different clips, 5" in result.notes[0]


def test_copied_real_files_are_noted():
    videos = noise(6)
    videos[4] = videos[1]
    videos[5, :3] = videos[2, :3]  # the middle frame too, but not the last
    real = VideoCollection.from_videos(list(videos), names=tuple("abcdef"))
    (note,) = one("acd6_4f", noise(6, 1), real).notes
    assert note.startswith("1 of 6 real videos repeat another one") and "'b' and 'e'" in note
    assert one("acd5_4f", noise(6, 1), real.subset([0, 1, 2, 3, 5])).notes == ()


def test_fewer_clips_than_numbers_in_a_feature_are_noted():
    result = one("pixels_prdc8_4f", noise(8), noise(8, 1))
    assert result.notes == ()

    class Wide(MeanColour):
        dim = 16 * 16 * 3

        def outputs(self, videos):
            return {"features": tf.reshape(tf.cast(videos[:, 0], tf.float32), (-1, self.dim))}

    few = one("fvd8_4f", noise(8), noise(8, 1), own(i3d=Wide()))
    assert "8 generated feature vectors of 768 numbers" in few.notes[0] and "biased upwards" in few.notes[0]
    unequal = one("fvd8_4f", noise(8), noise(5, 1))
    assert any("5 real and 8 generated" in note and "depends on both numbers" in note for note in unequal.notes)


def test_codecs_must_agree():
    def side(codec, seed):
        return VideoClips(as_clips(noise(4, seed)).videos, origin={"codec": codec})

    result = one("acd4_4f", side("none", 0), side("h264 (yuv420p)", 1))
    assert "through h264 (yuv420p), generated ones through no codec" in result.notes[0]
    (note,) = one("acd4_4f", side("h264 (yuv420p)", 0), side("unknown", 1)).notes
    assert "through an unknown codec, generated ones through h264 (yuv420p)" in note
    assert one("acd4_4f", side("gif", 0), side("gif", 1)).notes == ()
    assert one("acd4_4f", ModelClips(Drift()), side("h264 (yuv420p)", 1)).notes == ()


def test_the_documentation_names_every_family():
    documented = (pathlib.Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for family in FAMILIES:
        assert f"`{family}`" in documented, family
