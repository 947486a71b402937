"""The pass over both sides: order, records, what is kept, what is refused and what is noted."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from tests.metrics.sides import SIZE, Drift, MeanColour, colours, counted, noise, one, own, plain
from tfvidgen.data.collection import VideoCollection
from tfvidgen.features.networks import Networks
from tfvidgen.metrics.evaluate import MetricsError, evaluate
from tfvidgen.metrics.families import FAMILIES
from tfvidgen.metrics.sampling import BATCH, Clips, ModelClips, VideoClips, as_clips


def test_results_come_in_the_order_of_the_names():
    names = ["acd8_4f", "fcs6_4f", "judge_fvd8_4f", "fcs8_4f", "acd8_2f"]
    results = evaluate(names, noise(8), noise(8, 1), own())
    assert [result.name for result in results] == names


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


def test_files_that_were_left_out_are_in_the_notes_of_every_record():
    real = dataclasses.replace(counted(20), skipped=(("walk/a.mp4", "it is truncated"), ("b.mp4", "the file is empty")))
    for result in evaluate(["acd8_4f", "fcs8_4f"], plain(colours(8)), VideoClips(real), own()):
        (note,) = [note for note in result.record()["notes"] if "left out" in note]
        assert note.startswith("2 unreadable files") and "walk/a.mp4: it is truncated; b.mp4: the file is empty" in note


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
    with pytest.raises(ValueError, match="needs a judge.*pass `judge` to Networks"):
        evaluate("judge_fvd4_4f", noise(4), noise(4, 1), networks)


def test_advice_in_place_of_weights_fits_the_metric_and_the_clips():
    """A judge is no help for a metric that has no use for it, or where there are no labels."""
    labelled, bare = VideoClips(counted(8, 16)), noise(8, 1, frames=16)
    found = {}
    for name, real in (("fvd4_16f", labelled), ("fvd4_16f", bare), ("mcs4_16f", labelled), ("prdc6_16f", bare)):
        with pytest.raises(MetricsError) as error:
            evaluate(name, noise(8, frames=16), real)
        found[name, real is labelled] = str(error.value)
        assert "Pass it as Networks({" in str(error.value), "the Python argument, not the flag"
    assert found["fvd4_16f", True].endswith("trains a small network on the real labelled clips (judge_fvd).")
    assert "judge" not in found["fvd4_16f", False] and "judge" not in found["mcs4_16f", True]
    assert found["prdc6_16f", False].endswith("Without weights: pixels_prdc compares frames of 8 x 8 pixels.")


def test_a_model_that_diverged_is_refused():
    class Diverged(Drift):
        def decode(self, latents, training=False):
            return super().decode(latents) * float("nan")

    with pytest.raises(ValueError, match="Generated clips: Received NaN or infinity in the frames of Diverged"):
        one("acd4_4f", ModelClips(Diverged()), noise(4))
    with pytest.raises(ValueError, match="Real clips: Floats must lie in"):
        one("acd4_4f", noise(4), 7.0 * noise(4))


def test_bytes_that_were_fractions_are_doubted():
    bright, dark = noise(8, 1), noise(8, 0, 0, 2)
    for name in ("fvd4_4f", "acd4_4f", "duplicates4_4f"):
        for made, real, side in ((dark, bright, "generated"), (bright, dark, "real")):
            (note,) = (note for note in one(name, made, real).notes if "multiply by 255" in note)
            assert note.startswith(f"The {side} clips have no value above 1"), "once, with a network or without"
    assert not any("multiply" in note for note in one("acd4_4f", bright, bright[::-1]).notes)


def test_fractions_among_real_clips_are_doubted_though_their_features_are_kept(tmp_path):
    real = VideoClips(as_clips(noise(8, 0, 0, 2)).videos)
    for _ in range(2):
        result = one("fvd4_4f", noise(4, 1), real, cache_dir=tmp_path)
        assert any("The real clips have no value above 1" in note for note in result.notes)


def test_floats_without_negative_values_are_doubted_in_every_record():
    results = evaluate("acd4_4f,fcs4_4f", np.random.default_rng(0).random((4, 4, 16, 16, 3)), noise(4, 1), own())
    assert all("suggests [0, 1] instead of [-1, 1]" in result.notes[0] for result in results)


def test_too_few_clips_and_frames():
    with pytest.raises(ValueError, match="Generated clips: 9 clips are requested, but 'array' has 4 videos"):
        one("acd9_4f", noise(4), noise(9, 1))
    with pytest.raises(
        ValueError, match='shorter than the 7 frames that 4 frames at stride 2 need: video_.*`short_clip="loop"`'
    ):
        one("acd4_4f_stride2", noise(4), noise(4, 1))
    with pytest.raises(ValueError, match="at least 2 clips on each side. Received 1 real"):
        one("acd4_4f", noise(4), noise(1, 1))
    with pytest.raises(ValueError, match="At least 2 clips.*Received 1 generated ones of 'array' and 4 real"):
        one("acd", noise(1), noise(4, 1), default_frames=4)
    with pytest.raises(ValueError, match="mean_colour takes at least 2 frames a clip. Received 1"):
        one("fvd4_1f", noise(4), noise(4, 1))


class Unread(Clips):
    """Clips that must not be read, and have no labels."""

    origin = {"source": "unread"}

    def __init__(self, available):
        self.available = available

    def batches(self, num_clips, num_frames, stride=1):
        raise AssertionError("clips were read")


def test_what_is_known_without_clips_is_found_before_any_is_read():
    small = VideoClips(as_clips(noise(9, size=8)).videos)
    for name, made, real, words in (
        ("fcs4_1f", Unread(9), Unread(9), "fcs4_1f: It needs at least 2 frames a clip. Received 1"),
        ("motion4_1f", Unread(9), Unread(9), "at least 2 frames"),
        ("fcs4_4f", Unread(9), small, "at least 11 x 11 pixels. Received real ones of 8 x 8"),
        ("pixels_prdc6_4f", Unread(6), Unread(5), "at least 6 clips on each side. Received 5 real"),
        (
            "judge_accuracy4_4f",
            Unread(9),
            VideoClips(counted(9)),
            "the class of every clip, but the generated ones have none",
        ),
        (
            "judge_accuracy4_4f",
            VideoClips(counted(9)),
            Unread(9),
            "the class of every clip, but the real ones have none",
        ),
        ("s3_tsn6_4f", VideoClips(counted(9)), Unread(9), "but the real ones have none"),
        ("judge_swap4_4f", Unread(9), Unread(9), "evaluate a run, against the videos it was trained on"),
        ("acd4_12f", Unread(9), VideoClips(counted(9)), "Real clips: 4 of the 4 videos used"),
        ("pixels_nearest2_12f", Unread(9), VideoClips(counted(9)), "Real clips: 9 of the 9 videos used"),
    ):
        with pytest.raises(MetricsError, match=words) as error:
            evaluate(["acd4_4f", name], made, real, own())
        assert list(error.value.reasons) == [name] and error.value.results == []


def test_a_network_that_fails_does_not_hide_the_other_metrics():
    """Whichever side it fails on; the rows of the others are complete, and nothing of it is kept."""

    class Damaged(MeanColour):
        digest = "of another"

        def __init__(self, fails_at):
            super().__init__()
            self.count = fails_at

        def stream_outputs(self, batches, outputs=("features", "logits")):
            self.count -= 1
            if self.count < 0:
                raise ValueError("it is damaged")
            yield from super().stream_outputs(batches, outputs)

    names = ["fvd20_4f", "acd20_4f", "judge_kvd20_4f", "acd20_2f"]
    alone = evaluate(["acd20_4f", "judge_kvd20_4f", "acd20_2f"], noise(20), noise(40, 1), own())
    for fails_at, side in ((1, "Generated"), (3, "Real")):
        seen = []
        networks = own(i3d=Damaged(fails_at), judge=MeanColour())
        with pytest.raises(MetricsError, match=f"^fvd20_4f: {side} clips: it is damaged$") as error:
            evaluate(names, noise(20), noise(40, 1), networks, on_result=seen.append)
        assert error.value.results == seen and [r.name for r in seen] == [r.name for r in alone]
        assert [r.values for r in seen] == [r.values for r in alone]


def test_a_measure_that_fails_does_not_hide_the_others(monkeypatch):
    def measure(measured):
        raise ValueError("it is undefined here")

    monkeypatch.setitem(FAMILIES, "acd", dataclasses.replace(FAMILIES["acd"], measure=measure))
    with pytest.raises(MetricsError) as error:
        evaluate("acd4_4f,motion4_4f,acd4_2f", noise(4), noise(4, 1), own())
    assert str(error.value) == "acd4_4f, acd4_2f: it is undefined here"
    assert [result.name for result in error.value.results] == ["motion4_4f"]


def test_no_name_is_no_metric():
    for names in ("", " , ", []):
        with pytest.raises(ValueError, match="`names` must name at least one metric.*Received"):
            evaluate(names, noise(4), noise(4, 1))


def test_a_short_video_shortens_no_metric_silently():
    def side(*lengths):
        return VideoClips(VideoCollection.from_videos([noise(1, i, frames=n)[0] for i, n in enumerate(lengths)]))

    named, default = evaluate("acd3_4f,acd", side(20, 20, 20), side(20, 5, 20), default_frames=None)
    assert (named.name, default.name) == ("acd3_4f", "acd3_5f") and named.notes == ()
    (note,) = default.notes
    assert note.startswith(
        "Clips of 5 frames instead of 16, because 'video_00001' of the real videos has no more; 5 of 6"
    )
    for lengths, frames in (((20, 17, 30), 16), ((8, 8, 8), 8)):
        result = one("acd", side(*lengths), side(*lengths), default_frames=None)
        assert result.name == f"acd3_{frames}f" and not any("instead of" in note for note in result.notes)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"Real clips are 16x16 pixels and generated ones 20x20.*`size`"):
        one("acd4_4f", noise(4, size=20), noise(4, 1))

    class Mixed(Endless):
        def batches(self, num_clips, num_frames, stride=1):
            yield noise(1, size=16)
            yield noise(1, size=18)

    with pytest.raises(ValueError, match="Generated clips: They differ in size: 18x18 after 16x16.*`size`"):
        one("acd2_4f", Mixed(), noise(4, 1))


def test_copied_files_are_refused_and_a_poor_model_is_noted():
    videos = noise(6)
    videos[4] = videos[1]
    collection = VideoCollection.from_videos(list(videos), names=tuple("abcdef"))
    with pytest.raises(
        ValueError, match="1 of 6 generated clips.*('b' and 'e'|'e' and 'b').*`refuse_duplicates=False`"
    ):
        one("acd6_4f", VideoClips(collection, refuse_duplicates=True), noise(6, 1))
    result = one("acd6_4f", VideoClips(collection), noise(6, 1))
    assert "fewer different clips, 5" in result.notes[0]


def test_copied_real_files_are_noted():
    videos = noise(6)
    videos[4] = videos[1]
    videos[5, :3] = videos[2, :3]  # the middle frame too, but not the last
    real = VideoCollection.from_videos(list(videos), names=tuple("abcdef"))
    (note,) = one("acd6_4f", noise(6, 1), real).notes
    assert note.startswith("1 of 6 real videos are exact copies of another") and "'b' and 'e'" in note
    assert one("acd5_4f", noise(6, 1), real.subset([0, 1, 2, 3, 5])).notes == ()


def test_fewer_clips_than_numbers_in_a_feature_are_noted():
    result = one("pixels_prdc8_4f", noise(8), noise(8, 1))
    assert result.notes == ()

    class Wide(MeanColour):
        dim = 16 * 16 * 3

        def outputs(self, videos):
            return {"features": tf.reshape(tf.cast(videos[:, 0], tf.float32), (-1, self.dim))}

    few = one("fvd8_4f", noise(8), noise(8, 1), own(i3d=Wide()))
    assert "8 generated feature vectors of width 768" in few.notes[0] and "biased upwards" in few.notes[0]
    unequal = one("fvd8_4f", noise(8), noise(5, 1))
    assert any("5 real and 8 generated" in note and "depends on both numbers" in note for note in unequal.notes)


def test_codecs_must_agree():
    def side(codec, seed):
        return VideoClips(as_clips(noise(4, seed)).videos, origin={"codec": codec})

    result = one("acd4_4f", side("none", 0), side("h264 (yuv420p)", 1))
    assert "with h264 (yuv420p), generated ones with no codec" in result.notes[0]
    (note,) = one("acd4_4f", side("h264 (yuv420p)", 0), side("unknown", 1)).notes
    assert "with an unknown codec, generated ones with h264 (yuv420p)" in note
    assert one("acd4_4f", side("gif", 0), side("gif", 1)).notes == ()
    assert one("acd4_4f", ModelClips(Drift()), side("h264 (yuv420p)", 1)).notes == ()
