"""The program for preference studies: what raters get, and what becomes of their votes."""

import csv
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tfvidgen.data.video_io import read_video, write_gif
from tfvidgen.study import read_trials, read_votes, trial_codes
from trainers import study

SYSTEMS = {"ours": 60, "sota": 200}  # and the grey of their clips


def clip(grey, number, frames=5, size=16) -> np.ndarray:
    frames = np.full((frames, size, size, 3), grey, np.uint8)
    frames[:, number : number + 2] += 40  # a bar tells the clips apart
    return frames


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("systems")
    for name, grey in SYSTEMS.items():
        (root / name).mkdir()
        for number in range(6):
            np.save(root / name / f"{number}.npy", clip(grey, 2 * number, 5 + number))
    return root


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "first"
    assert make(folders, folder, "--num_rounds=3", "--question=Which is <calmer>?") == 0
    return folder


def make(folders, folder, *flags) -> int:
    clips = ",".join(f"{name}={folders / name}" for name in SYSTEMS)
    return study.main(["make", f"--clips={clips}", f"--study={folder}", *flags])


def test_raters_get_all_they_need_and_no_name_of_a_system(made):
    trials = trial_codes(read_trials(made / "key.jsonl"))
    assert sorted(path.name for path in made.iterdir()) == ["key.jsonl", "round_1", "round_2", "round_3", "votes"]
    for number in (1, 2, 3):
        folder, codes = made / f"round_{number}", [code for code in trials if code.startswith(f"r{number}-")]
        assert len(codes) == 6 + 2
        files = {"index.html", "votes.csv", "sheet_1.png", *(f"{code}.mp4" for code in codes)}
        assert {path.name for path in folder.iterdir()} == files
        for path in folder.iterdir():
            content = path.read_bytes()
            assert not any(name.encode() in content for name in (*SYSTEMS, "noise", "systems")), path.name
        page = (folder / "index.html").read_text(encoding="utf-8")
        assert re.findall(r'src="(.*?)"', page) == [f"{code}.mp4" for code in codes]
        assert page.count("Which is &lt;calmer&gt;?") == 2 and "http" not in page
        with open(folder / "votes.csv", newline="") as file:
            assert list(csv.DictReader(file)) == [{"trial": code, "choice": ""} for code in codes]
        assert np.asarray(Image.open(folder / "sheet_1.png")).shape[0] > 8 * 64


def test_videos_show_the_sides_of_the_key_at_one_length_and_size(made):
    """Clips of 5 to 10 frames are all shown for 5; catch trials show noise on the side that loses."""
    sides = set()
    for code, trial in trial_codes(read_trials(made / "key.jsonl")).items():
        video, fps = read_video(made / f"round_{code[1]}" / f"{code}.mp4")
        assert len(video) == 5 and fps == 8
        halves = video[:, 100:220, 50:150], video[:, 100:220, -150:-50]
        for half, system in zip(halves, (trial.left_model, trial.right_model), strict=True):
            if system == "noise":
                assert half.std() > 30 and trial.expected in SYSTEMS
            else:
                assert min(abs(float(np.median(half)) - SYSTEMS[system] - bar) for bar in (0, 40)) < 6, (code, system)
        sides.add(trial.left_model)
    assert sides == {*SYSTEMS, "noise"}


def test_a_seed_gives_the_same_study_and_another_one_another(folders, tmp_path):
    found = {}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        flags = ["--num_rounds=1", "--num_pairs=2", "--num_catch=1", f"--seed={seed}"]
        assert make(folders, tmp_path / name, *flags) == 0
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        found[name] = {path.relative_to(tmp_path / name): path.read_bytes() for path in paths}
    assert found["one"] == found["again"]
    assert found["one"].keys() == found["other"].keys()
    assert found["one"][pathlib.Path("key.jsonl")] != found["other"][pathlib.Path("key.jsonl")]


def answer(made, rater, number, system, wrong=()) -> None:
    """Writes the ballot of a rater who prefers a system, and looks at catch trials."""
    rows = []
    for code, trial in trial_codes(read_trials(made / "key.jsonl")).items():
        if trial.round == number - 1 and code not in wrong:
            chosen = trial.expected or system
            rows.append(f"{code},{'left' if trial.left_model == chosen else 'right'}")
    (made / "votes" / f"{rater}.csv").write_text("\n".join(["trial,choice", *rows]) + "\n")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(study, "_RESAMPLES", 100)
    monkeypatch.setattr(study, "_REFITS", 20)


