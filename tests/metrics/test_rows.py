"""Rows of clips are kept whole or not at all."""

import numpy as np
import pytest

from tfvidgen.metrics.rows import RowStore


def test_a_store_holds_an_entry_whole_or_not_at_all(tmp_path):
    store = RowStore(tmp_path)
    key = {"of": "test", "size": [1, 2]}
    with pytest.raises(RuntimeError):
        with store.writer(key) as rows:
            rows.add(np.ones((2, 3), np.float32))
            raise RuntimeError
    assert store.read(key) is None and not list(tmp_path.iterdir())
    blocks = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    with store.writer(key) as rows:
        rows.add(blocks[:4])
        with store.writer(key) as other:  # a faster process
            other.add(blocks)
        rows.add(blocks[4:])
    np.testing.assert_array_equal(store.read({"size": [1, 2], "of": "test"}), blocks)
    assert isinstance(store.read(key), np.memmap)
    assert store.read({**key, "of": "other"}) is None
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="match the first one"):
        with store.writer({"of": "mixed"}) as rows:
            rows.add(blocks)
            rows.add(blocks[:, :2])
    with pytest.raises(ValueError, match="no clips"):
        with store.writer({"of": "nothing"}):
            pass


@pytest.mark.parametrize("damage", ["rows.npy", "key.json"])
def test_a_damaged_entry_is_named(tmp_path, damage):
    store = RowStore(tmp_path)
    with store.writer({"of": "test"}) as rows:
        rows.add(np.ones((2, 3), np.float32))
    (store.path({"of": "test"}) / damage).write_text('{"of": "another"}')
    with pytest.raises(ValueError, match="damaged.*delete that folder"):
        store.read({"of": "test"})
