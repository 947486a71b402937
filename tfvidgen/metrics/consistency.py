"""Motion and frame consistency of NAVSynth (MCS, FCS).

The paper leaves several choices open. Here MCS uses feature maps as given, flattened (the paper's are VGG16 relu3_3 at the
frames' own size), and is reported in four variants: signed and absolute differences, each with log10(x) and log10(1 + x).

    real, generated = FrameDifferences(), FrameDifferences()
    for features in real_batches:                   # (n, T, ...) feature maps of the frames of n videos
        real.update(features)
    ...
    motion_consistency(real, generated).signed.mcs

Source: Aich et al., CVPR 2020, Sec. 4.2, https://arxiv.org/abs/2003.09565. There is no public code for these scores.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfvidgen.metrics.image import check_frames, check_ssim_size, ssim_with_first


@dataclasses.dataclass(frozen=True)
class MCS:
    """A motion consistency score; lower is better.

    Attributes:
        squared_distance: |f - f^|^2 between the mean differences of the two sets.
        mcs: log10 of the squared distance; minus infinity if it is 0.
        mcs1: log10(1 + squared distance), bounded by 0 as in the paper's table. Above 2.6 the two agree to 0.0011.
    """

    squared_distance: float
    mcs: float
    mcs1: float


@dataclasses.dataclass(frozen=True)
class MotionConsistency:
    """MCS from signed differences, as in the paper, and from absolute ones.

    Signed differences telescope: their mean over a video is (last - first) / (T - 1), so only the first and last frames
    count, and a motion that returns to its start scores like no motion. Absolute differences capture every frame.
    """

    signed: MCS
    absolute: MCS


@dataclasses.dataclass(frozen=True)
class FrameConsistency:
    """FCS of generated videos, with that of real ones for reference.

    Attributes:
        generated: Mean SSIM of frames 2..T with frame 1, averaged over videos.
        real: The same for the real set. A frozen video scores 1, above every real one, so compare with this.
        difference: |generated - real|, for ranking models.
        generated_with_first: As `generated`, including the first frame, whose SSIM is 1.
        real_with_first: The same for the real set.
    """

    generated: float
    real: float
    difference: float
    generated_with_first: float
    real_with_first: float


class FrameDifferences:
    """Mean signed and absolute feature difference of consecutive frames, accumulated in float64 over batches.

    The mean is over all consecutive pairs of all videos. The split into batches or parts does not matter, up to rounding.

    Attributes:
        count: Pairs of frames seen so far.
        num_videos: Videos seen so far.
    """

    def __init__(self):
        self.count = 0
        self.num_videos = 0
        self._signed = self._absolute = None

    def update(self, features) -> None:
        """Adds the features of a batch of videos.

        Args:
            features: Finite values (n, T, ...), T at least 2; maps are flattened.

        Raises:
            ValueError: If they are not, or their width differs from earlier batches.
        """
        features = np.asarray(features)
        if features.ndim < 3 or features.shape[1] < 2 or 0 in features.shape or features.dtype.kind not in "fiub":
            raise ValueError(
                "`features` must be numbers (n, T, ...) with at least 2 frames per video. Received shape "
                f"{features.shape}, dtype {features.dtype}."
            )
        if not np.isfinite(features).all():
            raise ValueError(
                f"`features` must be finite. {np.count_nonzero(~np.isfinite(features).all(axis=tuple(range(1, features.ndim))))} "
                f"of {len(features)} videos hold NaN or infinity."
            )
        width = math.prod(features.shape[2:])
        if self._signed is None:
            self._signed, self._absolute = np.zeros(width), np.zeros(width)
        if width != len(self._signed):
            raise ValueError(
                f"Features must have width {len(self._signed)}, like those before. Received {width}: all frames must have one size."
            )
        for video in features.reshape(*features.shape[:2], width):
            video = video.astype(np.float64)
            self._signed += video[-1] - video[0]
            self._absolute += np.abs(np.diff(video, axis=0)).sum(axis=0)
        self.count += features.shape[0] * (features.shape[1] - 1)
        self.num_videos += len(features)

    def merge(self, *others: FrameDifferences) -> FrameDifferences:
        """Return the combined differences of this part and others; no part is modified.

        Raises:
            ValueError: If the widths differ.
        """
        total = FrameDifferences()
        for part in (self, *others):
            if not part.count:
                continue
            if total.count and len(total._signed) != len(part._signed):
                raise ValueError(
                    f"Parts must have features of the same width. Received {len(total._signed)} and {len(part._signed)}."
                )
            total._signed = part._signed + (total._signed if total.count else 0)
            total._absolute = part._absolute + (total._absolute if total.count else 0)
            total.count += part.count
            total.num_videos += part.num_videos
        return total

    @property
    def signed(self) -> np.ndarray:
        """Mean signed difference, float64 (D,)."""
        return self._mean(self._signed)

    @property
    def absolute(self) -> np.ndarray:
        """Mean absolute difference, float64 (D,)."""
        return self._mean(self._absolute)

    def _mean(self, total) -> np.ndarray:
        if not self.count:
            raise ValueError("Motion consistency needs at least one video. Received none.")
        return total / self.count


def motion_consistency(real, generated) -> MotionConsistency:
    """Return the motion consistency scores of a generated set.

    Args:
        real: `FrameDifferences`, or features (N, T, ...) of all frames.
        generated: The same for the generated set. Sets may differ in size and in frames per video.

    Raises:
        ValueError: If features are not finite, have only one frame, or differ in width.
    """
    real, generated = _differences(real), _differences(generated)
    if len(real.signed) != len(generated.signed):
        raise ValueError(
            f"`real` and `generated` must have the same width. Received {len(real.signed)} and {len(generated.signed)}: both sets "
            "must have frames of one size and features of one layer."
        )
    return MotionConsistency(_mcs(real.signed, generated.signed), _mcs(real.absolute, generated.absolute))


def frame_consistency_score(videos, include_first: bool = False) -> np.ndarray:
    """Return the frame consistency (FCS) of each video: the mean SSIM of its frames with its first frame.

    A frozen video scores 1, above every real one, so compare with the score of real videos. The paper does not say
    whether the average includes the first frame itself, whose SSIM is 1; by default it does not.

    Args:
        videos: uint8 (N, T, H, W, 3), T at least 2, H and W at least 11.
        include_first: Include the first frame in the average: (1 + (T - 1) * score) / T.

    Returns:
        float64 (N,). The score of a set of videos is the mean.

    Raises:
        ValueError: If the videos are not uint8 (N, T, H, W, 3), are too small, or have only one frame.
    """
    videos = check_frames("videos", videos, num_axes=5)
    check_ssim_size(videos.shape)
    num_frames = videos.shape[1]
    if num_frames < 2:
        raise ValueError(f"Frame consistency needs at least 2 frames per video. Received {num_frames}.")
    scores = np.array([ssim_with_first(video).mean() for video in videos])
    return _with_first(scores, num_frames) if include_first else scores


def frame_consistency(real, generated) -> FrameConsistency:
    """Return FCS of a generated set, with the real set's value for reference.

    Args:
        real: uint8 (N, T, H, W, 3).
        generated: uint8 (M, T', H, W, 3), of the same frame size.

    Raises:
        ValueError: As `frame_consistency_score`, for either set, or if there are no videos.
    """
    for name, videos in (("real", real), ("generated", generated)):
        if not len(videos):
            raise ValueError(f"`{name}` must hold at least one video. Received none.")
    scores = [float(frame_consistency_score(videos).mean()) for videos in (real, generated)]
    with_first = [float(_with_first(s, np.shape(v)[1])) for s, v in zip(scores, (real, generated), strict=True)]
    return FrameConsistency(scores[1], scores[0], abs(scores[1] - scores[0]), with_first[1], with_first[0])


def _with_first(score, num_frames: int):
    return (1.0 + (num_frames - 1) * score) / num_frames


def _differences(features) -> FrameDifferences:
    if isinstance(features, FrameDifferences):
        return features
    differences = FrameDifferences()
    differences.update(features)
    return differences


def _mcs(real: np.ndarray, generated: np.ndarray) -> MCS:
    squared = float(np.sum((real - generated) ** 2))
    return MCS(squared, math.log10(squared) if squared else -math.inf, math.log10(1 + squared))
