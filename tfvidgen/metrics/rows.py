"""Per-clip values ("rows"), computed once and shared by all metrics, and their cache.

Rows are collected in one pass over each side. They are written to disk block by block, so memory does not grow with the number
of clips, and read back as a memory map. Rows of real clips are the same for every model evaluated against them: they are cached
under the SHA-256 of everything they were computed from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfvidgen import storage
from tfvidgen.features.base import FeatureExtractor
from tfvidgen.features.networks import Networks
from tfvidgen.metrics import consistency, diversity

VERSION = 1  # of the keys: increment when the same key would give different rows
GROUPS = 10  # groups that clips are dealt into; a jackknife leaves out one at a time


class Job:
    """A computation on every clip in a pass over one side.

    Attributes:
        outputs: Output names -> what they are computed with, JSON-serialisable.
        is_costly: Whether rows of real clips are worth caching.
        real_share: Real clips requested per generated one: 2 to also compare real clips with real ones, infinity to search
            all.
    """

    outputs: dict[str, dict[str, Any]]
    is_costly = False
    real_share: float = 1

    def add(self, clips: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows by output for the next clips, uint8 (n, T, H, W, 3); empty if rows are only available at the end."""
        raise NotImplementedError(f"{type(self).__name__} must implement `add`.")

    def finish(self) -> dict[str, np.ndarray]:
        """Rows that depend on the whole set. Resets the job."""
        return {}


class ClipRows(Job):
    """A function of a batch of clips that returns a row for each."""

    def __init__(self, name: str, function: Callable[[np.ndarray], np.ndarray]):
        self._name, self._function = name, function
        self.outputs = {name: {"rows": name}}

    def add(self, clips, outputs):
        return {self._name: self._function(clips)}


class NetworkRows(Job):
    """Features and logits of a network."""

    is_costly = True

    def __init__(self, name: str, extractor: FeatureExtractor, outputs: Sequence[str], searches_all: bool = False):
        self._name, self._extractor = name, extractor
        self.real_share = math.inf if searches_all else 2
        self.outputs = {f"{name}/{output}": {"network": extractor.record(), "output": output} for output in outputs}

    def add(self, clips, outputs):
        wanted = [output.removeprefix(f"{self._name}/") for output in outputs]
        parts = list(self._extractor.stream_outputs([clips], wanted))
        return {f"{self._name}/{output}": np.concatenate([part[output] for part in parts]) for output in wanted}


class DifferenceRows(Job):
    """Mean signed and absolute difference of VGG16 maps between consecutive frames, for GROUPS parts of the clips."""

    is_costly = True

    def __init__(self, maps: Callable[[np.ndarray], np.ndarray], record: dict[str, Any]):
        self._maps = maps
        self.outputs = {"differences": {"network": record, "groups": GROUPS, "dealt": "in turn"}}
        self._new()

    def _new(self) -> None:
        self._groups = [consistency.FrameDifferences() for _ in range(GROUPS)]
        self._seen = 0

    def add(self, clips, outputs):
        for clip in clips:
            self._groups[self._seen % GROUPS].update(self._maps(clip)[None])
            self._seen += 1
        return {}

    def finish(self):
        """(2 G, D): a signed and an absolute row per non-empty group."""
        groups = [group for group in self._groups if group.count]
        self._new()
        return {"differences": np.stack([row for group in groups for row in (group.signed, group.absolute)])}


class DifferenceGroups:
    """Rows of `DifferenceRows`, recombined with the weights of their groups."""

    def __init__(self, rows: np.ndarray, num_clips: int):
        self._rows = rows.reshape(-1, 2, rows.shape[-1])
        self._weights = np.bincount(np.arange(num_clips) % GROUPS)  # clips were dealt round-robin

    def __len__(self) -> int:
        return len(self._rows)

    def mean(self, row: int, without: int | slice | None = None) -> np.ndarray:
        kept = np.ones(len(self), bool)
        if without is not None:
            kept[without] = False
        return np.average(self._rows[kept, row], axis=0, weights=self._weights[kept])


