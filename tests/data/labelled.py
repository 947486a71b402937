"""Three small videos with names and labels."""

import numpy as np

from tfvidgen.data.collection import VideoCollection

LABELS = {
    "identity": [0, 1, 1],
    "action": [1, 0, 1],
    "identity_names": ("ann", "bob"),
    "action_names": ("bow", "jump"),
}


def videos(lengths=(2, 4, 3), height=2, width=5) -> list[np.ndarray]:
    """Frame t of video i has the value 1 + 10 * i + t everywhere."""
    return [
        np.broadcast_to((1 + 10 * i + np.arange(n, dtype=np.uint8))[:, None, None, None], (n, height, width, 3)).copy()
        for i, n in enumerate(lengths)
    ]


def collection(**changes) -> VideoCollection:
    return VideoCollection.from_videos(
        videos(), **{**LABELS, "names": ("a", "b", "c"), "fps": 5, "source": "here", **changes}
    )
