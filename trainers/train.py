"""Shared training workflow: data, model, run folder, loop, sheets, evaluation."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import math
import multiprocessing
import pathlib
import re
import socket
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trainers import cli

if TYPE_CHECKING:
    import tensorflow as tf

    from tfvidgen.models.base import VideoGenerator
    from trainers.engine.loop import Action
    from trainers.engine.stages import Stage
    from trainers.runs import RunData

MANY_BYTES = 2 << 30  # of decoded frames in memory, from which on a run points to `prepare_data`

BuildModel = Callable[[Any, "RunData"], "VideoGenerator"]
# (config, run data, model, the run's usual dataset_fn) -> the stages of a run
Stages = Callable[[Any, "RunData", "VideoGenerator", Callable[[int], "tf.data.Dataset"]], "list[Stage]"]


def main(
    system: str,
    description: str,
    config_class: type,
    presets: Mapping[str, Mapping[str, Any]],
    build_model: BuildModel,
    argv=None,
    stages: Stages | None = None,
) -> int:
    """The `main` of a trainer.

    Args:
        system: The trainer's name in this package, or the import path of its module if that is elsewhere.
        description: For `--help`.
        config_class: Its settings.
        presets: Settings by name.
        build_model: `build_model(config, run_data)` returns the built and compiled model.
        argv: The command line; None for that of the process.
        stages: `stages(config, run_data, model, dataset_fn)` returns the stages of a run, for a system trained in several;
            `dataset_fn(step)` gives the batches of clips that a run in a single stage is trained on.
    """

    def run(config: Any, other: types.SimpleNamespace) -> int:
        if not config.run_dir:
            name = other.preset or (config.dataset.rstrip("/").rsplit("/", 1)[-1])
            run_dir = (
                f"runs/{_repeated_name(other.config)}" if other.config else f"runs/{system.rpartition('.')[2]}-{name}"
            )
            config = dataclasses.replace(config, run_dir=run_dir)
        if "://" in config.run_dir:
            raise cli.UsageError(
                f"--run_dir={config.run_dir} is not on a file system: a run needs one that can rename, append and lock. Name a "
                "local or shared folder, and copy the run afterwards (docs/scaling.md)."
            )
        if other.dry_run:
            print(dry_run(config, build_model, system, stages, other.from_data))
            return 0
        train(system, config, build_model, stages=stages, from_data=other.from_data)
        return 0

    return cli.main(cli.program_of(system), description, config_class, presets, run, argv)


def _repeated_name(path: str) -> str:
    """The folder name of a run that repeats the one in `path`, a folder or its `config.json`."""
    path = pathlib.Path(path).resolve()
    return f"{(path if path.is_dir() else path.parent).name or 'run'}-repeat"


def _loaded(
    config: Any, system: str, from_data: Mapping[str, cli.FromData] | None, say: Callable[[str], None]
) -> tuple[Any, RunData]:
    """The config with what its folder and its videos decide, and the data: without TensorFlow, whose import takes seconds, so
    that a wrong value or a broken file is reported at once."""
    from trainers import runs

    cli.check(config)
    try:
        config, videos, chosen = runs.decided(config, from_data or {})
        config = runs.going_on(config, system)
        run_data = runs.load_data(config, videos)
    except MemoryError:
        from trainers.engine import health

        with health.memory_explained(config):
            raise
    check_batch(config, run_data)
    if config.init_from and config.run_dir and runs.step_reached(config.run_dir) is None:
        try:
            runs.read(config.init_from)
        except ValueError as error:
            raise ValueError(f"--init_from: {error}") from error
    if chosen:
        say(chosen)
    return config, run_data


def _resolved(config: Any, say: Callable[[str], None] = lambda line: None) -> Any:
    """The config with a precision that this machine has; a resumed run keeps the one that `auto` became when it was begun."""
    from trainers import runs

    precision = resolve_precision(config.precision, config.devices)
    begun = runs.begun(config.run_dir) if config.run_dir else None
    if begun and config.precision == "auto":
        began_in = runs.settings_of(begun, config.run_dir).precision
        if began_in == "float16" and not _has_gpu(config.devices):
            raise ValueError(
                f"{config.run_dir} was started in float16, which is for GPUs: resume it where there is one, or start a new run "
                f"from these weights, --init_from={config.run_dir}, in another --run_dir."
            )
        if began_in != precision:
            say(
                f"resuming in {began_in}, in which the run was started; a new run on this machine would use {precision}"
            )
        precision = began_in
    return dataclasses.replace(config, precision=precision)


def resolve_precision(precision: str, devices: str = "") -> str:
    """`auto` -> this machine's fast precision: bfloat16 with a GPU or a CPU that supports it, else float32.

    Raises:
        ValueError: For float16 on a CPU.
    """
    if precision not in ("auto", "float16"):
        return precision
    has_gpu = _has_gpu(devices)
    if precision == "float16":
        if not has_gpu:
            raise ValueError(
                "--precision=float16 is for GPUs. On a CPU TensorFlow computes convolutions in float16 some 13 times slower "
                "than in float32: use --precision=auto, which selects bfloat16 if the CPU has instructions for it, else float32."
            )
        return precision
    if has_gpu:
        return "bfloat16"
    from trainers import environment

    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(environment.vector_units()) else "float32"


def _has_gpu(devices: str) -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU")) and "CPU" not in devices.upper()


def train(
    system: str,
    config: Any,
    build_model: BuildModel,
    report: Callable[[str], None] | None = None,
    stages: Stages | None = None,
    from_data: Mapping[str, cli.FromData] | None = None,
) -> VideoGenerator:
    """Trains a system according to its config and returns the model; resumes an interrupted run.

    `from_data` has settings that the videos decide, see `cli.FromData`; the other arguments are as for `main`.
    """
    begin = time.monotonic()
    notes: list[str] = []
    asked, run_data = _loaded(config, system, from_data, notes.append)
    import tensorflow as tf

    from trainers.engine import checkpoints, cluster, health

    config = _resolved(asked, notes.append)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = cluster.make_strategy(config.strategy, config.devices)  # first: workers must join before any operation
    num_workers = cluster.num_workers(strategy)
    folder = pathlib.Path(config.run_dir) / "checkpoints"
    with health.memory_explained(config), health.explained(lambda: checkpoints.latest(folder), num_workers):
        return _train(system, asked, config, run_data, build_model, stages, strategy, report, notes, begin)


def _train(
    system: str,
    asked: Any,
    config: Any,
    run_data: RunData,
    build_model: BuildModel,
    stages: Stages | None,
    strategy: tf.distribute.Strategy,
    report: Callable[[str], None] | None,
    notes: list[str],
    begin: float,
) -> VideoGenerator:
    import keras

    from trainers import init_from, runs, tensorboard
    from trainers.engine import checkpoints, cluster, loop
    from trainers.engine.ema import WeightAverage
    from trainers.engine.lock import RunLock
    from trainers.engine.stages import Course

    is_chief, num_replicas = cluster.is_chief(strategy), strategy.num_replicas_in_sync
    say = (report or (lambda line: print(line, flush=True))) if is_chief else (lambda line: None)
    resume = "must" if config.resume == "extend" else config.resume
    checkpoints.check_resume(config.run_dir, resume)
    keras.utils.set_random_seed(config.seed)
    check_batch(config, run_data, num_replicas)
    check_service(config.data_service)
    with strategy.scope():
        model = _named(build_model(config, run_data), run_data)
        average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
    source = init_from.begin(config, model, run_data, strategy)
    run_stages = _stages(config, run_data, model, stages)
    course = Course(run_stages, config.total_steps)
    if config.stage:
        course.require_before(config.stage, runs.step_reached(config.run_dir) or 0)
    begins = course.begins if model.stages else {}

    def begun() -> None:
        if is_chief:
            runs.start(config, system, model, run_data, asked=asked, stages=begins)
            init_from.note(run_dir, source, say)

    with RunLock(config.run_dir) if is_chief else contextlib.nullcontext():
        run_dir = runs.start(config, system, model, run_data, writes=False, asked=asked, stages=begins)  # checks only
        cluster.agree(
            strategy,
            runs.fingerprint(config, system, run_data),
            "The workers have different settings or data: start all of them with the same flags, on the same files.",
        )
        for line in (*notes, describe_data(run_data), *advice(config, run_data)):
            say(f"{system}: {line}")
        events = tensorboard.EventLog(run_dir) if config.tensorboard else None
        say(f"{system}: {count_parameters(model)}; run folder {run_dir}")
        say(f"{system}: on {cluster.describe(strategy)}, in {config.precision}")
        loop.run(
            model,
            run_stages,
            run_dir,
            config.total_steps,
            strategy=strategy,
            steps_per_loop=config.steps_per_loop,
            checkpoint_every_steps=config.checkpoint_every_steps,
            actions=[
                _sheets(model, run_data, config, run_dir),
                *(tensorboard.actions(events, model, run_data, config) if events else []),
                _collapse_watch(model, run_data, config, say),
                *_validation(model, run_data, config, run_dir, say),
                *_measurements(model, run_data, config, run_dir, say),
                *_final_evaluation(model, run_data, config, run_dir, say),
                *([tensorboard.measurements(events, run_dir, config.evaluate_every_steps)] if events else []),
                _curves(config, run_dir),
            ],
            resume=resume,
            report=report,
            average=average,
            max_bad_steps=config.max_bad_steps,
            video_names=run_data.trained.names,
            xla=config.xla,
            keep_every=config.keep_every,
            max_minutes=config.max_minutes and max(1e-6, config.max_minutes - (time.monotonic() - begin) / 60),
            begun=begun,
            stage=config.stage,
        )
    return model


def _stages(config: Any, run_data: RunData, model: VideoGenerator, stages: Stages | None) -> list[Stage]:
    """The stages of a run.

    Raises:
        ValueError: If they are not those of the model.
    """
    from trainers.engine.stages import Stage, require_stages

    dataset_fn = _dataset_fn(config, run_data)
    if stages is None and not model.stages:
        return [Stage("", dataset_fn, frames_per_step=config.clips_per_step * model.num_decoded_frames)]
    found = list(stages(config, run_data, model, dataset_fn)) if stages else []
    require_stages(model, found)
    return found


def _named(model: VideoGenerator, run_data: RunData) -> VideoGenerator:
    """The model, with the data's names of identities and actions."""
    videos = run_data.trained
    model.identity_names, model.action_names = (tuple(n or ()) for n in (videos.identity_names, videos.action_names))
    return model


