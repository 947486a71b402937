"""I3D: the published graph and ours give the same logits, and every public file the same weights."""

import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.tolerances import assert_same_sums
from tfvidgen.features.i3d import I3D, UNITS, I3DFeatures, canonical_weights

LOGITS = "Logits/Conv3d_0c_1x1"


def videos(count=1, frames=9, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def network():
    return I3D()


@pytest.fixture(scope="module")
def arrays(network):
    """Random weights by the names of `canonical_weights`; all gammas are 1, as in the published files."""
    rng = np.random.default_rng(0)
    found = {}
    for name in UNITS:
        shape = tuple(network._units[name].kernel.shape)
        found[f"{name}/kernel"] = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        for part, low, high in (("beta", -0.2, 0.2), ("mean", -0.2, 0.2), ("variance", 0.5, 2.0)):
            found[f"{name}/{part}"] = rng.uniform(low, high, shape[-1]).astype(np.float32)
    found[f"{LOGITS}/kernel"] = rng.normal(0, 0.05, (1, 1, 1, 1024, 400)).astype(np.float32)
    found[f"{LOGITS}/bias"] = rng.normal(0, 0.1, 400).astype(np.float32)
    return found


def tensorflow_names(arrays):
    parts = {"kernel": "conv_3d/w", "bias": "conv_3d/b", "beta": "batch_norm/beta"}
    parts |= {"mean": "batch_norm/moving_mean", "variance": "batch_norm/moving_variance"}
    named = {}
    for name, array in arrays.items():
        unit, _, part = name.rpartition("/")
        unit = unit.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")
        shaped = array if part in ("kernel", "bias") else array.reshape(1, 1, 1, 1, -1)
        named[f"RGB/inception_i3d/{unit}/{parts[part]}"] = shaped
    return named


def torch_names(arrays, port):
    short = {"Branch_0/Conv3d_0a_1x1": ("b0", "branch_0"), "Branch_1/Conv3d_0a_1x1": ("b1a", "branch_1.0")}
    short |= {"Branch_1/Conv3d_0b_3x3": ("b1b", "branch_1.1"), "Branch_2/Conv3d_0a_1x1": ("b2a", "branch_2.0")}
    short |= {"Branch_2/Conv3d_0b_3x3": ("b2b", "branch_2.1"), "Branch_3/Conv3d_0b_1x1": ("b3b", "branch_3.1")}
    norm = ("bn", "batch3d")[port]
    parts = {"kernel": "conv3d.weight", "bias": "conv3d.bias", "beta": f"{norm}.bias"}
    parts |= {"mean": f"{norm}.running_mean", "variance": f"{norm}.running_var"}
    named = {}
    for name, array in arrays.items():
        unit, _, part = name.rpartition("/")
        block, _, branch = unit.partition("/")
        if unit == LOGITS:
            unit = ("logits", "conv3d_0c_1x1")[port]
        else:
            unit = ".".join([block.lower() if port else block, *([short[branch][port]] if branch else [])])
        named[f"{unit}.{parts[part]}"] = array.transpose(4, 3, 0, 1, 2) if array.ndim == 5 else array
        if part == "mean":
            named[f"{unit}.{norm}.weight"] = np.ones_like(array)
            named[f"{unit}.{norm}.num_batches_tracked"] = np.array(1)
    return named


@pytest.fixture(scope="module")
def checkpoint(arrays, tmp_path_factory):
    """A checkpoint as kinetics-i3d and the TF-Hub module have it; -> its prefix."""
    prefix = tmp_path_factory.mktemp("i3d") / "variables" / "variables"
    prefix.parent.mkdir()
    named = tensorflow_names(arrays)
    names = sorted(named)
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=[named[n] for n in names]
    )
    return prefix


@pytest.fixture(scope="module")
def ours(checkpoint):
    return I3DFeatures(checkpoint)


