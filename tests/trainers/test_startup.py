"""Programs start without messages that nobody can act on, and the doctor says what there is."""

import subprocess
import sys

import pytest

from trainers import doctor, startup

NOISE = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1796075938.221740   18225 port.cc:153] oneDNN custom operations are on. You may see slightly different
I0000 00:00:1796075938.222032   18225 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.
"""
CUDA = "E0000 00:00:1796075949.352283 18225 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error"


def test_noise_is_told_from_messages(monkeypatch):
    assert all(startup.is_noise(line) for line in NOISE.splitlines())
    assert not startup.is_noise("E0000 00:00:1796 18225 gpu_device.cc:2] Cannot dlopen some GPU libraries.")
    for has_gpu in (False, True):
        monkeypatch.setattr(startup, "has_nvidia_gpu", lambda has_gpu=has_gpu: has_gpu)
        assert startup.is_noise(CUDA) is not has_gpu  # with a GPU, that is what went wrong


@pytest.mark.long
def test_tensorflow_starts_quietly_and_other_messages_are_printed():
    code = """
import os, sys
from trainers import startup
startup.quiet()
startup.quiet()
import tensorflow as tf
assert tf.zeros(1).numpy() == 0 and not any(type(finder).__name__ == "_Finder" for finder in sys.meta_path)
with startup._filtered():
    os.write(2, b"said by a library\\n")
    print("WARNING: All log messages before absl::InitializeLog() is called", file=sys.stderr)
print("afterwards", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "said by a library\nafterwards\n")


def test_the_doctor_finds_what_there_is(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_SECONDS", 0.02)
    assert doctor.main([f"--run_dir={tmp_path}/runs/new"]) == 0
    printed = capsys.readouterr().out
    for part in ("tensorflow 2.", "cores available", "CPU:0", "float32 matrix product", "MP4 yes", "GiB free"):
        assert part in printed
    assert printed.endswith("ready to train\n")


@pytest.mark.parametrize(
    ("patched", "value", "problem"),
    [
        ("_LEAST_SPACE", 2**70, "GiB are free under"),
        (
            "startup.has_nvidia_gpu",
            lambda: True,
            "The system has an NVIDIA GPU that TensorFlow cannot use: .*nvidia-smi",
        ),
    ],
)
def test_the_doctor_says_what_is_wrong_and_what_helps(capsys, tmp_path, monkeypatch, patched, value, problem):
    import re

    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("needs a machine without a GPU")
    monkeypatch.setattr(doctor, "_SECONDS", 0.02)
    monkeypatch.setattr(f"trainers.doctor.{patched}", value)
    assert doctor.main([f"--run_dir={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert re.search(problem, printed) and printed.endswith("1 problem(s)\n")
