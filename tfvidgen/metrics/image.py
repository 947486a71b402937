"""Measures of single frames against each other: PSNR, SSIM, and the frame consistency of a video.

All take uint8 RGB arrays and compute in float64.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Wang et al., IEEE Trans. Image Processing 2004: 11x11 Gaussian window, K1 and K2.
_SSIM_RADIUS = 5
_SSIM_SIGMA = 1.5
_SSIM_C1 = 0.01**2
_SSIM_C2 = 0.03**2
# Frames in flight at a time, so that float64 maps of a large set do not fill the memory.
_PIXELS_PER_CHUNK = 2**19


def _check_frames(name: str, frames, num_axes: int | None = None) -> np.ndarray:
    frames = np.asarray(frames)
    expected = "(N, T, H, W, 3)" if num_axes == 5 else "(..., H, W, 3)"
    if frames.dtype != np.uint8:
        raise ValueError(
            f"`{name}` must be uint8 with values 0..255. Received dtype {frames.dtype}: for floats in [-1, 1] pass "
            "np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)."
        )
    if frames.ndim < 3 or frames.shape[-1] != 3 or (num_axes is not None and frames.ndim != num_axes):
        raise ValueError(f"`{name}` must have shape {expected}, RGB last. Received shape {frames.shape}.")
    return frames


def _check_pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = _check_frames("a", a), _check_frames("b", b)
    if a.shape != b.shape:
        raise ValueError(f"`a` and `b` must have one shape. Received {a.shape} and {b.shape}.")
    return a, b


def _check_ssim_size(shape: tuple[int, ...]) -> None:
    window = 2 * _SSIM_RADIUS + 1
    if min(shape[-3:-1]) < window:
        raise ValueError(
            f"SSIM needs frames of at least {window} x {window} pixels, the size of its window. Received "
            f"{shape[-3]} x {shape[-2]}."
        )


def psnr(a, b) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair of frames, in dB, for the range 0..255.

    Args:
        a: uint8 (..., H, W, 3).
        b: Frames of the same shape.

    Returns:
        float64 of the leading dimensions; infinity for equal frames.

    Raises:
        ValueError: If the arrays are not uint8, not RGB, or differ in shape.
    """
    a, b = _check_pair(a, b)
    difference = a.astype(np.float32) - b.astype(np.float32)
    error = np.mean(np.square(difference), axis=(-3, -2, -1), dtype=np.float64)
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(255.0**2 / error)


def _window_mean(maps: np.ndarray) -> np.ndarray:
    """Gaussian mean of (F, H, W, 3) over the windows that lie inside the frame."""
    inside = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    taps = np.exp(-0.5 * (np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1) / _SSIM_SIGMA) ** 2)
    taps /= taps.sum()
    rows = ndimage.correlate1d(maps, taps, axis=1)[:, inside]
    return ndimage.correlate1d(rows, taps, axis=2)[:, :, inside]


def _ssim_per_channel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of float64 frames in [0, 1]; (F, H, W, 3) against (F or 1, H, W, 3) -> (F, 3)."""
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a**2
    variance_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _SSIM_C1) / (mean_a**2 + mean_b**2 + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variance_a + variance_b + _SSIM_C2)
    return np.mean(luminance * structure, axis=(1, 2))


def ssim(a, b) -> np.ndarray:
    """Return the structural similarity of each pair of frames.

    Values are scaled to [0, 1]; Gaussian window of 11x11 pixels with sigma 1.5, windows inside the frame only,
    population covariance, each of R, G, B by itself and then the mean. These are the numbers of `tf.image.ssim` with
    `max_val=1.0`.

    Args:
        a: uint8 (..., H, W, 3), H and W at least 11.
        b: Frames of the same shape.

    Returns:
        float64 of the leading dimensions, at most 1.

    Raises:
        ValueError: If the arrays are not uint8, not RGB, too small, or differ in shape.

    Source: Wang et al., IEEE Trans. Image Processing 2004.
    """
    a, b = _check_pair(a, b)
    _check_ssim_size(a.shape)
    leading, frame_shape = a.shape[:-3], a.shape[-3:]
    a, b = a.reshape((-1, *frame_shape)), b.reshape((-1, *frame_shape))
    values = np.empty(len(a))
    chunk = max(1, _PIXELS_PER_CHUNK // (frame_shape[0] * frame_shape[1]))
    for start in range(0, len(a), chunk):
        part = slice(start, start + chunk)
        values[part] = _ssim_per_channel(a[part] / 255.0, b[part] / 255.0).mean(axis=-1)
    return values.reshape(leading)


def frame_consistency_score(videos, include_first: bool = False) -> np.ndarray:
    """Return the frame consistency (FCS) of each video: the mean SSIM of its frames with its first frame.

    A frozen video scores 1, above every real one, so compare the score with that of real videos. The paper does not say
    whether the first frame itself, whose SSIM is 1, is among the averaged ones; by default it is not.

    Args:
        videos: uint8 (N, T, H, W, 3), T at least 2, H and W at least 11.
        include_first: Average the first frame too: (1 + (T - 1) * score) / T.

    Returns:
        float64 (N,). The score of a set of videos is the mean.

    Raises:
        ValueError: If the videos are not uint8 (N, T, H, W, 3), are too small, or have a single frame.

    Source: Aich et al., CVPR 2020, Sec. 4.2, https://arxiv.org/abs/2003.09565
    """
    videos = _check_frames("videos", videos, num_axes=5)
    _check_ssim_size(videos.shape)
    num_frames = videos.shape[1]
    if num_frames < 2:
        raise ValueError(f"Frame consistency needs at least 2 frames per video. Received {num_frames}.")
    scores = np.empty(len(videos))
    for index, video in enumerate(videos):
        frames = video / 255.0
        scores[index] = _ssim_per_channel(frames[1:], frames[:1]).mean()
    if include_first:
        scores = (1.0 + (num_frames - 1) * scores) / num_frames
    return scores
