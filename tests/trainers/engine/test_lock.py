"""Who may write a run folder."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from trainers import navsynth
from trainers.engine.lock import RunLock


def test_a_lock_is_there_while_it_is_held(tmp_path):
    folder = tmp_path / "runs" / "new"
    with RunLock(folder):
        held = json.loads((folder / "lock").read_text())
        assert (held["pid"], held["host"]) == (os.getpid(), socket.gethostname())
    assert list(folder.iterdir()) == []


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path):
        assert (tmp_path / "lock").is_file()


def test_a_second_holder_is_told_of_the_first(tmp_path):
    with RunLock(tmp_path):
        for _ in range(2):
            with pytest.raises(ValueError) as caught, RunLock(tmp_path):
                pytest.fail("two hold it")
            said = str(caught.value)
            assert f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}, since 2" in said
            assert "Wait until it ends" in said and "--run_dir" in said
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_holder_without_a_name_is_another_process(tmp_path):
    with RunLock(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(ValueError, match="in use by another process"), RunLock(tmp_path):
            pytest.fail("two hold it")


def holding(folder: pathlib.Path) -> subprocess.Popen:
    """A process that holds the lock until it is killed."""
    program = f"import sys, time\nfrom trainers.engine.lock import RunLock\nwith RunLock({str(folder)!r}):\n"
    program += "    print('held', flush=True)\n    time.sleep(600)\n"
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with holding(tmp_path) as process:
        with pytest.raises(ValueError, match=f"in use by process {process.pid} on"), RunLock(tmp_path):
            pytest.fail("two hold it")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / "lock").read_text())["pid"] == process.pid  # it could not clean up
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_trainer_leaves_a_folder_alone_that_is_in_use(tmp_path, capsys):
    with RunLock(tmp_path):
        assert navsynth.main(["--preset=smoke", f"--run_dir={tmp_path}"]) == 1
        assert f"in use by process {os.getpid()} on" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
