"""The functions that an export serves, built only on the contract of `VideoGenerator`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

    from tfvidgen.models.base import VideoGenerator

JPEG_QUALITY = 95
MAX_LENGTHS = 8  # longest video per request, as a multiple of the trained length
MAX_STEPS = 64


@dataclasses.dataclass(frozen=True)
class Endpoints:
    """The result of `make`.

    Attributes:
        functions: Name -> `tf.function` with named inputs, all required, and a dict of outputs.
        ranges: Endpoint -> input -> smallest and largest allowed value, if bounded.
        owners: Endpoint -> input -> what its ids refer to: an `identity`, `action` or `video`, or `shared`.
        video_shape: (T, H, W, 3) of a video; T is the default length.
        free_length: Whether a request may choose the number of frames.
        max_num_frames, max_num_steps: Limits per request.
    """

    functions: dict[str, Callable]
    ranges: dict[str, dict[str, tuple[int, int]]]
    owners: dict[str, dict[str, str]]
    video_shape: tuple[int, int, int, int]
    free_length: bool
    max_num_frames: int
    max_num_steps: int

    def describe(self) -> dict[str, dict[str, Any]]:
        """Endpoint -> inputs and outputs with dtype, shape (None: any) and range, as plain Python values."""
        description = {}
        for name, function in self.functions.items():
            concrete = function.get_concrete_function()
            inputs = {
                spec.name: {
                    "dtype": spec.dtype.name,
                    "shape": spec.shape.as_list(),
                    **({"range": list(self.ranges[name][spec.name])} if spec.name in self.ranges.get(name, {}) else {}),
                    **({"of": self.owners[name][spec.name]} if spec.name in self.owners.get(name, {}) else {}),
                }
                for spec in function.input_signature
            }
            outputs = {
                key: {"dtype": value.dtype.name, "shape": value.shape.as_list()}
                for key, value in concrete.structured_outputs.items()
            }
            description[name] = {"inputs": inputs, "outputs": outputs}
        return description


def make(model: VideoGenerator, max_num_frames: int = 0, max_num_steps: int = MAX_STEPS) -> Endpoints:
    """Builds the endpoints of a built model.

    All videos are uint8 (B, T, H, W, 3). An out-of-range value raises InvalidArgumentError in the graph itself, on any
    device: on a GPU, a gather would return zeros for a row that does not exist.

    * `serving_default(seed int64 (B,))`: a new video per seed; the same seed gives the same video on any server, up to one
      level of 255 due to rounding.
    * `conditional(seed int64 (B,), label int32 (B,))` for conditional systems: a new video per seed and label.
    * `generate(seed int64 (B,), num_frames int32 ())` if `latent_spec` has a free length.
    * `decode(<latent names>)`: deterministic, without random operations.
    * `interpolate(a int64 (), b int64 (), num_steps int32 ())`: videos interpolated between the latents of two seeds.
    * `lookup(video_id int32 (B,))` and `exchange(identity int32 (B,), action int32 (B,))` if codes are learned.
    * `encode(video uint8 (B, T, H, W, 3))` -> latents, if there is an encoder.
    * `<name>_jpeg` for each that returns videos: `frames_bytes` string (B, T), one JPEG per frame.

    Args:
        model: Built, with its weights.
        max_num_frames: Maximum frames per video if the length is free; 0 for eight times the model's own length.
        max_num_steps: Maximum videos per interpolation.

    Raises:
        ValueError: If the model has not been trained as far as a stage that can sample.
    """
    import tensorflow as tf

    model.require_sampling()
    spec = model.latent_spec
    free_length = any(None in entry.shape for entry in spec.values())
    _, length, height, width, channels = model.decode(model.sample_latents(1, seed=0)).shape
    max_num_frames = max_num_frames or MAX_LENGTHS * length
    num_frames = None if free_length else length
    functions: dict[str, Callable] = {}
    ranges: dict[str, dict[str, tuple[int, int]]] = {}
    owners: dict[str, dict[str, str]] = {}

    def checked(value: tf.Tensor, conditions: list[tuple[tf.Tensor, str]]) -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.Assert(condition, [text]) for condition, text in conditions]):
            return tf.identity(value)

    def in_range(name: str, values: tf.Tensor, low: int, high: int) -> tf.Tensor:
        inside = tf.reduce_all((values >= low) & (values <= high))
        return checked(values, [(inside, f"{name} must lie in {low}..{high}")])

    label_bounds = {name: (0, entry.num_values - 1) for name, entry in spec.items() if entry.role == "label"}

    def checked_latent(name: str, value: tf.Tensor) -> tf.Tensor:
        value = checked(value, [(tf.shape(value)[0] >= 1, f"{name} needs at least one row")])
        if name in label_bounds:
            return in_range(name, value, *label_bounds[name])
        return checked(value, [(tf.reduce_all(tf.math.is_finite(value)), f"{name} must be finite")])

    def all_equal(sizes: list[tf.Tensor]) -> tf.Tensor:
        return tf.reduce_all(tf.stack(sizes) == sizes[0])

    def same_rows(tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Requires equal batch sizes; otherwise a single row would be broadcast."""
        equal = all_equal([tf.shape(value)[0] for value in tensors.values()])
        text = f"{', '.join(tensors)} must have the same number of rows"
        return {name: checked(value, [(equal, text)]) for name, value in tensors.items()}

    def right_length(latents: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Requires equal frame counts, within the limit per request."""
        free = [
            (name, axis) for name, entry in spec.items() for axis, size in enumerate(entry.shape, 1) if size is None
        ]
        if not free:
            return latents
        sizes = [tf.shape(latents[name])[axis] for name, axis in free]
        equal = all_equal(sizes) & (sizes[0] >= 1) & (sizes[0] <= max_num_frames)
        text = f"{', '.join(name for name, _ in free)} must have the same number of frames, 1 to {max_num_frames}"
        return {name: checked(value, [(equal, text)]) for name, value in latents.items()}

    latent_signature = {name: tf.TensorSpec((None, *entry.shape), entry.dtype, name) for name, entry in spec.items()}

    # One graph of the networks, shared by all endpoints, instead of a copy in each.
    @tf.function(input_signature=[latent_signature])
    def videos(latents):
        latents = right_length(same_rows(latents))
        video = model.decode({name: checked_latent(name, value) for name, value in latents.items()})
        pixels = tf.round((tf.clip_by_value(tf.cast(video, tf.float32), -1.0, 1.0) + 1.0) * 127.5)
        return tf.ensure_shape(tf.cast(pixels, tf.uint8), (None, num_frames, height, width, channels))

    def sample(
        seeds: tf.Tensor, frames: tf.Tensor | None = None, labels: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Latents sampled per seed, so that a video does not depend on the rest of its batch."""
        seeds = checked(seeds, [(tf.size(seeds) >= 1, "seed needs at least one row")])

        def one(row):
            seed, *label = row
            given = {"labels": label[0]} if label else {}
            return {name: value[0] for name, value in model.sample_latents(1, frames, seed=seed, **given).items()}

        signature = {name: tf.TensorSpec(entry.shape, entry.dtype) for name, entry in spec.items()}
        rows = (seeds,) if labels is None else (seeds, labels)
        return tf.map_fn(one, rows, fn_output_signature=signature)

    def jpegs(video: tf.Tensor) -> tf.Tensor:
        def encode(frame):
            return tf.io.encode_jpeg(frame, quality=JPEG_QUALITY, chroma_downsampling=False)

        frames = tf.reshape(video, (-1, height, width, channels))
        encoded = tf.map_fn(encode, frames, fn_output_signature=tf.TensorSpec((), tf.string))
        return tf.reshape(encoded, tf.shape(video)[:2])

    def add(name: str, latents_of: Callable, signature: list[tf.TensorSpec], **bounds: tuple[int, int]) -> None:
        """Adds an endpoint and its `_jpeg` variant; `latents_of` maps inputs to latents."""
        names = (name, f"{name}_jpeg")

        def video(*values):
            return {"video": videos(latents_of(*values))}

        def frames_bytes(*values):
            return {"frames_bytes": jpegs(videos(latents_of(*values)))}

        for key, function in zip(names, (video, frames_bytes), strict=True):
            functions[key] = tf.function(function, input_signature=signature)
            if bounds:
                ranges[key] = bounds

    seed_row, scalar = tf.TensorSpec((None,), tf.int64, "seed"), ()
    add("serving_default", sample, [seed_row])
    add("decode", lambda *values: dict(zip(spec, values, strict=True)), list(latent_signature.values()), **label_bounds)

    if model.num_labels:
        known_labels = (0, model.num_labels - 1)

        def conditional(seed, label):
            pairs = same_rows({"seed": seed, "label": label})
            return sample(pairs["seed"], labels=in_range("label", pairs["label"], *known_labels))

        add("conditional", conditional, [seed_row, tf.TensorSpec((None,), tf.int32, "label")], label=known_labels)
        owners["conditional"] = owners["conditional_jpeg"] = {"label": "action"}

    if free_length:
        possible = model.lengths(max_num_frames)
        lengths = (possible[0], possible[-1])

        def generate(seed, frames):
            frames = in_range("num_frames", frames, *lengths)
            if len(possible) < lengths[1] - lengths[0] + 1:
                text = f"num_frames must be one of {', '.join(map(str, possible))}"
                frames = checked(frames, [(tf.reduce_any(frames == tf.constant(possible)), text)])
            return sample(seed, frames)

        add("generate", generate, [seed_row, tf.TensorSpec(scalar, tf.int32, "num_frames")], num_frames=lengths)

    def interpolate(a, b, num_steps):
        num_steps = in_range("num_steps", num_steps, 2, max_num_steps)
        ends = sample(tf.stack([a, b]))
        weight = tf.linspace(0.0, 1.0, num_steps)

        def between(value):
            first, last = value[:1], value[1:]
            if not value.dtype.is_floating:
                return tf.repeat(first, num_steps, axis=0)  # labels cannot be interpolated: the first one's is kept
            return first + tf.reshape(weight, (-1,) + (1,) * (value.shape.rank - 1)) * (last - first)

        return {name: between(value) for name, value in ends.items()}

    seeds = [tf.TensorSpec(scalar, tf.int64, name) for name in ("a", "b")]
    signature = [*seeds, tf.TensorSpec(scalar, tf.int32, "num_steps")]
    add("interpolate", interpolate, signature, num_steps=(2, max_num_steps))

    if model.has_lookup:
        known = (0, num_videos(model) - 1)
        ids = tf.TensorSpec((None,), tf.int32, "video_id")
        add("lookup", lambda video_id: model.lookup(in_range("video_id", video_id, *known)), [ids], video_id=known)

    if model.exchange_spec:
        identities, actions = ((0, model.exchange_spec[name].num_values - 1) for name in ("identity", "action"))

        def exchange(identity, action):
            pairs = same_rows({"identity": identity, "action": action})
            return model.exchange(
                in_range("identity", pairs["identity"], *identities), in_range("action", pairs["action"], *actions)
            )

        signature = [tf.TensorSpec((None,), tf.int32, name) for name in ("identity", "action")]
        add("exchange", exchange, signature, identity=identities, action=actions)
        owners["exchange"] = owners["exchange_jpeg"] = {name: c.of for name, c in model.exchange_spec.items()}

    if model.has_encoder:

        def encode(video):
            conditions = [(tf.shape(video)[0] >= 1, "video needs at least one row")]
            if free_length:
                given = tf.shape(video)[1]
                text = f"video must have 1 to {max_num_frames} frames"
                conditions.append(((given >= 1) & (given <= max_num_frames), text))
            latents = model.encode(tf.cast(checked(video, conditions), tf.float32) / 127.5 - 1.0)
            return {name: tf.cast(latents[name], entry.dtype) for name, entry in spec.items()}

        video = tf.TensorSpec((None, num_frames, height, width, channels), tf.uint8, "video")
        functions["encode"] = tf.function(encode, input_signature=[video])

    return Endpoints(
        functions, ranges, owners, (length, height, width, channels), free_length, max_num_frames, max_num_steps
    )


def num_videos(model: VideoGenerator) -> int:
    """Number of videos a system with `lookup` has codes for: the constructor argument of that name."""
    config = model.get_config()
    if "num_videos" not in config:
        raise ValueError(
            f"{type(model).__name__} has `lookup`, so its constructor must take `num_videos`, which bounds the ids."
        )
    return int(config["num_videos"])
