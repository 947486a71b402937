"""The documentation as a site, for Sphinx: the Markdown pages as they are, and a reference from the docstrings.

`make docs` builds it. Pages are written for a reader of the repository, docstrings as plain text with `code` in single
backticks; what Sphinx needs beside that is made here, in the folder that it reads from.
"""

import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("tfvidgen", "trainers", "export")
sys.path.insert(0, str(ROOT))

from sphinx.util import inspect  # noqa: E402

import tfvidgen  # noqa: E402

project = "tfvidgen"
release = tfvidgen.__version__
copyright = "The tfvidgen authors"
root_doc = "README"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # links to headings, as on GitHub
default_role = "py:obj"  # `name` in a docstring links to that name where there is one
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "ignore-module-all": True,  # a name is described once, where it is defined
}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # or Keras's would be described as ours
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
highlight_language = "none"
suppress_warnings = ["ref.python"]  # two classes have an attribute of that name, and either may be linked to
napoleon_use_ivar = True  # attributes of a dataclass are described as such once

html_theme = "alabaster"
html_theme_options = {
    "fixed_sidebar": True,
    "page_width": "80rem",
    "body_max_width": "60rem",
    "sidebar_width": "17rem",
}
html_show_sourcelink = False


def pages(readme: str) -> list[str]:
    """Pages of the repository in the order in which the README names them, then what it leaves out."""
    named = dict.fromkeys(re.findall(r"\]\(([\w/]+)\.md\)", readme))
    folders = ((ROOT, "*.md"), (ROOT / "docs", "*.md"), (ROOT / "benchmarks", "*.md"))
    found = {
        str(path.relative_to(ROOT).with_suffix("")) for folder, pattern in folders for path in folder.glob(pattern)
    }
    return [*named, *sorted(found - {*named, "README"})]


def table_of_contents(title: str, names: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *names, "```", ""])


def collect_pages(source: pathlib.Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = pages(readme)
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / f"{name}.md", source / f"{name}.md")
    for linked in ("CITATION.cff", *re.findall(r"!\[[^]]*\]\((\S+)\)", readme)):
        shutil.copyfile(ROOT / linked, source / linked)
    contents = table_of_contents("Guide", names) + table_of_contents("Reference", [f"api/{name}" for name in PACKAGES])
    (source / "README.md").write_text(readme + contents, encoding="utf-8")


def write_reference(folder: pathlib.Path, name: str, path: pathlib.Path) -> None:
    """A page for a module, and for a package its modules' pages, too."""
    children = []
    if path.is_dir():
        children = sorted(
            child
            for child in path.iterdir()
            if not child.name.startswith("_") and (child.suffix == ".py" or (child / "__init__.py").exists())
        )
    lines = [name, "=" * len(name), "", f".. automodule:: {name}", ""]
    if children:
        lines += [
            ".. toctree::",
            "   :maxdepth: 1",
            "",
            *(f"   {child.stem} <{name}.{child.stem}>" for child in children),
            "",
        ]
    (folder / f"{name}.rst").write_text("\n".join(lines), encoding="utf-8")
    for child in children:
        write_reference(folder, f"{name}.{child.stem}", child)


def collect(app) -> None:
    source = pathlib.Path(app.srcdir)
    collect_pages(source)
    (source / "api").mkdir(exist_ok=True)
    for package in PACKAGES:
        write_reference(source / "api", package, ROOT / package)


def as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """A docstring, in place: plain text with code in single backticks, lists, sections and indented code."""
    blocks, in_section = [], False
    for block in "\n".join(lines).split("\n\n"):
        if block.startswith("    ") and not in_section:
            blocks.append(f".. code-block:: python\n\n{block}")
            continue
        in_section = bool(re.match(r"[A-Z]\w*:\n", block))  # `Args:`, which napoleon reads
        blocks.append(escaped(block if in_section else paragraphs(block)))
    lines[:] = "\n\n".join(blocks).split("\n")


def paragraphs(block: str) -> str:
    """Sets lists and deviations apart from what stands before them, and lines of a note (`Source: ...`) under each other."""
    found, in_list = [], False
    for line in block.split("\n"):
        starts = bool(re.match(r"(\*|-|\d+\.) ", line))
        was_in_list, in_list = in_list, starts or (in_list and line.startswith(" "))
        if found and (in_list != was_in_list or line.startswith("Deviation")):
            found.append("")
        found.append(line if in_list else line.lstrip())
    return "\n".join(found)


def escaped(text: str) -> str:
    """Nothing but lists and code is markup in it; a name in backticks is looked up."""
    parts = re.split(r"(`[^`]+`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?m)(?<!^)[*|@]|^[*|@](?! )|(?<=\w)_(?!\w)", r"\\\g<0>", parts[i])
    for i in range(1, len(parts), 2):
        code = " ".join(parts[i][1:-1].split())
        parts[i] = f"`{code}`" if re.fullmatch(r"\w+(\.\w+)*", code) else f"``{code}``"
        parts[i] += "\\ " if re.match(r"\w", parts[i + 1]) else ""
    return "".join(parts)


def own_signature(app, what, name, obj, options, signature, returns):
    """Keras gives its classes a `__new__` that takes anything; what a layer or model takes stands in its `__init__`."""
    if what == "class" and signature == "(*args, **kwargs)":
        return inspect.stringify_signature(inspect.signature(obj.__init__, bound_method=True)), returns
    return None


def open_at_index(app, error) -> None:
    """The README is the first page, also for who opens the folder."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(pathlib.Path(app.outdir) / "README.html", pathlib.Path(app.outdir) / "index.html")


def setup(app) -> None:
    app.connect("builder-inited", collect)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon reads its sections
    app.connect("autodoc-process-signature", own_signature)
    app.connect("build-finished", open_at_index)
