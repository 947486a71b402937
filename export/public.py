"""What may be published about a run: how its numbers came about, but nothing of the machine, its user or its folders.

An allowlist: a setting that is new, or was written by another version, stays private unless it is known to be a number, one
of its choices, or a name.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

from tfvidgen import runs as library
from trainers import runs

UNNAMED = "a folder"  # data whose path only gives its location
_DIGEST = re.compile(r"[0-9a-f]{16,128}")
_VERSION = re.compile(r"\d[0-9A-Za-z.+!-]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Free-text settings that affect the numbers, and how their text is published.
_TEXTS = {
    "dataset": lambda text: last_part(text),
    "image_dataset": lambda text: last_part(text) if text else "",
    "augmentation": lambda text: text if set(re.split(r"[ ,]+", text)) <= {"", *_augmentations()} else None,
    "earlier_totals": lambda text: text if re.fullmatch(r"[0-9:,]*", text) else None,
}
_PROTOCOL = ("psnr", "ssim", "fcs", "clip_start", "data_digest")  # text entries of an evaluation


def description(description: Mapping[str, Any]) -> dict[str, Any]:
    """The publishable content of a run's `config.json`, except its `model`.

    Args:
        description: As returned by `trainers.runs.read`.

    Returns:
        `system`; `config` with the settings that are numbers, choices or names, data by the last part of its path; `data`,
        `labels`, `versions`, and, if the run has them, `resolved` and `forms`.
    """
    system, data = description["system"], description["data"]
    public = {
        "system": system,
        "config": settings(system, description["config"]),
        "data": {
            "source": last_part(data["source"]),
            **{key: data[key] for key in ("digest", "images_digest") if _matches(_DIGEST, data.get(key))},
            **{key: data[key] for key in ("num_videos", "fps") if _is_number(data.get(key))},
        },
        "labels": {
            key: [_printable(name) for name in description["labels"][key]]
            for key in runs.LABELS
            if key in description.get("labels", {})
        },
        "versions": _versions(description),
    }
    if "resolved" in description:
        public["resolved"] = settings(system, description["resolved"])
    if "forms" in description:
        public["forms"] = numbers(description["forms"])
    return public


def model(description: Mapping[str, Any]) -> dict[str, Any]:
    """`class` and `config` of a run's model, sufficient to rebuild it: the class itself defines their content."""
    described = description["model"]
    return {"class": described["class"], "config": {k: v for k, v in described["config"].items() if k != "name"}}


def settings(system: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that are numbers, one of their choices, or names."""
    config_class = runs.config_class(system)
    kinds = typing.get_type_hints(config_class)
    public = {}
    for field in dataclasses.fields(config_class):
        value, kind, choices = config.get(field.name), kinds[field.name], field.metadata["choices"]
        if kind is str and isinstance(value, str):
            value = _TEXTS[field.name](value) if field.name in _TEXTS else value if value in (choices or ()) else None
        elif kind is str or not _is_number(value):
            value = None
        if value is not None:
            public[field.name] = value
    return public


def numbers(content: Any) -> Any:
    """The numbers, booleans and nulls in nested dicts whose keys are names; everything else is left out."""
    if isinstance(content, Mapping):
        return {
            key: numbers(value)
            for key, value in content.items()
            if _matches(_NAME, key) and (value is None or _is_number(value) or isinstance(value, Mapping))
        }
    return content


def evaluation(results: Mapping[str, Any]) -> dict[str, Any]:
    """The publishable content of a run's `evaluation.json`: its numbers and its protocol."""
    protocol = results.get("protocol", {})
    return {
        **numbers({key: value for key, value in results.items() if key not in ("protocol", "versions")}),
        "protocol": {
            key: value
            for key, value in protocol.items()
            if _is_number(value) or key in _PROTOCOL and isinstance(value, str)
        },
        "versions": _versions(results),
    }


def last_part(path: str) -> str:
    """The last component of a path or address, whichever operating system wrote it."""
    part = re.split(r"[?#]", path.replace("\\", "/").rstrip("/"))[0].rsplit("/", 1)[-1]
    part = re.split(r"[:=@]", part)[-1]
    return UNNAMED if part in ("", ".", "..") or part.startswith("~") else _printable(part)


def _versions(content: Mapping[str, Any]) -> dict[str, str]:
    found = content.get("versions", {})
    return {name: found[name] for name in library.versions() if _matches(_VERSION, found.get(name))}


def _augmentations() -> tuple[str, ...]:
    from tfvidgen.layers.augmentation import AUGMENTATIONS

    return AUGMENTATIONS


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _matches(pattern: re.Pattern, text: Any) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None


def _printable(text: str) -> str:
    """Text that can be encoded as UTF-8: file names may hold any bytes."""
    return text.encode("utf-8", "replace").decode()
