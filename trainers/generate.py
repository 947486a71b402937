"""Generates videos with a trained run: new videos, training videos, reconstructions, exchanges, interpolations, given latents.

Writes an overview of them to <run_dir>/generated/ (a sheet MODE.png, a grid MODE.gif and MODE.mp4), all of them as one array
MODE.npy, and one file per clip to folders of their own, MODE_FORMAT/. Frames are enlarged for viewing, by nearest neighbour. What
is measured must not be: MODE.npy and the clips of --format=npy and --format=png hold the very pixels of the model, and
python -m trainers.evaluate --generated=... reads them back exactly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    import numpy as np

    from tfvidgen.models.base import VideoGenerator

MAX_SHOWN = 64  # videos on the sheet and in the grid
MAX_NAMES = 10  # known names in a message
EXACT = ("npy", "png")  # formats that hold the model's own pixels
FORMATS = ("mp4", "gif", "webp", *EXACT)

# Flag -> the modes that use it; others refuse it.
USED_BY = {
    "num_videos": ("new", "interpolate", "reconstruct", "swap"),
    "num_frames": ("new", "reconstruct", "swap"),
    "seed": ("new",),
    "labels": ("new",),
    "ids": ("lookup", "interpolate"),
    "identities": ("exchange",),
    "actions": ("exchange",),
    "clips": ("reconstruct", "swap"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of video generation."""

    run_dir: str = option("", "The run to generate from.")
    mode: str = option(
        "new",
        "new: random videos; lookup: training videos by --ids; exchange: --identities with --actions; interpolate: two --ids; "
        "reconstruct: --clips through the encoder; swap: the content of each of --clips with the motion of the next; decode: the "
        "latents in --latents.",
        ("new", "lookup", "exchange", "interpolate", "reconstruct", "swap", "decode"),
    )
    num_videos: int = option(
        16, "Number of new videos, of interpolation steps, or of the first clips of reconstruct and swap.", minimum=1
    )
    num_frames: int = option(
        0,
        "Frames of each video of new, reconstruct and swap, where the system makes other lengths than the trained one; 0: that.",
        minimum=0,
    )
    seed: int = option(0, "Random seed of new videos.")
    ids: str = option("", "Training videos of lookup and interpolate, by id or name, e.g. 0,3,5; a number is an id.")
    labels: str = option(
        "",
        "Labels of a conditional system's new videos, by number or name: one for all or one per video; empty for random labels.",
    )
    identities: str = option(
        "",
        "By number or name, one per video, e.g. 0,0,1; numbers are video ids if the run has static codes per video.",
    )
    actions: str = option("", "By number or name, one per video; numbers are video ids if motion codes are per video.")
    clips: str = option("", "Folder or file of videos for reconstruct and swap.")
    latents: str = option(
        "",
        "An .npz file for the videos' latents, which --mode=decode and export.client decode turn into videos again; a file that "
        "exists is not replaced. With --mode=decode: the file to read.",
    )
    out: str = option("", "Output folder; empty for <run_dir>/generated.")
    format: str = option(
        "mp4",
        f"One file per clip, in a folder for each format: one or several of {', '.join(FORMATS)}; empty for none. npy and png "
        "(a strip of frames side by side) hold the model's own pixels and are what to measure; mp4, gif and webp are enlarged and "
        "lossy, and webp merges equal frames.",
    )
    scale: int = option(
        0,
        "Whole factor by which frames are enlarged, in all but npy and the clips of --format=png; 0: as needed for "
        "128 pixels on the sheet and in the grid, and 256 for a clip alone.",
        minimum=0,
    )
    fps: float = option(0.0, "Frames per second; 0 for the frame rate of the data.", minimum=0)
    raw_weights: bool = option(False, "Use the last step's weights even if the run kept an average.")
    step: int = option(-1, "Use the checkpoint of this step; -1 for the last one.", minimum=-1)


# ---- what was asked for ---------------------------------------------------------------------------------------------


