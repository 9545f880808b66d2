"""Sheets: JSON files that the tools of ``vlp data`` write, each kind with a page of its own.

A kind is a file of this folder: "vlp data sheet" is shown by ``data_sheet.py``, by the class `Sheet` in it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from jinja2 import UndefinedError

from vlp import resolve
from vlp.evaluation.report.templates import save, template
from vlp.evaluation.report.values import Tile, format_value
from vlp.types import UserError

_PACKAGE, _ENDING = "vlp.evaluation.report", "_sheet"


class Sheet(ABC):
    """What the template of one kind asks of a sheet.

    Args:
        content: the JSON.
    """

    KIND: ClassVar[str]
    VERSION: ClassVar[int]
    MADE_BY: ClassVar[str]
    """The command that writes one, up to the name of the file."""
    TEMPLATE: ClassVar[str]

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.name: str = content["name"]

    @abstractmethod
    def lead(self) -> str:
        """One or two sentences on what was read."""

    @abstractmethod
    def tiles(self) -> list[Tile]:
        """The key numbers."""

    def page(self) -> str:
        """Self-contained HTML: no network, no server and no script."""
        return template(self.TEMPLATE).render(data=self, percent=partial(format_value, unit="percent"))


Kind = TypeVar("Kind", bound=Sheet)


def read_sheet(path: str | Path, kind: type[Kind]) -> Kind:
    """The sheet of that kind in a JSON file, which can be shown.

    Raises:
        UserError: there is no such file, it holds no sheet of this kind, one of another version, or a damaged one.
    """
    return _shown(_content(Path(path)), kind, Path(path))[0]


def write_report_of_sheet(path: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of the sheet in the JSON file ``path`` (default: beside it, as .html) and return its path.

    Raises:
        UserError: ``path`` is no whole sheet of a known kind and version, or ``output`` is a directory.
    """
    path, kinds = Path(path), _kinds()
    content = _content(path)
    if content["kind"] not in kinds:
        raise UserError(f"{path} is a '{content['kind']}', which has no page; known: {', '.join(kinds)}")
    kind: type[Sheet] = resolve.module(_PACKAGE, kinds[content["kind"]], "sheet").Sheet
    _, page = _shown(content, kind, path)
    return save(page, Path(output) if output is not None else path.with_suffix(".html"))


def _kinds() -> dict[str, str]:
    """What sheets call their kind -> the module that shows it."""
    modules = [name for name in resolve.names(_PACKAGE) if name.endswith(_ENDING)]
    return {f"vlp {name.replace('_', ' ')}": name for name in modules}


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no file {path}: tools such as vlp data stats SHARDS --out {path} write sheets")
    content: Any = None
    with suppress(ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise UserError(f"{path} is no sheet: tools such as vlp data stats SHARDS --out {path} write one")
    return content


def _shown(content: dict[str, Any], kind: type[Kind], path: Path) -> tuple[Kind, str]:
    """The sheet and its page."""
    cure = f"write it anew with {kind.MADE_BY} {path}"
    if content["kind"] != kind.KIND or content.get("version") != kind.VERSION:
        raise UserError(f"{path} is no {kind.KIND[4:]} of this version: {cure}")
    try:
        sheet = kind(content)
        return sheet, sheet.page()
    except UserError as error:
        raise UserError(f"{path} cannot be shown, as {error}: {cure}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError) as error:
        raise UserError(f"{path} cannot be shown, as it is damaged or of an older version: {cure}") from error
