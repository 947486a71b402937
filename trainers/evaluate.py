"""Evaluates a run, or a folder of generated videos against a folder of real ones.

A run: reconstruction, frame consistency, exchange on held-out cells, and every metric requested by name.
Two folders: the requested metrics; no model is needed.
"""

from __future__ import annotations

import pathlib
import types
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainers import cli
from trainers.folders import folder_clips
from trainers.measure import RECORDS, Config, make_networks, measure_clips, parse_metrics, parse_weights
from trainers.run_evaluation import evaluate_run

if TYPE_CHECKING:
    from tfvidgen.metrics.protocols import Result


def evaluate_folders(settings: Config, report: Callable[[str], None] | None = None) -> list[Result]:
    """Evaluates a folder of generated videos against one of real videos; writes `evaluation.jsonl` and sheets.

    The last lines of output are a table and, unless metrics are named, the verdict on the generated videos.

    Raises:
        ValueError: As `metrics.evaluate.evaluate`, or if a folder cannot be read.
    """
    say = report or print
    protocols = parse_metrics(settings)
    generated_path = pathlib.Path(settings.generated)
    out = pathlib.Path(settings.out or generated_path.with_name(f"{generated_path.stem}-evaluation"))
    real = folder_clips(settings.real, settings)
    generated = folder_clips(settings.generated, settings, generated=True)
    say(
        f"evaluating {generated.available} generated videos against {real.available} real ones; numbers: {out / RECORDS}"
    )
    networks = make_networks(settings, real)
    results, _ = measure_clips(protocols, generated, real, networks, settings, out, say, {}, default_frames=None)
    return results


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if config.metrics == "list":
        from tfvidgen.metrics import protocols as metrics

        print("\n".join(metrics.families_text()))
        return 0
    parse_weights(config.weights)
    if config.generated:
        if config.run_dir:
            raise cli.UsageError("--run_dir and --generated are mutually exclusive: a run generates its own videos.")
        if not config.real:
            raise cli.UsageError("--real is missing: name the folder of real videos to compare with.")
        evaluate_folders(config)
        return 0
    if not config.run_dir:
        raise cli.UsageError(
            "--run_dir is missing: name a run folder, or give --generated and --real to compare two folders of videos."
        )
    evaluate_run(config.run_dir, seed=config.seed, data_dir=config.data_dir, settings=config)
    return 0


def main(argv=None) -> int:
    return cli.main("trainers.evaluate", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
