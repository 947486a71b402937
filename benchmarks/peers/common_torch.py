"""What the systems in eager PyTorch share: the DCGAN generator, autocast, and weights of `tfvidgen` layers as PyTorch has them."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class FrameGenerator(nn.Module):
    """DCGAN generator: (N, code_dim) -> (N, 3, size, size) in [-1, 1]."""

    def __init__(self, code_dim: int, size: int, width: int, norm: str):
        super().__init__()
        stages = size.bit_length() - 3
        self.channels = [width * 2 ** min(i, 3) for i in reversed(range(stages))]
        # on a 1x1 input a transposed convolution is a linear layer
        self.project = nn.Linear(code_dim, self.channels[0] * 16, bias=False)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False)
            for c_in, c_out in zip(self.channels, [*self.channels[1:], 3], strict=True)
        )
        # an in-place ReLU saves a pass over memory; batch norm does not need its output for its gradient
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) if norm == "batch" else nn.Identity() for c in self.channels)
        self.memory_format = torch.contiguous_format

    def set_layout(self, layout: str) -> None:
        """`channels_first` or `channels_last` for weights and activations."""
        memory_format = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
        if memory_format != self.memory_format:
            self.memory_format = memory_format
            self.to(memory_format=memory_format)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        x = self.project(code).view(-1, self.channels[0], 4, 4).contiguous(memory_format=self.memory_format)
        for norm, up in zip(self.norms, self.ups, strict=True):
            x = up(functional.relu(norm(x), inplace=True))
        return torch.tanh(x.float())


def autocast(precision: str) -> contextlib.AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- weights
def array(variable) -> np.ndarray:
    return np.asarray(variable.value)


def put(parameter: torch.Tensor, value: np.ndarray) -> None:
    value = np.ascontiguousarray(value, np.float32)
    if parameter.shape != value.shape:
        raise ValueError(f"The models differ: a weight is {tuple(parameter.shape)} here and {value.shape} there.")
    parameter.copy_(torch.from_numpy(value))


def put_kernel(parameter: torch.Tensor, layer) -> None:
    """Of a convolution, (taps, in, out) -> (out, in, taps), or of a transposed one, (taps, out, in) -> (in, out, taps)."""
    put(parameter, np.moveaxis(array(layer.kernel), (-1, -2), (0, 1)))


def put_norm(norm: nn.Module, layer) -> None:
    put(norm.weight, array(layer.gamma))
    put(norm.bias, array(layer.beta))
    put(norm.running_mean, array(layer.moving_mean))
    put(norm.running_var, array(layer.moving_variance))


def put_gru(gru: nn.GRU, cell) -> None:
    def gates(value: np.ndarray) -> np.ndarray:
        """(..., [update, reset, candidate]) -> ([reset, update, candidate], ...)."""
        update, reset, candidate = np.split(value, 3, axis=-1)
        return np.concatenate([reset, update, candidate], axis=-1).T

    put(gru.weight_ih_l0, gates(array(cell.kernel)))
    put(gru.weight_hh_l0, gates(array(cell.recurrent_kernel)))
    put(gru.bias_ih_l0, gates(array(cell.bias)[0]))
    put(gru.bias_hh_l0, gates(array(cell.bias)[1]))


def put_frame_generator(ours: FrameGenerator, theirs) -> None:
    """All but batch norm, whose layers differ between systems."""
    kernel = array(theirs.project.kernel)
    kernel = kernel.reshape(len(kernel), 4, 4, -1).transpose(3, 1, 2, 0)
    put(ours.project.weight, kernel.reshape(-1, kernel.shape[-1]))
    for up, layer in zip(ours.ups, [*theirs.ups, theirs.to_rgb], strict=True):
        put_kernel(up.weight, layer)
