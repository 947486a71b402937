"""Model cards: what a model is, its training data, metrics and usage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from export import serving

MAX_METRICS = 40  # rows of the table; the rest is in metadata.json
MAX_NAMES = 100  # of identities, actions and videos each; the rest is in metadata.json


def model_card(metadata: Mapping[str, Any], license: str = "", files: str = "", version: str = ".") -> str:
    """A Markdown card with the front matter that model hubs read.

    Args:
        metadata: The content of `metadata.json`.
        license: SPDX identifier of the weights' licence; empty if none was chosen.
        files: Markdown describing the files next to the card, or empty.
        version: Path of the SavedModel relative to the card.

    Raises:
        ValueError: If the model's name is unsafe in URLs or commands.
    """
    name, video = metadata["name"], metadata["video"]
    serving.check_name(name)
    front = ["---", "library_name: keras", *([f"license: {json.dumps(license)}"] if license else [])]
    front += [
        "tags:",
        "- video-generation",
        "- tensorflow",
        *([f"- {json.dumps(metadata['system'])}"] if "system" in metadata else []),
    ]
    length = f"{video['num_frames']} frames" + (" (or any number on request)" if video["free_length"] else "")
    lines = [
        *front,
        "---",
        "",
        f"# {_code(name)}",
        "",
        "![new videos](sample.gif)",
        "",
        f"A video generator{_by(metadata)}: {length} of {video['shape'][2]}x{video['shape'][3]} pixels, uint8 RGB.",
        "",
        *_section("Training", _training(metadata)),
        *_section("Measured", _metrics(metadata.get("metrics"))),
        *_section("Endpoints", _endpoints(metadata)),
        *_section("Latents", _latents(metadata)),
        *_section("Files", [files] if files else []),
        *_section("Use", _use(metadata, version)),
        *_section(
            "Limits",
            [
                "It generates only what resembles its training data, with that data's biases. Generated videos of people show "
                "no real event; say so wherever they are shown. Evaluate it on your own data before relying on it."
            ],
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _code(text: Any) -> str:
    """Text of others as a code span: one line in which neither HTML nor Markdown is interpreted, also in a table."""
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).strip() or " "
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _by(metadata: Mapping[str, Any]) -> str:
    if "system" not in metadata:
        return ""
    return f" by the system {_code(metadata['system'])}" + ("" if "." in metadata["system"] else " of tfvidgen")


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _training(metadata: Mapping[str, Any]) -> list[str]:
    data = metadata.get("data")
    if not data:
        return []
    digest = f" (SHA-256 of the pixels and labels {_code(data['digest'])})" if "digest" in data else ""
    lines = [
        f"{metadata['step']} steps on {data['num_videos']} videos of {_code(data['source'])}{digest}, {data['fps']:g} frames per "
        "second."
    ]
    for key, names in metadata.get("labels", {}).items():
        listed = [f"{i} {_code(name)}" for i, name in enumerate(names[:MAX_NAMES])]
        more = [f"{len(names) - MAX_NAMES} more in `metadata.json`"] if len(names) > MAX_NAMES else []
        lines.append(f"{key.replace('_', ' ').capitalize()}: {', '.join(listed + more)}.")
    versions = metadata.get("versions", {})
    if versions:
        lines.append("Made with " + ", ".join(f"{name} {_code(version)}" for name, version in versions.items()) + ".")
    lines += ["", "The settings are in `metadata.json`."]
    return lines


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, number) of every number in nested dicts."""
    if isinstance(values, Mapping):
        return [
            pair for key, value in values.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, values)] if isinstance(values, int | float) and not isinstance(values, bool) else []


def _metrics(metrics: Mapping[str, Any] | None) -> list[str]:
    if not metrics:
        return ["No metrics were computed before the export."]
    results = {key: value for key, value in metrics.items() if key not in ("step", "protocol", "seconds", "versions")}
    rows = _flat(results)
    lines = [
        "| what | value |",
        "|---|---|",
        *(_row(_code(name), f"{value:.6g}") for name, value in rows[:MAX_METRICS]),
    ]
    if len(rows) > MAX_METRICS:
        lines.append(f"\n{len(rows) - MAX_METRICS} more are in `metadata.json`.")
    if "protocol" in metrics:
        lines += [
            "",
            "Protocol: " + "; ".join(f"{key} {_code(value)}" for key, value in metrics["protocol"].items()) + ".",
        ]
    return lines


def _shape(entry: Mapping[str, Any], batched: bool = True) -> str:
    sizes = ["B" if batched and axis == 0 and size is None else "T" if size is None else str(size)
             for axis, size in enumerate(entry["shape"])]  # fmt: skip
    return f"{entry['dtype']} ({', '.join(sizes)})"


_OWNERS = {"identity": "an identity", "action": "an action", "video": "a training video", "shared": "all videos"}


def _endpoints(metadata: Mapping[str, Any]) -> list[str]:
    lines = ["| endpoint | inputs, all required | outputs |", "|---|---|---|"]
    for name, endpoint in metadata["endpoints"].items():
        inputs = [
            f"{_code(key)} {_shape(entry)}"
            + (f" in {entry['range'][0]}..{entry['range'][1]}" if "range" in entry else "")
            + (f", of {_OWNERS[entry['of']]}" if "of" in entry else "")
            for key, entry in endpoint["inputs"].items()
        ]
        outputs = [f"{_code(key)} {_shape(entry)}" for key, entry in endpoint["outputs"].items()]
        lines.append(_row(_code(name), ", ".join(inputs), ", ".join(outputs)))
    return lines


def _latents(metadata: Mapping[str, Any]) -> list[str]:
    return [
        f"* {_code(name)} {_shape(entry, batched=False)} per video: {_code(entry['prior'])}"
        for name, entry in metadata["latents"].items()
    ]


def _use(metadata: Mapping[str, Any], version: str) -> list[str]:
    request = json.dumps({"signature_name": "serving_default", "inputs": {"seed": [7]}})
    return [
        "In Python, with only TensorFlow:",
        "",
        "```python",
        "import tensorflow as tf",
        "",
        f"model = tf.saved_model.load({version!r})  # relative to this file",
        "video = model.signatures['serving_default'](seed=tf.constant([7], tf.int64))['video']  # uint8 (1, T, H, W, 3)",
        "```",
        "",
        "From a server:",
        "",
        "```",
        f"curl -d '{request}' http://127.0.0.1:8501/v1/models/{metadata['name']}:predict",
        "```",
    ]
