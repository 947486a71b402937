"""Every number of the golden file of closed forms, through the public functions."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tfvidgen import study
from tfvidgen.features.base import resize_matrix
from tfvidgen.metrics import consistency, disentanglement, distances, diversity, image, inception, preference, s3
from tfvidgen.metrics.statistics import FeatureStatistics, SampleSizeWarning, wilson_interval


@pytest.fixture(scope="module")
def entries(shared):
    tests = json.loads((shared / "golden" / "metrics_analytic.json").read_text())["tests"]
    return {test["name"]: test for test in tests}


def agree(test, value, key=None):
    expected = test["expected"] if key is None else test["expected"][key]
    if isinstance(expected, str):
        assert value == float(expected)
        return
    error = np.abs(np.subtract(value, expected))
    assert np.all(error <= test["rtol"] * np.maximum(1, np.abs(expected))), (test["name"], key, value, expected)


def check_frechet(test, entries):
    given, expected = test["inputs"], test["expected"]
    if "cov1" in given:
        moments = [np.array(given[key], float) for key in ("mean1", "cov1", "mean2", "cov2")]
        agree(test, distances.frechet_from_moments(*moments), "fd" if isinstance(expected, dict) else None)
        if isinstance(expected, dict):
            agree(test, distances.trace_sqrt_product(moments[1], moments[3]), "trace_sqrt")
        return
    a, b = np.array(given["A"]), np.array(given["B"])
    if not isinstance(expected, dict):
        agree(test, distances.frechet_distance(a, b))
        return
    computed = {
        "ddof1": lambda: distances.frechet_distance(a, b),
        "ddof0": lambda: distances.frechet_distance(a, b, ddof=0),
        "ddof1_swapped_arguments": lambda: distances.frechet_distance(b, a),
        "ddof1_scaled_by_2p5": lambda: distances.frechet_distance(2.5 * a, 2.5 * b),
        "ddof1_same_shift_added_to_both": lambda: distances.frechet_distance(a + 7.0, b + 7.0),
        "ddof1_A_vs_A": lambda: distances.frechet_distance(a, a),
    }
    for key in expected:
        agree(test, computed[key](), key)
    statistics = [FeatureStatistics.from_features(x) for x in (a, b)]
    agree(test, distances.frechet_distance(*statistics), "ddof1")


def check_frechet_bias(test, entries):
    given = test["inputs"]
    agree({**test, "rtol": 1e-12}, distances.frechet_bias(np.ones(given["d"]), given["N"]))


def check_mmd(test, entries):
    given = test["inputs"]
    if "X" in given:
        agree(test, distances.polynomial_mmd(given["X"], given["Y"]))
        return
    a, b = arrays_of("frechet_random_64_vs_48_d20", entries)
    agree(test, distances.polynomial_mmd(a, b), "unbiased_U")
    agree(test, distances.kernel_distance(a, b).value, "unbiased_U")
    agree(test, distances.polynomial_mmd(a, b, unbiased=False), "biased_V")


def check_mmd_population(test, entries):
    # Both sets at the quantiles of their Gaussians: moments of a very large sample without its noise.
    from scipy import special

    mean = float(test["inputs"]["Q"].removeprefix("N(").split(",")[0])
    points = special.ndtri((np.arange(1000) + 0.5) / 1000)[:, None]
    agree(test, distances.polynomial_mmd(points, points + mean, unbiased=False))


def check_jedi(test, entries):
    a, b = arrays_of("frechet_random_64_vs_48_d20", entries)
    agree(test, distances.jedi_distance(a, b), "value")
    agree(test, distances.jedi_distance(a, -a), "A_vs_minus_A")


def check_inception(test, entries):
    given, expected = test["inputs"], test["expected"]
    if "classes" in given:
        p = np.eye(given["classes"])
        agree(test, inception.inception_score(p, epsilon=given["eps_inside_logs"]).value, "with_eps")
        agree(test, inception.inception_score(p).value, "exact")
        return
    logits = "logits" in given
    score = inception.inception_score(given["logits" if logits else "p"], from_logits=logits)
    if not isinstance(expected, dict):
        agree(test, score.value)
        return
    agree(test, score.value, "IS")
    agree(test, score.marginal_entropy, "H_y")
    agree(test, score.conditional_entropy, "H_y_given_x")
    if logits:
        split = inception.inception_score(given["logits"], num_splits=4, from_logits=True)
        agree(test, split.splits, "IS_4_contiguous_splits")
        agree(test, split.value, "splits_mean")
        agree(test, split.spread, "splits_std_population")


def check_mcs(test, entries):
    given, expected = test["inputs"], test["expected"]
    names = ("real_features_T_D", "generated_features_T_D")
    if "features_T_D" in given:
        names = ("features_T_D", "middle_frames_permuted")
    pair = [np.array(given[name])[None] for name in names]
    score = consistency.motion_consistency(*pair)
    sides = []
    for features in pair:
        sides.append(consistency.FrameDifferences())
        sides[-1].update(features)
    computed = {
        "signed_mean_difference_real": sides[0].signed,
        "signed_mean_difference": sides[0].signed,
        "abs_mean_difference_original": sides[0].absolute,
        "abs_mean_difference_permuted": sides[1].absolute,
        "msd": score.signed.squared_distance,
        "msd_between_the_two": score.signed.squared_distance,
        "msd_abs_variant": score.absolute.squared_distance,
        "MCS": score.signed.mcs,
        "MCS1": score.signed.mcs1,
    }
    for key in expected:
        agree(test, computed[key], key)


def check_ssim(test, entries):
    a, b = (np.full((1, 12, 12, 3), 255 * test["inputs"][f"frame{n}_value"]) for n in (1, 2))
    agree(test, image._ssim_per_channel(a, b))


def check_fcs(test, entries):
    score, num_frames = np.mean(test["inputs"]["ssim_frames_2_to_16_vs_first"]), 16
    agree(test, score, "excl")
    agree(test, consistency._with_first(score, num_frames), "incl")


def check_s3(test, entries):
    for row in test["inputs"]["rows"]:
        agree(test, s3.s3_score(row["SeR"], row["ReS"], row["ReR"]), row["name"])
        agree(test, s3.s3_score(row["SeR"] / 100, row["ReS"] / 100, row["ReR"] / 100), row["name"])


def check_prdc(test, entries):
    given = test["inputs"]
    random = entries["prdc_random_40_vs_30_k3"]["inputs"]["real"]
    real = random if isinstance(given["real"], str) else given["real"]
    repeated = [random[0]] * 100
    fake = {"the same set": real, "its first row 100 times": repeated}.get(str(given["fake"]), given["fake"])
    score = diversity.precision_recall(np.array(real), np.array(fake), given["k"])
    assert set(test["expected"]) == {"precision", "recall", "density", "coverage"}
    for key in test["expected"]:
        agree(test, getattr(score, key), key)


def check_coverage(test, entries):
    cases = [(case["N"], case["M"], case["k"]) for case in test["inputs"]["cases"]]
    agree(test, [diversity.expected_coverage(*case) for case in cases])


def check_memorisation(test, entries):
    given = test["inputs"]
    if "train" in given:
        found = diversity.nearest_neighbours(given["generated"], given["train"], given["k"])
        agree(test, found[0], "nearest_distance")
        np.testing.assert_array_equal(found[1], test["expected"]["nearest_index"])
        return
    result = diversity.data_copying_test(given["d_generated_to_train"], given["d_test_to_train"])
    for key, value in (("U", result.u), ("U_over_mn", result.share), ("z", result.z), ("p_two_sided", result.p_value)):
        agree(test, value, key)


def check_acd(test, entries):
    result = diversity.average_content_distance(np.array([test["inputs"]["frame_vectors"]]))
    agree(test, result.consecutive[0], "consecutive")
    agree(test, result.all_pairs[0], "all_pairs")


def check_judge(test, entries):
    scores = disentanglement.judge_scores(test["inputs"]["p_yx"], test["inputs"]["true_labels"])
    computed = {
        "accuracy": scores.accuracy,
        "IS": scores.inception_score,
        "H_y": scores.marginal_entropy,
        "H_y_given_x": scores.conditional_entropy,
    }
    for key in test["expected"]:
        agree(test, computed[key], key)


def check_preference(test, entries):
    given, expected = test["inputs"], test["expected"]
    if "icc" in given:
        effect = preference.design_effect(given["votes_per_pair"], given["icc"])
        size = given["n"] / effect
        agree(test, effect, "deff")
        agree(test, size, "n_eff")
        half = 1.959963984540054 * np.sqrt(given["share"] * (1 - given["share"]) / size)
        agree(test, half, "half_width_normal95")
        return
    if "win_rates_i_beats_j" in given:
        agree(test, preference.bradley_terry(given["win_rates_i_beats_j"]), "b")
        return
    wins, n = given["votes"], given["n"]
    votes = [
        study.Vote(f"r{i % 5}", f"p{i // 5}", "m", "a", "b", "c", "left" if i < wins else "right") for i in range(n)
    ]
    result = preference.analyse(votes, "m", "b", num_resamples=1)
    agree(test, result.share, "share")
    agree(test, result.wilson, "wilson95")
    agree(test, wilson_interval(wins, n), "wilson95")
    assert result.p_value == pytest.approx(expected["binomial_two_sided_p"], rel=1e-6)
    if 0 < wins < n:
        log_odds = preference.bradley_terry([[0, n - wins], [wins, 0]])[1]
        assert log_odds == pytest.approx(expected["bradley_terry_log_odds"], abs=1e-12)


def check_resize(test, entries):
    ramp, size = np.arange(64.0), test["inputs"]["destination_size"]
    agree(test, resize_matrix(64, size, "tf1-bilinear") @ ramp, "legacy_tf1")
    agree(test, resize_matrix(64, size, "half-pixel") @ ramp, "half_pixel")


CHECKS = {
    "frechet": check_frechet,
    "frechet_bias": check_frechet_bias,
    "mmd_polynomial": check_mmd,
    "mmd_polynomial_population": check_mmd_population,
    "mmd_jedi": check_jedi,
    "inception_score": check_inception,
    "mcs": check_mcs,
    "ssim": check_ssim,
    "fcs": check_fcs,
    "s3": check_s3,
    "prdc": check_prdc,
    "prdc_expectation": check_coverage,
    "memorisation": check_memorisation,
    "acd": check_acd,
    "sprites_judge": check_judge,
    "human_preference": check_preference,
    "resize": check_resize,
}


def arrays_of(name, entries):
    return [np.array(entries[name]["inputs"][key]) for key in ("A", "B")]


@pytest.mark.filterwarnings(f"ignore::{SampleSizeWarning.__module__}.SampleSizeWarning")
@pytest.mark.parametrize("metric", CHECKS)
def test_golden_numbers(metric, entries):
    mine = [test for test in entries.values() if test["metric"] == metric]
    assert mine
    for test in mine:
        CHECKS[metric](test, entries)


def test_no_golden_metric_is_left_out(entries):
    assert {test["metric"] for test in entries.values()} == {*CHECKS}


def test_the_arithmetic_does_not_import_tensorflow():
    names = "statistics distances inception diversity consistency disentanglement s3 preference image".split()
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module('tfvidgen.metrics.' + name)\n"
    code += "print(sorted({'tensorflow', 'keras', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
