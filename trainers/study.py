"""Human preference studies by two-alternative forced choice (2AFC): prepares one for raters, and analyses their votes.

make      pairs the clips of two or more systems at random and writes a folder for each rater: videos of the pairs side by side,
          sheets, a page to vote on (index.html) and an empty ballot (votes.csv). Nothing in it names a system.
analyse   reads the ballots and reports how often each system was preferred, with intervals, and Bradley-Terry strengths.

python -m trainers.study make --clips=ours=runs/a/generated,baseline=runs/b/generated --study=studies/first
python -m trainers.study analyse --study=studies/first
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    import numpy as np

    from tfvidgen.metrics.preference import Preference, Strength
    from tfvidgen.metrics.sampling import VideoClips
    from tfvidgen.study import Trial

ACTIONS = ("make", "analyse")
KEY, BALLOT, VOTES, ALL_VOTES, ANALYSIS = "key.jsonl", "votes.csv", "votes", "votes.jsonl", "analysis.json"
USUAL_PAIRS = 128  # of Dandi et al., WACV 2020
NOISE = "noise"  # the system that loses every catch trial
_SHOWN_PIXELS = 256  # least height of a clip in the videos of raters
_SHEET_ROWS = 12
_FEW_RATERS = 5  # below, a bootstrap over raters says little
_RESAMPLES, _REFITS = 2000, 500  # of shares, and of Bradley-Terry strengths


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a study."""

    study: str = option("", "Folder of the study: written by make, read by analyse.")
    clips: str = option(
        "",
        "make: systems and folders of their clips, e.g. ours=runs/a/generated,real=data/clips. Pairs are formed between systems.",
    )
    question: str = option("Which clip looks more realistic?", "make: the question to raters.")
    num_pairs: int = option(
        0, f"make: pairs for each two systems; 0 for as many as they have clips, at most {USUAL_PAIRS}.", minimum=0
    )
    num_rounds: int = option(
        5, "make: rounds, one for each rater: every pair once, with the sides drawn anew.", minimum=1
    )
    num_catch: int = option(
        2, "make: catch trials per rater, a clip against noise, which tell who does not look.", minimum=0
    )
    baseline: str = option(
        "",
        "make: compare every other system with this one only. analyse: the system to compare with; empty for the last.",
    )
    num_frames: int = option(
        0, "make: frames per clip; 0 for as many as the shortest has. Equal for all systems.", minimum=0
    )
    size: int = option(
        0, "make: resize frames to this height and width, in pixels; 0 leaves them, if all agree.", minimum=0
    )
    resize: str = option(
        "centre_crop", "make: how non-square frames are made square.", ("centre_crop", "squash", "pad")
    )
    fps: float = option(
        0.0, "make: frames per second of the videos; 0 for that of the first system's clips.", minimum=0
    )
    seed: int = option(0, "Seed of pairs, sides and order (make), and of bootstraps (analyse).")
    votes: str = option(
        "",
        f"analyse: ballots, as files or folders separated by commas; the rater is the file's name. Empty for {VOTES}/*.csv and "
        f"round_*/{BALLOT} in the study.",
    )
    min_catch: float = option(
        1.0, "analyse: drop raters who answered a smaller share of their catch trials correctly.", minimum=0
    )
    skip_bad: bool = option(
        False, "Leave out unreadable files (make) and unusable votes (analyse) instead of stopping."
    )


# ---- make -----------------------------------------------------------------------------------------------------------


