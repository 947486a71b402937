"""What an export promises about bits: a clip alone and in a batch, and on processors with AVX-512 and with AVX2 kernels.

Exports every system of tests/systems.py, requests the same seeds in one batch and one by one, in a process of its own per
instruction set (oneDNN's `ONEDNN_MAX_CPU_ISA`), and prints how many values of the uint8 videos differ, and by how many levels.

Usage: python -m benchmarks.export_bits [--bfloat16]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import numpy as np

NUM_CLIPS = 12
# Beside the processor's own kernels, those of one with fewer instructions. For bfloat16 it keeps AVX-512: TensorFlow asks the
# processor, not oneDNN, whether bfloat16 can be computed, and aborts where oneDNN was told to use AVX2 alone.
OTHER = {"float32": "AVX2", "bfloat16": "AVX512_CORE"}
PAIRS = {  # what is compared: (instruction set, batch or single)
    "alone and in a batch": (("own", "batch"), ("own", "single")),
    "alone and in a batch, fewer instructions": (("other", "batch"), ("other", "single")),
    "two processors, in a batch": (("own", "batch"), ("other", "batch")),
    "two processors, alone": (("own", "single"), ("other", "single")),
}
# With TensorFlow alone, as a server.
_CHILD = """
import pathlib, sys
import numpy as np
import tensorflow as tf
num_clips, out = int(sys.argv[1]), pathlib.Path(sys.argv[2])
for folder in sys.argv[3:]:
    endpoint = tf.saved_model.load(folder).signatures["serving_default"]
    made = lambda seeds: endpoint(seed=tf.constant(seeds, tf.int64))["video"].numpy()
    single = np.concatenate([made([seed]) for seed in range(num_clips)])
    np.savez(out / f"{pathlib.Path(folder).parent.name}.npz", batch=made(range(num_clips)), single=single)
"""


def difference(a: np.ndarray, b: np.ndarray) -> dict[str, int]:
    """How many values of two uint8 videos differ, and by how many levels of 255 at most."""
    levels = np.abs(a.astype(int) - b)
    return {"values": int((levels > 0).sum()), "of": levels.size, "levels": int(levels.max())}


def compare(videos: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, int]]:
    """The difference of every pair; `videos` maps an instruction set to its `batch` and `single` videos."""
    return {name: difference(videos[a][x], videos[b][y]) for name, ((a, x), (b, y)) in PAIRS.items()}


def measure(folders: list[pathlib.Path], out: pathlib.Path, other: str) -> dict[str, dict[str, dict[str, int]]]:
    """System -> `compare` of its export; `folders` are version folders in a folder named by the system.

    `other` is a value of `ONEDNN_MAX_CPU_ISA`.
    """
    kinds = {"own": {}, "other": {"ONEDNN_MAX_CPU_ISA": other}}
    for name, variables in kinds.items():
        (out / name).mkdir(parents=True)
        command = [sys.executable, "-c", _CHILD, str(NUM_CLIPS), str(out / name), *map(str, folders)]
        subprocess.run(command, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables}, check=True)
    return {
        system: compare({name: dict(np.load(out / name / f"{system}.npz")) for name in kinds})
        for system in (folder.parent.name for folder in folders)
    }


def processor() -> str:
    """The processor's name, and the widest vector instructions it has; Linux tells both."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = found.get("flags", "").split()
    widest = next((name for name in ("amx_tile", "avx512f", "avx2") if name in flags), platform.machine())
    return (
        f"{found.get('model name', platform.machine())} (family {found.get('cpu family')}, "
        f"model {found.get('model')}, {widest})"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bfloat16", action="store_true", help="models that compute in bfloat16")
    arguments = parser.parse_args(argv)

    import keras

    from export import saved_model
    from tests.systems import SYSTEMS, vivid

    other = OTHER["bfloat16" if arguments.bfloat16 else "float32"]
    if arguments.bfloat16:
        keras.config.set_dtype_policy("mixed_bfloat16")
    with tempfile.TemporaryDirectory() as temporary:
        folders = []
        for system in SYSTEMS:
            model = system.build()
            vivid(model)
            folders.append(saved_model.export_model(model, pathlib.Path(temporary) / system.name))
        results = measure(folders, pathlib.Path(temporary) / "videos", other)
    print(f"processor: {processor()}; the other kind: {other}; {NUM_CLIPS} clips per system")
    print(", ".join(PAIRS) + ": values that differ, by levels at most")
    for system, pairs in results.items():
        print(
            f"{system:34}"
            + "  ".join(f"{found['values']}/{found['of']} by {found['levels']}" for found in pairs.values())
        )
    worst = {
        name: {key: max(pairs[name][key] for pairs in results.values()) for key in ("values", "levels")}
        for name in PAIRS
    }
    print(json.dumps(worst, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
