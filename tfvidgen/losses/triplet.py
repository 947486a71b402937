"""Triplet losses: over the frames of a video, paired by temporal distance, and over labelled embeddings."""

from __future__ import annotations

import numpy as np
from keras import ops

# Replaces infinity in masks; finite, because the gradient of a masked infinity is NaN.
_FAR = 1e30


def _distances(codes, squared: bool):
    """(..., T, D) -> (..., T, T). By differences rather than inner products, which lose precision for close codes."""
    codes = ops.cast(codes, "float32")
    difference = ops.expand_dims(codes, -2) - ops.expand_dims(codes, -3)  # (..., T, T, D)
    distances = ops.sum(ops.square(difference), axis=-1)
    if squared:
        return distances
    # The square root has an infinite slope at zero; for equal codes both value and gradient are set to zero.
    positive = distances > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, distances, 1.0)), 0.0)


def _semi_hard_negatives(distances, is_negative):
    """For each (anchor, positive), the distance of the nearest negative beyond the positive, else of the farthest negative.

    Args:
        distances: (..., T, T).
        is_negative: bool, broadcast to (..., T, T).

    Returns:
        (..., anchor, positive); undefined for anchors without a negative.
    """
    to_negative = ops.expand_dims(distances, -2)  # (..., anchor, 1, negative)
    farther = ops.logical_and(to_negative > ops.expand_dims(distances, -1), ops.expand_dims(is_negative, -2))
    nearest_farther = ops.min(ops.where(farther, to_negative, _FAR), axis=-1)  # (..., anchor, positive)
    farthest = ops.max(ops.where(is_negative, distances, -_FAR), axis=-1, keepdims=True)  # (..., anchor, 1)
    return ops.where(ops.any(farther, axis=-1), nearest_farther, farthest)


def temporal_triplet_loss(
    codes,
    positive_radius: int = 2,
    negative_radius: int = 5,
    margin: float = 2.0,
    squared: bool = True,
    mining: str = "semi_hard",
):
    """Temporal triplet loss: pulls codes of nearby frames together and pushes those of distant frames apart.

    Each ordered pair of frames with 0 < |i - j| <= `positive_radius` is an anchor and a positive; frames k with
    |i - k| > `negative_radius` are the anchor's negatives. The loss of a triplet is max(d(i, j) - d(i, k) + margin, 0).

    Deviation: the paper uses one number for both the positive window and the margin; they are separate here. The official
    code uses plain distances (`squared=False`), the paper squared ones.

    Args:
        codes: (B, T, D), one code per frame; T must be static.
        positive_radius: Largest temporal distance of a positive, in frames; at least 1.
        negative_radius: Frames farther than this are negatives; at least `positive_radius`.
        margin: Minimum by which negatives should be farther than positives; in squared units if `squared`.
        squared: Use squared Euclidean distances.
        mining: "semi_hard": one negative per pair, the nearest beyond the positive, else the farthest. "all": the mean over
            every negative of every pair.

    Returns:
        float32 (B,): the mean over pairs (over triplets for "all") whose anchor has a negative.

    Raises:
        ValueError: If no frame has a negative (T <= `negative_radius` + 1), or an argument is out of range.

    Source: Aich et al., CVPR 2020, Sec. 3.2.1 and Eq. 6, https://arxiv.org/abs/2003.09565; mining as in the official code.
    """
    shape = tuple(codes.shape)
    if len(shape) != 3 or shape[1] is None:
        raise ValueError(f"`codes` must have shape (B, T, D) with T known. Received shape {shape}.")
    if not 1 <= positive_radius <= negative_radius:
        raise ValueError(
            "`positive_radius` must be at least 1 and not above `negative_radius`. Received "
            f"positive_radius={positive_radius}, negative_radius={negative_radius}."
        )
    if mining not in ("semi_hard", "all"):
        raise ValueError(f"`mining` must be 'semi_hard' or 'all'. Received {mining!r}.")
    num_frames = shape[1]
    if num_frames <= negative_radius + 1:
        raise ValueError(
            f"A video of {num_frames} frames has no two frames more than negative_radius={negative_radius} apart: use "
            f"at least {negative_radius + 2} frames, or a `negative_radius` of at most {num_frames - 2}."
        )
    gaps = np.abs(np.arange(num_frames)[:, None] - np.arange(num_frames))
    is_negative = gaps > negative_radius
    is_pair = (gaps > 0) & (gaps <= positive_radius) & is_negative.any(axis=1, keepdims=True)
    distances = _distances(codes, squared)  # (B, T, T)
    if mining == "semi_hard":
        hinge = ops.relu(distances - _semi_hard_negatives(distances, is_negative) + margin)
        return ops.sum(ops.where(is_pair, hinge, 0.0), axis=(1, 2)) / float(is_pair.sum())
    is_triplet = is_pair[:, :, None] & is_negative[:, None, :]  # (T, T, T): anchor, positive, negative
    hinge = ops.relu(ops.expand_dims(distances, 3) - ops.expand_dims(distances, 2) + margin)
    return ops.sum(ops.where(is_triplet, hinge, 0.0), axis=(1, 2, 3)) / float(is_triplet.sum())


