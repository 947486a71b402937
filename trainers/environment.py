"""A run's environment: command line, time, processor, devices and, in a git checkout, the commit."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import re
import socket
import subprocess
import sys
from typing import Any

# Those that determine which precisions are fast on a processor, and its order of summation; oldest first.
_VECTOR_UNITS = ("sse4_2", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe() -> dict[str, Any]:
    """What a run folder records privately about each start."""
    return {
        "command": list(sys.argv),
        "date": now(),
        "host": socket.gethostname(),
        "processor": processor(),
        "devices": devices(),
        **({"git": found} if (found := git(pathlib.Path(__file__).parents[1])) else {}),
    }


def now() -> str:
    """The time in UTC, as ISO 8601 to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def processor() -> dict[str, Any]:
    """The processor's name, the number of cores available to this process, and the vector units."""
    name = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": name[1].strip() if name else platform.processor() or platform.machine(),
        "cores": cores,
        "vector_units": list(vector_units()),
    }


def vector_units() -> tuple[str, ...]:
    """Vector units of this processor, oldest first; empty if the system does not list them."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _cpuinfo(), re.MULTILINE)
    there = set(flags[1].split()) if flags else set()
    return tuple(unit for unit in _VECTOR_UNITS if unit in there)


def _cpuinfo() -> str:
    try:
        return pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return ""


def devices() -> list[str]:
    """Devices of this machine that TensorFlow can use, with the names of its GPUs."""
    import tensorflow as tf

    found = []
    for device in tf.config.list_physical_devices():
        try:
            name = tf.config.experimental.get_device_details(device).get("device_name", "")
        except (ValueError, tf.errors.OpError):
            name = ""
        found.append(" ".join(part for part in (device.name.removeprefix("/physical_device:"), name) if part))
    return found


def git(root: pathlib.Path) -> dict[str, Any] | None:
    """The commit of a checkout, and whether tracked files differ from it.

    The commit is read from the repository's own files. `git` is only asked whether files differ; that is None if it is not
    installed or does not answer at once.

    Args:
        root: The folder that may be a checkout; its parents are not searched.

    Returns:
        `{"commit": 40 or 64 hexadecimal digits, "modified": bool or None}`; None if there is no commit to read.
    """
    try:
        commit = _commit(root / ".git")
    except (OSError, UnicodeDecodeError):
        return None
    return {"commit": commit, "modified": _is_modified(root)} if commit else None


def _commit(folder: pathlib.Path) -> str | None:
    if folder.is_file():  # in a worktree or a submodule
        folder = folder.parent / folder.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    head = (folder / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref:"):
        return _hexadecimal(head)
    name = head.removeprefix("ref:").strip()
    shared = folder / "commondir"  # a worktree has its own HEAD and shares branches
    common = folder / shared.read_text(encoding="utf-8").strip() if shared.is_file() else folder
    for path in (folder / name, common / name):
        if path.is_file():
            return _hexadecimal(path.read_text(encoding="utf-8").strip())
    packed = common / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    return next((_hexadecimal(line.split()[0]) for line in lines if line.endswith(f" {name}")), None)


def _hexadecimal(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else None


def _is_modified(root: pathlib.Path) -> bool | None:
    command = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "--untracked-files=no"]
    # variables such as GIT_DIR, which hooks set, would point to another repository
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return bool(done.stdout.strip())
