"""Human preference studies by two-alternative forced choice (2AFC): trials, votes and their files.

    trials = make_trials({"ours": our_clips, "baseline": other_clips}, num_pairs=128, num_rounds=5, seed=0)
    write_trials("trials.jsonl", trials, question="Which clip looks more realistic?", show=read_clip)  # and trials.png
    ...                                             # each rater sees one round: append_vote("votes.jsonl", vote)
    votes, dropped = drop_inattentive(read_votes("votes.jsonl", trials))

`tfvidgen.metrics.preference` analyses the votes. `python -m trainers.study` writes folders for raters, and reads their ballots.

A vote file is JSON lines in UTF-8. The first line is a header, `{"format": "tfvidgen-votes", "version": 1, "question": ...}`;
every other line is a vote with the fields of `Vote`. Trial files are the same with "tfvidgen-trials" and `Trial`. Clips are
given by name: paths relative to the file, or ids.

A ballot is what a rater fills in: a CSV file with the columns `trial` and `choice`. It names trials by codes, which tell nothing
of the models; only the trial file says what they stand for.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

FORMAT_VERSION = 1
_SHEET_FRAMES, _SHEET_PIXELS = 4, 64  # frames per clip on a sheet, and their minimum height
_SHEET_MARGINS = 8  # height of a frame over the margin beside a clip
CHOICES = ("left", "right")
DEFAULT_QUESTION = "Which clip looks more realistic?"
BALLOT_COLUMNS = ("trial", "choice")
_MAX_LISTED = 20
_TRIALS_FORMAT, _VOTES_FORMAT = "tfvidgen-trials", "tfvidgen-votes"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A pair of clips as shown to one rater.

    Attributes:
        pair: Name of the pair; every round contains each pair once, with its sides redrawn.
        round: Index from 0; a rater sees the trials of one round.
        left_model: Model whose clip is on the left; not shown.
        left_clip: Its clip.
        right_model: Model whose clip is on the right; not shown.
        right_clip: Its clip.
        expected: In a catch trial, the model that every attentive rater chooses, else None.
    """

    pair: str
    round: int
    left_model: str
    left_clip: str
    right_model: str
    right_clip: str
    expected: str | None = None


@dataclasses.dataclass(frozen=True)
class Vote:
    """A rater's answer: the trial with `rater` and `choice`.

    Attributes:
        rater: Pseudonym of the rater.
        pair: Name of the pair, as in `Trial`.
        left_model: Model on the left.
        left_clip: Its clip.
        right_model: Model on the right.
        right_clip: Its clip.
        choice: "left" or "right"; a forced choice has no ties.
        expected: In a catch trial, the model to choose, else None.
        seconds: Response time, or None.
    """

    rater: str
    pair: str
    left_model: str
    left_clip: str
    right_model: str
    right_clip: str
    choice: str
    expected: str | None = None
    seconds: float | None = None

    @property
    def winner(self) -> str:
        """Name of the chosen model."""
        return self.left_model if self.choice == "left" else self.right_model


# Trials ----------------------------------------------------------------------------------------------------------------


