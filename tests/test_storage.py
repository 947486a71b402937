"""Files and folders that are there whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
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
        with pytest.raises(ValueError, match="must match the first one"):
            rows.add(blocks[0].astype(np.float64))
        with pytest.raises(ValueError, match="must match the first one"):
            rows.add(blocks[0][..., :1])
    assert rows.num_rows == 1003
    read = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, np.concatenate(blocks))


# ---------------------------------------------------------------- what killed processes leave
ROOT = pathlib.Path(__file__).parents[1]
WRITERS = {
    "a file": "storage.replaced(folder / 'note.txt') as path, open(path, 'w') as file",
    "a folder": "storage.whole_folder(folder / 'set') as path, open(path / 'half', 'w') as file",
    "an export": "storage.temporary_folder(folder, '.export-') as path, open(path / 'half', 'w') as file",
}


@contextlib.contextmanager
def writer(folder, kind):
    """A process that has begun to write into a folder, and does not end by itself."""
    code = f"""
import pathlib, sys, time
from tfvidgen import storage
folder = pathlib.Path(sys.argv[1])
with {WRITERS[kind]}:
    file.write('half')
    file.flush()
    print('writes', flush=True)
    time.sleep(1000)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == "writes\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, kind):
    prefix = ".export-" if kind == "an export" else ".part-"
    (tmp_path / f"{prefix}mine").mkdir()  # not one of ours by its name
    (tmp_path / f"{prefix}notours1").mkdir()  # not one of ours by its content
    (tmp_path / f"{prefix}notours1" / "file").touch()
    strangers = set(tmp_path.iterdir())
    with writer(tmp_path, kind) as process:
        (living,) = set(tmp_path.iterdir()) - strangers
        with storage.temporary_folder(tmp_path, prefix):
            pass
        assert [path.read_text() for path in living.glob("content/*")] == ["half"]
        process.kill()
        process.wait()
        assert living.is_dir()
        with storage.temporary_folder(tmp_path, prefix) as folder:
            assert set(tmp_path.iterdir()) - strangers == {folder.parent}
    assert set(tmp_path.iterdir()) == strangers


@pytest.mark.parametrize("write", [storage.replaced, storage.whole_folder])
def test_the_next_process_that_writes_there_sweeps(tmp_path, write):
    with writer(tmp_path, "a file"), writer(tmp_path, "a folder"):
        pass
    assert len(list(tmp_path.iterdir())) == 2
    with write(tmp_path / "new") as part:
        assert list(tmp_path.iterdir()) == [part.parent if write is storage.whole_folder else part.parent.parent]
        if write is storage.replaced:
            part.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_sweep_that_is_killed_is_taken_up_again(tmp_path, monkeypatch):
    with writer(tmp_path, "a folder"):
        pass
    (left,) = tmp_path.iterdir()

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        storage.sweep(tmp_path)
    assert left.is_dir()
    storage.sweep(tmp_path)
    assert not left.exists()


def test_a_folder_that_a_sweep_takes_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made, make = [], tempfile.mkdtemp

    def swept_at_once(**options):
        made.append(make(**options))
        if len(made) == 1:
            storage.sweep(tmp_path)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept_at_once)
    with storage.temporary_folder(tmp_path) as folder:
        assert folder.is_dir() and str(folder.parent) == made[1]
    assert len(made) == 2 and not list(tmp_path.iterdir())


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(95, "Operation not supported")

    with writer(tmp_path, "a folder"):
        pass
    monkeypatch.setattr(storage.fcntl, "flock", no_locks)
    with storage.whole_folder(tmp_path / "set") as part:
        (part / "whole").touch()
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["whole"]
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_without_a_lock_go_only_where_they_are_known_to_be_left(tmp_path):
    old = tmp_path / ".export-abcd_123"
    (old / "model").mkdir(parents=True)
    (old / "model" / "saved_model.pb").touch()
    storage.sweep(tmp_path, ".export-")
    assert old.is_dir()
    storage.sweep(tmp_path, ".export-", unlocked=True)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("name", ODD_NAMES)
def test_checkpoints_of_any_name_are_read(tmp_path, name):
    tf.train.Checkpoint(value=tf.Variable(3.0)).write(str(tmp_path / "plain"))
    tf.train.Checkpoint(value=tf.Variable(4.0)).write(str(tmp_path / "other"))
    for file in list(tmp_path.glob("plain.*")):
        file.rename(tmp_path / f"{name}{file.name.removeprefix('plain')}")
    with storage.plain_path(tmp_path / name) as plain:
        read = tf.train.Checkpoint(value=tf.Variable(0.0))
        read.read(plain).assert_consumed()
    assert read.value.numpy() == 3.0
    for missing in (tmp_path / f"{name}0", tmp_path / name / "below"):
        with pytest.raises(ValueError, match="neither a folder nor a checkpoint"), storage.plain_path(missing):
            pass


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
