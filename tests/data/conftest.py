"""A folder of videos in class folders, decoded into memory and prepared."""

import shutil

import pytest

from tests.data.prepared import LENGTHS, SIZE, prepare, strip
from tfvidgen.data.sources import load_videos


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        strip(folder / f"{name}.png", length, seed)
    return folder


@pytest.fixture(scope="session")
def collection(source):
    return load_videos(source, SIZE)


@pytest.fixture(scope="session")
def prepared(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "größe 64"
    prepare(source, folder)
    return folder


@pytest.fixture
def copy(prepared, tmp_path):
    """A prepared folder to damage."""
    return shutil.copytree(prepared, tmp_path / "copy")
