"""What imports what: no circles, and one way from the metrics to the networks."""

import ast
import graphlib
import pathlib

import tfvidgen

PACKAGE = pathlib.Path(tfvidgen.__file__).parent


def imports(path: pathlib.Path) -> set[str]:
    """Modules of tfvidgen that a file imports, also within functions and for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names if is_module(node.module, alias.name)}
            found |= submodules or {node.module}
    return {name for name in found if name.startswith("tfvidgen.")}


def is_module(package: str, name: str) -> bool:
    folder = PACKAGE.parent / package.replace(".", "/")
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def test_metrics_and_features_import_each_other_without_circles():
    files = [*PACKAGE.glob("metrics/*.py"), *PACKAGE.glob("features/*.py"), PACKAGE / "study.py"]
    graph = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): imports(path) for path in files}
    assert "tfvidgen.metrics.rows" in graph["tfvidgen.metrics.evaluate"]
    assert "tfvidgen.metrics.measures" in graph["tfvidgen.metrics.families"]
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_metrics_reach_networks_by_name_only():
    for path in PACKAGE.glob("metrics/*.py"):
        features = {name for name in imports(path) if name.startswith("tfvidgen.features")}
        assert features <= {"tfvidgen.features.base", "tfvidgen.features.networks"}, path
