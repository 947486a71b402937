"""Scores of identity x action exchange on held-out cells with known ground truth, and baselines."""

from __future__ import annotations

import numpy as np

from tfvidgen.metrics.image import psnr

EQUAL_FRAMES_DB = 100.0  # stands for the infinite PSNR of equal frames, so that a mean over frames is finite


def mean_frame_baseline(
    trained: np.ndarray, trained_identity: np.ndarray, identity: np.ndarray, shape: tuple
) -> np.ndarray:
    """Predicts, for every frame of a clip, the mean of all training frames of its identity.

    Args:
        trained: uint8 (N, T, H, W, 3), the training clips.
        trained_identity: int (N,).
        identity: int (M,), identities of the clips to predict.
        shape: (T, H, W, 3) of a prediction.

    Returns:
        uint8 (M, *shape).
    """
    means = {}
    for i in np.unique(identity):
        clips = trained[trained_identity == i]
        if len(clips) == 0:
            raise ValueError(f"Identity {i} has no trained clip, so it has no mean frame.")
        means[i] = np.round(clips.astype(np.float64).mean((0, 1))).astype(np.uint8)
    return np.stack([np.broadcast_to(means[i], shape) for i in identity])


def nearest_clip_baseline(trained: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Predicts the training clip nearest to the truth in mean squared error: the best that pure memorisation could do.

    Args:
        trained: uint8 (N, T, H, W, 3).
        truth: uint8 (M, T, H, W, 3).

    Returns:
        uint8 (M, T, H, W, 3).
    """
    flat = trained.reshape(len(trained), -1).astype(np.float64)  # sums of these integers are exact
    square = (flat**2).sum(1)
    nearest = []
    for clip in truth.reshape(len(truth), -1).astype(np.float64):
        nearest.append(int(np.argmin(square - 2 * flat @ clip)))
    return trained[nearest]


def mean_psnr(truth: np.ndarray, generated: np.ndarray) -> float:
    """Mean per-frame PSNR in dB, uint8 (..., H, W, 3), of at most `EQUAL_FRAMES_DB` each, which equal frames have."""
    return float(np.minimum(psnr(truth, generated), EQUAL_FRAMES_DB).mean())
