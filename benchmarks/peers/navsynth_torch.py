"""NAVSynth in eager PyTorch: the same network, losses and updates, written the way a PyTorch user would.

Where two plain ways exist the faster one on a CPU is taken: codes are gathered rows with lazy Adam (`SparseAdam`), the
networks' Adam is the fused one, the pyramid is built once of the difference of real and generated frames, and the first
transposed convolution, on a 1x1 input, is a linear layer. The pyramid exists twice: by depthwise convolutions, as such
code usually has it, and by matrix products, as we have it, so that a comparison can tell the framework from the idea.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.common_torch import FrameGenerator, array, autocast, put, put_frame_generator, put_gru, put_norm

_TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
_NUM_LEVELS = 4


class MotionRNN(nn.Module):
    """(B, T, transient_dim) -> (B, T, motion_dim)."""

    def __init__(self, transient_dim: int = 200, units: int = 500, motion_dim: int = 200):
        super().__init__()
        self.gru = nn.GRU(transient_dim, units, batch_first=True)
        self.output = nn.Linear(units, motion_dim)

    def forward(self, transient: torch.Tensor) -> torch.Tensor:
        return self.output(self.gru(transient)[0])


def laplacian_loss(generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) twice -> (N,): the sum over pyramid levels of mean absolute differences, by depthwise convolutions."""
    image = (generated - real).contiguous()
    channels = image.shape[1]
    blur = torch.outer(_TAPS, _TAPS).expand(channels, 1, 4, 4).contiguous()
    loss = 0.0
    for _ in range(_NUM_LEVELS):
        reduced = functional.conv2d(functional.pad(image, (1, 1, 1, 1), "replicate"), blur, stride=2, groups=channels)
        expanded = functional.interpolate(reduced, scale_factor=2, mode="bilinear", align_corners=False)
        loss = loss + (image - expanded).abs().mean((1, 2, 3))
        image = reduced
    return loss + image.abs().mean((1, 2, 3))