def make_trials(
    clips: Mapping[str, Sequence[str]],
    num_pairs: int = 128,
    num_rounds: int = 5,
    baseline: str | None = None,
    catch: Sequence[tuple[tuple[str, str], tuple[str, str]]] = (),
    seed: int = 0,
) -> list[Trial]:
    """Return random pairs of clips from different models, with random sides.

    Every round contains each pair once. Over the rounds, each model of a pair is on the left as often as on the right, up to
    one; with an odd number of rounds, the extra side is balanced over pairs. The order within a round is random.

    Args:
        clips: Names of clips for each model, at least `num_pairs` each, without duplicates.
        num_pairs: Clip pairs per pair of models compared.
        num_rounds: Votes to collect per pair, each from a different rater.
        baseline: Compare every other model with this one only; None compares all pairs of models.
        catch: ((model, clip) that must win, (model, clip) that must lose): catch trials to detect inattentive raters, e.g. a
            real clip against noise. Every round contains each once.
        seed: Seed of every draw.

    Raises:
        ValueError: If there are fewer than two models, too few or repeated clips, or an argument is out of range.

    Source: Dandi et al., WACV 2020, Sec. 5.1, https://arxiv.org/abs/1912.07991: 128 pairs, 5 raters for each.
    """
    models = list(clips)
    if len(models) < 2 or (baseline is not None and baseline not in clips):
        raise ValueError(f"A comparison needs two models and a baseline among them. Received {models}, {baseline!r}.")
    if num_pairs < 1 or num_rounds < 1:
        raise ValueError(f"`num_pairs` and `num_rounds` must be at least 1. Received {num_pairs} and {num_rounds}.")
    for model, names in clips.items():
        if len(set(names)) != len(names):
            raise ValueError(f"The clips of {model!r} contain duplicates: give each clip once.")
        if len(names) < num_pairs:
            raise ValueError(f"{num_pairs} pairs need as many clips of each model. {model!r} has {len(names)}.")
    random = np.random.default_rng(seed)
    compared = [(m, baseline) for m in models if m != baseline] if baseline else list(itertools.combinations(models, 2))
    pairs: list[tuple[str, tuple[str, str], tuple[str, str], str | None]] = []
    for one, other in compared:
        drawn = [random.permutation(len(clips[model]))[:num_pairs] for model in (one, other)]
        for number, (i, j) in enumerate(zip(*drawn, strict=True)):
            pairs.append((f"{one}/{other}/{number}", (one, str(clips[one][i])), (other, str(clips[other][j])), None))
    for number, (winner, loser) in enumerate(catch):
        pairs.append((f"catch/{number}", tuple(winner), tuple(loser), winner[0]))

    extra_on_left = random.permutation(np.arange(len(pairs)) % 2)  # for an odd number of rounds
    first_on_left = np.empty((len(pairs), num_rounds), bool)
    for row, extra in zip(first_on_left, extra_on_left, strict=True):
        row[:] = random.permutation((np.arange(num_rounds) + extra) % 2)
    trials = []
    for round_ in range(num_rounds):
        for i in random.permutation(len(pairs)):
            name, first, second, expected = pairs[i]
            left, right = (first, second) if first_on_left[i, round_] else (second, first)
            trials.append(Trial(name, round_, *left, *right, expected))
    return trials


def write_trials(
    path: str | os.PathLike,
    trials: Sequence[Trial],
    question: str = DEFAULT_QUESTION,
    seed: int | None = None,
    show: Callable[[str, str], np.ndarray] | None = None,
) -> None:
    """Writes a trial file, replacing an existing one, and optionally a contact sheet next to it.

    The sheet, named like the file with `.png`, shows the first round as its rater would see it: a row per trial, numbered from 1
    in file order, with a few frames of the left and of the right clip. It does not reveal the models.

    Args:
        path: The file.
        trials: From `make_trials`.
        question: The question to raters.
        seed: The seed given to `make_trials`, for the record.
        show: Called with a model and the name of its clip; returns the clip, uint8 (T, H, W, 3). None draws no sheet.

    Raises:
        ValueError: If there are no trials, or clips to draw are not uint8 RGB or differ in length or size, which would reveal
            the models.
    """
    if not trials:
        raise ValueError("A file of trials needs at least one trial. Received none.")
    if show is not None:
        from tfvidgen import visualize

        numbered = {str(number): trial for number, trial in enumerate(trials, 1) if trial.round == trials[0].round}
        visualize.save_png(pathlib.Path(path).with_suffix(".png"), draw_sheet(numbered, question, show))
    _write(path, {"format": _TRIALS_FORMAT, "version": FORMAT_VERSION, "question": question, "seed": seed}, trials)


def trial_codes(trials: Sequence[Trial]) -> dict[str, Trial]:
    """Return each trial by a code for raters, such as `r2-017`: the seventeenth trial of the second round."""
    codes, seen = {}, {}
    for trial in trials:
        seen[trial.round] = seen.get(trial.round, 0) + 1
        codes[f"r{trial.round + 1}-{seen[trial.round]:03}"] = trial
    return codes


def read_question(path: str | os.PathLike) -> str:
    """Return the question of a trial file. Raises ValueError as `read_trials`."""
    return str(_read(path, _TRIALS_FORMAT)[0].get("question", DEFAULT_QUESTION))


def read_trials(path: str | os.PathLike) -> list[Trial]:
    """Return the trials of a file.

    Raises:
        ValueError: If the file is not a trial file, or a line is invalid; the message gives the line number.
    """
    return [_parse(Trial, record, where) for where, record in _read(path, _TRIALS_FORMAT)[1]]