def _sheets(model, run_data, config, run_dir) -> Action:
    from trainers import samples
    from trainers.engine import loop

    return loop.Action(samples.SampleSheet(model, run_data, config, run_dir), config.sample_every_steps, name="samples")


def _collapse_watch(model, run_data, config, say) -> Action:
    from trainers.collapse import CollapseWatch
    from trainers.engine import loop

    watch = CollapseWatch(model, run_data, config, say)
    return loop.Action(watch, config.sample_every_steps, name="collapse_watch", samples=True)


def _curves(config, run_dir) -> Action:
    from trainers.curves import Curves
    from trainers.engine import loop

    return loop.Action(Curves(run_dir), config.sample_every_steps, uses_weights=False, name="curves_picture")


def _validation(model, run_data, config, run_dir, say) -> list[Any]:
    """The action that reports validation losses on held-out clips, if there are any that the system can reconstruct."""
    from trainers.run_evaluation import ValidationLosses

    if not ValidationLosses.applies(model, run_data):
        return []
    return [ValidationLosses(model, run_data, config, run_dir, say)]


def _measurements(model, run_data, config, run_dir, say) -> list[Any]:
    """The action that computes `--evaluate_metrics`; created before the first step, to report missing files early."""
    if not config.evaluate_metrics:
        return []
    from trainers import measure
    from trainers.best import EvaluateMetrics

    settings = measure.Config(weights=config.evaluate_weights, data_dir=config.data_dir)
    every_steps = config.evaluate_every_steps
    return [
        EvaluateMetrics(model, run_data, config, run_dir, config.evaluate_metrics, every_steps, settings, report=say)
    ]