class PairRows(Job):
    """LPIPS of consecutive clips, frame by frame: random pairs, because the order of clips is random."""

    is_costly = True

    def __init__(self, lpips: Any):
        self._lpips = lpips
        self.outputs = {"lpips": {"network": lpips.record(), "pairs": "clips 2i and 2i + 1"}}

    def add(self, clips, outputs):
        pairs = len(clips) // 2
        if not pairs:
            return {}
        return {"lpips": self._lpips(clips[0 : 2 * pairs : 2], clips[1 : 2 * pairs : 2]).mean(axis=1, keepdims=True)}


def digests(clips: np.ndarray) -> np.ndarray:
    """uint8 (n, 32): the SHA-256 of each clip's pixels."""
    rows = [hashlib.sha256(np.ascontiguousarray(clip).data).digest() for clip in clips]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)


def _fcs(clips: np.ndarray) -> np.ndarray:
    return consistency.frame_consistency_score(clips)[:, None]


def _acd(clips: np.ndarray) -> np.ndarray:
    acd = diversity.average_content_distance(diversity.mean_colours(clips))
    return np.stack([acd.all_pairs, acd.consecutive], axis=1)


def _motion(clips: np.ndarray) -> np.ndarray:
    return diversity.motion_energy(clips)[:, None]


NETWORK_OF_JOB = {"differences": "vgg16", "lpips": "lpips"}
_CLIP_FUNCTIONS = {"sha256": digests, "fcs": _fcs, "acd": _acd, "motion": _motion}


def make_job(
    name: str, networks: Networks, num_frames: int, stride: int, outputs: Sequence[str], searches_all: bool
) -> Job:
    """Creates the job of a name: a function of clips, or a network."""
    if name in _CLIP_FUNCTIONS:
        return ClipRows(name, _CLIP_FUNCTIONS[name])
    network = networks.get(NETWORK_OF_JOB.get(name, name), num_frames, stride)
    if name == "differences":
        return DifferenceRows(network, network.record())
    if name == "lpips":
        return PairRows(network)
    return NetworkRows(name, network, outputs, searches_all)


class RowStore:
    """A folder of two-dimensional arrays, each in its own subfolder named by the digest of its key.

    Entries are written atomically, even when processes write the same one concurrently or are killed.

    Args:
        folder: Location of the entries; created on the first write.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)

    def path(self, key: Mapping[str, Any]) -> pathlib.Path:
        """Folder of an entry, whether or not it exists. `key` is JSON-serialisable; the order of its keys is irrelevant."""
        described = json.dumps({"version": VERSION, **key}, sort_keys=True)
        return self.folder / hashlib.sha256(described.encode()).hexdigest()

    def read(self, key: Mapping[str, Any]) -> np.ndarray | None:
        """The rows of a key as a read-only memory map, or None if there are none.

        Raises:
            ValueError: If the entry is damaged.
        """
        path = self.path(key)
        if not path.exists():
            return None
        try:
            if json.loads((path / "key.json").read_text(encoding="utf-8")) != json.loads(json.dumps(key)):
                raise ValueError("its content does not match its name")
            return np.load(path / "rows.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"The cached features {str(path)!r} are damaged ({error}): delete that folder.") from None

    @contextlib.contextmanager
    def writer(self, key: Mapping[str, Any]) -> Iterator[storage.ArrayWriter]:
        """A writer whose rows become the entry if the block ends without an error, and are discarded otherwise."""
        with storage.whole_folder(self.path(key), may_exist=True) as part:
            with storage.ArrayWriter(part / "rows.npy") as rows:
                yield rows
            if not rows.num_rows:
                raise ValueError("No rows were computed: there are no clips.")
            storage.write_json(part / "key.json", key)