# Votes -----------------------------------------------------------------------------------------------------------------


def vote_on(trial: Trial, rater: str, choice: str, seconds: float | None = None) -> Vote:
    """Return a rater's vote on a trial.

    Raises:
        ValueError: If `choice` is neither "left" nor "right", or `rater` is empty.
    """
    fields = {k: v for k, v in dataclasses.asdict(trial).items() if k != "round"}
    return _parse(Vote, {**fields, "rater": rater, "choice": choice, "seconds": seconds}, f"pair {trial.pair!r}")


def write_votes(path: str | os.PathLike, votes: Sequence[Vote], question: str = DEFAULT_QUESTION) -> None:
    """Writes a vote file, replacing an existing one."""
    _write(path, {"format": _VOTES_FORMAT, "version": FORMAT_VERSION, "question": question}, votes)


def append_vote(path: str | os.PathLike, vote: Vote, question: str = DEFAULT_QUESTION) -> None:
    """Appends a vote to a file, in one write; a new file gets a header."""
    lines = [json.dumps(dataclasses.asdict(vote), ensure_ascii=False)]
    header = {"format": _VOTES_FORMAT, "version": FORMAT_VERSION, "question": question}
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(header, ensure_ascii=False) + "\n")
    except FileExistsError:
        pass
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))


def read_votes(path: str | os.PathLike, trials: Sequence[Trial] | None = None) -> list[Vote]:
    """Return the votes of a file.

    Args:
        path: The file.
        trials: If given, every vote must be on one of them.

    Raises:
        ValueError: If the file is not a vote file or has no votes; if a line is malformed, has missing or unknown fields, or
            its choice is neither "left" nor "right"; if a rater votes twice on a pair, a pair changes its clips, or a vote
            matches no trial. The message gives the line number.
    """
    _, records = _read(path, _VOTES_FORMAT)
    votes, seen, sides = [], set(), {}
    known = {(t.pair, *_both_sides(t)) for t in trials} if trials is not None else None
    for where, record in records:
        vote = _parse(Vote, record, where)
        if (vote.rater, vote.pair) in seen:
            raise ValueError(f"{where}: rater {vote.rater!r} votes twice on pair {vote.pair!r}. Remove one vote.")
        if sides.setdefault(vote.pair, _both_sides(vote)) != _both_sides(vote):
            raise ValueError(f"{where}: pair {vote.pair!r} has different clips here from those in an earlier vote.")
        if known is not None and (vote.pair, *_both_sides(vote)) not in known:
            raise ValueError(f"{where}: there is no trial with pair {vote.pair!r} and these clips.")
        seen.add((vote.rater, vote.pair))
        votes.append(vote)
    if not votes:
        raise ValueError(f"{os.fspath(path)!r} has no votes.")
    return votes


@dataclasses.dataclass(frozen=True)
class Ballots:
    """What raters filled in.

    Attributes:
        votes: One for every trial that was answered.
        missing: Rater -> codes of the trials of their round that they left open. Raters who answered none are not listed.
        unseen_rounds: Rounds on which nobody voted, counted from 1 as in the codes.
        problems: What was left out, and why: file, line and fault of each.
    """

    votes: list[Vote]
    missing: dict[str, list[str]]
    unseen_rounds: tuple[int, ...]
    problems: tuple[str, ...]


def write_ballot(path: str | os.PathLike, codes: Sequence[str]) -> None:
    """Writes an empty ballot, a CSV file with a line for each trial code."""
    text = "".join(f"{code},\r\n" for code in codes)
    pathlib.Path(path).write_text(f"{','.join(BALLOT_COLUMNS)}\r\n{text}", encoding="utf-8", newline="")


