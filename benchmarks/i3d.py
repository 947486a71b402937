"""I3D features of clips, ours against eager PyTorch with the same weights: clips a second, memory, time to the first clip.

Both sides take uint8 clips of 16x64x64 from memory, resize them to 224x224 (half-pixel), run the network and hand 400
logits back as NumPy; the largest difference of these is shown. The peer is the public port's network as it is ("port") and
with batch norm folded into the convolutions as ours has it ("fused"), each in the faster of channels first and last.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import benchmarks

BATCH, FRAMES, SIZE = 4, 16, 64
FORMS = ("port", "fused")


def multiplications(frames: int = FRAMES) -> int:
    """Of the convolutions for one clip, counted on paper."""
    from tfvidgen.features import i3d

    def unit(name: str, num_inputs: int, filters: int, positions: int) -> int:
        return positions * int(name[-1]) ** 3 * num_inputs * filters

    time_steps = math.ceil(frames / 2)
    total = unit("7x7", 3, 64, time_steps * 112**2)
    total += unit("1x1", 64, 64, time_steps * 56**2) + unit("3x3", 64, 192, time_steps * 56**2)
    size, num_inputs = 28, 192
    for block, widths in i3d._MIXED.items():
        if block in ("Mixed_4b", "Mixed_5b"):
            time_steps, size = math.ceil(time_steps / 2), size // 2
        inputs = (num_inputs, num_inputs, widths[1], num_inputs, widths[3], num_inputs)
        for branch, num_in, width in zip(i3d._BRANCHES, inputs, widths, strict=True):
            total += unit(branch, num_in, width, time_steps * size**2)
        num_inputs = widths[0] + widths[2] + widths[4] + widths[5]
    return total


def random_arrays(seed: int = 0) -> dict[str, Any]:
    """Weights with which activations neither vanish nor grow, by the names that `canonical_weights` gives."""
    import numpy as np

    from tfvidgen.features import i3d

    rng = np.random.default_rng(seed)
    shapes = {
        "Conv3d_1a_7x7": (7, 7, 7, 3, 64),
        "Conv3d_2b_1x1": (1, 1, 1, 64, 64),
        "Conv3d_2c_3x3": (3, 3, 3, 64, 192),
    }
    num_inputs = 192
    for block, widths in i3d._MIXED.items():
        inputs = (num_inputs, num_inputs, widths[1], num_inputs, widths[3], num_inputs)
        for branch, num_in, width in zip(i3d._BRANCHES, inputs, widths, strict=True):
            shapes[f"{block}/{branch}"] = (*(int(branch[-1]),) * 3, num_in, width)
        num_inputs = widths[0] + widths[2] + widths[4] + widths[5]
    arrays = {}
    for name, shape in shapes.items():
        arrays[f"{name}/kernel"] = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
        arrays[f"{name}/beta"], arrays[f"{name}/mean"] = rng.normal(0, 0.1, (2, shape[-1]))
        arrays[f"{name}/variance"] = rng.uniform(0.5, 2.0, shape[-1])
    arrays["Logits/Conv3d_0c_1x1/kernel"] = rng.normal(0, 0.05, (1, 1, 1, num_inputs, 400))
    arrays["Logits/Conv3d_0c_1x1/bias"] = rng.normal(0, 0.1, 400)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def clips(seed: int = 0):
    """uint8 (BATCH, FRAMES, SIZE, SIZE, 3)."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, (BATCH, FRAMES, SIZE, SIZE, 3), np.uint8)


# ---------------------------------------------------------------- the two sides, each in its own process
class Ours:
    def __init__(self, threads: int):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        import os
        import tempfile

        import numpy as np

        from tfvidgen.features.i3d import I3DFeatures

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "i3d.npz")
            np.savez(path, **_tensorflow_names(random_arrays()))
            self.extractor = I3DFeatures(path, resize="half-pixel", batch_size=BATCH)
        self.videos = clips()

    def prepare(self, **unused: Any):
        return lambda: self.extractor(self.videos)


class Peer:
    def __init__(self, threads: int):
        import torch

        torch.set_num_threads(threads)
        from benchmarks.peers import i3d_torch

        self.source, self.networks = i3d_torch, {}
        for form in FORMS:
            self.networks[form] = i3d_torch.I3D().eval()
            i3d_torch.load_arrays(self.networks[form], random_arrays())
        self.networks["fused"].fuse()
        self.videos = torch.from_numpy(clips())

    def prepare(self, form: str = "port", layout: str = "channels_first"):
        network = self.networks[form]

        def call():
            network.set_layout(layout)
            return self.source.features(network, self.videos)

        return call


def _tensorflow_names(arrays: dict[str, Any]) -> dict[str, Any]:
    parts = {
        "kernel": "conv_3d/w",
        "bias": "conv_3d/b",
        "beta": "batch_norm/beta",
        "mean": "batch_norm/moving_mean",
        "variance": "batch_norm/moving_variance",
    }
    named = {}
    for name, array in arrays.items():
        unit, _, part = name.rpartition("/")
        unit = unit.replace("Mixed_5b/Branch_2/Conv3d_0b", "Mixed_5b/Branch_2/Conv3d_0a") if "3x3" in unit else unit
        named[f"RGB/inception_i3d/{unit}/{parts[part]}"] = array
    return named


