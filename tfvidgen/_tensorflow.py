"""TensorFlow, imported when first used.

Forward passes speak `keras.ops` and run on any Keras backend; only training steps, data and export need TensorFlow.
Importing it through this object keeps a model file importable where TensorFlow is not installed.
"""

import importlib


class _LazyTensorFlow:
    def __getattr__(self, name):
        return getattr(importlib.import_module("tensorflow"), name)


tf = _LazyTensorFlow()