def read_ballots(ballots: Mapping[str, str | os.PathLike], trials: Sequence[Trial], skip_bad: bool = False) -> Ballots:
    """Return the votes of filled-in ballots.

    Columns may be separated by commas, semicolons or tabs, as spreadsheets write them, and stand in any order; others than
    `trial` and `choice` are ignored. A choice is `left` or `right`, in any case; an empty one is a vote that is missing.

    Args:
        ballots: Rater -> the file.
        trials: All trials of the study.
        skip_bad: Leave out what is wrong instead of raising. Of several votes of a rater on one pair, the first counts if they
            agree; if they do not, none does.

    Raises:
        ValueError: If a file is no ballot, names no trial of the study, holds a choice that is neither left nor right, or more than
            one vote on a pair. One error lists all, with file and line.
    """
    codes = trial_codes(trials)
    problems: list[str] = []
    found: dict[tuple[str, str], list[tuple[str, str, str]]] = {}  # (rater, pair) -> (code, choice, where)
    for rater, path in ballots.items():
        for where, code, choice in _ballot_lines(path, problems):
            if code not in codes:
                problems.append(f"{where}: there is no trial {code!r} in this study.")
            elif choice.lower() in CHOICES:
                found.setdefault((rater, codes[code].pair), []).append((code, choice.lower(), where))
            elif choice:
                problems.append(f"{where}: `choice` of trial {code!r} must be left or right. Received {choice!r}.")
    votes, answered = [], {}
    for (rater, _), given in found.items():
        code, choice, where = given[0]
        winners = {vote_on(codes[code], rater, choice).winner for code, choice, _ in given}
        if len(given) > 1:
            others = ", ".join(f"{code} in {where}" for code, _, where in given[1:])
            problems.append(
                f"{where}: {rater!r} votes more than once on the pair of trial {code!r} ({others}), "
                + (
                    "each time for the same clip."
                    if len(winners) == 1
                    else "and not for the same clip: none of them counts."
                )
            )
        if len(winners) == 1:
            votes.append(vote_on(codes[code], rater, choice))
        for code, _, _ in given:
            answered.setdefault(rater, set()).add(code)
    if problems and not skip_bad:
        listed = problems[:_MAX_LISTED] + [f"and {len(problems) - _MAX_LISTED} more"] * (len(problems) > _MAX_LISTED)
        raise ValueError(
            f"{len(problems)} votes or ballots cannot be used:\n  "
            + "\n  ".join(listed)
            + "\nMend them, or leave them out with "
            "`skip_bad=True`."
        )
    missing, unseen = {}, {trial.round for trial in trials}
    for rater, given in answered.items():
        rounds = {codes[code].round for code in given}
        missing[rater] = [code for code, trial in codes.items() if trial.round in rounds and code not in given]
        unseen -= rounds
    return Ballots(votes, missing, tuple(number + 1 for number in sorted(unseen)), tuple(problems))


