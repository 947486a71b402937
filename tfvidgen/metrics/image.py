"""Frame similarity: PSNR, SSIM, and the frame consistency of a video.

All take uint8 RGB arrays and compute in float64.
"""

from __future__ import annotations

import numpy as np

# Wang et al., IEEE Trans. Image Processing 2004: 11x11 Gaussian window, K1 and K2.
_SSIM_RADIUS = 5
SSIM_WINDOW = 2 * _SSIM_RADIUS + 1  # pixels: the smallest height and width of a frame
_SSIM_SIGMA = 1.5
_SSIM_C1 = (0.01 * 255) ** 2
_SSIM_C2 = (0.03 * 255) ** 2
# Pixels processed at a time, so that their float64 maps fit in the CPU cache.
_PIXELS_PER_CHUNK = 2**14
_BLOCK = 18  # rows or columns per matrix product; fastest for 64 to 256 pixels


def check_frames(name: str, frames, num_axes: int | None = None) -> np.ndarray:
    """Return frames as an array. Raises ValueError unless uint8 (..., H, W, 3), with `num_axes` axes if given."""
    frames = np.asarray(frames)
    expected = {4: "(T, H, W, 3)", 5: "(N, T, H, W, 3)"}.get(num_axes, "(..., H, W, 3)")
    if frames.dtype != np.uint8:
        raise ValueError(
            f"`{name}` must be uint8 with values 0..255. Received dtype {frames.dtype}: for floats in [-1, 1] pass "
            "np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)."
        )
    if frames.ndim < 3 or frames.shape[-1] != 3 or (num_axes is not None and frames.ndim != num_axes):
        raise ValueError(f"`{name}` must have shape {expected}, RGB last. Received shape {frames.shape}.")
    return frames


def _check_pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = check_frames("a", a), check_frames("b", b)
    if a.shape != b.shape:
        raise ValueError(f"`a` and `b` must have the same shape. Received {a.shape} and {b.shape}.")
    return a, b


def check_ssim_size(shape: tuple[int, ...]) -> None:
    """Raise ValueError if frames (..., H, W, 3) are smaller than the window."""
    if min(shape[-3:-1]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs frames of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, the size of its window. Received "
            f"{shape[-3]} x {shape[-2]}."
        )


def psnr(a, b) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair of frames in dB, for the range 0..255.

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


def _band(size: int) -> np.ndarray:
    """(size, size + 10): row i is the Gaussian window starting at column i."""
    taps = np.exp(-0.5 * (np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1) / _SSIM_SIGMA) ** 2)
    taps /= taps.sum()
    band = np.zeros((size, size + 2 * _SSIM_RADIUS))
    for row in range(size):
        band[row, row : row + len(taps)] = taps
    return band


_BAND = _band(_BLOCK)


def _window_mean(maps: np.ndarray) -> np.ndarray:
    """Gaussian-weighted means of float64 (..., H, W) over valid windows: (..., H - 10, W - 10).

    Uses band matrix products over a few rows or columns at a time: six times as fast as shifted sums at 64 pixels.
    """
    margin = 2 * _SSIM_RADIUS
    height, width = maps.shape[-2] - margin, maps.shape[-1] - margin
    rows = np.empty((*maps.shape[:-1], width))
    for start in range(0, width, _BLOCK):
        size = min(_BLOCK, width - start)
        window = _BAND[:size, : size + margin].T
        np.matmul(maps[..., start : start + size + margin], window, out=rows[..., start : start + size])
    means = np.empty((*maps.shape[:-2], height, width))
    for start in range(0, height, _BLOCK):
        size = min(_BLOCK, height - start)
        window = _BAND[:size, : size + margin]
        np.matmul(window, rows[..., start : start + size + margin, :], out=means[..., start : start + size, :])
    return means


def _ssim_per_channel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of frames with values 0..255; (F or 1, H, W, 3) against (F, H, W, 3) -> (F, 3)."""
    # Sums and products of integers are exact in float64.
    a, b = (np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float64) for x in (a, b))
    maps = np.concatenate([a, b, a * a + b * b, a * b])  # only the sum of the variances is needed
    mean_a, mean_b, squares, product = np.split(_window_mean(maps), np.cumsum([len(a), len(b), len(b)]))
    means_product, means_squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    similar = (2 * means_product + _SSIM_C1) * (2 * (product - means_product) + _SSIM_C2)
    total = (means_squares + _SSIM_C1) * (squares - means_squares + _SSIM_C2)
    return np.mean(similar / total, axis=(2, 3))


def ssim(a, b) -> np.ndarray:
    """Return the structural similarity of each pair of frames.

    Values are scaled to [0, 1]; 11x11 Gaussian window with sigma 1.5, valid windows only, population covariance, computed
    per channel and averaged. Matches `tf.image.ssim` with `max_val=1.0`.

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
    check_ssim_size(a.shape)
    leading, frame_shape = a.shape[:-3], a.shape[-3:]
    a, b = a.reshape((-1, *frame_shape)), b.reshape((-1, *frame_shape))
    values = np.empty(len(a))
    step = _frames_per_chunk(frame_shape)
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        values[part] = _ssim_per_channel(a[part], b[part]).mean(axis=-1)
    return values.reshape(leading)


def ssim_with_first(video) -> np.ndarray:
    """Return the SSIM of frames 2..T with frame 1: uint8 (T, H, W, 3) -> float64 (T - 1,). Like `ssim`, but faster."""
    video = check_frames("video", video, num_axes=4)
    check_ssim_size(video.shape)
    step = _frames_per_chunk(video.shape[1:])
    parts = [_ssim_per_channel(video[:1], video[i : i + step]).mean(axis=-1) for i in range(1, len(video), step)]
    return np.concatenate([np.empty(0), *parts])


def _frames_per_chunk(frame_shape: tuple[int, ...]) -> int:
    return max(1, _PIXELS_PER_CHUNK // (frame_shape[0] * frame_shape[1]))
