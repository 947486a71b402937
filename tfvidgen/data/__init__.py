"""Sources of every kind -> one collection -> one batch contract."""

from __future__ import annotations

import importlib

_MODULES = {
    "VideoCollection": "collection",
    "apply_short_clip_policy": "clips",
    "make_dataset": "clips",
    "load": "named",
    "load_videos": "sources",
    "scan": "sources",
    "actors": "actors",
    "sprites": "sprites",
    "weizmann": "weizmann",
    "hold_out_cells": "splits",
    "read_video": "video_io",
    "write_mp4": "video_io",
    "write_gif": "video_io",
    "write_webp": "video_io",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # a function named like its module replaces it
    return value
