"""The modules of the data package import one another one way, by public names."""

import ast
import graphlib
import importlib
import pathlib

import tfvidgen.data

FOLDER = pathlib.Path(tfvidgen.data.__file__).parent
PACKAGE = "tfvidgen.data"


def imported() -> dict[str, set[str]]:
    """Module -> names that it imports from the package, wherever in it: `shards.ShardedVideos`, `video_io`, ..."""
    found = {}
    for path in FOLDER.rglob("*.py"):
        module = ".".join(path.relative_to(FOLDER).with_suffix("").parts)
        if module.rpartition(".")[2] != "__init__":
            found[module] = {
                f"{node.module}.{alias.name}".removeprefix(f"{PACKAGE}.")
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
                for alias in node.names
            }
    return found


def test_no_circle_and_no_private_names():
    names = imported()
    assert len(names) > 10
    graph = {
        module: {next(known for known in names if name == known or name.startswith(f"{known}.")) for name in uses}
        for module, uses in names.items()
    }
    assert [*graphlib.TopologicalSorter(graph).static_order()]  # raises CycleError, which names the circle
    for module in names:
        source = ast.parse((FOLDER / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        used = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(source)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        }
        private = [name for name in used | names[module] if name.rpartition(".")[2].startswith("_")]
        assert not private, f"{module} borrows {private}"


def test_every_public_name_is_there():
    for name in tfvidgen.data.__all__:
        assert getattr(importlib.import_module(PACKAGE), name) is not None
