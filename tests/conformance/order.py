"""Which reads and writes of a variable may run in either order, in a graph as TensorFlow runs it."""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context  # nothing public gives a graph after TensorFlow's rewriting

_READS = ("ReadVariableOp", "ResourceGather")
_WRITES = ("Assign", "ResourceApply", "ResourceScatter")
_HANDS_ON = ("Enter", "Identity", "Switch")  # a variable into a branch or a loop


def rewritten_graphs(function: Any, *args) -> list[tf.compat.v1.GraphDef]:
    """Calls a `tf.function` for the first time, and returns the graphs that were run."""
    context.enable_graph_collection()
    function(*args)
    metadata = context.export_run_metadata()
    context.disable_graph_collection()
    return [graph for one in metadata.function_graphs for graph in one.partition_graphs]


def unordered(graph: tf.compat.v1.GraphDef) -> list[str]:
    """Pairs of a write and another access of the same variable without a path from one to the other."""
    nodes = {node.name: node for node in graph.node}
    after, accesses = collections.defaultdict(list), collections.defaultdict(list)
    for node in graph.node:
        for source in map(_name, node.input):
            after[source].append(node.name)
        if node.op.startswith(_READS + _WRITES):
            for source in map(_name, node.input):  # a fused optimizer takes its slots, too
                while nodes[source].op in _HANDS_ON:
                    source = _name(nodes[source].input[0])
                if _is_variable(nodes[source]):
                    accesses[source].append(node.name)
    later = {name: _reachable(name, after) for names in accesses.values() for name in names}
    return [
        f"{one} | {other}"
        for names in accesses.values()
        for i, one in enumerate(names)
        for other in names[:i]
        if any(nodes[name].op.startswith(_WRITES) for name in (one, other))
        and one not in later[other]
        and other not in later[one]
    ]


def _name(reference: str) -> str:
    return reference.lstrip("^").split(":")[0]


def _is_variable(node: Any) -> bool:
    """Whether it is an argument of the graph's function that holds a variable."""
    types = {"_Arg": "T", "Placeholder": "dtype"}
    return node.op in types and node.attr[types[node.op]].type == tf.resource


def _reachable(start: str, after: dict[str, list[str]]) -> set[str]:
    found, ahead = set(), [start]
    while ahead:
        new = [name for name in after[ahead.pop()] if name not in found]
        found.update(new)
        ahead += new
    return found
