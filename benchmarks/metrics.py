"""The arithmetic of the metrics against what users run elsewhere: Frechet distance and SSIM.

Frechet distance of 2048 and 2048 feature vectors of 400 numbers, the sizes of FVD: ours against `numpy.cov` and
`scipy.linalg.sqrtm`, as in pytorch-fid and most ports of FVD. It must stay under a second. SSIM of clips of 8x64x64, pairs
of frames and frames against the first: ours against `tf.image.ssim`, which computes in float32.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import benchmarks

NUM_VECTORS, WIDTH = 2048, 400
CLIPS, FRAMES, SIZE = 54, 8, 64
TASKS = {
    "frechet": f"Frechet distance, {NUM_VECTORS} and {NUM_VECTORS} vectors of {WIDTH}",
    "frechet_from_statistics": "the same from mergeable statistics",
    "ssim": f"SSIM of {CLIPS * FRAMES} pairs of {SIZE}x{SIZE} frames",
    "fcs": f"SSIM of frames 2..{FRAMES} with frame 1, {CLIPS} clips",
}
FRECHET_LIMIT_SECONDS = 1.0


def features():
    """Two sets float32 (NUM_VECTORS, WIDTH) with a covariance that is not a multiple of the identity."""
    import numpy as np

    random = np.random.default_rng(0)
    sets = []
    for scale in (1.0, 1.2):
        mixing = random.standard_normal((WIDTH, WIDTH)) * scale / WIDTH**0.5
        sets.append((random.standard_normal((NUM_VECTORS, WIDTH)) @ mixing).astype(np.float32))
    return sets


def videos():
    """Two sets of uint8 (CLIPS, FRAMES, SIZE, SIZE, 3): noise of 8x8 blocks, and the same with finer noise on it."""
    import numpy as np

    random = np.random.default_rng(0)
    blocks = random.integers(0, 200, (CLIPS, FRAMES, SIZE // 8, SIZE // 8, 3), np.uint8)
    real = blocks.repeat(8, axis=2).repeat(8, axis=3)
    return real, real + random.integers(0, 50, real.shape, np.uint8)


def _ours(threads: int) -> dict[str, Any]:
    from tfvidgen.metrics.consistency import frame_consistency_score
    from tfvidgen.metrics.distances import frechet_distance
    from tfvidgen.metrics.image import ssim
    from tfvidgen.metrics.statistics import FeatureStatistics

    a, b = features()
    statistics = [FeatureStatistics.from_features(x) for x in (a, b)]
    real, generated = videos()
    return {
        "frechet": lambda: frechet_distance(a, b),
        "frechet_from_statistics": lambda: frechet_distance(*statistics),
        "ssim": lambda: ssim(real, generated).mean(),
        "fcs": lambda: frame_consistency_score(generated).mean(),
    }


def _peer(threads: int) -> dict[str, Any]:
    import numpy as np
    import tensorflow as tf
    from scipy import linalg

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    a, b = features()
    real, generated = (x.reshape(-1, *x.shape[2:]) for x in videos())
    first = videos()[1][:, :1].repeat(FRAMES - 1, axis=1).reshape(-1, SIZE, SIZE, 3)
    others = videos()[1][:, 1:].reshape(-1, SIZE, SIZE, 3)

    @tf.function
    def similarity(x, y):
        return tf.image.ssim(tf.cast(x, tf.float32) / 255, tf.cast(y, tf.float32) / 255, max_val=1.0)

    def distance_of(mean_a, cov_a, mean_b, cov_b):
        root = linalg.sqrtm(cov_a @ cov_b).real
        return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root)

    def moments(x):
        return x.mean(axis=0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False)

    stored = (*moments(a), *moments(b))
    return {
        "frechet": lambda: distance_of(*moments(a), *moments(b)),
        "frechet_from_statistics": lambda: distance_of(*stored),
        "ssim": lambda: similarity(real, generated).numpy().mean(dtype=np.float64),
        "fcs": lambda: similarity(first, others).numpy().mean(dtype=np.float64),
    }


def serve(side: str, clock: str) -> None:
    """Answers requests: seconds of a call, and its value."""
    threads = benchmarks.THREADS[clock]
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(threads)  # read when NumPy is imported
    calls = {"ours": _ours, "peer": _peer}[side](threads)

    def answer(task: str, seconds: float, begin: float) -> dict[str, Any]:
        value = float(calls[task]())
        return {"seconds": benchmarks.time_calls(calls[task], seconds, clock), "value": value}

    benchmarks.serve(answer)


def run(rounds: int = 3, seconds: float = 2.0, clocks=tuple(benchmarks.CLOCKS), **unused: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned."""
    print(
        "\nMetrics: milliseconds of time on the wall (two threads) and of processor time (one thread); ratio: peer over ours"
    )
    print(f"{'':56}{'clock':>11}{'ours':>9}{'peer':>9}{'ratio':>8}   {'range':13}{'difference':>11}")
    rows = []
    for clock in clocks:
        sides = {side: benchmarks.Worker("benchmarks.metrics", side, clock) for side in ("ours", "peer")}
        try:
            for task, title in TASKS.items():
                answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
                for turn in range(rounds + 1):
                    for side, worker in sides.items():
                        answer = worker.ask(task=task, seconds=seconds if turn else 0.0)
                        if turn:  # the first turn warms up
                            answers[side].append(answer)
                times = {side: [answer["seconds"] for answer in given] for side, given in answers.items()}
                ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["peer"], strict=True)]
                row = {
                    "task": task,
                    "clock": clock,
                    "seconds": benchmarks.median(times["ours"]),
                    "peer_seconds": benchmarks.median(times["peer"]),
                    "ratio": benchmarks.median(ratios),
                    "ratio_range": [min(ratios), max(ratios)],
                    "value": answers["ours"][0]["value"],
                    "peer_value": answers["peer"][0]["value"],
                }
                spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
                print(
                    f"{title:56}{clock:>11}{1e3 * row['seconds']:9.1f}{1e3 * row['peer_seconds']:9.1f}{row['ratio']:8.2f}   "
                    f"{spread:13}{abs(row['value'] - row['peer_value']):11.1e}",
                    flush=True,
                )
                rows.append(row)
        finally:
            for worker in sides.values():
                worker.close()
    frechet = [row["seconds"] for row in rows if row["task"].startswith("frechet")]
    if frechet:
        verdict = "under" if max(frechet) < FRECHET_LIMIT_SECONDS else "NOT under"
        print(f"    the slowest Frechet distance took {max(frechet):.3f} s: {verdict} {FRECHET_LIMIT_SECONDS:g} s")
    return {"rows": rows}


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve(*sys.argv[2:])