def _final_evaluation(model, run_data, config, run_dir, say) -> list[Any]:
    """The action that evaluates the run after its last step."""
    if not config.evaluate:
        return []
    from trainers import run_evaluation
    from trainers.engine import loop

    def run(step: int, logs: Mapping[str, float]) -> None:
        run_evaluation.evaluate_run(run_dir, run_data=run_data, model=model, step=step, report=say, at_end=True)

    return [loop.Action(run, every_steps=0, name="evaluation", product=run_dir / "evaluation.json", samples=True)]


def _dataset_fn(config: Any, run_data: RunData) -> Callable[[int], tf.data.Dataset]:
    """A function of the first step that returns a run's global batches from there on."""
    from tfvidgen import data
    from tfvidgen.data import batches
    from trainers import images

    def dataset_fn(start_step: int) -> tf.data.Dataset:
        dataset = data.make_dataset(
            run_data.trained,
            config.clips_per_step,
            config.num_frames,
            config.stride,
            config.clip_start,
            "error" if config.short_clip == "drop" else config.short_clip,
            seed=config.seed,
            start_step=start_step,
            order_form=config.data_order_form or batches.DATA_ORDER_FORMS[-1],
        )
        if run_data.images is not None:
            dataset = images.add_images(dataset, run_data.images, config.images_per_clip, config.seed)
        return data.distribute(dataset, config.data_service, start_step) if config.data_service else dataset

    return dataset_fn


