"""A frozen config dataclass becomes absl flags, a preset, and the `config.json` of a run folder.

Imports neither TensorFlow nor the library's models, so `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags


def option(default: Any, help: str, choices: Sequence[str] | None = None, minimum: float | None = None) -> Any:
    """A field of a config: its default, what it means (with its unit), and which values it takes."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "minimum": minimum})


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every trainer takes: data, run folder, length, batch, precision."""

    dataset: str = option("actors", "What to train on: a folder or file of yours, or actors, sprites, weizmann.")
    data_dir: str = option("", "Folder of the named datasets sprites and weizmann.")
    size: int = option(64, "Height and width of a frame, in pixels.", minimum=1)
    resize: str = option("centre_crop", "How a frame of another shape is made square.", ("centre_crop", "squash"))
    num_frames: int = option(16, "Frames of a clip.", minimum=1)
    stride: int = option(1, "Distance between the frames of a clip, in frames of the video.", minimum=1)
    clip_start: str = option("first", "Where a clip begins.", ("first", "centre", "random"))
    short_clip: str = option("error", "What to do with videos shorter than a clip.", ("error", "loop", "hold", "drop"))
    skip_bad: bool = option(False, "Skip unreadable files instead of stopping.")
    cache_dir: str = option("", "Keep decoded frames in this folder; empty to decode at every start.")
    data_service: str = option("", "grpc://host:port of a tf.data service with one worker that makes the batches.")
    num_identities: int = option(0, "Identities of actors or sprites; 0 for the set's default.", minimum=0)
    num_actions: int = option(0, "Actions of actors; 0 for the set's default.", minimum=0)
    num_held_out_cells: int = option(0, "Hold out that many random identity x action cells.", minimum=0)
    trained_per_identity: int = option(0, "Train that many random actions of each identity; 0 for all.", minimum=0)
    split_seed: int = option(0, "Decides which cells are held out.")
    mirror: str = option(
        "none",
        "Trains the mirror image of each clip too, as own_action: an action of its own, or as the same_action.",
        ("none", "own_action", "same_action"),
    )
    run_dir: str = option("", "Where the run is written; empty for runs/<system>-<preset>. An interrupted run resumes.")
    init_from: str = option(
        "",
        "Begin with the weights and codes of this run, of any system, where they fit; a run that goes on needs it no more.",
    )
    total_steps: int = option(1000, "Training steps.", minimum=1)
    batch_size: int = option(8, "Clips in a step, over all replicas.", minimum=1)
    steps_per_loop: int = option(50, "Steps between two looks from Python.", minimum=1)
    checkpoint_every_steps: int = option(500, "Steps between two checkpoints.", minimum=1)
    sample_every_steps: int = option(1000, "Steps between two sample sheets.", minimum=1)
    seed: int = option(0, "Decides weights, order of the data and every random draw.")
    precision: str = option(
        "float32",
        "Type the convolutions compute in; auto: bfloat16 where the hardware multiplies it, else float32. float16: GPUs only.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    tensorboard: bool = option(True, "Write curves and playing clips for TensorBoard.")
    xla: bool = option(False, "Compile the step with XLA; one device only, and not for 3-D convolutions on a CPU.")
    ema_decay: float = option(
        0.0,
        "Draw, measure and export a running average, with this decay, of weights and learned codes, e.g. 0.999; 0 for not.",
        minimum=0,
    )
    strategy: str = option(
        "auto",
        "Devices: auto (multiworker if TF_CONFIG names several workers, else all GPUs there are), none (one device), "
        "mirrored (all of this machine), multiworker (those of TF_CONFIG).",
        ("auto", "none", "mirrored", "multiworker"),
    )
    devices: str = option("", "Take only these devices of this machine, e.g. GPU:0,GPU:1; empty for all.")
    resume: str = option(
        "auto",
        "auto: go on from the run folder's last checkpoint, if any; never: refuse a folder that has one; must: refuse one "
        "that has none.",
        ("auto", "never", "must"),
    )
    max_bad_steps: int = option(
        0, "Pass over up to that many steps whose losses or weights are not finite; 0 stops at the first.", minimum=0
    )
    deterministic: bool = option(False, "Bit-for-bit repeatable operations; slower.")
    evaluate: bool = option(True, "Evaluate when training ends.")
    evaluate_metrics: str = option(
        "",
        "Measure these while training, e.g. judge_fvd64_16f,fcs64; the checkpoint that the first ranks best is kept in best/. "
        "Names as of trainers.evaluate.",
    )
    evaluate_every_steps: int = option(
        1000, "Steps between two such measurements, a multiple of --checkpoint_every_steps.", minimum=1
    )
    evaluate_weights: str = option("", "Files of pretrained networks for --evaluate_metrics, e.g. i3d=PATH,vgg16=PATH.")

    @property
    def dtype_policy(self) -> str:
        """The Keras dtype policy of `precision`, once `auto` is resolved."""
        return "float32" if self.precision == "float32" else f"mixed_{self.precision}"


class UsageError(ValueError):
    """A wrong command line. Its text says what was given, what is expected and how to fix it."""


def suggest(given: str, known: Sequence[str]) -> str:
    """`" Did you mean 'x'?"`, or nothing when no known name is close."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _flag_values(config_class: type, presets: Mapping[str, Mapping[str, Any]]) -> flags.FlagValues:
    values = flags.FlagValues()
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        bool: flags.DEFINE_boolean,
    }
    for field, kind in _fields(config_class):
        define[kind](field.name, None, field.metadata["help"], flag_values=values)
    if presets:
        flags.DEFINE_string("preset", "", "Named settings; flags given beside it win.", flag_values=values)
        flags.DEFINE_boolean(
            "dry_run", False, "Print config, data, parameters and memory, then stop.", flag_values=values
        )
    flags.DEFINE_boolean("help", False, "Show this.", flag_values=values, short_name="h")
    values.set_gnu_getopt(True)
    return values


