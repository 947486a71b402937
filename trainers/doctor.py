"""Checks an installation: versions, devices, precisions, video encoders, disk space, and the speed of a matrix product.

    python -m trainers.doctor

Exits with 1 if something that training needs does not work.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import sys
import time
import types

from trainers import cli, environment, startup
from trainers.cli import option

_SECONDS = 1.0  # of matrix products per precision
_SIDE = 1024  # of a matrix
_LEAST_SPACE = 2 * 2**30  # bytes below which a run may fill the disk: checkpoints, sample sheets


@dataclasses.dataclass(frozen=True)
class Config:
    """What to check."""

    run_dir: str = option("runs", "Folder in which runs are to be written; its disk is checked.")


def _check(config: Config, other: types.SimpleNamespace) -> int:
    problems: list[str] = []
    for title, check in (
        ("versions", _versions),
        ("processor", _processor),
        ("devices", _devices),
        ("speed", _speed),
        ("encoders", _encoders),
        ("disk", lambda problems: _disk(config.run_dir, problems)),
    ):
        for i, line in enumerate(check(problems)):
            print(f"{title if i == 0 else '':<11}{line}", flush=True)
    for problem in problems:
        print(f"problem    {problem}", flush=True)
    print("ready to train" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def _versions(problems: list[str]) -> list[str]:
    from tfvidgen import runs

    found = runs.versions("tensorflow", "keras", "numpy", "av", "pillow")
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        problems.append(f"KERAS_BACKEND={backend}: training needs the TensorFlow backend of Keras. Unset the variable.")
    return [", ".join(f"{name} {version}" for name, version in found.items())]


def _processor(problems: list[str]) -> list[str]:
    found = environment.processor()
    units = ", ".join(found["vector_units"]) or "unknown"
    return [f"{found['name']}; {found['cores']} cores available to this process; vector units {units}"]


def _devices(problems: list[str]) -> list[str]:
    import tensorflow as tf

    lines = environment.devices()
    if tf.config.list_physical_devices("GPU"):
        return lines
    if not startup.has_nvidia_gpu():
        return [*lines, "no GPU: the system lists no NVIDIA device"]
    build = tf.sysconfig.get_build_info()
    if not build.get("is_cuda_build"):
        reason = "this TensorFlow was built without CUDA"
    else:
        reason = (
            f"the driver or the libraries of CUDA {build.get('cuda_version', '?')} and cuDNN {build.get('cudnn_version', '?')} "
            "were not found"
        )
    problems.append(
        f"The system has an NVIDIA GPU that TensorFlow cannot use: {reason}. Install them with pip install "
        f"'tensorflow[and-cuda]=={tf.__version__}', and check the driver with nvidia-smi."
    )
    return lines


def _speed(problems: list[str]) -> list[str]:
    """Matrix products, of which training consists, in both precisions."""
    import tensorflow as tf

    from trainers.train import resolve_precision

    lines = []
    for precision in ("float32", "bfloat16"):
        matrix = tf.cast(tf.random.stateless_normal((_SIDE, _SIDE), (0, 0)), precision)
        tf.matmul(matrix, matrix).numpy()  # compiles
        begin, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - begin) < _SECONDS / 2:
            tf.matmul(matrix, matrix).numpy()
            count += 1
        lines.append(f"{precision} matrix product: {2 * _SIDE**3 * count / seconds / 1e9:.0f} GFLOP/s")
    return [*lines, f"--precision=auto takes {resolve_precision('auto')} here"]


def _encoders(problems: list[str]) -> list[str]:
    import av
    from PIL import features

    found = {}
    for name, what in (("libx264", "MP4"), ("libvpx-vp9", "WebM")):
        try:
            av.Codec(name, "w")
            found[what] = True
        except av.FFmpegError:
            found[what] = False
    found["WebP"] = features.check("webp")
    if not found["MP4"]:
        problems.append(
            "PyAV was built without the H.264 encoder libx264, so no MP4 can be written: pip install --force-reinstall av."
        )
    return [", ".join(f"{what} {'yes' if there else 'no'}" for what, there in found.items())]


def _disk(run_dir: str, problems: list[str]) -> list[str]:
    folder = pathlib.Path(run_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        problems.append(f"{folder} cannot be written: name another folder with --run_dir.")
    if free < _LEAST_SPACE:
        problems.append(f"Only {free / 2**30:.1f} GiB are free under {folder}: make room, or name another --run_dir.")
    return [f"{free / 2**30:.0f} GiB free for {run_dir}"]


def main(argv=None) -> int:
    return cli.main("trainers.doctor", __doc__, Config, {}, _check, argv)


if __name__ == "__main__":
    sys.exit(main())
