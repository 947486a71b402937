"""Pairs of clips to choose between, and the files of trials and votes."""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from tfvidgen.study import (
    Trial,
    Vote,
    append_vote,
    drop_inattentive,
    make_trials,
    read_ballots,
    read_question,
    read_trials,
    read_votes,
    trial_codes,
    vote_on,
    write_ballot,
    write_trials,
    write_votes,
)


def clips(*models, num=12):
    return {model: [f"{model}/{i}.mp4" for i in range(num)] for model in models}


# Trials


def test_every_pair_comes_once_in_every_round():
    trials = make_trials(clips("ours", "base"), num_pairs=10, num_rounds=4)
    assert len(trials) == 40
    assert [trial.round for trial in trials] == sorted(trial.round for trial in trials)
    for round_ in range(4):
        assert len({trial.pair for trial in trials if trial.round == round_}) == 10
    shown = collections.defaultdict(set)
    for trial in trials:
        shown[trial.pair].add(frozenset([(trial.left_model, trial.left_clip), (trial.right_model, trial.right_clip)]))
        assert {trial.left_model, trial.right_model} == {"ours", "base"}
    assert all(len(contents) == 1 for contents in shown.values())
    used = [clip for contents in shown.values() for pair in contents for _, clip in pair]
    assert len(set(used)) == len(used) == 20


@pytest.mark.parametrize("num_rounds", [1, 4, 5])
def test_sides_are_balanced_within_pairs_and_over_them(num_rounds):
    trials = make_trials(clips("ours", "base", num=40), num_pairs=40, num_rounds=num_rounds)
    left = collections.Counter(trial.pair for trial in trials if trial.left_model == "ours")
    counts = [left[pair] for pair in {trial.pair for trial in trials}]
    assert set(counts) == {num_rounds // 2, (num_rounds + 1) // 2}
    assert sum(counts) == len(trials) / 2


def test_sides_pairs_and_order_are_random():
    several = [make_trials(clips("ours", "base"), 12, 1, seed=seed) for seed in range(200)]
    assert several[0] == make_trials(clips("ours", "base"), 12, 1, seed=0) != several[1]
    first = np.array(
        [[trial.left_model == "ours" for trial in sorted(trials, key=lambda t: t.pair)] for trials in several]
    )
    np.testing.assert_allclose(first.mean(0), 0.5, atol=0.12)  # every pair by itself
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 0.3
    partner = {
        t.right_clip if t.left_clip == "ours/0.mp4" else t.left_clip
        for ts in several
        for t in ts
        if "ours/0.mp4" in (t.left_clip, t.right_clip)
    }
    assert len(partner) == 12
    assert len({trials[0].pair for trials in several}) == 12


def test_which_models_meet():
    def met(trials):
        return {frozenset([trial.left_model, trial.right_model]) for trial in trials}

    three = clips("a", "b", "c")
    assert met(make_trials(three, 3, 1)) == {frozenset("ab"), frozenset("ac"), frozenset("bc")}
    trials = make_trials(three, 3, 2, baseline="b")
    assert met(trials) == {frozenset("ab"), frozenset("bc")}
    assert len(trials) == 12


def test_catch_trials():
    trials = make_trials(clips("a", "b"), 3, 2, catch=[(("real", "r.mp4"), ("noise", "n.mp4"))])
    catching = [trial for trial in trials if trial.expected]
    assert len(trials) == 8 and len(catching) == 2
    assert {trial.expected for trial in catching} == {"real"}
    assert {trial.left_model for trial in catching} == {"real", "noise"}


def test_trials_refuse():
    with pytest.raises(ValueError, match=r"two models.*\['a'\]"):
        make_trials(clips("a"))
    with pytest.raises(ValueError, match="baseline among them.*'c'"):
        make_trials(clips("a", "b"), 3, baseline="c")
    with pytest.raises(ValueError, match="128 pairs need as many.*'a' has 12"):
        make_trials(clips("a", "b"))
    with pytest.raises(ValueError, match="clips of 'b' contain duplicates"):
        make_trials({"a": ["1", "2"], "b": ["3", "3"]}, 2)
    with pytest.raises(ValueError, match="at least 1"):
        make_trials(clips("a", "b"), 3, 0)


# Files


def test_trials_go_through_a_file(tmp_path):
    trials = make_trials(clips("unsere", "übrige"), 3, 2, catch=[(("real", "r"), ("noise", "n"))])
    path = tmp_path / "trials.jsonl"
    write_trials(path, trials, "Which is smoother?", seed=7)
    assert read_trials(path) == trials
    header = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert header == {"format": "tfvidgen-trials", "version": 1, "question": "Which is smoother?", "seed": 7}
    assert "übrige" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="at least one trial"):
        write_trials(path, [])


