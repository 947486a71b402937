"""Per-frame reconstruction losses between generated and real frames."""

from __future__ import annotations

from keras import ops

from tfvidgen.losses.laplacian import laplacian_pyramid_loss

RECONSTRUCTION_KINDS = ("laplacian", "l1", "l2")


def _difference(generated, real):
    difference = ops.cast(generated, "float32") - ops.cast(real, "float32")
    if len(difference.shape) < 3:
        raise ValueError(f"Frames must have shape (..., H, W, C). Received shape {tuple(difference.shape)}.")
    return difference


def l1_loss(generated, real):
    """Mean absolute error of each pair of frames.

    Args:
        generated: (..., H, W, C), any range.
        real: Frames of the same shape.

    Returns:
        float32 tensor of the leading dimensions.

    Raises:
        ValueError: If the frames have fewer than three axes.
    """
    return ops.mean(ops.abs(_difference(generated, real)), axis=(-3, -2, -1))


def l2_loss(generated, real):
    """Mean squared error of each pair of frames.

    Args:
        generated: (..., H, W, C), any range.
        real: Frames of the same shape.

    Returns:
        float32 tensor of the leading dimensions.

    Raises:
        ValueError: If the frames have fewer than three axes.
    """
    return ops.mean(ops.square(_difference(generated, real)), axis=(-3, -2, -1))


def per_frame_loss(kind: str, generated, real, num_levels: int = 4, pyramid: str = "binomial"):
    """The reconstruction loss named `kind` of each pair of frames.

    Args:
        kind: "laplacian", "l1" or "l2".
        generated: (..., H, W, C), any range.
        real: Frames of the same shape.
        num_levels: Band-pass levels of the Laplacian pyramid; ignored by the other kinds, as is `pyramid`.
        pyramid: One of `tfvidgen.losses.laplacian.PYRAMIDS`.

    Returns:
        float32 tensor of the leading dimensions.

    Raises:
        ValueError: If `kind` is unknown, or the frames have an unsuitable shape.
    """
    if kind == "laplacian":
        return laplacian_pyramid_loss(generated, real, num_levels=num_levels, pyramid=pyramid)
    if kind == "l1":
        return l1_loss(generated, real)
    if kind == "l2":
        return l2_loss(generated, real)
    raise ValueError(f"`kind` must be one of {', '.join(RECONSTRUCTION_KINDS)}. Received {kind!r}.")
