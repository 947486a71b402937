"""The client: the same frames by REST and gRPC, files of every kind, retries, and errors that say what to do."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from export import client, saved_model
from export.serving import has_stubs
from tests.export.conftest import assert_same_frames, assert_same_pixels, start_server
from tests.export.free_length import moving_square
from tfvidgen import latent_files
from tfvidgen.data.video_io import probe_video, read_video, write_mp4
from tfvidgen.visualize import contact_sheet
from trainers import generate


def addresses(server):
    yield f"http://127.0.0.1:{server.rest_port}"
    if server.grpc_port:
        yield f"grpc://127.0.0.1:{server.grpc_port}"


# ---------------------------------------------------------------- library
def test_rest_and_grpc_give_the_live_frames(server, exported):
    latents = {name: np.asarray(value) for name, value in exported.model.sample_latents(2, seed=4).items()}
    for address in addresses(server):
        asking = client.connect(address, "m")
        video = asking.predict("serving_default", {"seed": [9, 5]})["video"]
        assert_same_frames(video[:1], exported.model.generate(1, seed=9))
        assert_same_frames(asking.predict("decode", latents)["video"], exported.model.decode(latents))
        files = asking.predict("serving_default_jpeg", {"seed": [9, 5]})
        shown = client.videos_of(files)
        assert shown.shape == video.shape and np.abs(shown.astype(int) - video).mean() < 12
        asking.close()


def test_latents_of_an_encoder_come_back(free_server, free_length):
    video = moving_square()
    live = free_length.model.encode(video.astype(np.float32) / 127.5 - 1.0)
    for address in addresses(free_server):
        asking = client.connect(address, "m")
        latents = asking.predict("encode", {"video": video})
        for name, value in live.items():
            assert latents[name].dtype == value.dtype.name
            np.testing.assert_allclose(latents[name], value, atol=1e-5)
        asking.close()


def test_signatures_are_the_servers(server, exported):
    for address in addresses(server):
        asking = client.connect(address, "m")
        assert set(asking.signatures()) == set(exported.metadata["endpoints"])
        decode = asking.signature("decode")
        assert decode.inputs["transient"] == client.Tensor(np.dtype("float32"), (None, 4, 5))
        assert decode.outputs["video"] == client.Tensor(np.dtype("uint8"), (None, 4, 16, 16, 3))
        asking.close()


@pytest.mark.parametrize(
    ("endpoint", "inputs", "reason"),
    [
        ("lookup", {"video_id": [6]}, r"video_id must lie in 0\.\.5"),
        ("nothing", {"seed": [1]}, "no endpoint 'nothing'; it has conditional.*decode"),
        ("lookup", {"seed": [1]}, "'lookup' takes video_id. Received seed"),
        ("lookup", {"video_id": [0.5]}, "video_id must be int32. Received float64"),
        ("lookup", {"video_id": [1 << 40]}, "video_id must fit into int32"),
        ("decode", {"static": ["a"], "transient": [1], "label": [1]}, "static must be float32"),
    ],
)
def test_refusals_say_why(server, endpoint, inputs, reason):
    for address in addresses(server):
        asking = client.connect(address, "m")
        with pytest.raises(ValueError, match=reason):
            asking.predict(endpoint, inputs)
        asking.close()


def test_an_answer_beyond_the_limit_is_refused(server):
    for address in addresses(server):
        asking = client.connect(address, "m")
        asking.signatures()  # larger than the videos of this small model
        asking.close()
        limited = client.connect(address, "m", max_bytes=1000)
        limited._signatures = asking.signatures()
        with pytest.raises(client.ServerError, match=r"exceeds 1000 bytes|RESOURCE_EXHAUSTED.*larger than max"):
            limited.predict("serving_default", {"seed": [1]})
        limited.close()


def test_addresses_must_name_a_protocol():
    for address in ("127.0.0.1:8501", "ftp://x", "http://"):
        with pytest.raises(ValueError, match="must be http://host:port"):
            client.connect(address, "m")


# ---------------------------------------------------------------- trouble
class Unreliable:
    """A listening socket that answers its n-th connection with the n-th of the given byte strings; None: it hangs."""

    def __init__(self, *answers: bytes | None):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(answers,), daemon=True)
        self._thread.start()

    def _serve(self, answers):
        for answer in answers:
            connection, _ = self._socket.accept()
            with connection:
                self.requests.append(self._request(connection))
                if answer is None:
                    self._end.wait(10)
                else:
                    connection.sendall(answer)

    @staticmethod
    def _request(connection) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(1 << 16)
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        while length and len(body) < int(length[1]):
            body += connection.recv(1 << 16)
        return head + body

    def close(self):
        self._end.set()
        self._thread.join()
        self._socket.close()


def http(status: int, content: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(content), content)


SIGNATURE = {
    "inputs": {"seed": {"dtype": "DT_INT64", "tensor_shape": {"dim": [{"size": "-1"}]}}},
    "outputs": {"video": {"dtype": "DT_UINT8", "tensor_shape": {"dim": [{"size": "-1"}]}}},
}
METADATA = json.dumps({"metadata": {"signature_def": {"signature_def": {"serving_default": SIGNATURE}}}}).encode()


@pytest.fixture
def quick(monkeypatch):
    """Waits less between two attempts."""
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)


def test_what_may_pass_is_tried_again(quick):
    busy = http(503, b'{"error": "busy"}')
    server = Unreliable(http(200, METADATA), busy, b"", busy, http(200, b'{"outputs": [7]}'))
    asking = client.RestClient(server.url, "m")
    assert asking.predict("serving_default", {"seed": [1]})["video"].tolist() == [7]
    server.close()
    assert len(server.requests) == 5
    assert all(b'"seed": [1]' in request for request in server.requests[1:])


def test_it_gives_up_after_the_attempts(quick):
    server = Unreliable(http(200, METADATA), *[http(503, b'{"error": "busy"}')] * 2)
    asking = client.RestClient(server.url, "m", num_attempts=2)
    with pytest.raises(client.ServerError, match="answered 503: busy"):
        asking.predict("serving_default", {"seed": [1]})
    server.close()


def test_a_refusal_is_not_tried_again(quick):
    server = Unreliable(http(200, METADATA), http(400, b'{"error": "no"}'))
    asking = client.RestClient(server.url, "m")
    with pytest.raises(client.ServerError, match="answered 400: no"):
        asking.predict("serving_default", {"seed": [1]})
    server.close()
    assert len(server.requests) == 2


def test_a_server_that_hangs_is_left_after_the_timeout(quick):
    server = Unreliable(http(200, METADATA), None)
    asking = client.RestClient(server.url, "m", timeout_seconds=0.3)
    asking.signatures()
    begin = time.monotonic()
    with pytest.raises(client.ServerError, match=r"within 0\.3 s: raise --timeout_seconds"):
        asking.predict("serving_default", {"seed": [1]})
    assert time.monotonic() - begin < 5
    server.close()


def test_a_late_answer_is_told_alike_by_grpc(server, monkeypatch):
    if not server.grpc_port:
        pytest.skip("needs tensorflow-serving-api (extra: serving)")
    asked = server.app.ask

    async def slow(worker, kind, *rest, **header):
        await asyncio.sleep(0.5 if kind == "grpc" else 0.0)
        return await asked(worker, kind, *rest, **header)

    monkeypatch.setattr(server.app, "ask", slow)
    asking = client.connect(f"grpc://127.0.0.1:{server.grpc_port}", "m", timeout_seconds=0.2)
    asking.signatures()
    with pytest.raises(client.ServerError, match=r"within 0\.2 s: raise --timeout_seconds"):
        asking.predict("serving_default", {"seed": [1]})
    asking.close()


def test_answers_of_another_form_or_too_large_are_errors(quick):
    server = Unreliable(
        http(200, METADATA), http(200, b"<html>"), http(200, b'{"outputs": "x"}'), http(200, b"x" * 2000)
    )
    asking = client.RestClient(server.url, "m", max_bytes=1000)
    for reason in ("response in an unexpected form", "response in an unexpected form", "exceeds 1000 bytes"):
        with pytest.raises(client.ServerError, match=reason):
            asking.predict("serving_default", {"seed": [1]})
    server.close()


def test_a_server_that_is_not_there(quick):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    addresses = [url, f"grpc{url[4:]}"] if has_stubs() else [url]
    for address in addresses:
        with pytest.raises(
            client.ServerError, match="nothing listens on port .*is the server running, and is this the port"
        ):
            client.connect(address, "m").signatures()


def test_a_wrong_port_is_told_by_what_it_speaks(server, quick, monkeypatch):
    """At once: it would speak the same at the next attempt."""
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 100)
    rest = f"127.0.0.1:{server.rest_port}"
    with pytest.raises(client.ServerError, match=f"https://{rest} speaks HTTP without TLS: name http://{rest}"):
        client.connect(f"https://{rest}", "m").signatures()
    secret = Unreliable(b"\x15\x03\x01\x00\x02\x02\x50", b"\x15\x03\x01\x00\x02\x02\x50")
    with pytest.raises(client.ServerError, match=f"speaks TLS: name https://{secret.url[7:]}"):
        client.connect(secret.url, "m").signatures()
    secret.close()
    if not server.grpc_port:
        pytest.skip("needs tensorflow-serving-api (extra: serving)")
    rpc = f"127.0.0.1:{server.grpc_port}"
    with pytest.raises(client.ServerError, match=f"http://{rpc} speaks gRPC, not REST: name grpc://{rpc}, or .*:8501"):
        client.connect(f"http://{rpc}", "m").signatures()
    with pytest.raises(
        client.ServerError, match=f"grpc://{rest} speaks HTTP, not gRPC: name http://{rest}, or .*:8500"
    ):
        client.connect(f"grpc://{rest}", "m").signatures()


# ---------------------------------------------------------------- more rows than the server takes
def test_more_rows_than_the_server_takes_are_sent_in_parts(server):
    seeds, labels = list(range(70, 33, -1)), [i % 2 for i in range(37)]
    for address in addresses(server):
        asking = client.connect(address, "m")
        singly = np.concatenate([asking.predict("serving_default", {"seed": [seed]})["video"] for seed in seeds])
        assert not asking._max_rows
        assert_same_pixels(asking.predict("serving_default", {"seed": seeds})["video"], singly)
        assert asking._max_rows == {"serving_default": server.app.config.max_batch_size}
        paired = asking.predict("conditional", {"seed": seeds, "label": labels})["video"]
        for row in (0, 16, 36):
            one = asking.predict("conditional", {"seed": [seeds[row]], "label": [labels[row]]})["video"]
            assert_same_pixels(paired[row : row + 1], one)
        assert client.videos_of(asking.predict("lookup_jpeg", {"video_id": [i % 6 for i in range(20)]})).shape[0] == 20
        with pytest.raises(client.ServerError, match=r"video_id must lie in 0\.\.5"):
            asking.predict("lookup", {"video_id": [0] * 20 + [6]})
        with pytest.raises(client.ServerError, match="seed must have "):
            asking.predict("serving_default", {"seed": np.zeros(0, np.int64)})
        with pytest.raises(ValueError, match="same number of rows. Received {'label': 1, 'seed': 37}"):
            asking.predict("conditional", {"seed": seeds, "label": [0]})
        asking.close()


def test_parts_shrink_until_they_fit_and_share_scalars(free_server):
    video = np.repeat(moving_square(), 18, axis=0)
    video[:, :, 0, 0] = np.arange(18, dtype=np.uint8)[:, None, None]
    for address in addresses(free_server):
        asking = client.connect(address, "m")
        latents = asking.predict("encode", {"video": video})  # more than 20,000 bytes as JSON
        alone = asking.predict("encode", {"video": video[17:]})
        for name, values in latents.items():
            assert len(values) == 18
            np.testing.assert_allclose(values[17:], alone[name], atol=1e-5)
        assert asking.predict("generate", {"seed": list(range(18)), "num_frames": 5})["video"].shape[:2] == (18, 5)
        asking.close()


def test_the_limit_of_tensorflow_serving_is_understood(quick):
    refused = http(400, b'{"error": "Task size 3 is larger than maximum input batch size 2"}')
    server = Unreliable(http(200, METADATA), refused, http(200, b'{"outputs": [7, 8]}'), http(200, b'{"outputs": [9]}'))
    asking = client.RestClient(server.url, "m")
    assert asking.predict("serving_default", {"seed": [1, 2, 3]})["video"].tolist() == [7, 8, 9]
    server.close()
    sent = [json.loads(request[request.index(b"{") :])["inputs"]["seed"] for request in server.requests[1:]]
    assert sent == [[1, 2, 3], [1, 2], [3]]


# ---------------------------------------------------------------- program
def test_rest_needs_no_tensorflow(url, tmp_path):
    """In a process that can import neither TensorFlow, Keras, gRPC nor the stubs."""
    code = """
