"""A name -> the module of that name -> its class. The folder is the registry."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from vlp.types import UserError


def names(package: str) -> list[str]:
    """Names of the plug-in modules in ``package``, without importing them; ``base`` and private ones do not count."""
    found = importlib.import_module(package)
    return sorted(
        m.name for m in pkgutil.iter_modules(found.__path__) if m.name != "base" and not m.name.startswith("_")
    )


def module(package: str, name: str, noun: str) -> ModuleType:
    """Import ``package.name``; a dotted name reaches code outside vlp.

    Raises:
        UserError: no such module; the message names the nearest one.
    """
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"{noun} '{name}' cannot be imported: {error}") from error
    known = names(package)
    if name not in known:
        raise UserError(f"unknown {noun} '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")


def nearest(name: str, known: list[str]) -> str:
    """``, did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def summary(package: str, name: str) -> str:
    """First line of a plug-in's docstring, read without importing it."""
    spec = importlib.util.find_spec(f"{package}.{name}")
    assert spec is not None
    assert spec.origin is not None
    # Read, not parsed: that is quick, and with threads Python 3.11's parser fails now and then (cpython 106905).
    with open(spec.origin, encoding="utf-8") as file:
        first = file.readline().strip()
    return first.strip('"') if first.startswith('"""') else ""


def recipes_folder() -> Path:
    """Where the recipes lie: inside an installed package, beside it in a checkout."""
    here = Path(__file__).parent
    installed = here / "recipes"
    return installed if installed.is_dir() else here.parent / "recipes"


def recipes() -> dict[str, Path]:
    """The recipes by name; one in a folder of its own kind is named with it, as ``finetune/lora``."""
    folder = recipes_folder()
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if not name.startswith("launch/")}