def _check_flags(config: Config, given: Sequence[str]) -> None:
    """Raises UsageError for a flag that the mode does not use, and for one that it needs and lacks."""
    if not config.run_dir:
        raise cli.UsageError("--run_dir is missing: name a run folder.")
    for flag in given:
        if config.mode not in USED_BY.get(flag, (config.mode,)):
            *others, last = (f"--mode={mode}" for mode in USED_BY[flag])
            able = f"{', '.join(others)} and {last} do" if others else f"{last} does"
            raise cli.UsageError(f"--mode={config.mode} does not use --{flag}; {able}.")
    if config.latents and pathlib.Path(config.latents).suffix != ".npz":
        raise cli.UsageError(f"--latents must end in .npz. Received {config.latents!r}.")
    if config.mode == "decode":
        if not config.latents:
            raise cli.UsageError("--latents is missing: name the .npz file that --mode=decode turns into videos.")
    elif config.latents and pathlib.Path(config.latents).exists():
        raise cli.UsageError(
            f"--latents={config.latents} exists, and --mode={config.mode} would replace it: name another file, or turn it into "
            "videos with --mode=decode."
        )


def _formats(text: str) -> list[str]:
    """The formats of `--format`, each once."""
    formats = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in formats:
        if name not in FORMATS:
            raise cli.UsageError(
                f"--format takes {', '.join(FORMATS)}, separated by commas. Received {name!r}.{cli.suggest(name, FORMATS)}"
            )
    return formats


def _ids(text: str, flag: str, count: int | None = None, names: Sequence[str] = ()) -> list[int]:
    """The ids given by a flag that takes numbers below `count`, or names. `3` is always an id; `03` may be a name."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise cli.UsageError(f"--{flag} is missing: this mode needs it, e.g. --{flag}=0,1.")
    id_of = {name: index for index, name in enumerate(names)}
    ids = []
    for part in parts:
        is_number = re.fullmatch(r"-?[0-9]+", part) is not None
        if part in id_of and not (is_number and str(int(part)) == part):
            ids.append(id_of[part])
        elif is_number:
            ids.append(int(part))
        else:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            known = f" or names (of {', '.join(names[:MAX_NAMES])}{more})" if names else ""
            raise cli.UsageError(
                f"--{flag} takes whole numbers{known}, separated by commas, e.g. 0,3,5. Received {text!r}."
                f"{cli.suggest(part, list(names)) if names else ''}"
            )
    if count is not None and (min(ids) < 0 or max(ids) >= count):
        raise cli.UsageError(f"--{flag} must lie in 0..{count - 1}. Received {text}.")
    return ids


# ---- latents --------------------------------------------------------------------------------------------------------


def _latents(model: VideoGenerator, config: Config, description: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The latents for a mode, and a name for each video."""
    import numpy as np

    from tfvidgen import editing
    from tfvidgen.models.base import Choice

    name = type(model).__name__
    video_names = description.get("labels", {}).get("video_names", ())
    if config.mode == "new":
        return _new(model, config)
    if config.mode == "decode":
        return _read_latents(model, config, description)
    if config.mode in ("reconstruct", "swap"):
        return _encoded(model, config)
    if config.mode == "exchange":
        if not model.exchange_spec:
            raise ValueError(f"{name} cannot exchange identities and actions: use --mode=new.")
        spec = {
            key: dataclasses.replace(choice, names=tuple(video_names)) if choice.of == "video" else choice
            for key, choice in model.exchange_spec.items()
        }
        identity, action = spec["identity"], spec["action"]
        identities = _ids(config.identities, "identities", identity.num_values, identity.names)
        actions = _ids(config.actions, "actions", action.num_values, action.names)
        if len(identities) != len(actions):
            raise cli.UsageError(
                f"--identities and --actions must be given in pairs. Received {len(identities)} identities and {len(actions)} "
                "actions."
            )
        latents = model.exchange(np.array(identities, np.int32), np.array(actions, np.int32))
        pairs = [(identity.name(i), action.name(a)) for i, a in zip(identities, actions, strict=True)]
        if identity.of == action.of == "video":
            return latents, [f"content of {content}, motion of {motion}" for content, motion in pairs]
        return latents, [", ".join(pair) for pair in pairs]
    if not model.has_lookup:
        raise ValueError(f"{name} does not learn a code per video: use --mode=new.")
    known = Choice("video", description["data"]["num_videos"], tuple(video_names))
    ids = _ids(config.ids, "ids", known.num_values, known.names)
    if config.mode == "lookup":
        return model.lookup(np.array(ids, np.int32)), [known.name(i) for i in ids]
    if len(ids) != 2 or config.num_videos < 2:
        raise cli.UsageError("--mode=interpolate needs two --ids, e.g. --ids=0,5, and at least two --num_videos.")
    ends = [model.lookup(np.array([i], np.int32)) for i in ids]
    latents = editing.interpolate(*ends, num_steps=config.num_videos)
    steps = [f"{n}/{config.num_videos - 1}" for n in range(config.num_videos)]
    steps[0], steps[-1] = (known.name(i) for i in ids)
    return latents, steps