@pytest.fixture
def voted(made, tmp_path):
    """A copy of the study with two ballots."""
    folder = shutil.copytree(made, tmp_path / "study")
    for number, rater in enumerate(("anna", "ben"), 1):
        answer(folder, rater, number, "ours")
    return folder


def test_votes_become_shares_intervals_and_strengths(voted, capsys):
    answer(voted, "ben", 2, "ours", wrong=["r2-001", "r2-002"])
    assert study.main(["analyse", f"--study={voted}"]) == 0
    out = capsys.readouterr().out
    report = json.loads((voted / "analysis.json").read_text())
    (comparison,) = report["comparisons"]
    assert (comparison["model"], comparison["baseline"]) == ("ours", "sota")
    assert comparison["share"] == 1 and comparison["num_raters"] == 2 and comparison["wilson"][0] < 1
    assert report["missing"] == {"ben": ["r2-001", "r2-002"]} and report["unseen_rounds"] == [3]
    assert report["raters"] == ["anna", "ben"] and report["left_out"] == [] and report["dropped"] == []
    assert report["votes"] == comparison["num_votes"]
    assert list(report["strengths"]) == ["ours", "sota"] and report["strengths"]["sota"]["log_odds"] == 0
    for words in (
        "missing: ben left 2 open: r2-001, r2-002",
        "missing: no votes yet on round 3",
        "ours over sota  1.00",
        "note: 2 raters say little about others",
        "note: a system won or lost every vote",
        "verdict: ours is preferred to sota",
    ):
        assert words in out
    kept = read_votes(voted / "votes.jsonl", read_trials(voted / "key.jsonl"))
    assert len(kept) == 8 + 6 and {vote.winner for vote in kept if vote.expected is None} == {"ours"}


def test_raters_who_agree_on_nothing_show_no_preference_and_the_baseline_can_be_named(voted, capsys):
    answer(voted, "ben", 2, "sota")
    assert study.main(["analyse", f"--study={voted}", "--baseline=ours"]) == 0
    out = capsys.readouterr().out
    assert "sota over ours  0.50" in out and "verdict: sota and ours: no preference is shown" in out
    assert "won or lost every vote" not in out


def test_a_rater_who_does_not_look_is_dropped(voted, capsys):
    codes = trial_codes(read_trials(voted / "key.jsonl"))
    rows = [
        f"{code},{'left' if t.left_model in ('noise', 'sota') else 'right'}"
        for code, t in codes.items()
        if t.round == 1
    ]
    (voted / "votes" / "anna.csv").write_text("\n".join(["trial,choice", *rows]))
    assert study.main(["analyse", f"--study={voted}"]) == 0
    assert "dropped, for their catch trials: anna" in capsys.readouterr().out
    assert json.loads((voted / "analysis.json").read_text())["raters"] == ["ben"]
    assert study.main(["analyse", f"--study={voted}", "--min_catch=0"]) == 0
    assert json.loads((voted / "analysis.json").read_text())["raters"] == ["anna", "ben"]


def test_a_ballot_may_stay_in_its_round_or_be_named(voted, tmp_path, capsys):
    (voted / "votes" / "anna.csv").rename(voted / "round_1" / "votes.csv")
    (voted / "votes" / "ben.csv").rename(tmp_path / "berta.csv")
    assert study.main(["analyse", f"--study={voted}"]) == 0
    assert json.loads((voted / "analysis.json").read_text())["raters"] == ["round_1"]
    named = f"--votes={voted / 'round_1' / 'votes.csv'},{tmp_path / 'berta.csv'}"
    assert study.main(["analyse", f"--study={voted}", named]) == 0
    assert json.loads((voted / "analysis.json").read_text())["raters"] == ["berta", "round_1"]


def test_votes_that_cannot_be_used_are_named_or_left_out(voted, capsys):
    with open(voted / "votes" / "ben.csv", "a") as file:
        file.write("r2-001,tie\nr7-001,left\n")
    assert study.main(["analyse", f"--study={voted}"]) == 1
    error = capsys.readouterr().err
    assert "2 votes or ballots cannot be used" in error and "ben.csv', line 10: " in error and "--skip_bad." in error
    assert not (voted / "analysis.json").exists()
    assert study.main(["analyse", f"--study={voted}", "--skip_bad"]) == 0
    assert capsys.readouterr().out.count("left out: ") == 2
    assert len(json.loads((voted / "analysis.json").read_text())["left_out"]) == 2


