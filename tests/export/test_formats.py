"""ONNX and LiteRT of `decode`, run in their own runtimes."""

import os

import numpy as np
import pytest

from export import formats
from tests.export import free_length
from tests.systems import SYSTEMS, vivid

NEEDED = {".onnx": ("tf2onnx", "onnxruntime"), ".tflite": ("ai_edge_litert",)}


@pytest.fixture(params=NEEDED)
def suffix(request) -> str:
    for name in NEEDED[request.param]:
        pytest.importorskip(name, reason=f"needs {name} (extra: formats)")
    return request.param


def systems() -> list:
    """The first system by default, every one of the list with `-m slow`."""
    return [pytest.param(s, marks=pytest.mark.slow if i else (), id=s.name) for i, s in enumerate(SYSTEMS)]


@pytest.mark.parametrize("system", systems())
def test_every_system_agrees(system, suffix, tmp_path):
    model = system.build()
    vivid(model)
    path, difference = formats.convert(model, tmp_path / f"decode{suffix}", batch_size=2)
    assert difference <= formats.TOLERANCE
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.stat().st_size > 1000


def test_any_path_is_taken(suffix, tmp_path):
    folder = tmp_path / os.fsdecode(b"lr[1e-3] caf\xe9")
    path, _ = formats.convert(free_length.build(), folder / f"decode*{suffix}")
    assert [file.name for file in folder.iterdir()] == [f"decode*{suffix}"] and path.stat().st_size > 1000


def test_onnx_takes_any_number_of_videos_and_frames(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra: formats)")
    pytest.importorskip("tf2onnx", reason="needs tf2onnx (extra: formats)")
    model = free_length.build()
    path, _ = formats.convert(model, tmp_path / "decode.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {entry.name for entry in session.get_inputs()} == set(model.latent_spec)
    latents = {name: np.asarray(value) for name, value in model.sample_latents(3, 7, seed=1).items()}
    (video,) = session.run(["video"], latents)
    assert video.shape == (3, 7, 8, 8, 3)
    np.testing.assert_allclose(video, model.decode(latents), atol=1e-4)


def test_reduced_precision_is_dropped(suffix, tmp_path):
    from tests.systems import collection
    from tfvidgen.models.navsynth import NAVSynth

    videos = collection()
    settings = {"num_videos": len(videos), "num_frames": 4, "size": 16, "static_dim": 4, "transient_dim": 5}
    model = NAVSynth(**settings, motion_dim=6, rnn_units=8, width=4, dtype="mixed_bfloat16")
    model.build()
    _, difference = formats.convert(model, tmp_path / f"decode{suffix}")
    assert difference <= formats.TOLERANCE


class Refusing(free_length.FreeLength):
    """Has an operation that no other runtime knows."""

    def decode(self, latents, training=False):
        import tensorflow as tf

        video = super().decode(latents)
        return tf.numpy_function(lambda value: value, [video], video.dtype) + 0.0 * video


def test_an_operation_that_cannot_be_written_is_named(suffix, tmp_path):
    model = Refusing()
    model.build()
    with pytest.raises(ValueError, match="Refusing cannot be written as"):
        formats.convert(model, tmp_path / f"decode{suffix}")
    assert not list(tmp_path.iterdir())


def test_other_frames_are_an_error(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="The frames of .* differ from those of"):
        formats.convert(free_length.build(), tmp_path / f"decode{suffix}")
    assert not list(tmp_path.iterdir())


def test_wrong_settings_are_one_message(tmp_path, capsys):
    assert formats.main([]) == 2
    assert "--run_dir and --out are needed" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"must end in \.onnx or \.tflite"):
        formats.convert(free_length.build(), tmp_path / "decode.pb")