def _ballot_lines(path: str | os.PathLike, problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """(file and line, trial, choice) of each line that is not blank; what cannot be read is added to the problems."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")  # spreadsheets begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{os.fspath(path)!r} cannot be read: {error}.")
        return
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    reader = csv.reader(text.splitlines(), delimiter=separator)
    names = [name.strip().lower() for name in head.split(separator)]
    next(reader, None)
    if not set(BALLOT_COLUMNS) <= set(names):
        problems.append(
            f"{os.fspath(path)!r} is no ballot: its first line must name the columns {' and '.join(BALLOT_COLUMNS)}. Received "
            f"{head.strip()[:60]!r}."
        )
        return
    trial, choice = (names.index(name) for name in BALLOT_COLUMNS)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row] + [""] * len(names)
            if any(cells):
                yield f"{os.fspath(path)!r}, line {reader.line_num}", cells[trial], cells[choice]
    except csv.Error as error:
        problems.append(f"{os.fspath(path)!r}, line {reader.line_num}: no CSV ({error}).")


def drop_inattentive(votes: Sequence[Vote], min_share: float = 1.0) -> tuple[list[Vote], list[str]]:
    """Return the votes without catch trials and raters who failed them, and the names of those raters.

    Args:
        votes: All votes.
        min_share: Minimum share of catch trials answered correctly. Raters who saw none are kept.
    """
    right: dict[str, list[bool]] = {}
    for vote in votes:
        if vote.expected is not None:
            right.setdefault(vote.rater, []).append(vote.winner == vote.expected)
    dropped = sorted(rater for rater, answers in right.items() if np.mean(answers) < min_share)
    return [v for v in votes if v.expected is None and v.rater not in dropped], dropped


def draw_sheet(trials: Mapping[str, Trial], question: str, show: Callable[[str, str], np.ndarray]) -> np.ndarray:
    """Draws trials as their rater would see them: a row for each, with a few frames of the left and of the right clip.

    Args:
        trials: By the label of the row.
        question: The title.
        show: As in `write_trials`.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: As in `write_trials`.
    """
    from tfvidgen import visualize

    cells, first = {}, None
    for row, trial in enumerate(trials.values()):
        shown = ((trial.left_model, trial.left_clip), (trial.right_model, trial.right_clip))
        for column, (model, name) in enumerate(shown):
            clip = np.asarray(show(model, name))
            first = clip.shape if first is None else first
            if (
                clip.dtype != np.uint8
                or clip.ndim != 4
                or clip.shape[-1] != 3
                or 0 in clip.shape
                or clip.shape != first
            ):
                raise ValueError(
                    "Clips of a study must be uint8 (T, H, W, 3) of one length and size, or these give the models away. Received "
                    f"{clip.dtype} {clip.shape} for {name!r} of {model!r}, and {first} for the first one: cut and resize them."
                )
            frames = clip[np.linspace(0, len(clip) - 1, min(_SHEET_FRAMES, len(clip))).round().astype(int)]
            cells[row, column] = _strip(frames)
    return visualize.board_sheet(
        cells,
        row_labels=list(trials),
        column_labels=CHOICES,
        scale=max(1, math.ceil(_SHEET_PIXELS / first[1])),
        title=question,
        row_axis=None,
        column_axis=None,
    )


def _strip(frames: np.ndarray) -> np.ndarray:
    """uint8 (1, H, W, 3): frames beside each other, with a white margin that sets the left clip apart from the right one."""
    margin = math.ceil(frames.shape[1] / _SHEET_MARGINS)
    frames = np.pad(frames, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)  # a white line between frames
    strip = np.concatenate(frames, axis=1)[:, :-1]
    return np.pad(strip, ((0, 0), (margin, margin), (0, 0)), constant_values=255)[None]


def _both_sides(shown: Trial | Vote) -> tuple[tuple[str, str], ...]:
    return tuple(sorted([(shown.left_model, shown.left_clip), (shown.right_model, shown.right_clip)]))


def _write(path: str | os.PathLike, header: dict[str, Any], records: Sequence[Any]) -> None:
    lines = [header, *(dataclasses.asdict(record) for record in records)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    pathlib.Path(path).write_text(text, encoding="utf-8")


def _read(path: str | os.PathLike, expected: str) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The header, and (file and line number, record) for every other line."""
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{os.fspath(path)!r}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg}). A truncated line may be removed.") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where}: must be a JSON object. Received {line.strip()[:60]}.")
            records.append((where, record))
    header = records[0][1] if records else {}
    if header.get("format") != expected:
        raise ValueError(
            f"{os.fspath(path)!r} must begin with a header of format {expected!r}. Received {header or 'nothing'}."
        )
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{os.fspath(path)!r} has version {header.get('version')!r} of the format, but version {FORMAT_VERSION} is expected."
        )
    return header, records[1:]


def _parse(kind: type, record: dict[str, Any], where: str):
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(record) - set(fields))
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in record]
    if unknown or missing:
        raise ValueError(f"{where}: missing fields {missing}, unknown fields {unknown}.")
    for name, value in record.items():
        if name == "round":
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{where}: `round` must be a whole number of at least 0. Received {value!r}.")
        elif name == "seconds":
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value) and value >= 0):
                raise ValueError(f"{where}: `seconds` must be a number of at least 0, or null. Received {value!r}.")
        elif not (isinstance(value, str) and value) and not (name == "expected" and value is None):
            raise ValueError(f"{where}: `{name}` must be a non-empty string. Received {value!r}.")
    if "choice" in fields and record["choice"] not in CHOICES:
        raise ValueError(
            f"{where}: `choice` must be 'left' or 'right'; a forced choice has no ties. Received {record['choice']!r}."
        )
    if (record["left_model"], record["left_clip"]) == (record["right_model"], record["right_clip"]):
        raise ValueError(f"{where}: both sides show the same clip, {record['left_clip']!r}.")
    if record.get("expected") not in (None, record["left_model"], record["right_model"]):
        raise ValueError(f"{where}: `expected` must be one of the two models. Received {record['expected']!r}.")
    return kind(**record)
