"""Fixtures shared by every test."""

import gc
import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with real clips and golden numbers: named by TFVIDGEN_SHARED, else `../shared` beside the repository."""
    folder = pathlib.Path(os.environ.get("TFVIDGEN_SHARED") or pathlib.Path(__file__).parents[1].parent / "shared")
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs real data and golden numbers: no folder {folder} (set TFVIDGEN_SHARED to name another)")
    return folder


@pytest.fixture(scope="session")
def two_replicas():
    """A MirroredStrategy over two logical CPUs."""
    from trainers.engine import cluster

    return cluster.make_strategy("mirrored", "CPU:0,CPU:1")


@pytest.fixture(scope="module")
def quick_graphs():
    """Leaves out TensorFlow's rewriting of graphs, which takes several times as long as a few steps of tiny networks."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


def pytest_configure(config):
    """Makes two logical CPUs before TensorFlow starts, so that replicas can be tested on any machine."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # this process only hands out the tests
    # Graphs are millions of Python objects: walking through them again and again took a tenth of the tests' time, and one walk
    # through all of them up to half a minute, so only young ones are walked through.
    gc.set_threshold(50_000, 20, 1_000_000)
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def pytest_collection_modifyitems(items):
    """What shares expensive fixtures stays on one process: a file, the exports, a system's contracts. Longest first."""

    def folder(item):
        return item.path.parent.name

    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        system = params.get("system") or params.get("trained_system")
        name = str(item.path)
        if folder(item) == "conformance" and system is not None:
            name = f"contracts of {system.name}"
        elif folder(item) == "export":
            name = "exports"
        item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=lambda item: {"conformance": 0, "export": 1}.get(folder(item), 2))