def _new(model: VideoGenerator, config: Config) -> tuple[dict[str, Any], list[str]]:
    """Latents of new videos, of random or given labels."""
    from tfvidgen.models.base import Choice

    model.require_sampling()
    num_frames = _num_frames(model, config)
    if not config.labels:
        latents = model.sample_latents(config.num_videos, num_frames, seed=config.seed)
        return latents, [f"seed {config.seed} #{i}" for i in range(config.num_videos)]
    if not model.num_labels:
        raise ValueError(
            f"This {type(model).__name__} is unconditional: leave out --labels, or train a conditional system."
        )
    labels = _ids(config.labels, "labels", model.num_labels, model.action_names)
    if len(labels) not in (1, config.num_videos):
        raise cli.UsageError(
            f"--labels takes one label for all videos or one for each of --num_videos={config.num_videos}. Received "
            f"{len(labels)}."
        )
    labels = labels * config.num_videos if len(labels) == 1 else labels
    latents = model.sample_latents(config.num_videos, num_frames, seed=config.seed, labels=labels)
    known = Choice("action", model.num_labels, model.action_names)
    return latents, [f"{known.name(label)} #{i}" for i, label in enumerate(labels)]


def _num_frames(model: VideoGenerator, config: Config) -> int | None:
    """`--num_frames`, or None for the trained length."""
    if not config.num_frames:
        return None
    try:
        model.latent_length(config.num_frames)
    except ValueError as error:
        raise cli.UsageError(f"--num_frames={config.num_frames}: {error}") from None
    return config.num_frames


def _encoded(model: VideoGenerator, config: Config) -> tuple[dict[str, Any], list[str]]:
    """Latents of `--clips`; for swap, each with the motion of the next clip instead of its own."""
    import numpy as np

    from tfvidgen import data, editing
    from trainers import runs

    if not model.has_encoder:
        raise ValueError(
            f"{type(model).__name__} has no encoder, so it has no latents for clips that it was not trained on: use "
            "--mode=lookup for those it was trained on, or --mode=new."
        )
    if not config.clips:
        raise cli.UsageError(f"--clips is missing: name the videos for --mode={config.mode}.")
    num_frames = _num_frames(model, config)
    settings = runs.read_config(config.run_dir)
    videos = data.load(config.clips, size=settings.size, resize=settings.resize)
    if len(videos) > config.num_videos:
        print(f"the first {config.num_videos} of {len(videos)} clips: --num_videos={len(videos)} takes all")
        videos = videos.subset(np.arange(config.num_videos))
    clips = videos.clips(num_frames or settings.num_frames, settings.stride, "first", "error")
    latents, names = model.infer({"video": clips}), list(videos.names)
    if config.mode == "reconstruct":
        return latents, names
    motion = model.latent_names("motion")
    if len(clips) < 2 or not motion:
        raise ValueError(
            f"--mode=swap needs at least two clips and a system with motion latents. Received {len(clips)} clips, and "
            f"{type(model).__name__} has {', '.join(model.latent_spec)}."
        )
    donor = {name: np.roll(np.asarray(values), -1, axis=0) for name, values in latents.items()}
    named = [f"content of {names[i]}, motion of {names[(i + 1) % len(names)]}" for i in range(len(names))]
    return editing.exchange(latents, donor, motion), named


