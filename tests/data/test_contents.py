"""A source is known by the content of its files, and a file is read again only if anything about it may have changed."""

import json
import os
import time

import pytest

from tfvidgen.data import contents
from tfvidgen.data.contents import read_contents


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "walk").mkdir(parents=True)
    for name, content in (("a.bin", b"first"), ("walk/b.bin", b"second"), ("walk/c.bin", b"")):
        (tmp_path / "set" / name).write_bytes(content)
    return tmp_path / "set"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are read."""
    names = []

    def file_sha256(path):
        names.append(path.name)
        return original(path)

    original = contents.file_sha256
    monkeypatch.setattr(contents, "file_sha256", file_sha256)
    return names


def files(folder):
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def key(folder, known=None, options=()):
    return read_contents(folder, files(folder), known).key(options)


def settle(monkeypatch):
    """As if the files had been written long ago."""
    now = time.time_ns()
    monkeypatch.setattr(contents.time, "time_ns", lambda: now + 10**10)


def test_names_contents_and_options_make_the_key(folder, tmp_path):
    before = key(folder)
    assert key(folder) == before and len(before) == 64
    assert key(folder, options=[1]) != before
    for path in files(folder):  # the same elsewhere, with other times
        copy = tmp_path / "copy" / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert key(tmp_path / "copy") == before
    os.rename(tmp_path / "copy" / "a.bin", tmp_path / "copy" / "d.bin")
    assert key(tmp_path / "copy") != before


def test_a_single_file(folder):
    file = folder / "a.bin"
    assert read_contents(file, [file]).names == ("a.bin",)


def test_files_that_are_known_are_not_read_again(folder, tmp_path, hashed, monkeypatch):
    known = tmp_path / "known.json"
    settle(monkeypatch)
    before = key(folder, known)
    assert sorted(hashed) == ["a.bin", "b.bin", "c.bin"]
    assert key(folder, known) == before and len(hashed) == 3
    assert len(json.loads(known.read_text())) == 3
    (folder / "a.bin").unlink()
    key(folder, known)
    assert len(hashed) == 3 and len(json.loads(known.read_text())) == 2  # what is gone is forgotten


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_an_edit_that_keeps_size_and_time_is_seen(folder, tmp_path, monkeypatch, how):
    known, file = tmp_path / "known.json", folder / "a.bin"
    settle(monkeypatch)
    before, stat = key(folder, known), file.stat()
    time.sleep(0.02)  # longer than the kernel's clock for time stamps
    if how == "written":
        file.write_bytes(b"FIRST")
    else:
        (tmp_path / "new").write_bytes(b"FIRST")
        os.replace(tmp_path / "new", file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and file.stat().st_mtime_ns == stat.st_mtime_ns
    assert key(folder, known) != before


def test_what_was_written_just_now_is_read_again(folder, tmp_path, hashed):
    """It may be written again without another time stamp."""
    for _ in range(2):
        key(folder, tmp_path / "known.json")
    assert len(hashed) == 6


@pytest.mark.parametrize("content", ["", "[]", "{", '{"1 2 3 4 5": 7}'])
def test_damaged_knowledge_is_dropped(folder, tmp_path, content):
    (tmp_path / "known.json").write_text(content)
    assert key(folder, tmp_path / "known.json") == key(folder)


def test_a_file_that_changes_meanwhile_is_named(folder, monkeypatch):
    def file_sha256(path):
        (folder / "a.bin").write_bytes(b"another content")
        return "0" * 64

    monkeypatch.setattr(contents, "file_sha256", file_sha256)
    with pytest.raises(ValueError, match="1 files changed while they were read, such as 'a.bin'"):
        key(folder)


def test_what_cannot_be_read_is_no_error(folder):
    before = key(folder)
    os.mkfifo(folder / "pipe")  # opening it would wait for a writer
    (folder / "broken").symlink_to(folder / "nowhere")
    assert key(folder) != before
