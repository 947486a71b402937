"""VGG16 features: importers by round trip, preprocessing by hand, frozen but differentiable."""

import os
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.features.vgg16 import _TORCH_INDEX, VGG16_LAYERS, VGG16Features

LAYERS = ("block1_conv1", "block2_conv2")
CONVS = VGG16_LAYERS[:4]


def random_frames(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def small_trunk(seed=7):
    """Kernels (Keras layout) and biases of the four convolutions of the first two blocks."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128)]
    return {
        name: [rng.normal(0, 0.05, shape).astype(np.float32), rng.normal(0, 0.05, shape[-1]).astype(np.float32)]
        for name, shape in zip(CONVS, shapes, strict=True)
    }


def torch_arrays(weights):
    arrays = {"classifier.0.weight": np.zeros((2, 2), np.float32)}
    for name, (kernel, bias) in weights.items():
        arrays[f"features.{_TORCH_INDEX[name]}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        arrays[f"features.{_TORCH_INDEX[name]}.bias"] = bias
    return arrays


def write_torch_npz(path, weights):
    np.savez(path, **torch_arrays(weights))
    return path


def write_torch_pth(path, weights):
    """A state dict as `torch.save` writes it: a pickle that names tensors, and their numbers beside it."""

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    pickled = b"}("
    with zipfile.ZipFile(path, "w") as archive:
        for key, (name, array) in enumerate(torch_arrays(weights).items()):
            archive.writestr(f"archive/data/{key}", array.tobytes())
            storage = b"(Vstorage\nctorch\nFloatStorage\nV%d\nVcpu\nI%d\ntQ" % (key, array.size)
            place = b"I0\n" + numbers(array.shape) + numbers(stride // 4 for stride in array.strides)
            pickled += b"V%s\nctorch._utils\n_rebuild_tensor_v2\n(%s%sI00\nNtR" % (name.encode(), storage, place)
        archive.writestr("archive/data.pkl", pickled + b"u.")
    return path


def numpy_features(frames, weights, preprocess):
    """The two maps of `LAYERS` by plain NumPy."""
    maps = {}
    x = preprocess(frames.astype(np.float64))
    for name, (kernel, bias) in weights.items():
        if name == "block2_conv1":
            n, h, w, c = x.shape
            x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
        height, width = x.shape[1:3]
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        x = bias + sum(
            padded[:, dy : dy + height, dx : dx + width] @ kernel[dy, dx] for dy in range(3) for dx in range(3)
        )
        x = maps[name] = np.maximum(x, 0)
    return {name: maps[name] for name in LAYERS}


def torch_range(x):
    return ((x + 1) / 2 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def caffe_range(x):
    return (x[..., ::-1] + 1) * 127.5 - [103.939, 116.779, 123.68]


def assert_maps_equal(maps, expected):
    assert list(maps) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(maps[name], values, rtol=1e-4, atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("write", [write_torch_npz, write_torch_pth])
def test_torch_files_give_the_features_of_plain_numpy(tmp_path, write):
    weights, frames = small_trunk(), random_frames(2, 8, 6, 3)
    network = VGG16Features(LAYERS, weights=write(tmp_path / "vgg16.npz", weights))  # told apart by content
    assert network.preprocessing == "torch"
    assert_maps_equal(network(frames), numpy_features(frames, weights, torch_range))


# Keras reads a variable without the `copy` keyword of NumPy 2 when it saves.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_whole_keras_file_gives_the_same_weights(tmp_path):
    reference = keras.applications.VGG16(include_top=False, weights=None)
    frames = random_frames(1, 32, 32, 3)
    names = ("block1_conv2", "block5_conv3")
    trunk = keras.Model(reference.input, [reference.get_layer(name).output for name in names])
    expected = dict(zip(names, trunk(caffe_range(frames).astype(np.float32)), strict=True))
    reference.save_weights(tmp_path / "vgg16.weights.h5")
    network = VGG16Features(names, weights=tmp_path / "vgg16.weights.h5")
    assert network.preprocessing == "caffe"
    assert_maps_equal(network(frames), {name: np.asarray(value) for name, value in expected.items()})


@pytest.mark.parametrize("form", ["{0}/{0}_W_1:0", "{0}/{0}/kernel:0", "model_weights/{0}/{0}/kernel"])
def test_named_keras_files_in_every_layout(tmp_path, form):
    weights, frames = small_trunk(), random_frames(1, 4, 4, 3)
    with h5py.File(tmp_path / "vgg16.h5", "w") as file:
        for name, (kernel, bias) in weights.items():
            file[form.format(name)] = kernel
            file[form.format(name).replace("_W_1", "_b_1").replace("kernel", "bias")] = bias
        file["fc1/fc1/kernel"] = np.zeros((2, 2))
    network = VGG16Features(LAYERS, weights=tmp_path / "vgg16.h5")
    assert_maps_equal(network(frames), numpy_features(frames, weights, caffe_range))


def test_preprocessing_can_be_chosen(tmp_path):
    weights, frames = small_trunk(), random_frames(1, 4, 4, 3)
    path = write_torch_npz(tmp_path / "vgg16.npz", weights)
    network = VGG16Features(LAYERS, weights=path, preprocessing="caffe")
    assert_maps_equal(network(frames), numpy_features(frames, weights, caffe_range))


def test_torch_indices_are_those_of_the_sequential_network():
    index, expected = 0, {}
    for block, count in enumerate((2, 2, 3, 3, 3)):
        for conv in range(count):
            expected[f"block{block + 1}_conv{conv + 1}"] = index
            index += 2  # a convolution and its ReLU
        index += 1  # the pooling
    assert expected == _TORCH_INDEX


def test_frozen_but_differentiable_in_its_input():
    network = VGG16Features(LAYERS, weights="random")
    assert not network.trainable_variables and len(network.non_trainable_variables) == 8
    frames = tf.constant(random_frames(1, 8, 8, 3))
    with tf.GradientTape() as tape:
        tape.watch(frames)
        total = tf.add_n([tf.reduce_mean(value) for value in network(frames).values()])
    assert np.all(np.abs(tape.gradient(total, frames)).sum((1, 2)) > 0)


def test_random_weights_repeat_and_config_round_trip():
    network = VGG16Features(LAYERS, weights="random", seed=3)
    twin = VGG16Features.from_config(network.get_config())
    assert twin.weights_digest == network.weights_digest
    assert VGG16Features(LAYERS, weights="random", seed=4).weights_digest != network.weights_digest
    kernels = [variable.numpy() for variable in network.variables if len(variable.shape) == 4]
    assert all(kernel.std() > 0.01 for kernel in kernels)


def test_float32_under_a_global_low_precision_policy():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        maps = VGG16Features(("block1_conv1",), weights="random")(random_frames(1, 4, 4, 3))
    finally:
        keras.config.set_dtype_policy(before)
    assert maps["block1_conv1"].dtype == tf.float32


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="no `weights`.*vgg16-397923af.pth.*torchvision.*BSD-3-Clause.*'random'"):
        VGG16Features(LAYERS)
    with pytest.raises(ValueError, match="there is no file.*nowhere.h5"):
        VGG16Features(LAYERS, weights=tmp_path / "nowhere.h5")
    weights = small_trunk()
    weights.pop("block2_conv1")
    path = write_torch_npz(tmp_path / "vgg16.npz", weights)
    with pytest.raises(ValueError, match=r"lacks the kernel and bias of block2_conv1 \(features.5\)"):
        VGG16Features(LAYERS, weights=path)
    VGG16Features(("block1_conv2",), weights=path)
    weights["block1_conv1"][0] = weights["block1_conv1"][0][:, :, :, :32]
    with pytest.raises(ValueError, match=r"block1_conv1/kernel.*\(3, 3, 3, 32\).*expected \(3, 3, 3, 64\)"):
        VGG16Features(("block1_conv2",), weights=write_torch_npz(tmp_path / "vgg16.npz", weights))
    (tmp_path / "vgg16.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="'vgg16.pth' is not an .npz, PyTorch, HDF5"):
        VGG16Features(LAYERS, weights=tmp_path / "vgg16.pth")


def test_other_networks_that_would_fit_are_refused(tmp_path):
    arrays = torch_arrays(small_trunk())
    np.savez(tmp_path / "vgg19.npz", **arrays, **{"features.16.weight": np.zeros((256, 256, 3, 3), np.float32)})
    with pytest.raises(ValueError, match="vgg19.npz' belongs to another network: features.16.weight"):
        VGG16Features(LAYERS, weights=tmp_path / "vgg19.npz")


@pytest.mark.slow
def test_failed_download_says_how_to_pass_a_file(tmp_path):
    # A process of its own, because Keras reads the place of its cache once; a closed port stands for a missing network.
    code = "from tfvidgen.features.vgg16 import VGG16Features; VGG16Features(weights='imagenet')"
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "ValueError: The ImageNet weights of VGG16 could not be downloaded" in result.stderr
    assert "pass its path as `weights`" in result.stderr


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="block9_conv1"):
        VGG16Features(("block9_conv1",), weights="random")
    with pytest.raises(ValueError, match="'torch', 'caffe'.*'tf'"):
        VGG16Features(LAYERS, weights="random", preprocessing="tf")
    network = VGG16Features(LAYERS, weights="random")
    with pytest.raises(ValueError, match=r"\(N, H, W, 3\).*\(1, 8, 8, 1\)"):
        network(np.zeros((1, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"at least 2 x 2.*\(1, 1, 8, 3\)"):
        network(np.zeros((1, 1, 8, 3), np.float32))
