"""The commands of docs/serving.md and of model cards, run in order on one export, as a reader would run them."""

import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest

from export import serve, serving
from tests.export.conftest import assert_same_frames, make_run
from tests.test_docs import PAGES, blocks
from trainers import cli

FORMATS = {".onnx": ("tf2onnx", "onnxruntime"), ".tflite": ("ai_edge_litert",)}


def commands(text: str) -> list[list[str]]:
    """The words of every command of the code blocks, in order; installing the package is left out."""
    found = re.findall(r"^((?:python -m|curl) .*)$", blocks(text), re.MULTILINE)
    return [shlex.split(line) for line in found]


def curl(words: list[str], port: int) -> dict:
    """The answer to a documented curl, whose server is on the default port."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    given, count = re.subn(r"(localhost|127\.0\.0\.1):8501", f"127.0.0.1:{port}", "\0".join(words))
    assert count == 1
    done = subprocess.run([*given.split("\0"), "-sS", "--noproxy", "*"], capture_output=True, check=True)
    return json.loads(done.stdout)


def start(arguments: list[str]) -> serve.Server:
    """The documented server, on free ports."""
    config, _ = cli.parse(serve.Config, {}, [*arguments, "--rest_port=0", "--grpc_port=-1"])
    return serve.Server(config)


def installed(arguments: list[str]) -> bool:
    """Whether the packages of a conversion's format are there."""
    (out,) = (word for word in arguments if word.startswith("--out="))
    return all(importlib.util.find_spec(name) for name in FORMATS[pathlib.Path(out).suffix])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A folder with the trained run that the commands name, and the codes that an encoder would have given."""
    folder = tmp_path_factory.mktemp("commands")
    run = make_run(folder / "runs" / "mine", num_actions=3)
    latents = run.model.sample_latents(2, seed=1)
    np.savez(folder / "codes.npz", **{name: np.asarray(value) for name, value in latents.items()})
    return folder


@pytest.mark.long
def test_the_commands_of_the_page_run_in_order(place, monkeypatch, capsys):
    pytest.importorskip("prometheus_client", reason="the server needs prometheus-client (extra: serving)")
    monkeypatch.chdir(place)
    server = None
    try:
        for words in commands(PAGES["docs/serving.md"]):
            if words[0] == "curl":
                (video,) = curl(words, server.rest_port)["outputs"]
                assert np.shape(video) == (3, 16, 16, 3)
                continue
            module, *arguments = words[2:]
            if module == "export.serve":
                server = start(arguments)
                assert server.app.config.model_name == "mine"
                continue
            if module == "export.formats" and not installed(arguments):
                continue
            if module == "export.client":
                arguments.append(f"--server=http://127.0.0.1:{server.rest_port}")
            status, error = importlib.import_module(module).main(arguments), capsys.readouterr().err
            if arguments[0] == "encode":  # NAVSynth has no encoder, and the video is the reader's
                assert status == 1 and ("'encode'" in error or "clip.mp4" in error)
                continue
            assert status == 0, (words, error)
            (out,) = (word.partition("=")[2] for word in arguments if word.startswith("--out="))
            assert pathlib.Path(out).exists(), words
    finally:
        if server:
            server.stop()
    written = {path.relative_to(place / "models").as_posix() for path in (place / "models").rglob("*")}
    assert {"mine/1/saved_model.pb", "mine/serving/triton/mine/config.pbtxt"} <= written


@pytest.mark.long
def test_the_commands_of_a_card_run(exported, monkeypatch):
    """From the folder of the card, with the server that the page names for it."""
    pytest.importorskip("prometheus_client", reason="the server needs prometheus-client (extra: serving)")
    monkeypatch.chdir(exported.version)
    card = pathlib.Path("README.md").read_text()
    names: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL):
        exec(code, names)
    assert_same_frames(names["video"].numpy(), exported.model.generate(1, seed=7))
    server = start([f"--model_base_path={exported.base}"])
    try:
        (words,) = commands(card)
        np.testing.assert_array_equal(curl(words, server.rest_port)["outputs"], names["video"])
    finally:
        server.stop()


def test_the_page_names_the_services_and_files_that_are_written(exported):
    page = PAGES["docs/serving.md"]
    composed = serving.configs({**exported.metadata, "name": "mine"})
    for service in re.findall(r"docker compose up (\w+)", page):
        assert f"\n  {service}:" in composed["docker-compose.yml"]
    for name in re.findall(r"kubectl apply -f ([\w.]+)", page):
        assert name in composed
    assert "triton/mine/config.pbtxt" in composed and "/serving/triton/mine/1/model.onnx" in page