def check_batch(config: Any, run_data: RunData, num_replicas: int = 1) -> None:
    """Raises ValueError if a batch cannot be divided among the replicas, or there are too few videos for distinct ones."""
    if config.batch_size % num_replicas:
        raise ValueError(
            f"--batch_size={config.batch_size} cannot be divided by {num_replicas} replicas: make it a multiple of that."
        )
    if config.clips_per_step > len(run_data.trained):
        updates = config.clips_per_step // config.batch_size
        times = f" for each of --discriminator_steps={updates}" if updates > 1 else ""
        raise ValueError(
            f"--batch_size={config.batch_size}{times} exceeds the {len(run_data.trained)} training videos, so a batch would "
            "contain some of them twice: lower it to at most that, or train on more videos."
        )


def check_service(address: str) -> None:
    """Raises ValueError if nothing listens at the address of a tf.data service: TensorFlow would wait forever."""
    if not address:
        return
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--data_service={address} cannot be reached ({error}): start the service, give its address as grpc://host:port, or "
            "leave the flag out."
        ) from None


def describe_data(run_data: RunData) -> str:
    """A one-line summary: number of videos, their size and length, labels, and how many are held out."""
    collection = run_data.all
    lengths = collection.lengths
    text = (
        f"{len(collection)} videos of {collection.size[0]}x{collection.size[1]}, {lengths.min()} to {lengths.max()} frames, "
        f"from {collection.source}"
    )
    if collection.identity is not None:
        text += f", {len(collection.identity_names)} identities"
    if collection.action is not None:
        text += f", {len(collection.action_names)} actions"
    held_out = int((~run_data.is_trained).sum())
    return text + (f"; {len(run_data.trained)} trained, {held_out} held out" if held_out else "")


def advice(config: Any, run_data: RunData) -> list[str]:
    """Lines about data that could be used better: half of the frames in no clip, or more than MANY_BYTES in memory."""
    from tfvidgen import data
    from tfvidgen.data.loading import NAMED
    from tfvidgen.data.videos import clip_span, unused_frames

    videos, lines = run_data.all, []
    unused = unused_frames(videos.lengths, config.num_frames, config.stride, config.clip_start)
    if 2 * unused >= videos.num_frames and videos.lengths.max() >= 2 * clip_span(config.num_frames, config.stride):
        lines.append(
            f"{unused / videos.num_frames:.0%} of the frames are in no clip: --clips_per_video=all cuts long videos into as many "
            "clips as fit, and --clip_start=random takes another one every time"
        )
    if isinstance(videos, data.ShardedVideos) or config.dataset in NAMED or videos.frames.nbytes <= MANY_BYTES:
        return lines
    return [
        *lines,
        f"{videos.frames.nbytes / 2**30:.1f} GiB of decoded frames are in memory: python -m trainers.prepare_data {config.dataset} "
        f"--out=PREPARED --size={config.size} --resize={config.resize} writes them to disk once, from where --dataset=PREPARED "
        "reads only what a batch needs",
    ]


def count_parameters(model: VideoGenerator) -> str:
    """The numbers of network weights and learned codes, as text."""
    from tfvidgen.runs import latent_tables

    codes = sum(math.prod(table.rows.shape) for table in latent_tables(model).values())
    weights = sum(math.prod(weight.shape) for weight in model.trainable_variables)
    return f"{weights:,} network weights, {codes:,} numbers in learned codes"