def test_a_picture_shows_the_pairs_as_drawn_and_tells_no_model(tmp_path):
    trials = make_trials(clips("ours", "base", num=6), 6, 3, catch=[(("real", "r"), ("noise", "n"))], seed=2)
    shown = {(side, t.pair): i for i, t in enumerate(trials[:7]) for side in ("left", "right")}

    def show(model, name):
        """One colour for each clip: red says where it should stand, green which side, blue the frame."""
        (trial,) = (
            t for t in trials[:7] if name in (t.left_clip, t.right_clip) and model in (t.left_model, t.right_model)
        )
        side = "left" if (model, name) == (trial.left_model, trial.left_clip) else "right"
        clip = np.zeros((7, 20, 24, 3), np.uint8)
        clip[..., 0], clip[..., 1] = 30 * shown[side, trial.pair] + 5, 250 if side == "left" else 120
        clip[..., 2] = np.arange(7)[:, None, None]
        return clip

    write_trials(tmp_path / "trials.jsonl", trials, "Which one?", show=show)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trials.jsonl", "trials.png"]
    sheet = np.asarray(Image.open(tmp_path / "trials.png")) @ [1 << 16, 1 << 8, 1]
    corners = {}
    for row in range(7):
        for green in (250, 120):
            for frame in range(7):
                y, x = np.nonzero(sheet == ((30 * row + 5 << 16) + (green << 8) + frame))
                assert (len(y) == 80 * 96) == (frame in (0, 2, 4, 6)), "four frames, enlarged to four times their size"
                if len(y):
                    corners[row, green, frame] = y.min(), x.min()
    tops = [corners[row, 250, 0][0] for row in range(7)]
    assert tops == [corners[row, 120, 6][0] for row in range(7)] and (np.diff(tops) > 80).all()
    lefts = [[corners[row, green, frame][1] for green in (250, 120) for frame in (0, 2, 4, 6)] for row in range(7)]
    assert (np.diff(lefts, axis=1) > 96).all() and np.ptp(lefts, axis=0).max() == 0

    renamed = [
        dataclasses.replace(
            t, pair=f"p{i}", left_model=f"x{i}", right_model=f"y{i}", left_clip="l", right_clip="r", expected=None
        )
        for i, t in enumerate(trials[:7])
    ]
    whose = {trial.left_model: (t.left_model, t.left_clip) for trial, t in zip(renamed, trials, strict=False)}
    whose |= {trial.right_model: (t.right_model, t.right_clip) for trial, t in zip(renamed, trials, strict=False)}
    write_trials(tmp_path / "other.jsonl", renamed, "Which one?", show=lambda model, name: show(*whose[model]))
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "trials.png").read_bytes(), "names leave no trace"


@pytest.mark.parametrize("wrong", [(5, 8, 8, 3), (4, 8, 9, 3), (4, 8, 8, 1), (8, 8, 3)])
def test_clips_that_tell_their_model_by_their_shape_are_refused(tmp_path, wrong):
    def show(model, name):
        return np.zeros((4, 8, 8, 3) if model == "ours" else wrong, np.uint8)

    trials = [Trial("p", 0, "ours", "a", "base", "b")]
    with pytest.raises(ValueError, match="one length and size.*for 'b' of 'base'"):
        write_trials(tmp_path / "trials.jsonl", trials, show=show)
    assert not list(tmp_path.iterdir())


def test_votes_go_through_a_file_one_by_one_and_at_once(tmp_path):
    votes = [vote_on(trial, f"rater {trial.round}", "left") for trial in make_trials(clips("ours", "base"), 4)]
    votes[0] = vote_on(
        make_trials(clips("ours", "base"), 12, seed=9)[0].__class__("x", 0, "ours", "a", "base", "b"), "r", "left", 2.5
    )
    one, all_ = tmp_path / "one.jsonl", tmp_path / "all.jsonl"
    for vote in votes:
        append_vote(one, vote, "Which?")
    write_votes(all_, votes, "Which?")
    assert one.read_bytes() == all_.read_bytes()
    assert read_votes(one) == votes
    assert read_votes(one)[0].seconds == 2.5
    header = json.loads(one.read_text().splitlines()[0])
    assert header == {"format": "tfvidgen-votes", "version": 1, "question": "Which?"}


