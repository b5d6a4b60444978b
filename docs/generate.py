"""Pages made from source when the documentation is built: one per public module, and one per example."""

from __future__ import annotations

import ast
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).parent.parent


def reference() -> None:
    """Write a page for every module of `constrain` whose name does not start with an underscore."""
    summary = []
    for path in sorted((ROOT / "constrain").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        name = ".".join(part for part in parts if part != "__init__")
        page = f"{name}.md"
        with mkdocs_gen_files.open(f"reference/{page}", "w") as file:
            file.write(f"# `{name}`\n\n::: {name}\n    options:\n      show_root_heading: false\n")
        summary.append(f"- [{name}]({page})\n")
    with mkdocs_gen_files.open("reference/SUMMARY.md", "w") as file:
        file.writelines(summary)


def examples() -> None:
    """Write a page for every example: its docstring, then its source."""
    summary = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source)) or ""
        title = docstring.split("\n", maxsplit=1)[0].rstrip(".")
        body = docstring.partition("\n")[2].strip()
        page = f"{path.stem}.md"
        with mkdocs_gen_files.open(f"examples/{page}", "w") as file:
            file.write(f"# {title}\n\n{body}\n\n`examples/{path.name}`\n\n```python\n{source}```\n")
        summary.append(f"- [{path.stem}]({page})\n")
    with mkdocs_gen_files.open("examples/SUMMARY.md", "w") as file:
        file.writelines(summary)


reference()
examples()
