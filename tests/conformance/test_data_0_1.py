"""Runs of version 0.1, one of each class of systems it had, load and go on with this one (`tests/data_0_1/README.md`)."""

import dataclasses
import importlib
import pathlib
import tarfile

import numpy as np
import pytest

import tfvidgen
from tests.systems import SYSTEMS
from trainers import runs, train

ARCHIVES = sorted((pathlib.Path(__file__).parents[1] / "data_0_1").glob("*.tar.gz"))
SINCE = ()  # classes that are newer than version 0.1
RENAMED = {"category": "label"}  # latents
pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(params=[path for path in ARCHIVES if path.name != "navsynth.tar.gz"], ids=lambda path: path.name[:-7])
def run_dir(request, tmp_path) -> pathlib.Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(tmp_path)
    return next(tmp_path.iterdir())


def test_every_class_of_0_1_has_a_run():
    named = {path.name.removesuffix(".tar.gz") for path in ARCHIVES}
    covered = {system.model_class for system in SYSTEMS if any(system.name.startswith(name) for name in named)}
    assert {system.model_class for system in SYSTEMS} - covered == set(SINCE)


def test_it_decodes_what_it_did(run_dir):
    model = tfvidgen.load(run_dir)
    assert model.step == 2
    with np.load(run_dir / "decoded.npz") as saved:
        names = {name: name.removeprefix("latents_") for name in saved if name != "video"}
        latents = {RENAMED.get(short, short): saved[name] for name, short in names.items()}
        video = saved["video"]
    assert set(latents) == set(model.latent_spec)
    # networks that are hardly trained make nearly grey videos: the tolerance is a thousandth of what little they show
    np.testing.assert_allclose(model.decode(latents), video, rtol=0, atol=1e-3 * video.std() + 1e-7)


@pytest.mark.long
def test_it_goes_on(run_dir):
    config = runs.read_config(run_dir)
    trainer = importlib.import_module(f"trainers.{runs.read(run_dir)['system']}")
    going = dataclasses.replace(config, total_steps=3, resume="must")
    train.train(runs.read(run_dir)["system"], going, trainer.build_model, report=lambda line: None)
    model = tfvidgen.load(run_dir)
    assert model.step == 3
    assert model.network_form == 1 and runs.read(run_dir)["forms"]["network"] == 1
