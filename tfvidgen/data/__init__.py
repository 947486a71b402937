"""Video sources of every kind -> one collection type -> one batch contract."""

from __future__ import annotations

import importlib

_MODULES = {
    "actors": "sets.actors",
    "shapes": "sets.shapes",
    "sprites": "sets.sprites",
    "weizmann": "sets.weizmann",
    "ShardedVideos": "shards",
    "VideoCollection": "collection",
    "apply_short_clip_policy": "videos",
    "distribute": "batches",
    "make_dataset": "batches",
    "make_epochs": "batches",
    "prepare_shards": "prepare",
    "load": "loading",
    "video_dataset_from_directory": "directory",
    "load_videos": "sources",
    "scan": "sources",
    "hold_out_cells": "splits",
    "read_video": "video_io",
    "write_mp4": "video_io",
    "write_gif": "video_io",
    "write_webp": "video_io",
}
__all__ = [*_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
