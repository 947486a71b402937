"""The whole workflow in minutes: train on built-in clips, evaluate, export, and generate in a separate process."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import time
import types

from trainers import cli
from trainers.cli import option

# What a server would run: TensorFlow alone, no tfvidgen.
_SERVE = """
import sys
sys.modules["tfvidgen"] = None
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
videos = model.signatures["serving_default"](seed=tf.range(16, dtype=tf.int64))["video"].numpy()
np.save(sys.argv[2], videos)
print(f"served {videos.shape} {videos.dtype} from {sys.argv[1]} with TensorFlow {tf.__version__} alone")
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the demo."""

    run_dir: str = option("runs/demo", "Run folder; a finished run is evaluated and exported again.")
    preset: str = option("actors", "Preset of trainers.navsynth to train.")


def _run(config: Config, other: types.SimpleNamespace) -> int:
    from trainers import navsynth

    begin = time.monotonic()
    if config.preset not in navsynth.PRESETS:
        raise cli.UsageError(
            f"--preset must be one of {', '.join(navsynth.PRESETS)}. Received {config.preset!r}."
            f"{cli.suggest(config.preset, list(navsynth.PRESETS))}"
        )
    print(f"1/3  training NAVSynth, preset {config.preset}, then evaluating it", flush=True)
    status = navsynth.main([f"--preset={config.preset}", f"--run_dir={config.run_dir}"])
    if status:
        return status

    import numpy as np

    from export.saved_model import export_run
    from tfvidgen import visualize
    from tfvidgen.data.video_io import write_gif, write_mp4
    from trainers import runs

    run_dir = pathlib.Path(config.run_dir)
    print("2/3  exporting a SavedModel", flush=True)
    exported = export_run(run_dir)
    print("3/3  generating from it in a fresh process that cannot import tfvidgen", flush=True)
    served = run_dir / "served.npy"
    subprocess.run([sys.executable, "-c", _SERVE, str(exported), str(served)], check=True)
    videos = np.load(served)
    fps = runs.read(run_dir)["data"]["fps"]
    grid = visualize.grid_video(videos, scale=2)
    write_gif(run_dir / "served.gif", grid, fps)
    write_mp4(run_dir / "served.mp4", np.concatenate([grid] * 3), fps)
    visualize.save_png(run_dir / "served.png", visualize.contact_sheet(list(videos[:8])))

    print(f"\nDone in {time.monotonic() - begin:.0f} s. Results under {run_dir}/:")
    for name, what in (
        ("board.png, board.gif, board.mp4", "every identity with every action; the marked cells were never trained"),
        ("held_out.png", "those cells next to the ground truth and the mean frame"),
        ("served.png, served.gif, served.mp4", "what the exported model generated"),
        ("samples/", "sheets drawn during training"),
        ("evaluation.json", "the numbers above, with their protocol"),
        (f"export/{exported.name}/", "the SavedModel"),
    ):
        print(f"  {name:36}{what}")
    return 0


def main(argv=None) -> int:
    return cli.main("export.demo", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