@pytest.mark.long
def test_published_graph_gives_the_same_logits(shared, arrays, checkpoint, ours, monkeypatch):
    """The graph is read by TensorFlow alone; only a download needs tensorflow-hub."""
    monkeypatch.setitem(sys.modules, "tensorflow_hub", None)
    folder = checkpoint.parent.parent
    graph = shared / "golden" / "i3d_hub_graph" / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    expected = {
        node.name: tuple(size.size for size in node.attr["shape"].shape.dim)
        for node in model.meta_graphs[0].graph_def.node
        if node.op == "VarHandleOp"
    }
    assert {name: array.shape for name, array in tensorflow_names(arrays).items()} == expected
    shutil.copy(graph, folder / "saved_model.pb")
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    published = I3DFeatures(folder, network="saved_model")
    assert published.digest == ours.digest == I3DFeatures(folder).digest
    clips = videos()
    logits = published(clips)
    assert logits.shape == (1, 400) and logits.std() > 0.1
    np.testing.assert_allclose(ours(clips), logits, atol=1e-4)


@pytest.mark.long
def test_every_public_file_gives_the_same_weights(arrays, ours, tmp_path):
    for port in (0, 1):
        canonical = canonical_weights(torch_names(arrays, port))
        assert sorted(canonical) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(canonical[name], array)
    np.savez(tmp_path / "port.npz", **torch_names(arrays, 0))
    port = I3DFeatures(tmp_path / "port.npz")
    assert port.digest == ours.digest
    for a, b in zip(port._model.weights, ours._model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_gamma_that_is_not_one_counts(arrays, network):
    named = torch_names(arrays, 0)
    named["Mixed_3b.b0.bn.weight"] = np.full(64, 2.0, np.float32)
    canonical = canonical_weights(named)
    np.testing.assert_array_equal(canonical["Mixed_3b/Branch_0/Conv3d_0a_1x1/gamma"], named["Mixed_3b.b0.bn.weight"])
    kernels = []
    for weights in (arrays, canonical):
        network.load_arrays(weights)
        kernels.append(network._units["Mixed_3b/Branch_0/Conv3d_0a_1x1"].kernel.numpy())
    np.testing.assert_allclose(kernels[1], 2 * kernels[0], rtol=1e-6)


def test_batch_norm_is_folded(arrays, ours):
    name = "Conv3d_2b_1x1"
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 3, 64)).astype(np.float32)
    kernel, beta, mean, variance = (arrays[f"{name}/{part}"] for part in ("kernel", "beta", "mean", "variance"))
    expected = np.maximum((x @ kernel[0, 0, 0] - mean) / np.sqrt(variance + 1e-3) + beta, 0)
    assert_same_sums(ours._model._units[name](x), expected, terms=64)


@pytest.mark.long
def test_resize_modes_layers_and_record(ours, checkpoint):
    clips = videos()
    logits = ours(clips)
    half_pixel = I3DFeatures(checkpoint, resize="half-pixel", layer="pool")
    assert half_pixel.name == "i3d_pool_half-pixel" and ours.name == "i3d_logits_tf1-bilinear"
    parts = next(half_pixel.stream_outputs(clips))
    assert parts["features"].shape == (1, 1024) == (1, half_pixel.dim)
    assert np.abs(parts["logits"] - logits).max() > 1e-3
    weights = ours._model.classifier
    by_hand = parts["features"] @ weights.kernel.numpy() + weights.bias.numpy()
    assert_same_sums(parts["logits"], by_hand, terms=1024)
    record = ours.record()
    assert record["resize"] == "tf1-bilinear" and record["weights_sha256"] == ours.digest and record["range"] == [-1, 1]


def test_short_videos_are_refused(ours):
    with pytest.raises(ValueError, match="at least 9 frames. Received videos of 8"):
        ours(videos(frames=8))
    with pytest.raises(ValueError, match=r"T at least 9.*\(1, 8, 224, 224, 3\)"):
        ours._model(np.zeros((1, 8, 224, 224, 3), np.float32))
    with pytest.raises(ValueError, match=r"\(B, T, 224, 224, 3\).*\(1, 9, 64, 64, 3\)"):
        ours._model(np.zeros((1, 9, 64, 64, 3), np.float32))


