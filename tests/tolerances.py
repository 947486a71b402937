"""How far two ways to compute one number may lie apart: from the type and the number of terms, not from one machine.

Kernels of AVX2 and of AVX-512 processors, of a batch of one and of eight, add the same products in another order, or in
bfloat16 keep their partial sums in another precision. Where neither can change, results are compared bit by bit; where
they can, by what stands here.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tfvidgen.models.base import VideoGenerator


def rounding(dtype: str, terms: int, scale=1.0) -> float:
    """Largest difference between two sums of the same `terms` products that is nothing but rounding.

    Each addition rounds a partial sum, so it is off by at most eps / 2 of it, evenly spread: a deviation of
    eps * scale / sqrt(12). `terms` such errors add up as a random walk, those of the other sum too, and the largest of
    many thousand differences lies at five deviations: 5 * sqrt(2 / 12) = 2.04. One product more or less changes a sum of
    random signs by about scale / sqrt(terms), so in float32 it shows up to a million terms. In bfloat16 (eps = 1 / 128)
    a tap that is wrong for all channels shows, a single product need not.

    Args:
        dtype: Of the sum: what its partial results are kept in on the least exact processor.
        terms: Products that are added up; of layers in a row, those of all layers together.
        scale: Largest magnitude of the sums, a number or an array whose largest magnitude is taken.
    """
    largest = float(np.max(np.abs(np.asarray(scale, np.float64))))
    return 2.0 * float(ml_dtypes.finfo(dtype).eps) * np.sqrt(terms) * largest


def assert_same_sums(value, expected, terms: int, dtype: str = "float32", scale=None) -> None:
    """Compares what two ways computed: equal but for rounding. `scale` is the largest magnitude of `expected` by default."""
    value, expected = (np.asarray(x.numpy() if hasattr(x, "numpy") else x, np.float64) for x in (value, expected))
    tolerance = rounding(dtype, terms, expected if scale is None else scale)
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance)


def of_video(model: VideoGenerator) -> float:
    """The same for float32 frames in [-1, 1]: no pixel has more terms than the model has weights."""
    return rounding("float32", model.count_params())
