"""Perceptual distance: pixels and the feature maps of a fixed network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from keras import ops


class PerceptualLoss:
    """Weighted sum of the mean absolute differences of the pixels and of each feature map.

    Args:
        features: Maps float (N, H, W, 3) in [-1, 1] to a dict from names to (N, h, w, c), like `VGG16Features`.
        pixel_weight: Weight of the pixels.
        layer_weights: Weight of each feature map by name; unnamed maps have weight 0. None means 1 for each.

    Source: Bojanowski et al., ICML 2018, and Hoshen et al., CVPR 2019 (GLANN), https://arxiv.org/abs/1812.08985
    """

    def __init__(self, features: Callable, pixel_weight: float = 1.0, layer_weights: Mapping[str, float] | None = None):
        self.features = features
        self.pixel_weight = pixel_weight
        self.layer_weights = None if layer_weights is None else dict(layer_weights)

    def __call__(self, generated, real):
        """Loss of each pair of frames; no gradient flows into the real ones.

        Args:
            generated: (..., H, W, 3) with any leading dimensions, in [-1, 1]; H and W known.
            real: Frames of the same shape.

        Returns:
            float32 tensor of the leading dimensions.

        Raises:
            ValueError: If the shapes differ, or `layer_weights` names a map that `features` does not return.
        """
        generated = ops.cast(generated, "float32")
        real = ops.stop_gradient(ops.cast(real, "float32"))
        if len(generated.shape) < 3 or tuple(generated.shape[-3:]) != tuple(real.shape[-3:]):
            raise ValueError(
                "`generated` and `real` must have one shape (..., H, W, 3). Received "
                f"{tuple(generated.shape)} and {tuple(real.shape)}."
            )
        leading = ops.shape(generated)[:-3]
        generated = ops.reshape(generated, (-1, *generated.shape[-3:]))  # (N, H, W, 3)
        real = ops.reshape(real, (-1, *real.shape[-3:]))
        generated_maps, real_maps = self.features(generated), self.features(real)
        weights = dict.fromkeys(generated_maps, 1.0) if self.layer_weights is None else self.layer_weights
        unknown = sorted(set(weights) - set(generated_maps))
        if unknown:
            raise ValueError(f"`layer_weights` names {unknown}, but the features are {sorted(generated_maps)}.")
        loss = self.pixel_weight * ops.mean(ops.abs(generated - real), axis=(1, 2, 3))
        for name, weight in weights.items():
            target = ops.stop_gradient(ops.cast(real_maps[name], "float32"))
            difference = ops.cast(generated_maps[name], "float32") - target
            loss += weight * ops.mean(ops.abs(difference), axis=(1, 2, 3))
        return ops.reshape(loss, leading)
