"""Names of metrics, what they leave out, and the table of results."""

import pathlib

import pytest

from tests.metrics.sides import colours, noise, one, own, plain
from tfvidgen.metrics.evaluate import evaluate
from tfvidgen.metrics.families import FAMILIES
from tfvidgen.metrics.protocols import Protocol, Row, parse, parse_all, table


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
        ("judge_mcs500", "mcs does not run on judge features.*use mcs"),
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


def test_a_table_shows_values_intervals_and_each_note_once():
    results = evaluate("fvd3_4f,judge_fvd3_4f,acd3_4f", noise(3), noise(2, 1), own())
    lines = table(results)
    assert lines[0].split() == ["metric", "value", "95", "%", "interval", "beside"]
    assert lines[3].startswith("acd3_4f ") and "[" in lines[3] and "a frozen video has 0" in lines[3]
    notes = [line for line in lines if line.startswith("note (")]
    assert len(notes) == len(set(notes)) == 2
    assert all("fvd3_4f, judge_fvd3_4f" in note for note in notes)


@pytest.mark.parametrize(
    ("value", "interval", "shown"),
    [
        (0.91234, (0.905, 0.9195), "0.912 [0.905, 0.919]"),
        (0.91234, (0.84, 0.98), "0.91 [0.84, 0.98]"),
        (432.71, (397.2, 468.3), "430 [400, 470]"),
        (12345.6, (12344.1, 12347.0), "12346 [12344, 12347]"),
        (0.0, (0.0, 0.057), "0.00 [0.00, 0.06]"),
        (-0.0004, (-0.02, 0.02), "0.00 [-0.02, 0.02]"),
        (2.2e-05, (-1.234e-05, 5.678e-07), "2.2e-05 [-1.2e-05, 5.7e-07]"),
        (1.0, (1.0, 1.0), "1 [1, 1]"),
        (24.3456, None, "24.3"),
        (1234.56, None, "1235"),
        (float("-inf"), (float("-inf"), -2.345), "-inf [-inf, -2.35]"),
        (float("nan"), None, "nan"),
    ],
)
def test_a_value_has_no_more_digits_than_its_interval_warrants(value, interval, shown):
    lines = table([], [Row("acd", value, interval, "beside")])
    assert " ".join(lines[1].split()) == f"acd {shown} beside"


def test_the_documentation_names_every_family():
    documented = (pathlib.Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for family in FAMILIES:
        assert f"`{family}`" in documented, family
