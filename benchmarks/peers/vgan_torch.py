"""VGAN in eager PyTorch: the same networks, losses and updates, written the way a PyTorch user would.

Where two plain ways exist the faster one on a CPU is taken: Adam is the fused one, activations are in place where the
gradient allows it, the first transposed convolutions, on one voxel, and the discriminator's last convolution, over all that
is left of a clip, are linear layers, foreground and mask are one layer, and the generator's step asks for no gradients of
the discriminator's weights. As in ours, both networks learn from the same generated clips, and the generator's step asks the
discriminator afresh.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.common_torch import array, autocast, put, put_kernel, put_norm

_LEAK = 0.2


def _channels(width: int, stages: int) -> list[int]:
    return [width * 2 ** min(i, 3) for i in reversed(range(stages))]


class Stream(nn.Module):
    """Doubles a 4x4 map up to a picture (N, outputs, H, W) or a clip (N, outputs, T, H, W)."""

    def __init__(self, channels: list[int], outputs: int, clips: bool):
        super().__init__()
        up, norm = (nn.ConvTranspose3d, nn.BatchNorm3d) if clips else (nn.ConvTranspose2d, nn.BatchNorm2d)
        self.ups = nn.ModuleList(
            up(c_in, c_out, 4, 2, 1, bias=False) for c_in, c_out in zip(channels, channels[1:], strict=False)
        )
        self.norms = nn.ModuleList(norm(c) for c in channels[1:])
        self.head = up(channels[-1], outputs, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = functional.relu(norm(up(x)), inplace=True)
        return self.head(x).float()


class TwoStreamGenerator(nn.Module):
    """Codes (N, latent_dim) -> foreground (N, 3, T, H, W), mask (N, 1, T, H, W) and background (N, 3, 1, H, W)."""

    def __init__(self, size: int = 64, num_frames: int = 32, width: int = 64, latent_dim: int = 100):
        super().__init__()
        stages = size.bit_length() - 3
        channels = _channels(width, stages)
        self.shape = (channels[0], num_frames >> stages, 4, 4)
        self.background_start = nn.Linear(latent_dim, 16 * channels[0], bias=False)
        self.foreground_start = nn.Linear(latent_dim, 16 * self.shape[1] * channels[0], bias=False)
        self.background_norm, self.foreground_norm = nn.BatchNorm2d(channels[0]), nn.BatchNorm3d(channels[0])
        self.background, self.foreground = Stream(channels, 3, False), Stream(channels, 4, True)
        self.formats = (torch.contiguous_format, torch.contiguous_format)

    def forward(self, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        still = self.background_start(code).view(-1, self.shape[0], 4, 4).contiguous(memory_format=self.formats[0])
        moving = self.foreground_start(code).view(-1, *self.shape).contiguous(memory_format=self.formats[1])
        background = self.background(functional.relu(self.background_norm(still), inplace=True))
        outputs = self.foreground(functional.relu(self.foreground_norm(moving), inplace=True))
        return torch.tanh(outputs[:, :3]), torch.sigmoid(outputs[:, 3:]), torch.tanh(background)[:, :, None]


class VideoDiscriminator(nn.Module):
    """Clips (N, 3, T, H, W) -> logits (N,)."""

    def __init__(self, size: int = 64, num_frames: int = 32, width: int = 64):
        super().__init__()
        stages = size.bit_length() - 3
        channels = [3, *reversed(_channels(width, stages))]
        self.convolutions = nn.ModuleList(
            nn.Conv3d(c_in, c_out, 4, 2, 1, bias=i == 0)
            for i, (c_in, c_out) in enumerate(zip(channels, channels[1:], strict=False))
        )
        self.norms = nn.ModuleList([nn.Identity(), *(nn.BatchNorm3d(c, eps=1e-3) for c in channels[2:])])
        self.head = nn.Linear(channels[-1] * (num_frames >> stages) * 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.leaky_relu(norm(convolution(x)), _LEAK, inplace=True)
        return self.head(x.flatten(1)).float()[:, 0]


class VGAN(nn.Module):
    """Generator and discriminator."""

    def __init__(self, num_frames: int = 16, size: int = 64, width: int = 64, latent_dim: int = 100):
        super().__init__()
        self.latent_dim = latent_dim
        self.generator = TwoStreamGenerator(size, num_frames, width, latent_dim)
        self.discriminator = VideoDiscriminator(size, num_frames, width)

    def set_layout(self, layout: str) -> None:
        """`channels_first` or `channels_last`, for weights and activations."""
        last = layout == "channels_last"
        formats = (torch.channels_last, torch.channels_last_3d) if last else (torch.contiguous_format,) * 2
        if formats == self.generator.formats:
            return
        self.generator.formats = formats
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.ConvTranspose2d)):
                module.weight.data = module.weight.data.contiguous(memory_format=formats[module.weight.dim() - 4])

    def compose(self, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips (N, 3, T, H, W) of codes, and their masks."""
        foreground, mask, background = self.generator(code)
        return torch.lerp(background, foreground, mask), mask


