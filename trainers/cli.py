"""Turns a frozen config dataclass into absl flags, presets, and the `config.json` of a run folder.

Imports neither TensorFlow nor the library's models, so `--help` responds at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from trainers import startup


def option(
    default: Any,
    help: str,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    may_change: bool = False,
    per_worker: bool = False,
    implied: Any = None,
    argument: str = "",
) -> Any:
    """A config field.

    Args:
        default: Default value; determines the type of the flag.
        help: Meaning, with unit.
        choices: Allowed values; None for any.
        minimum: Smallest allowed value; None for any.
        may_change: Whether a resumed run may change it, because it affects neither the run's data nor, beyond rounding, its
            numbers, or because something else checks that (the data's digest, for a path).
        per_worker: Whether the workers of a run may have different values. They must agree on all other fields, periods
            included: a worker that stopped to save while the rest continued would wait for them forever.
        implied: Value of this setting in runs begun before it existed, which go on with it; None for the default.
        argument: What the library calls it, if not the same, so that its messages can be given with the flag.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "may_change": may_change,
        "per_worker": per_worker,
        "implied": implied,
        "argument": argument,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Settings of every trainer: data, run folder, length, batch, precision."""

    dataset: str = option(
        "actors",
        "Training data: a folder or file of videos, or one of actors, shapes, sprites, weizmann.",
        may_change=True,
        per_worker=True,
    )
    data_dir: str = option(
        "", "Folder of the named datasets shapes, sprites and weizmann.", may_change=True, per_worker=True
    )
    size: int = option(64, "Height and width of a frame, in pixels.", minimum=1)
    resize: str = option("centre_crop", "How non-square frames are made square.", ("centre_crop", "squash", "pad"))
    num_frames: int = option(16, "Frames per clip.", minimum=1)
    stride: int = option(1, "Temporal stride of a clip, in frames of the video.", minimum=1)
    clip_start: str = option("first", "Where a clip begins.", ("first", "centre", "random"))
    short_clip: str = option("error", "What to do with videos shorter than a clip.", ("error", "loop", "hold", "drop"))
    clips_per_video: str = option(
        "1",
        "Cut every video into at most so many clips, each with an id of its own, or into all that fit: a number, or all. "
        "1 takes one clip of each.",
    )
    fps: float = option(
        0.0,
        "Resample video files to this many frames per second by their time stamps, so that a motion has one speed; 0 keeps all "
        "their frames.",
        minimum=0,
    )
    skip_bad: bool = option(False, "Skip unreadable files instead of stopping.", may_change=True)
    max_file_gib: float = option(
        1.0, "Refuse a file whose header declares more than this many GiB of pixels.", minimum=0, may_change=True
    )
    cache_dir: str = option(
        "", "Cache decoded frames in this folder; empty to decode at every start.", may_change=True, per_worker=True
    )
    data_service: str = option(
        "",
        "grpc://host:port of a tf.data service, with exactly one worker, that makes the batches.",
        may_change=True,
        per_worker=True,
    )
    num_identities: int = option(0, "Identities in actors or sprites; 0 for the dataset's default.", minimum=0)
    num_actions: int = option(0, "Actions in actors; 0 for the dataset's default.", minimum=0)
    num_held_out_cells: int = option(
        0, "Hold out this many random identity x action cells.", minimum=0, argument="num_held_out"
    )
    trained_per_identity: int = option(0, "Train on this many random actions of each identity; 0 for all.", minimum=0)
    split_seed: int = option(0, "Seed for the choice of held-out cells.")
    mirror: str = option(
        "none",
        "Also train on the mirror image of each clip, labelled as a separate action or as the same action.",
        ("none", "own_action", "same_action"),
    )
    run_dir: str = option(
        "",
        "Run folder; empty for runs/<system>-<preset>. An interrupted run resumes.",
        may_change=True,
        per_worker=True,
    )
    init_from: str = option(
        "",
        "Initialise from the weights and codes of this run, of any system, where they fit; not needed to resume.",
        may_change=True,
    )
    total_steps: int = option(
        1000, "Total training steps; raise it to continue a finished run.", minimum=1, may_change=True
    )
    stage: str = option(
        "",
        "For a system trained in stages: train only this stage, after the earlier ones; empty for all, one after another.",
        may_change=True,
    )
    max_minutes: float = option(
        0.0,
        "Save and stop within this many minutes, for job queues; the same command resumes. 0 for no limit.",
        minimum=0,
        may_change=True,
    )
    batch_size: int = option(8, "Global batch size: clips per step, over all replicas.", minimum=1)
    accumulate: int = option(
        1,
        "Gradient accumulation: micro-batches per update, for batches that exceed device memory. Their gradients are averaged "
        "and applied once; batch norm sees micro-batches.",
        minimum=1,
    )
    steps_per_loop: int = option(50, "Training steps between lines of metrics.jsonl.", minimum=1, may_change=True)
    checkpoint_every_steps: int = option(500, "Training steps between checkpoints.", minimum=1, may_change=True)
    keep_every: int = option(
        0,
        "Permanently keep checkpoints whose step is a multiple of this, besides the last two; 0 keeps only those two.",
        minimum=0,
        may_change=True,
    )
    sample_every_steps: int = option(1000, "Training steps between sample sheets.", minimum=1, may_change=True)
    seed: int = option(0, "Seed for initial weights, data order and every random draw.")
    precision: str = option(
        "float32",
        "Compute dtype of convolutions; auto: bfloat16 if the hardware supports it, else float32. float16: GPUs only.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    network_form: int = option(
        0, "Network form, if an earlier version had a different one; 0 for the newest.", minimum=0, may_change=True
    )
    data_order_form: int = option(
        0,
        "Form of the data order, if an earlier version had a different one; 0 for the newest.",
        minimum=0,
        may_change=True,
    )
    tensorboard: bool = option(True, "Write loss curves and animated clips for TensorBoard.", may_change=True)
    xla: bool = option(
        False, "Compile the step with XLA; single device only, no 3-D convolutions on CPU.", may_change=True
    )
    ema_decay: float = option(
        0.0,
        "EMA decay, e.g. 0.999; averaged weights and codes are sampled, evaluated and exported. 0 disables averaging.",
        minimum=0,
        argument="decay",
    )
    strategy: str = option(
        "auto",
        "Distribution: auto (multiworker if TF_CONFIG, or else the Slurm step, has several workers; else all local GPUs), none "
        "(one device), mirrored (all of this machine), multiworker (those of TF_CONFIG or of the Slurm step).",
        ("auto", "none", "mirrored", "multiworker"),
        may_change=True,
        per_worker=True,
    )
    devices: str = option(
        "",
        "Use only these devices of this machine, e.g. GPU:0,GPU:1; empty for all.",
        may_change=True,
        per_worker=True,
    )
    resume: str = option(
        "auto",
        "auto: resume from the run folder's last checkpoint, if any; never: refuse a folder with a checkpoint; must: refuse "
        "one without; extend: as must, and stretch the learning-rate schedule to the given --total_steps.",
        ("auto", "never", "must", "extend"),
        may_change=True,
    )
    max_bad_steps: int = option(
        0,
        "Skip at most this many steps with non-finite losses or weights; 0 stops at the first.",
        minimum=0,
        may_change=True,
    )
    deterministic: bool = option(False, "Bit-for-bit reproducible operations; slower.")
    evaluate: bool = option(True, "Evaluate when training ends.", may_change=True)
    evaluate_metrics: str = option(
        "",
        "Metrics to evaluate during training, e.g. judge_fvd64_16f,fcs64; the best checkpoint by the first is kept in best/. "
        "Names as in trainers.evaluate.",
        may_change=True,
    )
    evaluate_every_steps: int = option(
        1000, "Steps between these evaluations; a multiple of --checkpoint_every_steps.", minimum=1, may_change=True
    )
    evaluate_weights: str = option(
        "", "Weight files of pretrained networks for --evaluate_metrics, e.g. i3d=PATH,vgg16=PATH.", may_change=True
    )

    @property
    def rate_schedule(self) -> str:
        """The flag that makes the learning rate depend on `total_steps`; empty if none does. Such a config has a field
        `earlier_totals`."""
        return ""

    @property
    def clips_per_step(self) -> int:
        """Clips that a step takes from the dataset: `batch_size`, or a multiple if a step has several updates."""
        return self.batch_size

    @property
    def dtype_policy(self) -> str:
        """The Keras dtype policy of `precision`, once `auto` is resolved."""
        return "float32" if self.precision == "float32" else f"mixed_{self.precision}"

    def check_together(self) -> None:
        """Raises UsageError for settings that contradict each other. It needs neither data nor TensorFlow, so that a mistake is
        answered at once. A subclass adds what its system asks for."""
        if self.evaluate and (self.num_frames < 2 or self.size < 11):
            raise UsageError(
                f"The evaluation needs at least 2 frames of 11 pixels (FCS, SSIM). Received --num_frames={self.num_frames}, "
                f"--size={self.size}: raise them, or pass --noevaluate."
            )
        if self.clips_per_video != "all" and not re.fullmatch(r"0*[1-9][0-9]*", self.clips_per_video):
            raise UsageError(f"--clips_per_video must be a positive number, or all. Received {self.clips_per_video!r}.")
        if self.num_held_out_cells and self.trained_per_identity:
            raise UsageError(
                f"--num_held_out_cells={self.num_held_out_cells} and --trained_per_identity={self.trained_per_identity} both say "
                "which cells are held out: give one of them."
            )
        if self.ema_decay >= 1:
            raise UsageError(f"--ema_decay must be below 1, e.g. 0.999. Received {self.ema_decay}.")
        if self.evaluate_metrics and self.evaluate_every_steps % self.checkpoint_every_steps:
            raise UsageError(
                f"--evaluate_every_steps={self.evaluate_every_steps} must be a multiple of --checkpoint_every_steps="
                f"{self.checkpoint_every_steps}, because the best checkpoint is kept."
            )


class Required(str):
    """A value in a preset that only the user can give. The text says what to give and how it has to look."""


@dataclasses.dataclass(frozen=True)
class FromData:
    """A value in a preset that the videos decide, unless its flag is given.

    Attributes:
        rule: How, for `--help`.
        choose: (videos as loaded, config) -> the value. The config has the explicit flags and what was chosen before, in the
            order of the preset.
    """

    rule: str
    choose: Callable[[Any, Any], Any]


class UsageError(ValueError):
    """A command-line mistake. The text says what was given, what is expected and how to fix it."""


def program_of(system: str) -> str:
    """The module that trains a system: `trainers.<system>`; for an external one, its name is the import path itself."""
    return system if "." in system else f"trainers.{system}"


def accumulate(config: RunConfig) -> int:
    """The setting `accumulate`, for `compile`; call it in the scope of the strategy.

    Raises:
        UsageError: If a batch cannot be divided evenly into replicas and micro-batches.
    """
    from tfvidgen.layers.replicas import num_replicas

    others = num_replicas()
    if config.batch_size % (others * config.accumulate):
        parts = f"--accumulate={config.accumulate} and {num_replicas()} replica(s)"
        possible = [str(i) for i in range(1, config.batch_size + 1) if config.batch_size % (others * i) == 0]
        fitting = f"--accumulate one of {', '.join(possible)}, or " if possible else ""
        raise UsageError(
            f"--batch_size={config.batch_size} cannot be divided by {parts}: make {fitting}--batch_size a multiple of "
            f"{others * config.accumulate}."
        )
    return config.accumulate


def suggest(given: str, known: Sequence[str]) -> str:
    """`" Did you mean 'x'?"`, or an empty string if no known name is close."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


_CONFIG_HELP = (
    "A run folder, or its config.json, whose settings to reuse in another run folder; explicit flags take precedence."
)


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
        flags.DEFINE_string("config", "", _CONFIG_HELP, flag_values=values)
        flags.DEFINE_string("preset", "", "Named settings; explicit flags take precedence.", flag_values=values)
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
    """Raises UsageError for a field outside its choices or below its minimum, and for settings that contradict each other."""
    for field in dataclasses.fields(config):
        value, choices, minimum = getattr(config, field.name), field.metadata["choices"], field.metadata["minimum"]
        if choices and value not in choices:
            raise UsageError(
                f"--{field.name} must be one of {', '.join(choices)}. Received {value!r}.{suggest(str(value), choices)}"
            )
        if minimum is not None and not value >= minimum:
            raise UsageError(f"--{field.name} must be at least {minimum}. Received {value}.")
    if isinstance(config, RunConfig):
        config.check_together()


def doubled(size: int) -> int:
    """How often 4x4 pixels are doubled to make frames of this size, as all systems here do.

    Raises:
        UsageError: If doubling does not lead there.
    """
    doublings = max(size, 1).bit_length() - 3
    if doublings < 1 or size != 4 << doublings:
        raise UsageError(f"--size must be 8, 16, 32, 64, 128, ...: the networks double 4x4 pixels. Received {size}.")
    return doublings


def as_flags(text: str, config_class: type) -> str:
    """A message in which the library's arguments are written as the flags of a program: `stride` or stride=2 as --stride=2.

    A message about a `config.json` is unchanged: it names the keys of that file.
    """
    if "config.json" in text:
        return text
    fields = dataclasses.fields(config_class)
    flag = {name: field.name for field in fields for name in (field.name, field.metadata.get("argument")) if name}
    names = "|".join(sorted(map(re.escape, flag), key=len, reverse=True))
    long = "|".join(name for name in names.split("|") if "_" in name) or "(?!)"
    alone = r"(?<![\w.\-/'\"`\\])(?<!\w\()"  # neither part of a name, path or flag, nor the first argument of a call
    for pattern in (
        rf"`({names})`",
        rf"{alone}({names})(?==\S|: was )",
        rf"{alone}({long})(?![\w/(\-'\"`=]|\.\w)",
    ):
        text = re.sub(pattern, lambda match: f"--{flag[match[1]]}", text)
    return text


def wrong_types(config_class: type, settings: Mapping[str, Any]) -> list[str]:
    """Descriptions of settings with values of the wrong type. Names that are not fields are ignored."""
    kinds = {field.name: kind for field, kind in _fields(config_class)}
    return [
        f"{name} must be {kinds[name].__name__}, but is {value!r}"
        for name, value in settings.items()
        if name in kinds and type(value) is not kinds[name] and not (kinds[name] is float and type(value) is int)
    ]


def repeated(path: str, config_class: type, system: str) -> dict[str, Any]:
    """The settings of a run to repeat in a new one of the same system: all except where and how it was started.

    Args:
        path: A run folder, or its `config.json`.
        config_class: The trainer's config class.
        system: The trainer's name.

    Raises:
        ValueError: If it is not a run, a run of another system, or has settings unknown to this version.
    """
    from trainers import runs

    description = runs.read(path) if pathlib.Path(path).is_dir() else _read_config_file(path)
    if description["system"] != system:
        raise ValueError(
            f"--config={path} is a run of {description['system']}: repeat it with python -m "
            f"{program_of(description['system'])}, or name a run of {system}."
        )
    known = [field.name for field in dataclasses.fields(config_class)]
    unknown = [f"{name}.{suggest(name, known)}" for name in description["config"] if name not in known]
    if unknown:
        raise ValueError(
            f"--config={path} has unknown settings: {' '.join(unknown)} Remove them from a copy of the file."
        )
    forms = {"network_form": runs.network_form(description, path), "data_order_form": runs.data_order_form(description)}
    settings = dataclasses.asdict(runs.settings_of(description, path, **forms))
    return {name: value for name, value in settings.items() if name not in ("run_dir", "resume", "stage")}


def _read_config_file(path: str) -> dict[str, Any]:
    from trainers import runs

    if not os.path.exists(path):
        raise ValueError(f"--config={path} does not exist: name a run folder, or the config.json of one.")
    return runs.read_file(path)


def parse(
    config_class: type,
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str],
    arguments: str = "",
    system: str = "",
) -> tuple[Any, types.SimpleNamespace]:
    """Command line -> (config, everything else: `config`, `preset`, `from_data`, `dry_run`, `help`, `arguments`, and `given`).

    `from_data` has the settings of the preset that the videos are to decide, by name; the config has their defaults. `given`
    names the flags of the command line.

    Args:
        config_class: Its fields are the flags.
        presets: Settings by name; a program without any has no `--config`, `--preset` or `--dry_run`.
        argv: Without the program's name.
        arguments: Positional arguments, as shown in the usage; empty for none.
        system: The system of the runs that `--config` may name.

    Raises:
        UsageError: For an unknown flag or preset, a value of the wrong type or range, a stray argument, or a flag that a preset
            requires and that is missing.
        ValueError: If `--config` names no run of this system.
    """
    values = _flag_values(config_class, presets)
    names = [field.name for field in dataclasses.fields(config_class)]
    try:
        rest = values(["trainer", *argv])
    except flags.UnrecognizedFlagError as error:
        close = (
            suggest(error.flagname, [*names, *(["config", "preset", "dry_run"] if presets else [])])
            .replace("'", "--", 1)
            .replace("'", "")
        )
        raise UsageError(f"Unknown flag --{error.flagname}.{close} --help lists all flags.") from None
    except flags.Error as error:
        raise UsageError(f"{error} See --help for what each flag takes.") from None
    if len(rest) > 1 and not arguments:
        raise UsageError(f"Unexpected argument {rest[1]!r}: flags are written --name=value. --help lists them.")
    other = types.SimpleNamespace(
        config=values["config"].value if presets else "",
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
    other.given = tuple(given)
    if other.config and other.preset:
        raise UsageError(
            f"--config={other.config} and --preset={other.preset} are mutually exclusive: take the settings from one of them."
        )
    base = repeated(other.config, config_class, system) if other.config and not other.help else {}
    settings = {**base, **presets.get(other.preset, {}), **given}
    if not other.help:
        missing = {name: value for name, value in settings.items() if isinstance(value, Required)}
        if missing:
            needed = " and ".join(f"--{name}" for name in missing)
            raise UsageError(f"--preset={other.preset} needs {needed}: {'; '.join(missing.values())}.")
    other.from_data = {name: value for name, value in settings.items() if isinstance(value, FromData)}
    config = config_class(**{name: value for name, value in settings.items() if name not in other.from_data})
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
            text = ", ".join(f"{key}={_shown(value)}" for key, value in preset.items())
            lines += textwrap.wrap(f"{name}: {text}", 118, initial_indent="  ", subsequent_indent="      ")
        lines += [
            "",
            *textwrap.wrap(_CONFIG_HELP, 118, initial_indent="  --config  ", subsequent_indent="      "),
            "  --dry_run  Print the resolved config, the data found, the parameter count and a memory estimate, then stop.",
        ]
    lines += ["", "Flags:"]
    for field, kind in _fields(config_class):
        choices = f" One of: {', '.join(field.metadata['choices'])}." if field.metadata["choices"] else ""
        text = f"{field.metadata['help']}{choices} ({kind.__name__}, default {field.default!r})"
        lines += textwrap.wrap(text, 118, initial_indent=f"  --{field.name}  ", subsequent_indent="      ")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Required):
        return f"(required) {value}"
    return f"({value.rule})" if isinstance(value, FromData) else str(value)


def main(
    program: str,
    description: str,
    config_class: type,
    presets: Mapping[str, Mapping[str, Any]],
    run: Callable[[Any, types.SimpleNamespace], int | None],
    argv: Sequence[str] | None = None,
    arguments: str = "",
) -> int:
    """Parses flags, handles `--help`, runs, and turns a ValueError into one readable message. Returns the exit status."""
    startup.quiet()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # like stderr: a path may hold bytes that are not valid text
    try:
        given = sys.argv[1:] if argv is None else argv
        config, other = parse(config_class, presets, given, arguments, program.removeprefix("trainers."))
        if other.help:
            print(help_text(program, description, config_class, presets, arguments))
            return 0
        return run(config, other) or 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        kind = "usage" if isinstance(error, UsageError) else "error"
        print(f"{program}: {kind}: {as_flags(str(error), config_class)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