import runpy, sys
for name in ("tensorflow", "keras", "grpc", "tensorflow_serving"):
    sys.modules[name] = None
runpy.run_module("export.client", run_name="__main__", alter_sys=True)
"""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    out = tmp_path / "clip.mp4"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", f"--server={url}", "--model=m", "--seeds=9", f"--out={out}"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 1 video(s) of 4 frames, 16x16, enlarged 16 times by nearest neighbour\n"
    made = probe_video(out)
    assert (made.num_frames, made.height, made.width) == (4, 256, 256)


def test_every_command_and_kind_of_file(url, server, exported, tmp_path, capsys):
    common = [f"--server={url}", "--model=m"]
    np.savez(tmp_path / "codes.npz", **{n: np.asarray(v) for n, v in exported.model.sample_latents(2, seed=4).items()})
    for command, suffix in (
        (["generate", "--seeds=1,2,3", "--scale=2", "--jpeg"], ".mp4"),
        (["lookup", "--ids=0,5"], ".gif"),
        (["exchange", "--identities=0,2", "--actions=1,0"], ".webp"),
        (["interpolate", "--start=1", "--end=9", "--num_steps=3"], ".png"),
        (["decode", f"--latents={tmp_path / 'codes.npz'}"], ".npy"),
    ):
        out = tmp_path / f"{command[0]}{suffix}"
        assert client.main([*command, *common, f"--out={out}"]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.startswith(f"{out}: ")
    assert probe_video(tmp_path / "generate.mp4").num_frames == 4
    for name in ("lookup.gif", "exchange.webp"):
        with Image.open(tmp_path / name) as image:
            assert image.n_frames == 4
    asking = client.connect(url, "m")
    line = asking.predict("interpolate", {"a": 1, "b": 9, "num_steps": 3})["video"]
    asking.close()
    with Image.open(tmp_path / "interpolate.png") as image:
        sheet = contact_sheet(list(line), row_labels=["seed 1", "", "seed 9"], scale=8)
        np.testing.assert_array_equal(np.asarray(image), sheet)
    live = exported.model.decode(exported.model.sample_latents(2, seed=4))
    assert_same_frames(np.load(tmp_path / "decode.npy"), live)
    if server.grpc_port:
        out = tmp_path / "grpc.npy"
        assert (
            client.main(["generate", f"--server=grpc://127.0.0.1:{server.grpc_port}", "--model=m", f"--out={out}"]) == 0
        )
        assert_same_frames(np.load(out), exported.model.generate(1, seed=0))


def test_latents_that_generate_wrote_are_decoded_and_others_refused(url, exported, tmp_path, capsys):
    about = {"system": "navsynth", "run": "mine", "step": 3, "names": ["seed 4 #0", "seed 4 #1"]}
    codes, latents = (
        tmp_path / "codes.npz",
        {n: np.asarray(v) for n, v in exported.model.sample_latents(2, seed=4).items()},
    )
    latent_files.save(codes, latents, about)
    command = ["decode", f"--server={url}", "--model=m", f"--latents={codes}"]
    for suffix in (".npy", ".png"):
        assert client.main([*command, f"--out={tmp_path / 'clips'}{suffix}"]) == 0, capsys.readouterr().err
    live = exported.model.decode(latents)
    assert_same_frames(np.load(tmp_path / "clips.npy"), live)
    with Image.open(tmp_path / "clips.png") as image:
        sheet = contact_sheet(list(np.load(tmp_path / "clips.npy")), row_labels=about["names"], scale=8)
        np.testing.assert_array_equal(np.asarray(image), sheet)
    latent_files.save(codes, {"content": np.zeros((2, 3), np.float32)}, {**about, "system": "mocogan"})
    assert client.main([*command, f"--out={tmp_path / 'no.npy'}"]) == 1
    error = capsys.readouterr().err
    assert "latents of mocogan (run mine, step 3): content (2, 3). They do not fit the model 'm' of http" in error
    assert "transient (B, 4, 5)" in error and not (tmp_path / "no.npy").exists()


@pytest.mark.long
def test_a_run_s_latents_by_its_server(run, tmp_path):
    """From trainers.generate to the client: the same frames."""
    saved_model.export_run(run.config.run_dir, tmp_path / "models")
    flags = [
        f"--run_dir={run.config.run_dir}",
        "--num_videos=3",
        f"--latents={tmp_path / 'codes.npz'}",
        f"--out={tmp_path}",
    ]
    assert generate.main(flags) == 0
    serving = start_server(tmp_path / "models")
    try:
        flags = [f"--server=http://127.0.0.1:{serving.rest_port}", "--model=m", f"--latents={tmp_path / 'codes.npz'}"]
        assert client.main(["decode", *flags, f"--out={tmp_path / 'served.npy'}"]) == 0
    finally:
        serving.stop()
    assert_same_pixels(np.load(tmp_path / "served.npy"), np.load(tmp_path / "new.npy"))


@pytest.mark.long
def test_encoding_and_decoding_a_file(free_server, free_length, tmp_path):
    write_mp4(tmp_path / "in.mp4", moving_square()[0], 8)
    common = [f"--server=http://127.0.0.1:{free_server.rest_port}", "--model=m"]
    codes = tmp_path / "codes.npz"
    assert client.main(["encode", *common, f"--video={tmp_path / 'in.mp4'}", "--num_frames=4", f"--out={codes}"]) == 0
    assert client.main(["decode", *common, f"--latents={codes}", f"--out={tmp_path / 'out.npy'}"]) == 0
    frames, _ = read_video(tmp_path / "in.mp4", size=8, max_frames=4)
    latents = free_length.model.encode(frames[None].astype(np.float32) / 127.5 - 1.0)
    assert_same_frames(np.load(tmp_path / "out.npy"), free_length.model.decode(latents))
    longer = ["generate", *common, "--num_frames=7", f"--out={tmp_path / 'long.npy'}"]
    assert client.main(longer) == 0
    assert np.load(tmp_path / "long.npy").shape == (1, 7, 8, 8, 3)


def test_wrong_commands_are_one_message(url, tmp_path, capsys):
    out = f"--out={tmp_path / 'x.mp4'}"
    no_npz = tmp_path.with_name("codes.npz")
    no_npz.write_bytes(b"latents")
    for arguments, status, reason in (
        ([], 2, "A command is missing"),
        (["generat"], 2, "Did you mean 'generate'?"),
        (["generate", out, "--seed=1"], 2, "Did you mean --seeds?"),
        (["generate", "--out=x.avi"], 2, "--out must end in one of .mp4"),
        (["generate", out, "--seeds=a"], 2, "--seeds takes whole numbers"),
        (["lookup", out, f"--server={url}", "--model=m", "--ids=99"], 1, "video_id must lie in 0..5"),
        (["generate", out, f"--server={url}", "--model=m", "--num_frames=9"], 1, "no endpoint 'generate'"),
        (["exchange", out, "--identities=0,1", "--actions=0"], 2, "Received 2 and 1 numbers"),
        (["decode", out], 2, "--latents is missing"),
        (["decode", out, f"--latents={no_npz}"], 1, "is not an .npz file"),
        (["decode", out, f"--latents={tmp_path / 'none.npz'}"], 1, "No such file"),
        (["generate", out], 2, "--model is missing"),
        (["encode", out, "--model=m"], 2, "encode needs --video=FILE and --out=FILE.npz"),
        (["generate", out, f"--server={url}", "--model=other"], 1, "answered 404: no model 'other'"),
    ):
        assert client.main(arguments) == status, arguments
        error = capsys.readouterr().err
        assert reason in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_help_lists_the_commands(capsys):
    assert client.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}  " in text for name in client.COMMANDS)
    assert client.main(["interpolate", "--help"]) == 0
    assert "--num_steps" in capsys.readouterr().out
