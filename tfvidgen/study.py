"""Human preference studies by two-alternative forced choice (2AFC): trials, votes and their files.

    trials = make_trials({"ours": our_clips, "baseline": other_clips}, num_pairs=128, num_rounds=5, seed=0)
    write_trials("trials.jsonl", trials, question="Which clip looks more realistic?", show=read_clip)  # and trials.png
    ...                                             # each rater sees one round: append_vote("votes.jsonl", vote)
    votes, dropped = drop_inattentive(read_votes("votes.jsonl", trials))

`tfvidgen.metrics.preference` analyses the votes.

A vote file is JSON lines in UTF-8. The first line is a header, `{"format": "tfvidgen-votes", "version": 1, "question": ...}`;
every other line is a vote with the fields of `Vote`. Trial files are the same with "tfvidgen-trials" and `Trial`. Clips are
given by name: paths relative to the file, or ids.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

FORMAT_VERSION = 1
_SHEET_FRAMES, _SHEET_PIXELS = 4, 64  # frames per clip on a sheet, and their minimum height
CHOICES = ("left", "right")
DEFAULT_QUESTION = "Which clip looks more realistic?"
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

        visualize.save_png(pathlib.Path(path).with_suffix(".png"), _sheet(trials, question, show))
    _write(path, {"format": _TRIALS_FORMAT, "version": FORMAT_VERSION, "question": question, "seed": seed}, trials)


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


def _sheet(trials: Sequence[Trial], question: str, show: Callable[[str, str], np.ndarray]) -> np.ndarray:
    """uint8 (height, width, 3): a sheet of the first round's trials."""
    from tfvidgen import visualize

    numbered = [(number, trial) for number, trial in enumerate(trials, 1) if trial.round == trials[0].round]
    cells, first = {}, None
    for row, (_, trial) in enumerate(numbered):
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
            cells[row, column] = clip[np.linspace(0, len(clip) - 1, min(_SHEET_FRAMES, len(clip))).round().astype(int)]
    return visualize.board_sheet(
        cells,
        row_labels=[str(number) for number, _ in numbered],
        column_labels=CHOICES,
        scale=max(1, math.ceil(_SHEET_PIXELS / first[1])),
        title=question,
        row_axis=None,
        column_axis=None,
        num_frames=_SHEET_FRAMES,
    )


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