class Trainer:
    """The training step, in float32 or under bfloat16 autocast."""

    def __init__(self, model: VGAN, precision: str = "float32", mask_weight: float = 0.1):
        self.model, self.precision, self.mask_weight = model, precision, mask_weight
        options = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
        self.generator = torch.optim.Adam(model.generator.parameters(), **options)
        self.discriminator = torch.optim.Adam(model.discriminator.parameters(), **options)

    def step(self, video: torch.Tensor, code: torch.Tensor | None = None) -> torch.Tensor:
        """One update of both networks; `video` uint8 (B, T, H, W, 3). `code` is drawn where it is not given."""
        model = self.model
        real = video.permute(0, 4, 1, 2, 3).float().contiguous(memory_format=model.generator.formats[1]) / 127.5 - 1.0
        if code is None:
            code = torch.randn(len(video), model.latent_dim)
        with autocast(self.precision):
            generated, mask = model.compose(code)
            real_logits, logits = model.discriminator(real), model.discriminator(generated.detach())
        loss = functional.softplus(-real_logits).mean() + functional.softplus(logits).mean()
        loss.backward()
        self.discriminator.step()
        self.discriminator.zero_grad()
        model.discriminator.requires_grad_(False)
        with autocast(self.precision):
            logits = model.discriminator(generated)
        loss = functional.softplus(-logits).mean()
        (loss + self.mask_weight * mask.mean()).backward()
        model.discriminator.requires_grad_(True)
        self.generator.step()
        self.generator.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def generate(self, code: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        with autocast(self.precision):
            video, _ = self.model.compose(code)
        self.model.train()
        return video


@torch.no_grad()
def copy_weights(source, target: VGAN) -> None:
    """Copies the weights of a `tfvidgen` VGAN into a torch one of the same sizes."""

    def channels_first(kernel: np.ndarray, frames: int, channels: int, axis: int) -> np.ndarray:
        """(..., T 4 4 C, ...) -> (..., C T 4 4, ...) on an axis."""
        voxels = np.moveaxis(kernel, axis, 0).reshape(frames, 4, 4, channels, -1).transpose(3, 0, 1, 2, 4)
        return np.moveaxis(voxels.reshape(frames * 16 * channels, -1), 0, axis)

    theirs, ours = source.generator, target.generator
    channels, frames = theirs.channels[0], theirs.first_frames
    put(ours.background_start.weight, channels_first(array(theirs.background_start.kernel), 1, channels, 1).T)
    put(ours.foreground_start.weight, channels_first(array(theirs.foreground_start.kernel), frames, channels, 1).T)
    put_norm(ours.background_norm, theirs.background_norm)
    put_norm(ours.foreground_norm, theirs.foreground_norm)
    for name in ("background", "foreground"):
        stream, layers = getattr(ours, name), getattr(theirs, name)
        for up, norm, layer, layer_norm in zip(stream.ups, stream.norms, layers.ups, layers.norms, strict=True):
            put_kernel(up.weight, layer)
            put_norm(norm, layer_norm)
        put_kernel(stream.head.weight, layers.head)
        put(stream.head.bias, array(layers.bias))
    theirs, ours = source.discriminator, target.discriminator
    for i, (convolution, down) in enumerate(zip(ours.convolutions, theirs.downs, strict=True)):
        put_kernel(convolution.weight, down)
        if i == 0:
            put(convolution.bias, array(down.bias))
        else:
            put_norm(ours.norms[i], theirs.norms[i - 1])
    channels = theirs.downs[-1].filters
    frames = theirs.feature_dim // (16 * channels)
    put(ours.head.weight, channels_first(array(theirs.head.kernel), frames, channels, 0).T)
    put(ours.head.bias, array(theirs.head.bias))
