"""Pages: their templates, which lie in this folder, and the files they become."""

from __future__ import annotations

import os
from pathlib import Path

import jinja2

from vlp.types import UserError


def template(name: str) -> jinja2.Template:
    """A page to fill in: what it is given is escaped, and a name that it is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlp.evaluation.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def save(page: str, path: Path) -> Path:
    """Write a page; the file has its name only when it is whole.

    Raises:
        UserError: ``path`` is a directory.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a file, such as {path / 'report.html'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")  # another may write the same page
    unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)
    return path