def make(config: Config) -> list[str]:
    """Writes the folder of a study; returns what to say about it.

    Raises:
        ValueError: If the folder exists, clips are too few or too short, or systems differ in frame size; nothing is left then.
    """
    from tfvidgen import storage, study

    out = pathlib.Path(config.study)
    if out.exists():
        raise ValueError(f"--study={out} exists, and may hold votes: name another folder.")
    folders = parse_clips(config.clips)
    if config.baseline and config.baseline not in folders:
        raise cli.UsageError(
            f"--baseline must be one of {', '.join(folders)}. Received {config.baseline!r}."
            f"{cli.suggest(config.baseline, list(folders))}"
        )
    systems, notes = _systems(folders, config)
    num_frames, num_pairs = _common(systems, config)
    names = {name: clips.videos.names for name, clips in systems.items()}
    catch = [
        ((name, names[name][index % len(names[name])]), (NOISE, f"{NOISE} {index}"))
        for index, name in zip(range(config.num_catch), itertools.cycle(names))
    ]
    trials = study.make_trials(names, num_pairs, config.num_rounds, config.baseline or None, catch, config.seed)
    reader = _Reader(systems, num_frames, config.seed)
    fps = config.fps or next(iter(systems.values())).videos.fps
    with storage.whole_folder(out) as part:
        study.write_trials(part / KEY, trials, config.question, config.seed)
        (part / VOTES).mkdir()
        for round_, group in itertools.groupby(study.trial_codes(trials).items(), lambda item: item[1].round):
            _write_round(part / f"round_{round_ + 1}", dict(group), config.question, reader, fps)
    per_rater = len(trials) // config.num_rounds
    return [
        *notes,
        f"{num_pairs} pairs for each two of {', '.join(folders)}; clips of {num_frames} frames at {fps:g} per second",
        f"{out}: give each rater one of round_1 to round_{config.num_rounds}, of {per_rater} trials, and keep {KEY} to yourself",
        f"ballots come back as {VOTES}/<rater>.csv, or stay in their round; then: python -m trainers.study analyse --study={out}",
    ]


def parse_clips(text: str) -> dict[str, str]:
    """`ours=FOLDER,real=FOLDER` -> folders by system. Raises UsageError for any other form, or fewer than two systems."""
    folders: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, path = (each.strip() for each in part.partition("="))
        if not separator or not name or not path:
            raise cli.UsageError(f"--clips takes SYSTEM=FOLDER pairs, separated by commas. Received {part!r}.")
        if name in folders or name == NOISE:
            why = "is reserved for catch trials" if name == NOISE else "is named twice"
            raise cli.UsageError(f"--clips: {name!r} {why}: give each system a name of its own.")
        folders[name] = path
    if len(folders) < 2:
        raise cli.UsageError(
            f"--clips needs two systems at least, e.g. --clips=ours=runs/a/generated,real=data/clips. Received {text!r}."
        )
    return folders