def test_votes_must_be_on_the_trials(tmp_path):
    trials = make_trials(clips("ours", "base"), 4, 2)
    path = tmp_path / "votes.jsonl"
    write_votes(path, [vote_on(trial, f"r{trial.round}", "right") for trial in trials])
    assert len(read_votes(path, trials)) == 8
    with pytest.raises(ValueError, match="line .*there is no trial with pair"):
        read_votes(path, [trial for trial in trials if trial.pair != trials[0].pair])


def lines(tmp_path, *records, header=True):
    path = tmp_path / "votes.jsonl"
    first = [json.dumps({"format": "tfvidgen-votes", "version": 1})] if header else []
    path.write_text("\n".join(first + [r if isinstance(r, str) else json.dumps(r) for r in records]) + "\n")
    return path


GOOD = {
    "rater": "r",
    "pair": "p",
    "left_model": "a",
    "left_clip": "1",
    "right_model": "b",
    "right_clip": "2",
    "choice": "left",
}


@pytest.mark.parametrize(
    "records, message",
    [
        (['{"rater": "r'], r"line 2: not JSON.*truncated"),
        (["[1]"], "line 2: must be a JSON object"),
        ([{**GOOD, "choice": "tie"}], "line 2: `choice` must be 'left' or 'right'.*no ties.*'tie'"),
        ([{k: v for k, v in GOOD.items() if k != "rater"}], r"missing fields \['rater'\]"),
        ([{**GOOD, "colour": 1}], r"unknown fields \['colour'\]"),
        ([{**GOOD, "rater": ""}], "`rater` must be a non-empty string"),
        ([{**GOOD, "left_clip": 3}], "`left_clip` must be a non-empty string.*3"),
        ([{**GOOD, "seconds": -1}], "`seconds` must be a number.*-1"),
        ([{**GOOD, "seconds": True}], "`seconds` must be a number"),
        ([{**GOOD, "seconds": float("nan")}], "`seconds` must be a number"),
        ([{**GOOD, "expected": "c"}], "`expected` must be one of the two models.*'c'"),
        ([{**GOOD, "right_model": "a", "right_clip": "1"}], "both sides show the same clip"),
        ([GOOD, {**GOOD, "choice": "right"}], "line 3: rater 'r' votes twice on pair 'p'"),
        ([GOOD, {**GOOD, "rater": "s", "right_clip": "9"}], "line 3: pair 'p' has different clips here"),
        ([], "has no votes"),
    ],
)
def test_broken_votes_are_refused_with_their_line(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        read_votes(lines(tmp_path, *records))


def test_a_file_that_is_no_file_of_votes(tmp_path):
    with pytest.raises(ValueError, match="begin with a header of format 'tfvidgen-votes'.*rater"):
        read_votes(lines(tmp_path, GOOD, header=False))
    with pytest.raises(ValueError, match="Received nothing"):
        read_votes(lines(tmp_path, header=False))
    path = tmp_path / "new.jsonl"
    path.write_text(json.dumps({"format": "tfvidgen-votes", "version": 2}))
    with pytest.raises(ValueError, match="has version 2 of the format, but version 1 is expected"):
        read_votes(path)
    write_trials(path, make_trials(clips("a", "b"), 1, 1))
    with pytest.raises(ValueError, match="'tfvidgen-votes'.*tfvidgen-trials"):
        read_votes(path)


def test_a_round_is_a_whole_number(tmp_path):
    path = tmp_path / "trials.jsonl"
    write_trials(path, [Trial("p", -1, "a", "1", "b", "2")])
    with pytest.raises(ValueError, match="line 2: `round` must be a whole number"):
        read_trials(path)


def test_blank_lines_and_swapped_sides_are_fine(tmp_path):
    swapped = {**GOOD, "rater": "s", "left_model": "b", "left_clip": "2", "right_model": "a", "right_clip": "1"}
    votes = read_votes(lines(tmp_path, GOOD, "", swapped))
    assert [vote.winner for vote in votes] == ["a", "b"]


def test_a_vote_must_choose():
    with pytest.raises(ValueError, match="pair 'p': `choice`"):
        vote_on(Trial("p", 0, "a", "1", "b", "2"), "r", "both")


def test_raters_who_do_not_look_are_dropped():
    def catch(rater, number, choice):
        return Vote(rater, f"catch/{number}", "real", "1", "noise", "2", choice, expected="real")

    votes = [Vote(rater, "p", "a", "1", "b", "2", "left") for rater in ("good", "bad", "new")]
    votes += [catch("good", 0, "left"), catch("good", 1, "left"), catch("bad", 0, "left"), catch("bad", 1, "right")]
    kept, dropped = drop_inattentive(votes)
    assert dropped == ["bad"]
    assert [vote.rater for vote in kept] == ["good", "new"]
    assert drop_inattentive(votes, min_share=0.5)[1] == []


# Ballots

TRIALS = make_trials(clips("ours", "base"), 4, 2, seed=1)


def ballot(path, *rows, head="trial,choice") -> str:
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return str(path)


def test_a_code_says_round_and_place_and_nothing_else():
    codes = trial_codes(TRIALS)
    assert list(codes) == [f"r{round_}-{number:03}" for round_ in (1, 2) for number in (1, 2, 3, 4)]
    assert list(codes.values()) == TRIALS


def test_a_ballot_is_filled_in_and_read(tmp_path):
    write_ballot(tmp_path / "empty.csv", [code for code, trial in trial_codes(TRIALS).items() if trial.round == 1])
    assert read_ballots({"r": tmp_path / "empty.csv"}, TRIALS).votes == []
    text = (tmp_path / "empty.csv").read_text()
    assert text.splitlines() == ["trial,choice", "r2-001,", "r2-002,", "r2-003,", "r2-004,"]
    filled = text.replace("r2-001,", "r2-001,left").replace("r2-003,", "r2-003, Right ")
    (tmp_path / "filled.csv").write_text(filled)
    found = read_ballots({"anna": tmp_path / "filled.csv"}, TRIALS)
    assert found.votes == [vote_on(TRIALS[4], "anna", "left"), vote_on(TRIALS[6], "anna", "right")]
    assert found.missing == {"anna": ["r2-002", "r2-004"]} and found.unseen_rounds == (1,) and found.problems == ()


@pytest.mark.parametrize("text", ["trial;choice\r\nr1-001;left\r\n", "\ufeffChoice\tTrial\tnote\nleft\tr1-001\n\t\t\n"])
def test_ballots_are_read_as_spreadsheets_write_them(tmp_path, text):
    (tmp_path / "b.csv").write_text(text, encoding="utf-8", newline="")
    assert read_ballots({"r": tmp_path / "b.csv"}, TRIALS).votes == [vote_on(TRIALS[0], "r", "left")]


def test_what_is_wrong_with_ballots_is_listed_at_once_or_left_out(tmp_path):
    first = TRIALS[0]
    again = next(code for code, trial in trial_codes(TRIALS).items() if trial.round == 1 and trial.pair == first.pair)
    same = "left" if trial_codes(TRIALS)[again].left_model == first.left_model else "right"
    (tmp_path / "binary.csv").write_bytes(b"trial,choice\n\xff\n")
    files = {
        "anna": ballot(tmp_path / "anna.csv", "r1-002,both", "r9-001,left", "r1-003,left"),
        "ben": ballot(tmp_path / "ben.csv", "r1-002,left", "r1-002,right", "r1-004,right"),
        "cleo": ballot(tmp_path / "cleo.csv", "r1-001,left", f"{again},{same}"),
        "dora": ballot(tmp_path / "dora.csv", "r1-001,left", head="which,what"),
        "emil": tmp_path / "binary.csv",
        "fred": tmp_path / "nowhere.csv",
        "gina": ballot(tmp_path / "gina.csv", head=""),
    }
    words = (
        r"anna.csv', line 2: `choice` of trial 'r1-002' must be left or right. Received 'both'",
        r"anna.csv', line 3: there is no trial 'r9-001'",
        r"ben.csv', line 2: 'ben' votes more than once on the pair of trial 'r1-002' .*line 3.*none of them counts",
        r"cleo.csv', line 2: 'cleo' votes more than once on the pair of trial 'r1-001' .*each time for the same clip",
        r"dora.csv' is no ballot: its first line must name the columns trial and choice. Received 'which,what'",
        r"binary.csv' cannot be read",
        r"nowhere.csv' cannot be read: .*No such file",
        r"gina.csv' is no ballot",
    )
    with pytest.raises(ValueError, match="8 votes or ballots cannot be used.*") as error:
        read_ballots(files, TRIALS)
    found = read_ballots(files, TRIALS, skip_bad=True)
    for each in words:
        assert re.search(each, str(error.value)) and any(re.search(each, problem) for problem in found.problems), each
    assert [(vote.rater, vote.pair) for vote in found.votes] == [
        ("anna", TRIALS[2].pair),
        ("ben", TRIALS[3].pair),
        ("cleo", first.pair),
    ]


def test_the_question_is_read_back(tmp_path):
    write_trials(tmp_path / "key.jsonl", TRIALS, "Welcher Clip?")
    assert read_question(tmp_path / "key.jsonl") == "Welcher Clip?"
