"""Generates videos with a trained run: new videos, training videos, reconstructions, exchanges and interpolations."""

from __future__ import annotations

import dataclasses
import pathlib
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of video generation."""

    run_dir: str = option("", "The run to generate from.")
    mode: str = option(
        "new",
        "new: random videos; lookup: training videos by --ids; exchange: --identities with --actions; interpolate: two --ids; "
        "reconstruct: --clips through the encoder; swap: the content of each of --clips with the motion of the next.",
        ("new", "lookup", "exchange", "interpolate", "reconstruct", "swap"),
    )
    num_videos: int = option(16, "Number of new videos, or of interpolation steps.", minimum=1)
    seed: int = option(0, "Random seed of new videos.")
    ids: str = option("", "Video ids, e.g. 0,3,5.")
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
    out: str = option("", "Output folder; empty for <run_dir>/generated.")
    scale: int = option(2, "Integer upscaling factor of GIF and MP4.", minimum=1)
    fps: float = option(0.0, "Frames per second; 0 for the frame rate of the data.", minimum=0)
    raw_weights: bool = option(False, "Use the last step's weights even if the run kept an average.")
    step: int = option(-1, "Use the checkpoint of this step; -1 for the last one.", minimum=-1)


def _ids(text: str, flag: str, count: int | None = None, names: Sequence[str] = ()) -> list[int]:
    """The ids given by a flag that takes numbers below `count`, or names."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise cli.UsageError(f"--{flag} is missing: this mode needs it, e.g. --{flag}=0,1.")
    ids = []
    for part in parts:
        if part in names:
            ids.append(list(names).index(part))
        elif part.removeprefix("-").isdigit():
            ids.append(int(part))
        else:
            known = f" or names (of {', '.join(names)})" if names else ""
            raise cli.UsageError(
                f"--{flag} takes whole numbers{known}, separated by commas, e.g. 0,3,5. Received {text!r}."
                f"{cli.suggest(part, list(names)) if names else ''}"
            )
    if count is not None and (min(ids) < 0 or max(ids) >= count):
        raise cli.UsageError(f"--{flag} must lie in 0..{count - 1}. Received {text}.")
    return ids


def _latents(model: VideoGenerator, config: Config) -> tuple[dict[str, Any], list[str]]:
    """The latents for a mode, and a name for each video."""
    import numpy as np

    from tfvidgen import editing
    from tfvidgen.models.base import Choice
    from trainers import runs

    name = type(model).__name__
    if config.mode == "new":
        model.require_sampling()
        if not config.labels:
            latents = model.sample_latents(config.num_videos, seed=config.seed)
            return latents, [f"seed {config.seed} #{i}" for i in range(config.num_videos)]
        if not model.num_labels:
            raise ValueError(f"This {name} is unconditional: leave out --labels, or train a conditional system.")
        labels = _ids(config.labels, "labels", model.num_labels, model.action_names)
        if len(labels) not in (1, config.num_videos):
            raise cli.UsageError(
                f"--labels takes one label for all videos or one for each of --num_videos={config.num_videos}. Received "
                f"{len(labels)}."
            )
        labels = labels * config.num_videos if len(labels) == 1 else labels
        latents = model.sample_latents(config.num_videos, seed=config.seed, labels=labels)
        known = Choice("action", model.num_labels, model.action_names)
        return latents, [f"{known.name(label)} #{i}" for i, label in enumerate(labels)]
    if config.mode in ("reconstruct", "swap"):
        return _encoded(model, config)
    if config.mode == "exchange":
        if not model.exchange_spec:
            raise ValueError(f"{name} cannot exchange identities and actions: use --mode=new.")
        identities, actions = (
            _ids(getattr(config, flag), flag, choice.num_values, choice.names)
            for flag, choice in zip(("identities", "actions"), model.exchange_spec.values(), strict=True)
        )
        if len(identities) != len(actions):
            raise cli.UsageError(
                f"--identities and --actions must be given in pairs. Received {len(identities)} identities and {len(actions)} "
                "actions."
            )
        latents = model.exchange(np.array(identities, np.int32), np.array(actions, np.int32))
        identity, action = model.exchange_spec["identity"], model.exchange_spec["action"]
        if identity.of == action.of == "video":
            named = [f"content of video {i}, motion of video {a}" for i, a in zip(identities, actions, strict=True)]
        else:
            named = [f"{identity.name(i)}, {action.name(a)}" for i, a in zip(identities, actions, strict=True)]
        return latents, named
    if not model.has_lookup:
        raise ValueError(f"{name} does not learn a code per video: use --mode=new.")
    ids = _ids(config.ids, "ids", runs.read(config.run_dir)["data"]["num_videos"])
    if config.mode == "lookup":
        return model.lookup(np.array(ids, np.int32)), [f"video {i}" for i in ids]
    if len(ids) != 2 or config.num_videos < 2:
        raise cli.UsageError("--mode=interpolate needs two --ids, e.g. --ids=0,5, and at least two --num_videos.")
    ends = [model.lookup(np.array([i], np.int32)) for i in ids]
    latents = editing.interpolate(*ends, num_steps=config.num_videos)
    return latents, [f"{n}/{config.num_videos - 1} from {ids[0]} to {ids[1]}" for n in range(config.num_videos)]


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
    settings = runs.read_config(config.run_dir)
    videos = data.load(config.clips, size=settings.size, resize=settings.resize)
    clips = videos.clips(settings.num_frames, settings.stride, "first", "error")[: config.num_videos]
    latents, names = model.infer({"video": clips}), list(videos.names[: len(clips)])
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


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not config.run_dir:
        raise cli.UsageError("--run_dir is missing: name a run folder.")
    import numpy as np

    from tfvidgen import visualize
    from tfvidgen.data.video_io import write_gif, write_mp4
    from trainers import runs, samples

    model, step = runs.load_model(config.run_dir, config.raw_weights, None if config.step < 0 else config.step)
    latents, labels = _latents(model, config)
    videos = samples.decode(model, latents)
    out = pathlib.Path(config.out or pathlib.Path(config.run_dir) / "generated")
    out.mkdir(parents=True, exist_ok=True)
    fps = config.fps or runs.read(config.run_dir)["data"]["fps"]
    grid = visualize.grid_video(videos, scale=config.scale)
    write_gif(out / f"{config.mode}.gif", grid, fps)
    write_mp4(out / f"{config.mode}.mp4", grid, fps)
    visualize.save_png(out / f"{config.mode}.png", visualize.contact_sheet(list(videos), row_labels=labels))
    np.save(out / f"{config.mode}.npy", videos)
    print(f"{len(videos)} videos at step {step}: {out / config.mode}.png, .gif, .mp4 and .npy (uint8 {videos.shape})")
    return 0


def main(argv=None) -> int:
    return cli.main("trainers.generate", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