def test_three_systems_meet_and_the_blank_ballots_say_nothing(folders, tmp_path, capsys):
    clips = f"--clips=a={folders / 'ours'},b={folders / 'sota'},c={folders / 'ours'}"
    assert (
        study.main(["make", clips, f"--study={tmp_path / 's'}", "--num_rounds=1", "--num_pairs=2", "--num_catch=0"])
        == 0
    )
    capsys.readouterr()
    assert study.main(["analyse", f"--study={tmp_path / 's'}"]) == 1
    assert "There are no votes to analyse" in capsys.readouterr().err
    answer(tmp_path / "s", "r", 1, "a")
    assert study.main(["analyse", f"--study={tmp_path / 's'}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"a over b +1\.00", out) and re.search(r"a over c +1\.00", out) and "b over c" in out


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ([], 2, "Name one of make, analyse. Received ''"),
        (["mkae"], 2, "Did you mean 'make'?"),
        (["make", "analyse"], 2, "Received 'make analyse'"),
        (["make"], 2, "--study is missing"),
        (["make", "--study=s"], 2, "--clips is missing"),
        (["make", "--study=s", "--clips=ours"], 2, "SYSTEM=FOLDER pairs"),
        (["make", "--study=s", "--clips=ours=SYSTEMS/ours"], 2, "two systems at least"),
        (["make", "--study=s", "--clips=a=SYSTEMS/ours,a=SYSTEMS/sota"], 2, "'a' is named twice"),
        (["make", "--study=s", "--clips=a=SYSTEMS/ours,noise=SYSTEMS/sota"], 2, "'noise' is reserved"),
        (["make", "--study=s", "--clips=a=SYSTEMS/ours,b=SYSTEMS/gone"], 1, "No file or folder"),
        (
            ["make", "--study=s", "--clips=a=SYSTEMS/ours,b=SYSTEMS/sota", "--baseline=c"],
            2,
            "--baseline must be one of a, b",
        ),
        (["make", "--study=s", "--clips=a=SYSTEMS/ours,b=SYSTEMS/sota", "--num_pairs=7"], 1, "has only 6 clips"),
        (["make", "--study=s", "--clips=a=SYSTEMS/ours,b=SYSTEMS/sota", "--num_frames=9"], 1, "has only 5 frames"),
        (["make", "--study=.", "--clips=a=SYSTEMS/ours,b=SYSTEMS/sota"], 1, "exists, and may hold votes"),
        (["analyse", "--study=s"], 1, "is not a study"),
    ],
)
def test_bad_usage_is_one_message_and_leaves_nothing(folders, tmp_path, monkeypatch, capsys, flags, status, words):
    monkeypatch.chdir(tmp_path)
    assert study.main([flag.replace("SYSTEMS", str(folders)) for flag in flags]) == status
    said = capsys.readouterr()
    assert words in said.err and said.out == "" and not list(tmp_path.iterdir())


def test_what_gives_systems_away_is_refused_or_noted(folders, tmp_path, capsys):
    (tmp_path / "larger").mkdir()
    for number in range(3):
        write_gif(tmp_path / "larger" / f"{number}.gif", clip(90, number, size=24), 5)
    flags = ["make", f"--clips=ours={folders / 'ours'},other={tmp_path / 'larger'}", f"--study={tmp_path / 's'}"]
    assert study.main(flags) == 1
    assert "ours 16x16, other 24x24 (height x width). Give a --size." in capsys.readouterr().err
    assert study.main([*flags, "--size=16", "--num_rounds=1"]) == 0
    out = capsys.readouterr().out
    assert "note: clips are compressed differently" in out and "note: clips are timed differently" in out
    assert "3 pairs for each two of ours, other" in out


def test_ballots_of_one_name_are_refused(voted, capsys):
    (voted / "votes" / "round_1.csv").write_text("trial,choice\n")
    assert study.main(["analyse", f"--study={voted}"]) == 1
    assert "Two ballots belong to a rater 'round_1'" in capsys.readouterr().err


def test_help_names_both_actions(capsys):
    assert study.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage: python -m trainers.study make|analyse" in out and "--num_rounds" in out
