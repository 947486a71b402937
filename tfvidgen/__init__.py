"""Latent-variable video generators: train them on your clips, edit what they learned, measure and serve them.

Names are loaded when used: `import tfvidgen` alone does not import TensorFlow.
"""

from __future__ import annotations

import importlib

from tfvidgen.models import systems as _systems

__version__ = "0.1.0"

_NAMES = {
    **{name: f"models.{module}" for name, module in _systems().items()},
    "VideoGenerator": "models.base",
    "LatentSpec": "models.base",
    "LatentTable": "layers.latent_table",
    "VideoCollection": "data.collection",
    "load": "runs",
}
_PACKAGES = ("data", "editing", "features", "layers", "losses", "metrics", "models", "runs", "visualize")
__all__ = ["__version__", *_NAMES, *_PACKAGES]


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(importlib.import_module(f"tfvidgen.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        return importlib.import_module(f"tfvidgen.{name}")
    raise AttributeError(f"module 'tfvidgen' has no attribute {name!r}")


def __dir__():
    return __all__
