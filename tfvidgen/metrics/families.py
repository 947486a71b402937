"""The table of metric families: what each needs from every clip, and the function that measures it.

A family is a metric without its numbers of clips and frames, which `protocols` adds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from tfvidgen.metrics import disentanglement, inception, measures, s3
from tfvidgen.metrics.image import SSIM_WINDOW
from tfvidgen.metrics.measures import Measured, Outcome
from tfvidgen.metrics.sampling import Clips


@dataclasses.dataclass(frozen=True)
class Family:
    """A metric without numbers of clips and frames.

    Attributes:
        help: One-line description.
        measure: Computes the metric.
        networks: Supported feature networks, the default first; empty for none.
        outputs: Outputs needed from its network, or job names if it has none.
        variants: Allowed name suffixes.
        ranks: Whether models can be ranked by it.
        searches_all: Whether it searches all available real clips rather than as many as generated ones.
        num_runs: Independent runs of the generator, each with the named number of clips.
        default_clips: Clips if the name gives no number; None for as many as there are real clips, at most 2048.
        default_frames: Frames if the name gives none; None for the generator's own length.
        min_clips, min_frames, min_pixels: Fewest clips of a side and frames of a clip, smallest height and width of a frame.
        needs_labels: Whether it needs the class of every clip, on both sides.
        check: Raises ValueError if it cannot be computed on (generated clips, real clips), without reading them.
    """

    help: str
    measure: Callable[[Measured], Outcome]
    networks: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("features",)
    variants: tuple[str, ...] = ()
    ranks: bool = True
    searches_all: bool = False
    num_runs: int = 1
    default_clips: int | None = None
    default_frames: int | None = None
    min_clips: int = 2
    min_frames: int = 1
    min_pixels: int = 1
    needs_labels: bool = False
    check: Callable[[Clips, Clips], None] = lambda generated, real: None


_FEATURES = ("i3d", "judge")
_C3D = {"tgan": "c3d_tgan", "tganv2": "c3d_tgan2", "styleganv": "c3d_tgan2", "magvit": "c3d_tgan2"}
_VARIANT = {"styleganv": "stylegan-v"}
_RESIZES = ("halfpixel",)

FAMILIES: dict[str, Family] = {
    "fvd": Family(
        "Frechet video distance on I3D's 400 logits",
        measures.frechet,
        _FEATURES,
        variants=(*_RESIZES, "covn"),
        default_frames=16,
    ),
    "fvdinf": Family(
        "FVD extrapolated to infinitely many clips, by a line through subsets",
        measures.frechet_infinity,
        _FEATURES,
        variants=(*_RESIZES, "covn"),
        default_frames=16,
    ),
    "kvd": Family(
        "kernel video distance on the same features, unbiased",
        measures.kernel_distance,
        _FEATURES,
        variants=_RESIZES,
        default_frames=16,
    ),
    "vfid": Family(
        "video FID on 3-D ResNeXt-101 (G3AN)", measures.frechet, ("resnext101",), variants=("covn",), default_frames=16
    ),
    "vfid_r3d18": Family(
        "video FID on 3-D ResNet-18", measures.frechet, ("r3d18",), variants=("covn",), default_frames=16
    ),
    "vfid_r3d50": Family(
        "video FID on 3-D ResNet-50", measures.frechet, ("r3d50",), variants=("covn",), default_frames=16
    ),
    **{
        f"is_c3d_{name}": Family(
            f"Inception Score on C3D as {inception.INCEPTION_VARIANTS[_VARIANT.get(name, name)].source} computes it",
            functools.partial(measures.inception_score, _VARIANT.get(name, name)),
            (network,),
            ("logits",),
            num_runs=inception.INCEPTION_VARIANTS[_VARIANT.get(name, name)].num_runs,
            default_clips=inception.INCEPTION_VARIANTS[_VARIANT.get(name, name)].num_samples,
            default_frames=16,
        )
        for name, network in _C3D.items()
    },
    "is": Family(
        "Inception Score of a judge", functools.partial(measures.inception_score, ""), ("judge",), ("logits",)
    ),
    "accuracy": Family(
        "how often a judge sees the class that a clip was generated for, with H(y) and H(y|x)",
        disentanglement.measure_accuracy,
        ("judge",),
        ("logits",),
        needs_labels=True,
    ),
    "judge_swap": Family(
        "do codes hold what they should: judges' accuracies with motion kept and content resampled, and vice versa",
        disentanglement.measure_swap,
        outputs=(),
        ranks=False,
        check=disentanglement.require_training_videos,
    ),
    "prdc": Family(
        "precision, recall, density and coverage",
        measures.coverage,
        ("i3d", "judge", "pixels"),
        variants=_RESIZES,
        min_clips=measures.NEIGHBOURS + 1,
    ),
    "nearest": Family(
        "nearest real clips, with a sheet, and the data-copying test",
        measures.nearest,
        ("i3d", "judge", "pixels"),
        variants=_RESIZES,
        ranks=False,
        searches_all=True,
    ),
    "mcs": Family(
        "motion consistency (NAVSynth) on VGG16 relu3_3",
        measures.motion_consistency,
        outputs=("differences",),
        min_frames=2,
    ),
    "fcs": Family(
        "frame consistency (NAVSynth): SSIM with the first frame",
        measures.frame_consistency,
        outputs=("fcs",),
        min_frames=2,
        min_pixels=SSIM_WINDOW,
    ),
    "acd": Family(
        "average content distance (MoCoGAN) of mean colours", measures.content_distance, outputs=("acd",), min_frames=2
    ),
    "motion": Family(
        "motion energy relative to that of real clips", measures.motion_energy, outputs=("motion",), min_frames=2
    ),
    "duplicates": Family("share of clips that are exact copies of another", measures.duplicates, outputs=("sha256",)),
    "lpips": Family(
        "diversity: LPIPS of random pairs of clips", measures.lpips_diversity, outputs=("lpips",), ranks=False
    ),
    **{
        f"s3_{name}": Family(
            f"substitute score (MVT-GAN) with {words}",
            functools.partial(s3.measure_s3, network),
            outputs=(),
            needs_labels=True,
        )
        for name, network, words in (
            ("tsn", "tsn", "a 2-D TSN"),
            ("r3d18", "resnet18_3d", "3-D ResNet-18"),
            ("eco", "eco_lite", "ECO-lite"),
        )
    },
}