@functools.cache
def _reduce_matrix(size: int) -> torch.Tensor:
    """Blur and decimation of one axis, (size / 2, size)."""
    matrix = torch.zeros(size // 2, size + 2)
    for row in range(len(matrix)):
        matrix[row, 2 * row : 2 * row + 4] = _TAPS
    matrix[:, 1] += matrix[:, 0]  # the outermost pixel stands for the one outside
    matrix[:, -2] += matrix[:, -1]
    return matrix[:, 1:-1].contiguous()


def matrix_laplacian_loss(generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The same numbers as `laplacian_loss`, by products with banded matrices."""
    image = (generated - real).contiguous()
    loss = 0.0
    for _ in range(_NUM_LEVELS):
        matrix = _reduce_matrix(image.shape[-1])
        reduced = matrix @ image @ matrix.T
        loss = loss + (image - 4.0 * matrix.T @ reduced @ matrix).abs().mean((1, 2, 3))
        image = reduced
    return loss + image.abs().mean((1, 2, 3))


LOSSES = {"convolution": laplacian_loss, "matrix": matrix_laplacian_loss}


def triplet_loss(codes: torch.Tensor, positive_radius: int = 2, negative_radius: int = 5, margin: float = 2.0):
    """(B, T, D) -> (): semi-hard triplets of near and far frames, squared distances."""
    gaps = (torch.arange(codes.shape[1])[:, None] - torch.arange(codes.shape[1])).abs()
    negative = gaps > negative_radius
    pair = (gaps > 0) & (gaps <= positive_radius) & negative.any(1, keepdim=True)
    distances = (codes[:, :, None] - codes[:, None]).square().sum(-1)
    farther = (distances[:, :, None, :] > distances[..., None]) & negative[:, None, :]
    nearest = distances[:, :, None, :].masked_fill(~farther, 1e30).amin(-1)
    farthest = distances.masked_fill(~negative, -1e30).amax(-1, keepdim=True)
    hinge = functional.relu(distances - torch.where(farther.any(-1), nearest, farthest) + margin)
    return (hinge * pair).sum((1, 2)).mean() / pair.sum()


class NAVSynth(nn.Module):
    """Codes, RNN and generator of `num_videos` videos, one static and `num_frames` transient codes each."""

    def __init__(
        self,
        num_videos: int,
        num_frames: int = 16,
        size: int = 64,
        static_dim: int = 56,
        transient_dim: int = 200,
        motion_dim: int = 200,
        rnn_units: int = 500,
        width: int = 64,
        norm: str = "none",
    ):
        super().__init__()
        self.num_frames, self.size = num_frames, size
        self.static = nn.Embedding(num_videos, static_dim, sparse=True)
        self.transient = nn.Embedding(num_videos, num_frames * transient_dim, sparse=True)
        self.rnn = MotionRNN(transient_dim, rnn_units, motion_dim)
        self.generator = FrameGenerator(motion_dim + static_dim, size, width, norm)

    def set_layout(self, layout: str) -> None:
        """`channels_first` or `channels_last`; only the generator's weights have channels."""
        self.generator.set_layout(layout)

    def motion_codes(self, transient: torch.Tensor) -> torch.Tensor:
        return self.rnn(transient.view(len(transient), self.num_frames, -1))

    def decode_motion(self, static: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """-> (B * T, 3, H, W)."""
        code = torch.cat([static[:, None].expand(-1, self.num_frames, -1), motion], -1)
        return self.generator(code.flatten(0, 1))

    def forward(self, video_id: torch.Tensor) -> torch.Tensor:
        """Videos (B, T, 3, H, W) of trained codes."""
        motion = self.motion_codes(self.transient(video_id))
        return self.decode_motion(self.static(video_id), motion).unflatten(0, (-1, self.num_frames))


class Trainer:
    """The training step, joint or alternating, in float32 or under bfloat16 autocast; `pyramid` is a key of `LOSSES`."""

    def __init__(
        self,
        model: NAVSynth,
        update: str = "joint",
        precision: str = "float32",
        pyramid: str = "convolution",
        static_weight: float = 0.01,
    ):
        self.model, self.update, self.precision, self.static_weight = model, update, precision, static_weight
        self.frame_losses = LOSSES[pyramid]
        self.rnn = torch.optim.Adam(model.rnn.parameters(), 6.25e-5, fused=True)
        self.generator = torch.optim.Adam(model.generator.parameters(), 6.25e-5, fused=True)
        self.codes = torch.optim.SparseAdam([model.static.weight, model.transient.weight], 0.02)

    def objective(self, video_id, real, frame, with_triplet: bool) -> torch.Tensor:
        with torch.set_grad_enabled(with_triplet):  # the first of two alternating stages moves the generator alone
            motion, static = self.model.motion_codes(self.model.transient(video_id)), self.model.static(video_id)
        with autocast(self.precision):
            generated = self.model.decode_motion(static, motion)
        losses = self.frame_losses(generated, real).view(len(video_id), -1)
        total = losses.mean() + self.static_weight * losses.gather(1, frame[:, None]).mean()
        return total + 0.01 * triplet_loss(motion) if with_triplet else total

    def step(self, video: torch.Tensor, video_id: torch.Tensor) -> torch.Tensor:
        """One update of everything; `video` uint8 (B, T, H, W, 3)."""
        model = self.model
        real = video.flatten(0, 1).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1.0
        frame = torch.randint(0, model.num_frames, (len(video),))
        if self.update == "alternating":
            self.objective(video_id, real, frame, with_triplet=False).backward()
            self.generator.step()
            self.generator.zero_grad()
            model.generator.requires_grad_(False)
        loss = self.objective(video_id, real, frame, with_triplet=True)
        loss.backward()
        model.generator.requires_grad_(True)
        if self.update == "joint":
            self.generator.step()
            self.generator.zero_grad()
        self.rnn.step()
        self.codes.step()
        self.rnn.zero_grad()
        self.codes.zero_grad()
        self.project(video_id)
        return loss.detach()

    @torch.no_grad()
    def project(self, video_id: torch.Tensor) -> None:
        """Puts the codes that were used into the unit ball."""
        model = self.model
        for table, vectors in ((model.static.weight, 1), (model.transient.weight, model.num_frames)):
            rows = table[video_id].view(len(video_id), vectors, -1)
            table[video_id] = (rows / rows.norm(dim=-1, keepdim=True).clamp(min=1.0)).flatten(1)

    @torch.no_grad()
    def generate(self, video_id: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        with autocast(self.precision):
            motion = self.model.motion_codes(self.model.transient(video_id))
            video = self.model.decode_motion(self.model.static(video_id), motion)
        self.model.train()
        return video


@torch.no_grad()
def copy_weights(source, target: NAVSynth) -> None:
    """Copies the weights and codes of a `tfvidgen` NAVSynth into a torch one of the same sizes."""
    put(target.static.weight, array(source.static.rows))
    put(target.transient.weight, array(source.transient.rows).reshape(len(target.transient.weight), -1))
    put_gru(target.rnn.gru, source.rnn.gru.cell)
    put(target.rnn.output.weight, array(source.rnn.output_layer.kernel).T)
    put(target.rnn.output.bias, array(source.rnn.output_layer.bias))
    theirs, ours = source.generator, target.generator
    put_frame_generator(ours, theirs)
    for norm, layer in zip(ours.norms, theirs.norms, strict=True):
        if layer is not None:
            put_norm(norm, layer.norm)