# ---- files of latents -----------------------------------------------------------------------------------------------


def _about(description: Mapping[str, Any], config: Config, step: int) -> dict[str, Any]:
    """What a file says its latents belong to. `id` tells runs apart, wherever their folders lie."""
    trained = [
        description["system"],
        description["model"],
        description["data"]["digest"],
        description["config"].get("seed"),
    ]
    return {
        "system": description["system"],
        "run": pathlib.Path(config.run_dir).resolve().name,
        "id": hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:16],
        "step": step,
        "weights": "last step" if config.raw_weights or not description["config"].get("ema_decay") else "average",
    }


def _save_latents(model: VideoGenerator, config: Config, latents: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes `--latents`, in the types that `decode` takes."""
    import numpy as np

    from tfvidgen import latent_files

    spec = model.latent_spec
    arrays = {name: np.asarray(values).astype(spec[name].dtype) for name, values in latents.items()}
    latent_files.save(config.latents, arrays, about)
    print(f"latents of these videos, {latent_files.described(arrays)}: {config.latents}")


def _read_latents(
    model: VideoGenerator, config: Config, description: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The latents in `--latents`, refused unless they are of this system and shape, and a name for each video."""
    from tfvidgen import latent_files

    latents, about = latent_files.load(config.latents)
    here = _about(description, config, model.step)
    if about.get("system", here["system"]) != here["system"]:
        raise ValueError(
            f"--latents={config.latents} holds latents{latent_files.origin(about)}, and {config.run_dir} is a run of "
            f"{here['system']}: name a run of {about['system']}."
        )
    spec = model.latent_spec
    shapes = {name: entry.shape for name, entry in spec.items()}
    latent_files.require(config.latents, latents, shapes, f"the {type(model).__name__} of {config.run_dir}")
    for name, entry in spec.items():
        values, most = latents[name], (entry.num_values or 0) - 1
        if entry.num_values and not (values.dtype.kind in "iu" and 0 <= values.min() <= values.max() <= most):
            raise ValueError(f"--latents={config.latents}: {name} must hold whole numbers in 0..{most}.")
    latents = {name: values.astype(spec[name].dtype) for name, values in latents.items()}
    if about.get("id", here["id"]) != here["id"]:
        print(f"note: the latents are of another run, {about.get('run')}, to whose weights they belong")
    elif about and (about.get("step"), about.get("weights")) != (here["step"], here["weights"]):
        print(
            f"note: the latents are of step {about.get('step')} ({about.get('weights')}), the weights of step {model.step}"
        )
    return latents, latent_files.names(latents, about) or [f"#{i}" for i in range(len(next(iter(latents.values()))))]


# ---- files of videos ------------------------------------------------------------------------------------------------


def _clip_folder(out: pathlib.Path, mode: str, name: str) -> pathlib.Path:
    """The folder for the clips of a format. Raises ValueError if it holds anything else, which would be lost."""
    folder = out / f"{mode}_{name}"
    if folder.exists():
        ours = re.compile(rf"clip_\d+\.{name}")
        others = ["it"] if not folder.is_dir() else [f for f in os.listdir(folder) if not ours.fullmatch(f)]
        if others:
            raise ValueError(
                f"{folder} holds {others[0]!r}, which is no clip written here: move it, or name another --out."
            )
    return folder


def _write_clips(folder: pathlib.Path, name: str, videos: np.ndarray, fps: float, scale: int) -> None:
    """Writes a file per clip; they replace those of an earlier call, all at once."""
    import numpy as np

    from tfvidgen import storage, visualize
    from tfvidgen.data import video_io

    digits = max(4, len(str(len(videos) - 1)))
    with storage.temporary_folder(folder.parent) as part:
        written = part / folder.name
        written.mkdir()
        for index, video in enumerate(videos):
            path = written / f"clip_{index:0{digits}d}.{name}"
            if name == "npy":
                np.save(path, video)
            elif name == "png":
                visualize.save_png(path, np.concatenate(video, axis=1))  # a strip: (H, T * W, 3)
            else:
                write = {"mp4": video_io.write_mp4, "gif": video_io.write_gif, "webp": video_io.write_webp}[name]
                write(path, visualize.enlarged(video, scale), fps)
        if folder.exists():
            os.replace(folder, part / "earlier")  # removed with the rest of the temporary folder
        os.replace(written, folder)


def _run(config: Config, other: types.SimpleNamespace) -> int:
    _check_flags(config, other.given)
    formats = _formats(config.format)
    import numpy as np

    from tfvidgen import storage, visualize
    from tfvidgen.data.video_io import write_gif, write_mp4
    from trainers import runs, samples

    out = pathlib.Path(config.out or pathlib.Path(config.run_dir) / "generated")
    folders = {name: _clip_folder(out, config.mode, name) for name in formats}
    description = runs.read(config.run_dir)
    model, step = runs.load_model(config.run_dir, config.raw_weights, None if config.step < 0 else config.step)
    latents, labels = _latents(model, config, description)
    videos = samples.decode(model, latents)
    if "png" in formats and videos.shape[1] == 1:
        raise cli.UsageError(
            "--format=png: a folder of single pictures would be read as the frames of one video; take npy for clips of one frame."
        )
    out.mkdir(parents=True, exist_ok=True)
    if config.latents and config.mode != "decode":
        about = {**_about(description, config, step), "video": list(videos.shape), "names": labels}
        _save_latents(model, config, latents, about)

    fps = config.fps or description["data"]["fps"]
    tile = config.scale or visualize.enlargement(videos.shape[2:4])
    alone = config.scale or visualize.enlargement(videos.shape[2:4], visualize.CLIP_PIXELS)
    shown = videos[:MAX_SHOWN]
    grid = visualize.grid_video(shown, scale=tile)
    write_gif(out / f"{config.mode}.gif", grid, fps)
    write_mp4(out / f"{config.mode}.mp4", grid, fps)
    sheet = visualize.contact_sheet(list(shown), row_labels=labels[:MAX_SHOWN], scale=tile)
    visualize.save_png(out / f"{config.mode}.png", sheet)
    with storage.replaced(out / f"{config.mode}.npy") as part:  # the same name, so NumPy adds no suffix
        np.save(part, videos)
    for name, folder in folders.items():
        _write_clips(folder, name, videos, fps, alone)

    print(f"{len(videos)} videos at step {step}: {out / config.mode}.png, .gif, .mp4 and .npy (uint8 {videos.shape})")
    if len(shown) < len(videos):
        print(f"sheet and grid show the first {len(shown)} of them")
    if folders:
        print(f"one file per clip: {', '.join(f'{folder}/' for folder in folders.values())}")
    lossy = [f"{folder.name}/" for name, folder in folders.items() if name not in EXACT]
    enlarged = [f"{tile} times in sheet and grid"] * (tile > 1) + [f"{alone} times in {', '.join(lossy)}"] * (
        alone > 1 and bool(lossy)
    )
    if enlarged:
        exact = [f"{config.mode}.npy", *(f"{folder.name}/" for name, folder in folders.items() if name in EXACT)]
        print(
            f"frames are enlarged for viewing, {', '.join(enlarged)}; to measure, take {' or '.join(exact)}: the model's own "
            f"{videos.shape[2]}x{videos.shape[3]} pixels"
        )
    return 0


def main(argv=None) -> int:
    return cli.main("trainers.generate", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
