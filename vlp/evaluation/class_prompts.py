"""What a model is told of classes: their names put into templates, and where both come from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip.zero_shot_metadata import (
    IMAGENET_CLASSNAMES,
    OPENAI_IMAGENET_TEMPLATES,
    SIMPLE_IMAGENET_TEMPLATES,
)
from timm.data import ImageNetInfo

from vlp.data.benchmark_sets import ClassificationSet, read_lines
from vlp.types import UserError

OPENAI = {"openai": OPENAI_IMAGENET_TEMPLATES, "openai-simple": SIMPLE_IMAGENET_TEMPLATES}
OF_SET = "set"
DEFAULT = "imagenet1k"  # whose templates a file of CLIP_benchmark's gives to sets that it does not name
_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassPrompts:
    """Classes in words.

    Attributes:
        of_class: for each class its prompts, one or more.
        notes: which templates and names they are made of, a sentence each.
    """

    classnames: list[str]
    of_class: list[list[str]]
    notes: list[str]

    @property
    def first_of_class(self) -> list[int]:
        """For each class the first one that has the same prompts, which nothing tells from it."""
        first: dict[tuple[str, ...], int] = {}
        return [first.setdefault(tuple(prompts), row) for row, prompts in enumerate(self.of_class)]


def class_prompts(found: ClassificationSet, name: str, templates: str | None, names_file: str | None) -> ClassPrompts:
    """The prompts of a set's classes.

    Args:
        name: of the set, by which files of several sets are read.
        templates: ``set``, ``openai``, ``openai-simple`` or a file; None: the set's own, or ``openai``.
        names_file: of other class names than the set's own.

    Raises:
        UserError: templates or names that cannot be read, or do not fit the set's classes.
    """
    classnames, named = _classnames(found, name, names_file)
    chosen, prompted = _templates(found, name, templates)
    if isinstance(chosen, Mapping):
        missing = [classname for classname in classnames if not _is_texts(chosen.get(classname))]
        if missing:
            raise UserError(f"{templates} has no prompts for the class '{missing[0]}': write {{CLASS: [PROMPT, ...]}}")
        of_class = [list(chosen[classname]) for classname in classnames]
    else:
        of_class = [[template.replace("{c}", classname) for template in chosen] for classname in classnames]
    prompts = ClassPrompts(classnames, of_class, [f"prompts: {prompted}", f"class names: {named}"])
    again = [classnames[row] for row, first in enumerate(prompts.first_of_class) if first != row]
    if again:
        shown = ", ".join(f"'{classname}'" for classname in again[:3]) + (" ..." if len(again) > 3 else "")
        prompts.notes.append(f"classes of the same prompts as one before them are never told: {shown}")
    return prompts


def _classnames(found: ClassificationSet, name: str, file: str | None) -> tuple[list[str], str]:
    own, count = found.classnames, len(found.classnames)
    rows, by = _rows_of_imagenet(own, is_named=file is not None)
    if file is None:
        if rows is None:
            return own, f"{count} of the set ({found.named_by})"
        return [IMAGENET_CLASSNAMES[row] for row in rows], f"{count} of open_clip's 1,000 of ImageNet, by {by}"
    names = _of_set(_read(Path(file), "class names, one a line or as JSON"), name, file)
    if not _is_texts(names):
        raise UserError(f"{file} holds no list of class names for {name}: write [NAME, ...] or {{{name}: [NAME, ...]}}")
    if rows is not None and len(names) == len(IMAGENET_CLASSNAMES):
        return [names[row] for row in rows], f"{count} of the 1,000 of {file}, by {by}"
    if len(names) != count:
        raise UserError(f"{file} has {len(names)} class names, but {name} has {count} classes: write one for each")
    return names, file


def _is_texts(value: Any) -> bool:
    """Whether it is a list of one or more texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one.strip() for one in value)


def _rows_of_imagenet(classnames: Sequence[str], is_named: bool) -> tuple[list[int] | None, str]:
    """The places of classes among ImageNet's 1,000, where the set knows them by WordNet's ids or by these places.

    Args:
        is_named: names are given elsewhere, so that the ids need not be ImageNet's.
    """
    if all(_WORDNET_ID.fullmatch(name) for name in classnames):
        place = {id: row for row, id in enumerate(ImageNetInfo("imagenet-1k").label_names())}
        unknown = [name for name in classnames if name not in place]
        if unknown and is_named:
            return None, ""
        if unknown:
            raise UserError(
                f"class {unknown[0]} is none of ImageNet's 1,000: give the class names in classnames.txt beside the set"
            )
        return [place[name] for name in classnames], "their WordNet ids"
    if list(classnames) == [str(row) for row in range(len(IMAGENET_CLASSNAMES))]:
        return list(range(len(classnames))), "their numbers 0 to 999"
    return None, ""


def _templates(found: ClassificationSet, name: str, chosen: str | None) -> tuple[list[str] | dict[str, Any], str]:
    if chosen is None:
        chosen = OF_SET if found.templates else "openai"
    if chosen == OF_SET:
        if not found.templates:
            raise UserError(f"{name} brings no templates: choose openai, openai-simple or a file")
        return found.templates, f"{_count(found.templates)} of the set"
    if chosen in OPENAI:
        templates = [template("{c}") for template in OPENAI[chosen]]
        return templates, f"{_count(templates)} of OpenAI's for ImageNet ({chosen})"
    if not Path(chosen).exists():
        raise UserError(f"templates {chosen} are unknown: choose set, openai, openai-simple or a file that is there")
    content = _of_set(_read(Path(chosen), "templates, one a line or as JSON"), name, chosen, DEFAULT)
    if isinstance(content, dict):
        return content, f"those of {chosen}, for each class its own"
    if not _is_texts(content):
        raise UserError(f"{chosen} holds no list of templates for {name}: write [TEMPLATE, ...], each with {{c}} in it")
    for template in content:
        if "{c}" not in template:
            raise UserError(f"template '{template}' in {chosen} lacks {{c}}: put {{c}} where the class name goes")
    return content, f"{_count(content)} of {chosen}"


def _count(templates: Sequence[str]) -> str:
    return f"{len(templates)} template{'s' * (len(templates) > 1)}"


def _read(path: Path, content: str) -> Any:
    """The lines of a text, or what a file of JSON holds."""
    if path.suffix.lower() != ".json":
        return read_lines(path, content)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): it must hold {content}") from error


def _of_set(content: Any, name: str, file: str, default: str | None = None) -> Any:
    """The part of ``content`` for the set ``name``, where it is a table by sets as CLIP_benchmark's are.

    There sets are named as ``vtab/dtd`` and ``wds/vtab/dtd``, and their directories ``wds_vtab-dtd_test``.
    """
    if isinstance(content, list) and content:
        return content
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file} holds neither a list nor a table by sets: see docs/classification.md")
    of_set = {_plain(key): value for key, value in content.items()}
    plain = _plain(name)
    wanted = (plain, plain.removeprefix("vtab-"), f"vtab-{plain}", *((default,) if default else ()))
    for key in wanted:
        if key in of_set:
            return of_set[key]
    if default and all(isinstance(value, list) for value in content.values()):
        return content  # prompts by class, of no other set
    raise UserError(f"{file} has nothing for the set '{name}' (it has {', '.join(list(content)[:5])}): add it")


def _plain(name: str) -> str:
    return re.sub(r"^wds[/_]", "", name.lower()).replace("/", "-").removesuffix("_test")
