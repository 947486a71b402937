"""Trains systems in a process of its own, with TensorFlow's default threads, and prints what became of them.

    python -m tests.conformance.repeat STEPS SYSTEM...

A line of JSON per system: the digest of its state, and what could have run in either order.
"""

from __future__ import annotations

import hashlib
import json
import sys

import keras
import numpy as np
import tensorflow as tf

from tests.conformance.order import rewritten_graphs, unordered
from tests.systems import SYSTEMS, System
from trainers.engine import loop


def result(system: System, num_steps: int) -> dict:
    keras.utils.set_random_seed(3)
    model = system.build()
    system.compile(model, lambda rate: keras.optimizers.SGD(rate, momentum=0.9))
    step = tf.function(model.train_step)
    first, *rest = system.dataset().take(num_steps)
    graphs = rewritten_graphs(step, first)
    for batch in rest:
        step(batch)
    digest = hashlib.sha256()
    for name, variable in sorted(loop.model_state(model).items()):
        digest.update(name.encode() + np.ascontiguousarray(variable.numpy()).tobytes())
    found = [pair for graph in graphs for pair in unordered(graph)]
    return {"system": system.name, "digest": digest.hexdigest(), "unordered": found}


def main():
    tf.config.experimental.enable_op_determinism()
    num_steps, names = int(sys.argv[1]), sys.argv[2:]
    for system in SYSTEMS:
        if system.name in names:
            print(json.dumps(result(system, num_steps)), flush=True)


if __name__ == "__main__":
    main()