def serve(side: str, clock: str) -> None:
    """Answers requests: the speed of a form of the network, or its logits."""
    runner = {"ours": Ours, "peer": Peer}[side](benchmarks.THREADS[clock])
    prepared: dict[tuple, Any] = {}

    def answer(seconds: float, begin: float, logits: bool = False, **options: str) -> dict[str, Any]:
        key = tuple(sorted(options.items()))
        since_start = None
        if key not in prepared:
            call = prepared[key] = runner.prepare(**options)
            call()
            since_start = time.time() - begin
        call = prepared[key]
        if logits:
            facts = {"multiplications": multiplications()} if side == "ours" else {}
            return {"logits": call().tolist(), "since_start": since_start, **facts}
        rate = BATCH / benchmarks.time_calls(call, seconds, clock)
        return {"rate": rate, "since_start": since_start, "peak_memory": benchmarks.peak_memory()}

    benchmarks.serve(answer)


# ---------------------------------------------------------------- the comparison
def compare(clock: str, rounds: int, seconds: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """-> (one row for each form of the peer, facts about agreement, memory and start)."""
    sides: dict[str, benchmarks.Worker] = {}
    first, layouts = {}, {}
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *FORMS)}
    try:
        for side in ("ours", "peer"):
            # one after the other: nothing of ours shares the machine while a side starts
            sides[side] = benchmarks.Worker("benchmarks.i3d", side, clock)
            first[side] = sides[side].ask(seconds=0.0, logits=True)
        for form in FORMS:
            speeds = {
                layout: sides["peer"].ask(seconds=0.0, form=form, layout=layout)["rate"]
                for layout in ("channels_first", "channels_last")
            }
            layouts[form] = max(speeds, key=speeds.get)
        memory = {}
        for _ in range(rounds):
            answer = sides["ours"].ask(seconds=seconds)
            rates["ours"].append(answer["rate"])
            memory["ours"] = answer["peak_memory"]
            for form in FORMS:
                answer = sides["peer"].ask(seconds=seconds, form=form, layout=layouts[form])
                rates[form].append(answer["rate"])
                memory["peer"] = answer["peak_memory"]
    finally:
        for worker in sides.values():
            worker.close()
    difference = max(
        abs(a - b)
        for ours, peer in zip(first["ours"]["logits"], first["peer"]["logits"], strict=True)
        for a, b in zip(ours, peer, strict=True)
    )
    rows = []
    for form in FORMS:
        ratios = [a / b for a, b in zip(rates["ours"], rates[form], strict=True)]
        rows.append(
            {
                "clock": clock,
                "threads": benchmarks.THREADS[clock],
                "peer": form,
                "peer_layout": layouts[form],
                "ours_clips_per_second": benchmarks.median(rates["ours"]),
                "peer_clips_per_second": benchmarks.median(rates[form]),
                "ratio": benchmarks.median(ratios),
                "ratio_of_every_round": ratios,
            }
        )
    facts = {
        "clock": clock,
        "largest_difference_of_logits": difference,
        "seconds_to_first_clips": {side: answer["since_start"] for side, answer in first.items()},
        "peak_memory": memory,
        "multiplications_per_clip": first["ours"]["multiplications"],
    }
    return rows, facts


def run(rounds: int = 3, seconds: float = 2.0, clocks=tuple(benchmarks.CLOCKS), **unused: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned."""
    print(
        f"\nI3D logits, {BATCH} clips of {FRAMES}x{SIZE}x{SIZE}, float32: clips a second of time on the wall (two threads)"
    )
    print("or of processor time (one thread)")
    print(f"{'clock':10}{'peer':24}{'ours':>7}{'peer':>7}{'ratio':>7}{'range':>11}")
    rows, facts = [], []
    for clock in clocks:
        new_rows, new_facts = compare(clock, rounds, seconds)
        for row in new_rows:
            spread = f"{min(row['ratio_of_every_round']):.2f}-{max(row['ratio_of_every_round']):.2f}"
            peer = f"{row['peer']}, {row['peer_layout']}"
            print(
                f"{clock:10}{peer:24}{row['ours_clips_per_second']:7.2f}{row['peer_clips_per_second']:7.2f}"
                f"{row['ratio']:7.2f}{spread:>11}"
            )
        rows += new_rows
        facts.append(new_facts)
        start, memory = new_facts["seconds_to_first_clips"], new_facts["peak_memory"]
        print(
            f"    first clips after {start['ours']:.1f} s (peer {start['peer']:.1f} s); peak memory "
            f"{memory['ours'] / 2**20:.0f} MiB (peer {memory['peer'] / 2**20:.0f}, both forms); logits differ by at most "
            f"{new_facts['largest_difference_of_logits']:.1e}; {2e-9 * new_facts['multiplications_per_clip']:.0f} GFLOP a clip",
            flush=True,
        )
    return {"rows": rows, "facts": facts}


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve(*sys.argv[2:])
