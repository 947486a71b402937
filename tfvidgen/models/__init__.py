"""One file per published system; import systems from their modules or from `tfvidgen`."""

from __future__ import annotations

import functools
import pathlib
import re


@functools.cache
def systems() -> dict[str, str]:
    """Public systems: class name -> module in this package, `{"NAVSynth": "navsynth", ...}`.

    A system is a public subclass of `VideoGenerator`. Files are parsed rather than imported, which would load TensorFlow.
    """
    found = {}  # class -> (first base, module)
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        for name, base in re.findall(r"^class (\w+)\((\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, (base, path.stem))

    def is_generator(name: str) -> bool:
        return name == "VideoGenerator" or (name in found and is_generator(found[name][0]))

    return {
        name: module
        for name, (base, module) in found.items()
        if is_generator(base) and not name.startswith("_")  # leaves out `VideoGenerator` itself
    }