class Stub(tf.Module):
    """Mean pixel times one row of weights: a SavedModel that is no I3D, but answers as one."""

    def __init__(self, width=400):
        super().__init__()
        self.row = tf.Variable(np.linspace(0, 1, width, dtype=np.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, None, 224, 224, 3), tf.float32)])
    def __call__(self, videos):
        return {"logits": tf.reduce_mean(videos, axis=(1, 2, 3, 4))[:, None] * self.row}


def test_plain_saved_model_is_run_as_it_is(tmp_path):
    stub = Stub()
    tf.saved_model.save(stub, tmp_path / "stub", signatures={"serving_default": stub.__call__})
    shutil.copytree(tmp_path / "stub", tmp_path / "stub [1]")  # which TensorFlow would take for a pattern
    extractor = I3DFeatures(tmp_path / "stub [1]", network="saved_model")
    white = np.full((1, 9, 8, 8, 3), 255, np.uint8)
    np.testing.assert_allclose(extractor(white)[0], stub.row, rtol=1e-5)
    with pytest.raises(ValueError, match="holds no array with a name from I3D"):
        I3DFeatures(tmp_path / "stub")
    narrow = Stub(7)
    tf.saved_model.save(narrow, tmp_path / "narrow", signatures={"serving_default": narrow.__call__})
    with pytest.raises(ValueError, match="returns 7 values per video, not 400 logits"):
        I3DFeatures(tmp_path / "narrow", network="saved_model")
    tf.saved_model.save(stub, tmp_path / "other", signatures={"run": stub.__call__})
    with pytest.raises(ValueError, match=r"signatures \['run'\]"):
        I3DFeatures(tmp_path / "other", network="saved_model")


def test_missing_weights_are_named(arrays, network, tmp_path):
    with pytest.raises(ValueError, match="no `weights` were given.*tfhub.dev/deepmind/i3d-kinetics-400/1.*Apache-2.0"):
        I3DFeatures()
    with pytest.raises(ValueError, match="no file or folder"):
        I3DFeatures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="saved_model.pb"):
        I3DFeatures(tmp_path, network="saved_model")
    named = tensorflow_names(arrays)
    lacking = {name: array for name, array in named.items() if "Mixed_4c/Branch_1/Conv3d_0b" not in name}
    with pytest.raises(ValueError, match="lacks the kernel or batch norm of Mixed_4c/Branch_1/Conv3d_0b_3x3"):
        network.load_arrays(canonical_weights(lacking))
    with pytest.raises(ValueError, match="lacks kernel, bias"):
        network.load_arrays({name: array for name, array in arrays.items() if "Logits" not in name})
    wrong = {**arrays, "Conv3d_1a_7x7/kernel": np.zeros((7, 7, 7, 2, 64), np.float32)}
    with pytest.raises(ValueError, match=r"Conv3d_1a_7x7/kernel \(7, 7, 7, 2, 64\) instead of \(7, 7, 7, 3, 64\)"):
        network.load_arrays(wrong)


def test_failed_download_says_how_to_pass_a_folder(monkeypatch, tmp_path):
    # a closed port stands for a missing network
    for name in ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="could not be downloaded.*Pass as `weights` the module's folder"):
        I3DFeatures("hub")


def test_a_download_without_tensorflow_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_hub", None)
    with pytest.raises(ValueError, match=r"cannot be imported .*: pip install 'tfvidgen\[hub\]'.*Pass as `weights`"):
        I3DFeatures("hub")


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="`resize`.*'bicubic'"):
        I3DFeatures("random", resize="bicubic")
    with pytest.raises(ValueError, match="`layer`.*'fc7'"):
        I3DFeatures("random", layer="fc7")
    with pytest.raises(ValueError, match="`network`.*layer='pool'"):
        I3DFeatures("random", layer="pool", network="saved_model")