def _label_masks(labels, embeddings):
    """Masks (N, N) of pairs of distinct examples with equal labels, and of pairs with different labels."""
    if len(embeddings.shape) != 2 or len(labels.shape) != 1:
        raise ValueError(
            "`labels` must have shape (N,) and `embeddings` (N, D). Received shapes "
            f"{tuple(labels.shape)} and {tuple(embeddings.shape)}."
        )
    labels = ops.convert_to_tensor(labels)
    same = ops.equal(ops.expand_dims(labels, 1), ops.expand_dims(labels, 0))
    index = ops.arange(ops.shape(embeddings)[0])
    other = ops.not_equal(ops.expand_dims(index, 1), ops.expand_dims(index, 0))
    return ops.logical_and(same, other), ops.logical_not(same)


def _masked_mean(values, mask):
    mask = ops.cast(mask, "float32")
    return ops.sum(values * mask) / ops.maximum(ops.sum(mask), 1.0)


def triplet_semihard_loss(labels, embeddings, margin: float = 1.0):
    """Triplet loss of labelled embeddings with semi-hard negatives.

    Distances are Euclidean, not squared. Embeddings are not normalised: do so beforehand if they should lie on the unit
    sphere. Numerically equal to `TripletSemiHardLoss` of tensorflow-addons.

    Args:
        labels: (N,) integers.
        embeddings: (N, D).
        margin: Minimum by which negatives should be farther than positives.

    Returns:
        float32 scalar: the mean over ordered pairs with equal labels whose anchor has a negative; 0 if there is none.

    Raises:
        ValueError: If the arguments have other ranks.

    Source: Schroff et al., CVPR 2015, Sec. 3.2, https://arxiv.org/abs/1503.03832
    """
    is_positive, is_negative = _label_masks(labels, embeddings)
    distances = _distances(embeddings, squared=False)
    is_pair = ops.logical_and(is_positive, ops.any(is_negative, axis=1, keepdims=True))
    hinge = ops.relu(distances - _semi_hard_negatives(distances, is_negative) + margin)
    return _masked_mean(ops.where(is_pair, hinge, 0.0), is_pair)


def triplet_hard_loss(labels, embeddings, margin: float = 1.0):
    """Batch-hard triplet loss of labelled embeddings: each anchor with its farthest positive and nearest negative.

    Distances are Euclidean, not squared, and embeddings are not normalised. Numerically equal to `TripletHardLoss` of
    tensorflow-addons.

    Args:
        labels: (N,) integers.
        embeddings: (N, D).
        margin: Minimum by which negatives should be farther than positives.

    Returns:
        float32 scalar: the mean over anchors that have a positive and a negative; 0 if there is none.

    Raises:
        ValueError: If the arguments have other ranks.

    Source: Hermans et al., 2017, Sec. 2, https://arxiv.org/abs/1703.07737
    """
    is_positive, is_negative = _label_masks(labels, embeddings)
    distances = _distances(embeddings, squared=False)
    farthest_positive = ops.max(ops.where(is_positive, distances, 0.0), axis=1)
    nearest_negative = ops.min(ops.where(is_negative, distances, _FAR), axis=1)
    is_anchor = ops.logical_and(ops.any(is_positive, axis=1), ops.any(is_negative, axis=1))
    hinge = ops.relu(farthest_positive - nearest_negative + margin)
    return _masked_mean(ops.where(is_anchor, hinge, 0.0), is_anchor)