def _fields(config_class: type):
    kinds = typing.get_type_hints(config_class)
    return [(field, kinds[field.name]) for field in dataclasses.fields(config_class)]


def check(config: Any) -> None:
    """Raises UsageError for a field outside its choices or below its minimum."""
    for field in dataclasses.fields(config):
        value, choices, minimum = getattr(config, field.name), field.metadata["choices"], field.metadata["minimum"]
        if choices and value not in choices:
            raise UsageError(
                f"--{field.name} must be one of {', '.join(choices)}. Received {value!r}.{suggest(str(value), choices)}"
            )
        if minimum is not None and not value >= minimum:
            raise UsageError(f"--{field.name} must be at least {minimum}. Received {value}.")


def parse(
    config_class: type, presets: Mapping[str, Mapping[str, Any]], argv: Sequence[str], arguments: str = ""
) -> tuple[Any, types.SimpleNamespace]:
    """Command line -> (config, the flags that are not config: `preset`, `dry_run`, `help`, and `arguments`).

    What is no flag is a stray argument, unless `arguments` says what it is.

    Raises:
        UsageError: For an unknown flag or preset, a value of the wrong type or range, or a stray argument.
    """
    values = _flag_values(config_class, presets)
    names = [field.name for field in dataclasses.fields(config_class)]
    try:
        rest = values(["trainer", *argv])
    except flags.UnrecognizedFlagError as error:
        close = (
            suggest(error.flagname, [*names, *(["preset", "dry_run"] if presets else [])])
            .replace("'", "--", 1)
            .replace("'", "")
        )
        raise UsageError(f"Unknown flag --{error.flagname}.{close} --help lists all flags.") from None
    except flags.Error as error:
        raise UsageError(f"{error} --help says what each flag takes.") from None
    if len(rest) > 1 and not arguments:
        raise UsageError(f"Unexpected argument {rest[1]!r}: flags are written --name=value. --help lists them.")
    other = types.SimpleNamespace(
        preset=values["preset"].value if presets else "",
        dry_run=values["dry_run"].value if presets else False,
        help=values["help"].value,
        arguments=rest[1:],
    )
    if other.preset and other.preset not in presets:
        raise UsageError(
            f"--preset must be one of {', '.join(presets)}. Received {other.preset!r}.{suggest(other.preset, list(presets))}"
        )
    given = {name: values[name].value for name in names if values[name].value is not None}
    config = config_class(**{**presets.get(other.preset, {}), **given})
    if not other.help:
        check(config)
    return config, other


def help_text(
    program: str,
    description: str,
    config_class: type,
    presets: Mapping[str, Mapping[str, Any]],
    arguments: str = "",
) -> str:
    """Every flag with its meaning, default and choices; every preset with what it sets."""
    lines = [
        description.strip(),
        "",
        f"Usage: python -m {program} {arguments and arguments + ' '}[--flag=value ...]",
        "",
    ]
    if presets:
        lines += ["Presets (--preset=NAME):"]
        for name, preset in presets.items():
            text = ", ".join(f"{key}={value}" for key, value in preset.items())
            lines += textwrap.wrap(f"{name}: {text}", 118, initial_indent="  ", subsequent_indent="      ")
        lines += [
            "",
            "  --dry_run  Print the resolved config, the data found, the parameter count and a memory estimate, then stop.",
        ]
    lines += ["", "Flags:"]
    for field, kind in _fields(config_class):
        choices = f" One of: {', '.join(field.metadata['choices'])}." if field.metadata["choices"] else ""
        text = f"{field.metadata['help']}{choices} ({kind.__name__}, default {field.default!r})"
        lines += textwrap.wrap(text, 118, initial_indent=f"  --{field.name}  ", subsequent_indent="      ")
    return "\n".join(lines)


def main(
    program: str,
    description: str,
    config_class: type,
    presets: Mapping[str, Mapping[str, Any]],
    run: Callable[[Any, types.SimpleNamespace], int | None],
    argv: Sequence[str] | None = None,
    arguments: str = "",
) -> int:
    """Parses, answers `--help`, runs, and turns a ValueError into one readable message. Returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes would hide the program's own lines
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a path may hold bytes that are no text
    try:
        config, other = parse(config_class, presets, sys.argv[1:] if argv is None else argv, arguments)
        if other.help:
            print(help_text(program, description, config_class, presets, arguments))
            return 0
        return run(config, other) or 0
    except (ValueError, OSError) as error:
        kind = "usage" if isinstance(error, UsageError) else "error"
        print(f"{program}: {kind}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
