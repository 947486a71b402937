"""Files of latents: what is written is read, and what is no such file is refused by name."""

import subprocess
import sys

import numpy as np
import pytest

from tfvidgen import latent_files

LATENTS = {"static": np.arange(6, dtype=np.float32).reshape(2, 3), "label": np.array([1, 0], np.int32)}


def test_latents_come_back_with_what_they_are_of(tmp_path):
    path = tmp_path / "new" / "codes.npz"
    latent_files.save(path, LATENTS, {"system": "tgan", "run": "caf\udce9", "step": 3})
    latents, about = latent_files.load(path)
    assert about == {"form": 1, "system": "tgan", "run": "caf\udce9", "step": 3}
    assert latents.keys() == LATENTS.keys()
    for name, values in LATENTS.items():
        assert latents[name].dtype == values.dtype
        np.testing.assert_array_equal(latents[name], values)
    assert latent_files.names(latents, {"names": ["a", "b"]}) == ["a", "b"]
    assert latent_files.names(latents, {"names": ["a"]}) is latent_files.names(latents, {}) is None
    np.savez(path, **LATENTS)  # any file of arrays is one
    assert latent_files.load(path)[1] == {} and latent_files.described(LATENTS) == "static (2, 3), label (2,)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, r"with one row per video. Received a \(2, 1\), b \(3, 1\)"),
        ({"a": np.array(["text"])}, "array of numbers per latent"),
        ({"a": np.array([None])}, "is damaged, or holds more than arrays of numbers"),
        ({"a": np.float32(1)}, "with one row per video"),
        ({"a": np.zeros((0, 2))}, "with one row per video"),
        ({}, "Received no array"),
        ({**LATENTS, "about.json": np.array("{")}, "what it says about its latents is unreadable"),
        ({**LATENTS, "about.json": np.array('{"form": 2}')}, "has form 2, written by a newer version"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "codes.npz", **content)
    with pytest.raises(ValueError, match=message):
        latent_files.load(tmp_path / "codes.npz")


def test_broken_files_and_other_names_are_refused(tmp_path):
    path = tmp_path / "codes.npz"
    latent_files.save(path, LATENTS)
    whole = path.read_bytes()
    for content, message in ((b"text", "is not an .npz file"), (whole[:60], "is not an .npz file")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            latent_files.load(path)
    path.write_bytes(whole.replace(LATENTS["static"].tobytes(), b"\xff" * 24))
    with pytest.raises(ValueError, match="codes.npz is damaged"):
        latent_files.load(path)
    with pytest.raises(ValueError, match="must end in .npz"):
        latent_files.save(tmp_path / "codes", LATENTS)
    with pytest.raises(ValueError, match="`latents` must hold one array of numbers"):
        latent_files.save(tmp_path / "other.npz", {"a": np.zeros(2), "b": np.zeros(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["codes.npz"]


def test_latents_of_other_shapes_are_refused_by_their_system(tmp_path):
    path = tmp_path / "codes.npz"
    latent_files.save(path, LATENTS, {"system": "tgan", "run": "a", "step": 3})
    latent_files.require(path, LATENTS, {"static": (None,), "label": ()}, "the model")
    for shapes in ({"static": (4,), "label": ()}, {"static": (3,)}, {"static": (3, 1), "label": ()}):
        with pytest.raises(ValueError, match=r"latents of tgan \(run a, step 3\): static \(2, 3\), .* fit the model"):
            latent_files.require(path, LATENTS, shapes, "the model")


def test_no_tensorflow_is_needed():
    code = "import sys\nfor name in ('tensorflow', 'keras'): sys.modules[name] = None\nimport tfvidgen.latent_files"
    subprocess.run([sys.executable, "-c", code], check=True)