def dry_run(
    config: Any,
    build_model: BuildModel,
    system: str = "",
    stages: Stages | None = None,
    from_data: Mapping[str, cli.FromData] | None = None,
) -> str:
    """What a run would do: resolved config, data, parameters, memory. Saves no training results and joins no workers.

    Memory is measured over two steps and a sample sheet of each stage in a separate process: what a step keeps for its
    gradients cannot be told from shapes.
    """
    notes: list[str] = []
    config, run_data = _loaded(config, system, from_data, notes.append)
    from trainers import init_from
    from trainers.engine import cluster
    from trainers.engine.stages import Course

    config = _resolved(config)
    check_batch(config, run_data, cluster.num_replicas(config.strategy, config.devices))
    model = build_model(config, run_data)
    begun = init_from.begin(config, model, run_data)
    course = Course(_stages(config, run_data, model, stages), config.total_steps)
    if config.stage:
        course.end(config.stage)
    lines = ["config:"]
    lines += [f"  {name} = {value!r}" for name, value in dataclasses.asdict(config).items()]
    lines += [*notes, f"data: {describe_data(run_data)} (SHA-256 {run_data.trained.digest[:16]})"]
    lines += advice(config, run_data)
    lines += [f"model: {count_parameters(model)}", *(begun.lines() if begun else [])]
    del run_data, model, begun  # otherwise they would be in memory twice
    gc.collect()
    lines += [f"memory: {_measured(config, build_model, stages)}"]
    return "\n".join(lines)


def _measured(config: Any, build_model: BuildModel, stages: Stages | None) -> str:
    child = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with child:
        try:
            peak, on_gpu, parts = child.submit(_peak_memory, config, build_model, stages).result()
        except concurrent.futures.process.BrokenProcessPool:
            return (
                "more than this machine has: the process that measured two steps was killed. Lower --batch_size, --num_frames or "
                "--width, or see docs/troubleshooting.md"
            )
    rest = max(0, peak - sum(parts.values()))
    listed = ", ".join(f"{name} {num_bytes / 2**20:.0f}" for name, num_bytes in {**parts, "steps": rest}.items())
    return f"{peak / 2**20:.0f} MiB at the peak of two steps and a sample sheet ({listed})" + (
        f"; {on_gpu / 2**20:.0f} MiB on the GPU" if on_gpu else ""
    )


def _peak_memory(config: Any, build_model: BuildModel, stages: Stages | None) -> tuple[int, int, dict[str, int]]:
    """Takes two steps of each stage and draws a run's pictures: of a small model, these may need more memory than a step.

    Returns the peak bytes of this process and of a GPU, and the known parts of the former.
    """
    from trainers import startup

    startup.quiet()
    import tensorflow as tf

    from tfvidgen import data
    from tfvidgen.optimizers import optimizers_of
    from trainers import runs
    from trainers.engine import cluster
    from trainers.engine.ema import WeightAverage
    from trainers.engine.stages import Course, begin_stage
    from trainers.engine.steps import Steps

    strategy = cluster.make_strategy("none" if config.strategy == "multiworker" else config.strategy, config.devices)
    tf.zeros(1).numpy()
    parts = {"TensorFlow": _most_memory()}
    run_data = runs.load_data(config)
    with strategy.scope():
        model = build_model(config, run_data)
        average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
    parts["videos"] = 0 if isinstance(run_data.all, data.ShardedVideos) else run_data.all.frames.nbytes
    parts["weights and codes"] = _num_bytes(model.weights) + (_num_bytes(average.state.values()) if average else 0)
    parts["optimizers"] = sum(_num_bytes(optimizer.variables) for optimizer in optimizers_of(model))
    course = Course(_stages(config, run_data, model, stages), config.total_steps)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = pathlib.Path(folder)
        actions = [
            _sheets(model, run_data, config, run_dir),
            _collapse_watch(model, run_data, config, lambda line: None),
            _curves(config, run_dir),
        ]
        for begin in course.begins.values():
            stage = course.stage(begin)
            begin_stage(model, stage)
            if stage.at_epoch:
                stage.at_epoch(0)
            iterator = cluster.distribute(strategy, course.dataset(begin))
            steps = Steps(model, strategy, average, config.xla)
            steps.trace(iterator)
            logs = {name: float(values.mean()) for name, values in steps(iterator, 2).losses.items()}
            (run_dir / "metrics.jsonl").write_text(json.dumps({"step": begin + 2, **logs}) + "\n")
            for action in actions:
                if model.can_sample or not action.samples:
                    action.run(begin + 2, logs)
    gpus = tf.config.list_logical_devices("GPU")
    on_gpu = max((tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus), default=0)
    return _most_memory(), on_gpu, parts


def _num_bytes(variables: Iterable[Any]) -> int:
    import tensorflow as tf

    return sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)


def _most_memory() -> int:
    """Peak memory of this process, in bytes. `getrusage` would include what its parent held before it."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1])
