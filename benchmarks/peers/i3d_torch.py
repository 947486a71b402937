"""I3D in eager PyTorch: the network of the public ports, one module per layer, with batch norm in evaluation mode.

Written the way the ports are: padding as TensorFlow's "same" by `functional.pad`, convolution without bias, batch norm,
ReLU, blocks of four branches. `fuse` folds batch norm into the convolutions, which is what a user who cares for speed
would do; a comparison shows both.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.peers.common_torch import put

_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
# Where a branch's unit stands in the module, by its name in kinetics-i3d.
_BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
}


def pad_same(x: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """Zeros around (B, C, T, H, W) as TensorFlow's "same" padding has them: the odd one behind."""
    padding = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, strides, strict=True))):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return functional.pad(x, padding) if any(padding) else x


class Unit(nn.Module):
    def __init__(self, num_inputs: int, filters: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.kernel, self.strides = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(num_inputs, filters, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(filters, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.strides))), inplace=True)


def max_pool(x: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    # after a ReLU, zeros do as well as minus infinity
    return functional.max_pool3d(pad_same(x, kernel, strides), kernel, strides)


class Mixed(nn.Module):
    def __init__(self, num_inputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.b0 = Unit(num_inputs, widths[0])
        self.b1a, self.b1b = Unit(num_inputs, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(num_inputs, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(num_inputs, widths[5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class I3D(nn.Module):
    """(B, 3, T, 224, 224) in [-1, 1] -> (B, 400)."""

    def __init__(self, num_classes: int = 400):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (num_inputs, widths) in _MIXED.items():
            self.add_module(name, Mixed(num_inputs, widths))
        self.logits = nn.Conv3d(1024, num_classes, 1)
        self.memory_format = torch.contiguous_format

    def set_layout(self, layout: str) -> None:
        """`channels_first` or `channels_last` for weights and activations."""
        memory_format = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last_3d}[layout]
        if memory_format != self.memory_format:
            self.memory_format = memory_format
            self.to(memory_format=memory_format)

    def fuse(self) -> None:
        """Folds every batch norm into the convolution before it."""
        for module in self.modules():
            if isinstance(module, Unit) and isinstance(module.bn, nn.BatchNorm3d):
                module.conv3d, module.bn = fuse_conv_bn_eval(module.conv3d, module.bn), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv3d_1a_7x7(x.contiguous(memory_format=self.memory_format))
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "Mixed_4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, name)(x)
        return self.logits(functional.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))


@torch.no_grad()
def features(network: I3D, videos: torch.Tensor) -> np.ndarray:
    """uint8 (B, T, H, W, 3) -> float32 (B, 400): half-pixel bilinear resize of every frame, as the public ports do."""
    frames = videos.flatten(0, 1).permute(0, 3, 1, 2).float()
    frames = functional.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
    clips = (frames * (2.0 / 255.0) - 1.0).unflatten(0, videos.shape[:2]).transpose(1, 2)
    return network(clips).numpy()


@torch.no_grad()
def load_arrays(network: I3D, arrays: dict[str, np.ndarray]) -> None:
    """Takes over weights that have the names and layouts of `canonical_weights`."""
    for name, array in arrays.items():
        if array.ndim == 5:  # a kernel
            array = array.transpose(4, 3, 0, 1, 2)
        unit, _, part = name.rpartition("/")
        if unit.startswith("Logits"):
            put(network.logits.weight if part == "kernel" else network.logits.bias, array)
            continue
        block, _, branch = unit.partition("/")
        module = getattr(network, block)
        module = getattr(module, _BRANCHES[branch]) if branch else module
        target = {
            "kernel": module.conv3d.weight,
            "beta": module.bn.bias,
            "gamma": module.bn.weight,
            "mean": module.bn.running_mean,
            "variance": module.bn.running_var,
        }[part]
        put(target, array)
