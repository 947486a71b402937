"""Files and folders that are there whole or not at all."""

import contextlib
import json
import os
import pathlib
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from tfvidgen import storage


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "some.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        storage.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.json"]


def test_an_unfinished_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "new" / "note.txt"
    for text in ("old", "new"):
        with storage.replaced(path) as part:
            part.write_text(text)
    with pytest.raises(KeyError), storage.replaced(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["note.txt"]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with storage.whole_folder(tmp_path / "new" / "set") as part:
        (part / "a").touch()
        assert not (tmp_path / "new" / "set").exists()
    assert [entry.name for entry in (tmp_path / "new" / "set").iterdir()] == ["a"]
    with pytest.raises(KeyError), storage.whole_folder(tmp_path / "new" / "other") as part:
        raise KeyError
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["set"]


def test_of_two_folders_the_first_stays(tmp_path):
    for may_exist, expected in ((True, None), (False, OSError)):
        path = tmp_path / str(may_exist)
        with pytest.raises(OSError) if expected else contextlib.nullcontext():
            with storage.whole_folder(path, may_exist) as part:
                (part / "a").write_text("second")
                path.mkdir()
                (path / "a").write_text("first")
        assert (path / "a").read_text() == "first"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["False", "True"]


@pytest.mark.parametrize("shape, dtype", [((3,), np.float32), ((4, 5, 3), np.uint8)])
def test_an_array_grows_on_disk(tmp_path, shape, dtype):
    blocks = [np.arange(n * np.prod(shape)).reshape(n, *shape).astype(dtype) for n in (2, 1, 1000)]
    with storage.ArrayWriter(tmp_path / "rows.npy") as rows:
        for block in blocks:
            rows.add(block)
        with pytest.raises(ValueError, match="must be as the first"):
            rows.add(blocks[0].astype(np.float64))
        with pytest.raises(ValueError, match="must be as the first"):
            rows.add(blocks[0][..., :1])
    assert rows.num_rows == 1003
    read = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, np.concatenate(blocks))


# ---------------------------------------------------------------- paths that TensorFlow takes for patterns
ODD_NAMES = ["lr[1e-3]", "[a]", "a]", "what?", "all*", "back\\slash", os.fsdecode(b"caf\xe9")]


class _Doubled(tf.Module):
    def __init__(self):
        self.value = tf.Variable(3.0)

    @tf.function(input_signature=[])
    def doubled(self):
        return {"doubled": 2 * self.value}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_tensorflow_reads_back_what_it_wrote_under_any_path(tmp_path, name):
    folder = tmp_path / name / "models"
    folder.mkdir(parents=True)
    module, read = _Doubled(), tf.train.Checkpoint(value=tf.Variable(0.0))
    with storage.plain_path(folder) as plain:
        tf.train.Checkpoint(value=module.value).write(f"{plain}/ckpt-1")
        tf.saved_model.save(module, f"{plain}/saved", signatures=module.doubled)
    with storage.plain_path(folder) as plain:
        assert tf.train.load_checkpoint(f"{plain}/ckpt-1").get_variable_to_shape_map()
        read.read(f"{plain}/ckpt-1").assert_consumed()
        loaded = tf.saved_model.load(f"{plain}/saved")
    assert not os.path.lexists(plain) and not os.path.exists(os.path.dirname(plain))
    assert {"ckpt-1.index", "saved"} <= set(os.listdir(folder))
    assert read.value.numpy() == 3.0
    assert loaded.signatures["serving_default"]()["doubled"].numpy() == 6.0


def test_a_plain_path_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, str(tmp_path / "a, b{c}~$#" / "\u00e9"), "relative"):
        with storage.plain_path(folder) as plain:
            assert plain == os.fspath(folder)


def test_links_are_made_from_a_plain_place(tmp_path, monkeypatch):
    odd = tmp_path / "[1]"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError), storage.plain_path("[1]") as plain:
        assert pathlib.Path(plain).resolve() == odd and "[" not in plain
        raise KeyError
    assert not os.path.lexists(plain) and odd.is_dir()
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(ValueError, match="TMPDIR must name one"), storage.plain_path(odd):
        pass