def _systems(folders: Mapping[str, str], config: Config) -> tuple[dict[str, VideoClips], list[str]]:
    """The clips of each system, and notes on what raters might tell them by."""
    from trainers import measure
    from trainers.folders import folder_clips

    settings = measure.Config(
        size=config.size, resize=config.resize, skip_bad=config.skip_bad, seed=config.seed, allow_duplicates=True
    )
    systems = {name: folder_clips(path, settings, generated=True) for name, path in folders.items()}
    sizes = {name: tuple(clips.videos.size) for name, clips in systems.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise ValueError(f"Frame sizes differ, which gives the systems away: {listed} (height x width). Give a --size.")
    notes = []
    for what, facts in (
        ("compressed", {name: str(clips.origin["codec"]) for name, clips in systems.items()}),
        ("timed", {name: f"{clips.videos.fps:g} frames per second" for name, clips in systems.items()}),
    ):
        if len(set(facts.values())) > 1:
            listed = ", ".join(f"{name}: {fact}" for name, fact in facts.items())
            notes.append(
                f"note: clips are {what} differently, which raters may see ({listed}). Write all in the same way."
            )
    for name, clips in systems.items():
        if clips.videos.skipped:
            notes.append(f"note: {len(clips.videos.skipped)} unreadable files of {name} were left out")
    return systems, notes


def _common(systems: Mapping[str, VideoClips], config: Config) -> tuple[int, int]:
    """Frames per clip and pairs for each two systems, which all of them have."""
    shortest, name = min((int(clips.videos.lengths.min()), name) for name, clips in systems.items())
    if config.num_frames > shortest:
        raise ValueError(f"--num_frames={config.num_frames}: a clip of {name} has only {shortest} frames.")
    fewest, name = min((len(clips.videos), name) for name, clips in systems.items())
    if config.num_pairs > fewest:
        raise ValueError(f"--num_pairs={config.num_pairs}: {name} has only {fewest} clips.")
    return config.num_frames or shortest, config.num_pairs or min(fewest, USUAL_PAIRS)


class _Reader:
    """(system, name of a clip) -> uint8 (T, H, W, 3), from the first frame; noise for catch trials."""

    def __init__(self, systems: Mapping[str, VideoClips], num_frames: int, seed: int):
        self._systems, self._num_frames, self._seed = systems, num_frames, seed
        self._index = {
            system: {name: index for index, name in enumerate(clips.videos.names)} for system, clips in systems.items()
        }

    def __call__(self, system: str, name: str) -> np.ndarray:
        import numpy as np

        if system == NOISE:
            size = next(iter(self._systems.values())).videos.size
            random = np.random.default_rng([self._seed, int(name.rpartition(" ")[2])])
            return random.integers(0, 256, (self._num_frames, *size, 3), np.uint8)
        return self._systems[system].of_videos([self._index[system][name]], self._num_frames)[0]


def _write_round(folder: pathlib.Path, trials: Mapping[str, Trial], question: str, reader: _Reader, fps: float) -> None:
    """Writes what one rater gets."""
    from tfvidgen import study, visualize
    from tfvidgen.data.video_io import write_mp4

    folder.mkdir()
    for code, trial in trials.items():
        pair = [reader(trial.left_model, trial.left_clip), reader(trial.right_model, trial.right_clip)]
        scale = math.ceil(_SHOWN_PIXELS / pair[0].shape[1])
        write_mp4(folder / f"{code}.mp4", visualize.grid_video(pair, 2, scale, study.CHOICES, pad=8), fps)
    codes = list(trials)
    for number, first in enumerate(range(0, len(codes), _SHEET_ROWS), 1):
        shown = {code: trials[code] for code in codes[first : first + _SHEET_ROWS]}
        visualize.save_png(folder / f"sheet_{number}.png", study.draw_sheet(shown, question, reader))
    study.write_ballot(folder / BALLOT, codes)
    (folder / "index.html").write_text(_page(question, codes), encoding="utf-8")


def _page(question: str, codes: Sequence[str]) -> str:
    """A page that plays the videos of a round and saves the ballot; it needs no server and no network."""
    trials = "\n".join(
        f'<section><h2>{code}</h2><video src="{code}.mp4" loop muted playsinline controls preload="metadata"></video><p>'
        + "".join(
            f'<label><input type="radio" name="{code}" value="{side}"> {side}</label>' for side in ("left", "right")
        )
        + "</p></section>"
        for code in codes
    )
    return _PAGE.replace("QUESTION", html.escape(question)).replace("BALLOT", BALLOT).replace("TRIALS", trials)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>QUESTION</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #202124; }
section { border-top: 1px solid #d6d8dc; padding: 1rem 0; }
h2 { font-size: 1rem; margin: 0; color: #6e7278; }
video { max-width: 100%; }
label { margin-right: 2rem; }
button { font: inherit; padding: .5rem 1.5rem; }
</style>
<h1>QUESTION</h1>
<p>Choose one side of every pair, even if you are not sure. Then save your votes and send the file back.</p>
TRIALS
<p><button id="save">Save votes</button> <span id="open"></span></p>
<script>
const names = [...new Set([...document.querySelectorAll("input")].map(input => input.name))];
const choice = name => document.querySelector(`input[name="${name}"]:checked`)?.value ?? "";
const count = () => {
  const open = names.filter(name => !choice(name)).length;
  document.getElementById("open").textContent = open ? `${open} pairs are still open` : "all pairs are answered";
};
const seen = new IntersectionObserver(entries => entries.forEach(({target, isIntersecting}) =>
  isIntersecting ? target.play() : target.pause()));
document.querySelectorAll("video").forEach(video => seen.observe(video));
document.addEventListener("change", count);
count();
document.getElementById("save").addEventListener("click", () => {
  const lines = ["trial,choice", ...names.map(name => `${name},${choice(name)}`)];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\\r\\n") + "\\r\\n"], {type: "text/csv"}));
  link.download = "BALLOT";
  link.click();
});
</script>
</html>
"""


# ---- analyse --------------------------------------------------------------------------------------------------------


def analyse(config: Config) -> list[str]:
    """Analyses the ballots of a study and writes `analysis.json` and `votes.jsonl`; returns the report, line by line.

    Raises:
        ValueError: If the study or its ballots cannot be read, or there are no votes; without `skip_bad`, also if any vote cannot
            be used.
    """
    from tfvidgen import runs, storage, study
    from tfvidgen.metrics import preference
    from trainers import measure

    folder = pathlib.Path(config.study)
    if not (folder / KEY).is_file():
        raise ValueError(f"--study={folder} is not a study: it has no {KEY}. Write one with make.")
    trials, question = study.read_trials(folder / KEY), study.read_question(folder / KEY)
    with measure.in_flags():
        found = study.read_ballots(ballots(folder, config.votes), trials, config.skip_bad)
    votes, dropped = study.drop_inattentive(found.votes, config.min_catch)
    models = sorted({m for t in trials if t.expected is None for m in (t.left_model, t.right_model)})
    if config.baseline and config.baseline not in models:
        raise cli.UsageError(
            f"--baseline must be one of {', '.join(models)}. Received {config.baseline!r}.{cli.suggest(config.baseline, models)}"
        )
    if not votes:
        why = (
            f"; {len(found.votes)} were cast by raters who failed catch trials ({', '.join(dropped)})"
            if dropped
            else ""
        )
        raise ValueError(
            f"There are no votes to analyse in --study={folder}{why}. See --votes for where ballots belong."
        )
    reference = config.baseline or models[-1]
    models = [model for model in models if model != reference] + [reference]
    met = {frozenset((v.left_model, v.right_model)) for v in votes}
    comparisons = [
        preference.analyse(votes, one, other, _RESAMPLES, seed=config.seed)
        for one, other in itertools.combinations(models, 2)
        if {one, other} in met
    ]
    if not any(reference in pair for pair in met):
        reference = comparisons[0].baseline
    strengths, note = _strengths(votes, reference, config)
    report = {
        "question": question,
        "votes": len(votes),
        "raters": sorted({vote.rater for vote in votes}),
        "dropped": dropped,
        "missing": {rater: codes for rater, codes in found.missing.items() if codes},
        "unseen_rounds": list(found.unseen_rounds),
        "left_out": list(found.problems),
        "comparisons": [dataclasses.asdict(each) for each in comparisons],
        "strengths": {model: dataclasses.asdict(each) for model, each in strengths.items()},
        "seed": config.seed,
        "versions": runs.versions("numpy", "scipy"),
    }
    study.write_votes(folder / ALL_VOTES, found.votes, question)
    storage.write_json(folder / ANALYSIS, report)
    return [
        *_text(report, comparisons, strengths, note),
        f"all numbers: {folder / ANALYSIS}; all votes: {folder / ALL_VOTES}",
    ]


def ballots(folder: pathlib.Path, given: str) -> dict[str, pathlib.Path]:
    """Rater -> ballot. A ballot left in its round belongs to a rater of the name of the round.

    Raises:
        ValueError: If a file or folder does not exist, or two ballots have one name.
    """
    if given:
        paths = []
        for path in (pathlib.Path(part.strip()) for part in given.split(",") if part.strip()):
            if not path.exists():
                raise ValueError(f"--votes: no file or folder {str(path)!r}.")
            paths += sorted(path.glob("*.csv")) if path.is_dir() else [path]
    else:
        paths = [*sorted((folder / VOTES).glob("*.csv")), *sorted(folder.glob(f"round_*/{BALLOT}"))]
    named: dict[str, pathlib.Path] = {}
    for path in paths:
        rater = path.parent.name if path.name == BALLOT else path.stem
        if rater in named:
            raise ValueError(f"Two ballots belong to a rater {rater!r}: {named[rater]} and {path}. Rename one.")
        named[rater] = path
    return named


def _strengths(votes: Sequence[Any], reference: str, config: Config) -> tuple[dict[str, Strength], str]:
    """Bradley-Terry strengths, and a note if a penalty was needed for them to be finite."""
    from tfvidgen.metrics.preference import rank_models

    try:
        return rank_models(votes, reference, num_resamples=_REFITS, seed=config.seed), ""
    except ValueError:  # a system won or lost every vote, or was never compared with some others
        note = "a system won or lost every vote, or was not compared with all: strengths are drawn towards 0 (penalty 0.01)"
        return rank_models(votes, reference, 0.01, _REFITS, seed=config.seed), note


def _text(
    report: Mapping[str, Any], comparisons: Sequence[Preference], strengths: Mapping[str, Strength], note: str
) -> list[str]:
    """The report for a terminal."""

    def interval(ends) -> str:
        return f"[{ends[0]:.2f}, {ends[1]:.2f}]"

    raters = report["raters"]
    lines = [f"question: {report['question']}", f"{report['votes']} votes by {len(raters)} raters: {', '.join(raters)}"]
    lines += [f"dropped, for their catch trials: {', '.join(report['dropped'])}"] * bool(report["dropped"])
    lines += [f"missing: {rater} left {len(codes)} open: {_few(codes)}" for rater, codes in report["missing"].items()]
    lines += [f"missing: no votes yet on round {number}" for number in report["unseen_rounds"]]
    lines += [f"left out: {problem}" for problem in report["left_out"]]
    names = [f"{each.model} over {each.baseline}" for each in comparisons]
    width = max(len(name) for name in [*names, "preferred"]) + 2
    lines.append(
        f"{'preferred':{width}}share  {'95 % interval':14}{'Wilson':14}{'by pair':14}{'by rater':14}p      votes  left"
    )
    for name, each in zip(names, comparisons, strict=True):
        ends = (each.by_pair_and_rater, each.wilson, each.by_pair, each.by_rater)
        lines.append(
            f"{name:{width}}{each.share:.2f}   {''.join(f'{interval(end):14}' for end in ends)}{each.p_value:<7.2g}"
            f"{each.num_votes:<7}{each.left_share:.2f}"
        )
    lines.append(
        "The 95 % interval is a bootstrap over pairs and raters. Wilson's and p treat votes as independent: too narrow. "
        "left: share of votes for the left side."
    )
    if len(raters) < _FEW_RATERS:
        lines.append(f"note: {len(raters)} raters say little about others: intervals over so few are too narrow")
    listed = "  ".join(
        f"{model} {each.log_odds + 0.0:+.2f} {interval(each.interval)}" for model, each in strengths.items()
    )
    lines.append(f"Bradley-Terry strengths (log-odds): {listed}")
    lines += [f"note: {note}"] * bool(note)
    for each in comparisons:
        low, high = each.by_pair_and_rater
        words = f"{each.model} and {each.baseline}: no preference is shown"
        if low > 0.5 or high < 0.5:
            better, worse = (each.model, each.baseline) if low > 0.5 else (each.baseline, each.model)
            words = f"{better} is preferred to {worse}"
        lines.append(f"verdict: {words}")
    return lines


def _few(codes: Sequence[str], most: int = 5) -> str:
    return ", ".join(codes[:most]) + (f" and {len(codes) - most} more" if len(codes) > most else "")


def _run(config: Config, other: types.SimpleNamespace) -> int:
    (action,) = other.arguments if len(other.arguments) == 1 else ("",)
    if action not in ACTIONS:
        given = " ".join(other.arguments)
        raise cli.UsageError(f"Name one of {', '.join(ACTIONS)}. Received {given!r}.{cli.suggest(given, ACTIONS)}")
    if not config.study:
        raise cli.UsageError("--study is missing: name the folder of the study.")
    if action == "make" and not config.clips:
        raise cli.UsageError(
            "--clips is missing: name systems and their folders, e.g. --clips=ours=FOLDER,real=FOLDER."
        )
    for line in (make if action == "make" else analyse)(config):
        print(line)
    return 0


def main(argv=None) -> int:
    return cli.main("trainers.study", __doc__, Config, {}, _run, argv, arguments="|".join(ACTIONS))


if __name__ == "__main__":
    raise SystemExit(main())
