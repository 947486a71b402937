"""3-D ResNets: every stage against published code, key maps of the published files, and the clips they are given."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfvidgen.features.resnet3d import PREPROCESSING, GroupedConv3D, ResNet3D, ResNet3DFeatures

NARROW = {
    "r18": ("resnet18", "out", {"width": 8}),
    "r18_shortcut_A": ("resnet18", "out_shortcutA", {"width": 8, "shortcut": "A"}),
    "r50": ("resnet50", "out", {"width": 8}),
    "rx101": ("resnext101", "out", {"width": 16, "cardinality": 4}),
}
# Absolute, of stages, pooled features and logits.
TOLERANCES = {"r18": (3e-4, 5e-5, 3e-5), "r50": (2e-4, 2e-5, 2e-5), "rx101": (2e-4, 2e-5, 2e-5)}


def state_dict(golden):
    return {name[2:]: golden[name] for name in golden.files if name.startswith("w/")}


@pytest.mark.parametrize("case", ["r18", "r18_shortcut_A", "rx101", pytest.param("r50", marks=pytest.mark.slow)])
@pytest.mark.long
def test_every_stage_of_published_code(shared, case):
    architecture, prefix, sizes = NARROW[case]
    file = case.split("_")[0]
    folder = shared / "golden"
    golden = np.load(folder / f"resnet3d_narrow_{file}.npz")
    clip = np.load(folder / "resnet3d_narrow_r18.npz")["input_u8"].transpose(0, 2, 3, 4, 1) / np.float32(127.5) - 1
    network = ResNet3D(architecture, num_classes=10, **sizes)
    network.load_arrays(state_dict(golden))
    stages = network.stages(clip)
    tolerance = dict(zip(("stage", "pooled", "logits"), TOLERANCES[file], strict=True))
    compared = 0
    for name, value in stages.items():
        value = np.moveaxis(value.numpy(), -1, 1)
        atol = tolerance.get(name, tolerance["stage"])
        if f"{prefix}/{name}" in golden.files:
            np.testing.assert_allclose(value, golden[f"{prefix}/{name}"], atol=atol, rtol=0)
        else:
            assert value.shape == tuple(golden[f"{prefix}/{name}_shape"])
            strides = golden[f"{prefix}/{name}_sub_strides_CTHW"]
            part = value[(slice(None), *(slice(None, None, step) for step in strides))]
            np.testing.assert_allclose(part, golden[f"{prefix}/{name}_sub"], atol=atol, rtol=0)
            means = value.astype(np.float64).mean((0, 2, 3, 4))
            np.testing.assert_allclose(means, golden[f"{prefix}/{name}_mean_per_channel"], atol=atol, rtol=0)
        compared += 1
    assert compared == 8


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("resnext101", {}),
        pytest.param("resnet18", {}, marks=pytest.mark.slow),
        pytest.param("resnet18_shortcutA", {"shortcut": "A"}, marks=pytest.mark.slow),
        pytest.param("resnet50", {}, marks=pytest.mark.slow),
        pytest.param("resnext101_stem128", {"stem": 128}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.long
def test_keys_and_shapes_of_published_files(shared, name, sizes):
    published = json.loads((shared / "golden" / "resnet3d_state_shapes.json").read_text())[name]
    network = ResNet3D(name.split("_")[0], **sizes)

    def in_torch(shape):
        return (shape[4], shape[3], *shape[:3]) if len(shape) == 5 else tuple(shape[::-1])

    ours = [(key, in_torch(variable.shape)) for key, variable in network.torch_variables.items()]
    wanted = [(key, tuple(shape)) for key, shape in published["shapes"].items() if not key.endswith("batches_tracked")]
    assert ours == wanted
    count = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    assert count == published["trainable_parameters"]


@pytest.mark.parametrize("strides", [1, 2])
def test_grouped_convolution_is_one_of_each_group(strides):
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 7, 6)).astype(np.float32)
    layer = GroupedConv3D(9, groups=3, strides=strides)
    result = layer(x)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)])
    kernel = layer.kernel.numpy()
    parts = [
        tf.nn.conv3d(padded[..., 2 * g : 2 * g + 2], kernel[..., 3 * g : 3 * g + 3], [1, *[strides] * 3, 1], "VALID")
        for g in range(3)
    ]
    np.testing.assert_allclose(result, np.concatenate(parts, -1), atol=1e-5)


@pytest.fixture(scope="module")
def narrow_file(tmp_path_factory):
    """An .npz of a small random ResNet-18 with shortcut A and 7 classes."""
    network = ResNet3D("resnet18", num_classes=7, shortcut="A", width=4, seed=3)
    arrays = {}
    for name, variable in network.torch_variables.items():
        value = variable.numpy()
        value = value.transpose(4, 3, 0, 1, 2) if value.ndim == 5 else value.T
        arrays[name] = value + 0.1 * np.arange(value.size, dtype=np.float32).reshape(value.shape) % 0.05
    path = tmp_path_factory.mktemp("resnet") / "narrow.npz"
    np.savez(path, **arrays, **{"bn1.num_batches_tracked": np.array(5)})
    return path


def test_features_of_a_file(narrow_file):
    extractor = ResNet3DFeatures(narrow_file, "resnet18")
    assert (extractor.dim, extractor.num_classes, extractor.record()["shortcut"]) == (32, 7, "A")
    assert extractor.name == "resnet18_pool_activitynet_pil-bilinear"
    videos = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 20, 3), np.uint8)
    frames = [
        np.asarray(Image.fromarray(frame).resize((112, 112), Image.Resampling.BILINEAR), np.float32)
        for frame in videos[0]
    ]
    mean = np.array([114.7748, 107.7354, 99.4750], np.float32)
    logits, pooled = extractor._model(np.stack(frames)[None] - mean)
    np.testing.assert_allclose(extractor(videos), pooled, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(extractor.logits(videos), logits, rtol=1e-4, atol=1e-4)
    other = ResNet3DFeatures(narrow_file, "resnet18", preprocessing="kinetics")
    assert other.digest == extractor.digest and other.name != extractor.name
    scaled = (np.stack(frames)[None] / 255 - [0.4345, 0.4051, 0.3775]) / [0.2768, 0.2713, 0.2737]
    np.testing.assert_allclose(other(videos), other._model(scaled.astype(np.float32))[1], rtol=1e-4, atol=1e-4)


def test_files_of_2020_are_told_by_their_classes(narrow_file, tmp_path):
    arrays = dict(np.load(narrow_file))
    for classes, expected in ((400, "activitynet"), (700, "kinetics"), (1039, "kinetics")):
        head = {"fc.weight": np.zeros((classes, 32), np.float32), "fc.bias": np.zeros(classes, np.float32)}
        np.savez(tmp_path / "file.npz", **{**arrays, **head})
        extractor = ResNet3DFeatures(tmp_path / "file.npz", "resnet18")
        assert expected in extractor.name and extractor.record()["mean"][0] == PREPROCESSING[expected][0][0]


def test_sixteen_frames_and_no_others(narrow_file):
    extractor = ResNet3DFeatures(narrow_file, "resnet18")
    for frames, message in ((15, "at least 16"), (17, "at most 16")):
        with pytest.raises(ValueError, match=message):
            extractor(np.zeros((1, frames, 8, 8, 3), np.uint8))


def test_training_moves_every_weight_and_statistic():
    network = ResNet3D("resnet18", num_classes=None, width=2, shortcut="B")
    before = [variable.numpy() for variable in network.variables]
    videos = np.random.default_rng(0).normal(size=(2, 8, 32, 32, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        logits, pooled = network(videos, training=True)
        loss = tf.reduce_sum(pooled**2)
    assert logits is None
    gradients = tape.gradient(loss, network.trainable_variables)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)
    moved = [np.abs(v.numpy() - b).max() > 0 for v, b in zip(network.variables, before, strict=True) if not v.trainable]
    assert len(moved) == 40 and all(moved)


def test_missing_weights_and_wrong_options_are_named(narrow_file):
    with pytest.raises(ValueError, match="no `weights`.*resnext-101-kinetics.pth.*3D-ResNets-PyTorch.*MIT"):
        ResNet3DFeatures()
    with pytest.raises(ValueError, match="lacks layer2.0.downsample"):
        arrays = dict(np.load(narrow_file))
        ResNet3D("resnet18", num_classes=7, width=4).load_arrays(
            {name: array for name, array in arrays.items() if not name.startswith("layer2.0.downsample")}, "file"
        )
    with pytest.raises(ValueError, match="not those of resnext101"):
        ResNet3DFeatures(narrow_file, "resnext101")
    with pytest.raises(ValueError, match="`architecture`.*'resnet19'"):
        ResNet3DFeatures(narrow_file, "resnet19")
    with pytest.raises(ValueError, match="`preprocessing`.*'imagenet'"):
        ResNet3DFeatures(narrow_file, preprocessing="imagenet")
    with pytest.raises(ValueError, match="`resize`.*'nearest'"):
        ResNet3DFeatures(narrow_file, resize="nearest")
    with pytest.raises(ValueError, match="`shortcut`.*'C'"):
        ResNet3D(shortcut="C")
