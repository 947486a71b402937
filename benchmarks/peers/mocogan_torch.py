"""MoCoGAN in eager PyTorch: the same networks, losses and updates, written the way a PyTorch user would.

Where two plain ways exist the faster one on a CPU is taken: Adam is the fused one, activations are in place where the
gradient allows it, the first transposed convolution, on a 1x1 input, is a linear layer, and the generator's step asks for no
gradients of the discriminators' weights. As in ours, both discriminators judge the same generated clips, and the
generator's step draws afresh.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.common_torch import FrameGenerator, autocast, put_frame_generator, put_gru, put_kernel, put_norm

_LEAK = 0.2


class Discriminator(nn.Module):
    """Of frames (N, 3, H, W), or of clips (N, 3, T, H, W) with four taps in time and no padding there: one logit each."""

    def __init__(self, size: int = 64, width: int = 64, clips: bool = False):
        super().__init__()
        convolution, norm = (nn.Conv3d, nn.BatchNorm3d) if clips else (nn.Conv2d, nn.BatchNorm2d)
        stride, padding = ((1, 2, 2), (0, 1, 1)) if clips else (2, 1)
        channels = [3, *(width * 2 ** min(i, 3) for i in range(size.bit_length() - 3))]
        self.convolutions = nn.ModuleList(
            convolution(c_in, c_out, 4, stride, padding, bias=False)
            for c_in, c_out in zip(channels, channels[1:], strict=False)
        )
        self.norms = nn.ModuleList([nn.Identity(), *(norm(c) for c in channels[2:])])
        self.head = convolution(channels[-1], 1, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.leaky_relu(norm(convolution(x)), _LEAK, inplace=True)
        return self.head(x).float().flatten()


class MoCoGAN(nn.Module):
    """Generator, GRU and both discriminators."""

    def __init__(
        self,
        num_frames: int = 16,
        size: int = 64,
        content_dim: int = 50,
        motion_dim: int = 10,
        width: int = 64,
        discriminator_width: int = 64,
    ):
        super().__init__()
        self.num_frames, self.content_dim, self.motion_dim = num_frames, content_dim, motion_dim
        self.motion_gru = nn.GRU(motion_dim, motion_dim, batch_first=True)
        self.generator = FrameGenerator(content_dim + motion_dim, size, width, norm="batch")
        self.image_discriminator = Discriminator(size, discriminator_width)
        self.video_discriminator = Discriminator(size, discriminator_width, clips=True)

    def set_layout(self, layout: str) -> None:
        """`channels_first` or `channels_last` for weights and activations."""
        frames, clips = {
            "channels_first": (torch.contiguous_format, torch.contiguous_format),
            "channels_last": (torch.channels_last, torch.channels_last_3d),
        }[layout]
        if frames != self.generator.memory_format:
            self.generator.set_layout(layout)
            self.image_discriminator.to(memory_format=frames)
            self.video_discriminator.to(memory_format=clips)

    def draw(self, num_videos: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Content, h_0 and the noise of every frame."""
        return (
            torch.randn(num_videos, self.content_dim),
            torch.randn(num_videos, self.motion_dim),
            torch.randn(num_videos, self.num_frames, self.motion_dim),
        )

    def forward(self, content: torch.Tensor, initial: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """-> frames (B * T, 3, H, W), clip by clip."""
        motion, _ = self.motion_gru(noise, initial[None])
        code = torch.cat([content[:, None].expand(-1, noise.shape[1], -1), motion], -1)
        return self.generator(code.flatten(0, 1))


class Trainer:
    """The training step in float32 or under bfloat16 autocast."""

    def __init__(self, model: MoCoGAN, precision: str = "float32"):
        self.model, self.precision = model, precision
        adam = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
        self.generator_parameters = [*model.generator.parameters(), *model.motion_gru.parameters()]
        self.generator = torch.optim.Adam(self.generator_parameters, **adam)
        self.image_discriminator = torch.optim.Adam(model.image_discriminator.parameters(), **adam)
        self.video_discriminator = torch.optim.Adam(model.video_discriminator.parameters(), **adam)

    def generate(self, draw) -> tuple[torch.Tensor, torch.Tensor]:
        """-> frames (B, T, 3, H, W) and clips (B, 3, T, H, W), views of the same pixels."""
        with autocast(self.precision):
            frames = self.model(*draw)
        frames = frames.unflatten(0, (-1, self.model.num_frames))
        return frames, frames.transpose(1, 2)

    def improve(self, discriminator, optimizer, real, generated) -> torch.Tensor:
        with autocast(self.precision):
            real_logits, logits = discriminator(real), discriminator(generated)
        loss = functional.softplus(-real_logits).mean() + functional.softplus(logits).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def step(self, video: torch.Tensor, draws=None, positions=None) -> torch.Tensor:
        """One update of all three networks; `video` uint8 (B, T, H, W, 3). Returns the generator's loss.

        `draws`, the noise of the two generations, and `positions`, int (3, B), the frames that D_I sees of real clips and
        of both generations, are drawn unless they are given.
        """
        model, batch = self.model, torch.arange(len(video))
        first, second = draws or (model.draw(len(video)), model.draw(len(video)))
        if positions is None:
            positions = torch.randint(0, model.num_frames, (3, len(video)))
        real = (video.float() / 127.5 - 1.0).permute(0, 4, 1, 2, 3)  # (B, 3, T, H, W), channels last in memory
        if model.generator.memory_format == torch.contiguous_format:
            real = real.contiguous()
        with torch.no_grad():
            frames, clips = self.generate(first)
        self.improve(
            model.image_discriminator,
            self.image_discriminator,
            real.transpose(1, 2)[batch, positions[0]],
            frames[batch, positions[1]],
        )
        self.improve(model.video_discriminator, self.video_discriminator, real, clips)
        for network in (model.image_discriminator, model.video_discriminator):
            network.requires_grad_(False)
        frames, clips = self.generate(second)
        with autocast(self.precision):
            logits = model.image_discriminator(frames[batch, positions[2]]), model.video_discriminator(clips)
        loss = sum(functional.softplus(-x).mean() for x in logits)
        loss.backward()
        self.generator.step()
        self.generator.zero_grad()
        for network in (model.image_discriminator, model.video_discriminator):
            network.requires_grad_(True)
        return loss.detach()

    @torch.no_grad()
    def new_videos(self, num_videos: int) -> torch.Tensor:
        self.model.eval()
        frames, _ = self.generate(self.model.draw(num_videos))
        self.model.train()
        return frames


@torch.no_grad()
def copy_weights(source, target: MoCoGAN) -> None:
    """Copies the weights of a `tfvidgen` MoCoGAN with plain heads into a torch one of the same sizes."""
    put_gru(target.motion_gru, source.motion_gru.gru.cell)
    theirs, ours = source.generator, target.generator
    put_frame_generator(ours, theirs)
    for norm, layer in zip(ours.norms, theirs.norms, strict=True):
        put_norm(norm, layer)
    for name in ("image_discriminator", "video_discriminator"):
        theirs, ours = getattr(source, name), getattr(target, name)
        layers = zip([*ours.convolutions, ours.head], [*theirs.convolutions, theirs.head], strict=True)
        for convolution, layer in layers:
            put_kernel(convolution.weight, layer)
        for norm, layer in zip(ours.norms, theirs.norms, strict=True):
            if layer is not None:
                put_norm(norm, layer)
