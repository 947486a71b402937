"""Makes videos with a trained run: new ones, trained ones, exchanges and interpolations."""

from __future__ import annotations

import dataclasses
import pathlib
import types

from trainers import cli
from trainers.cli import option


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a generation."""

    run_dir: str = option("", "The run to generate with.")
    mode: str = option(
        "new",
        "new: random videos; lookup: trained ones by --ids; exchange: --identities with --actions; interpolate: two --ids.",
        ("new", "lookup", "exchange", "interpolate"),
    )
    num_videos: int = option(16, "New videos, or steps of an interpolation.", minimum=1)
    seed: int = option(0, "The same seed gives the same new videos.")
    ids: str = option("", "Video ids, e.g. 0,3,5.")
    identities: str = option("", "Identity ids, one per video, e.g. 0,0,1.")
    actions: str = option("", "Action ids, one per video.")
    out: str = option("", "Folder for the results; empty for <run_dir>/generated.")
    scale: int = option(2, "Enlarges each pixel that many times in GIF and MP4.", minimum=1)
    fps: float = option(0.0, "Frames per second; 0 for the data's.", minimum=0)
    raw_weights: bool = option(False, "Take the weights of the last step where the run kept an average of them.")
    step: int = option(-1, "Take the checkpoint of this step; -1 for the last one.", minimum=-1)


def _ids(text: str, flag: str, count: int | None = None) -> list[int]:
    try:
        ids = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise cli.UsageError(
            f"--{flag} takes whole numbers with commas between them, e.g. 0,3,5. Received {text!r}."
        ) from None
    if not ids:
        raise cli.UsageError(f"--{flag} is missing: this mode needs it, e.g. --{flag}=0,1.")
    if count is not None and (min(ids) < 0 or max(ids) >= count):
        raise cli.UsageError(f"--{flag} must lie in 0..{count - 1}. Received {text}.")
    return ids


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not config.run_dir:
        raise cli.UsageError("--run_dir is missing: name the folder of a run.")
    import numpy as np

    from tfvidgen import editing, visualize
    from tfvidgen.data.video_io import write_gif, write_mp4
    from trainers import runs, samples

    model, step = runs.load_model(config.run_dir, config.raw_weights, None if config.step < 0 else config.step)
    if config.mode in ("lookup", "interpolate") and not samples.has_lookup(model):
        raise ValueError(f"{type(model).__name__} does not learn a code per video: use --mode=new.")
    if config.mode == "exchange" and not hasattr(model, "exchange"):
        raise ValueError(f"{type(model).__name__} cannot exchange identities and actions: use --mode=new.")
    if config.mode == "new":
        latents = model.sample_latents(config.num_videos, seed=config.seed)
        labels = [f"seed {config.seed} #{i}" for i in range(config.num_videos)]
    elif config.mode == "lookup":
        ids = _ids(config.ids, "ids", runs.read(config.run_dir)["data"]["num_videos"])
        latents, labels = model.lookup(np.array(ids, np.int32)), [f"video {i}" for i in ids]
    elif config.mode == "exchange":
        identities = _ids(config.identities, "identities", model.static.num_rows)
        actions = _ids(config.actions, "actions", model.transient.num_rows)
        if len(identities) != len(actions):
            raise cli.UsageError(
                f"--identities and --actions go in pairs. Received {len(identities)} identities and {len(actions)} actions."
            )
        latents = model.exchange(np.array(identities, np.int32), np.array(actions, np.int32))
        labels = [f"identity {i} action {a}" for i, a in zip(identities, actions, strict=True)]
    else:
        ids = _ids(config.ids, "ids", runs.read(config.run_dir)["data"]["num_videos"])
        if len(ids) != 2 or config.num_videos < 2:
            raise cli.UsageError("--mode=interpolate needs two --ids, e.g. --ids=0,5, and at least two --num_videos.")
        ends = [model.lookup(np.array([i], np.int32)) for i in ids]
        latents = editing.interpolate(*ends, num_steps=config.num_videos)
        labels = [f"{n}/{config.num_videos - 1} from {ids[0]} to {ids[1]}" for n in range(config.num_videos)]

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
