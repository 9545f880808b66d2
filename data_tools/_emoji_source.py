"""The npm packages ``emoji-datasource-VENDOR`` (drawings, names) and ``emojibase-data`` (labels, tags)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlp.resolve import nearest
from vlp.types import UserError

# Fixed versions, so that a fetch next year gives the same data set.
DATASOURCE_VERSION = "16.0.0"
EMOJIBASE_VERSION = "17.0.0"

LICENCES = {
    "google": "Noto Emoji, copyright Google LLC, Apache License 2.0 (https://github.com/googlefonts/noto-emoji)",
    "twitter": (
        "Twemoji, copyright Twitter, Inc and other contributors, Creative Commons Attribution 4.0 "
        "(https://github.com/jdecked/twemoji, https://creativecommons.org/licenses/by/4.0/)"
    ),
}
NOT_FREE = {
    "apple": "Apple licenses its drawings for no such use",
    "facebook": "Facebook's drawings have no clear licence",
}
GENDERS: dict[int | None, str | None] = {0: "female", 1: "male"}
TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}


@dataclass(frozen=True)
class Emoji:
    """One emoji, skin tone included; drawings of it differ by vendor only.

    ``names`` are the Unicode name and the short names as published; ``tones`` numbers skin tones from 1
    (light) to 5 (dark), one for each person that has one; ``translations`` maps a language to label and tags.
    """

    hexcode: str
    base: str
    image: str
    character: str
    label: str
    base_label: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    group: str
    subgroup: str
    order: int
    tones: tuple[int, ...] = ()
    gender: str | None = None
    translations: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)


def check_vendors(vendors: Sequence[str]) -> None:
    """Raises UserError for a vendor without a free licence, an unknown or a repeated one."""
    for vendor in vendors:
        if vendor in NOT_FREE:
            raise UserError(f"--vendor {vendor} is refused: {NOT_FREE[vendor]}; free sets: {', '.join(LICENCES)}")
        if vendor not in LICENCES:
            hint = nearest(vendor, list(LICENCES))
            raise UserError(f"--vendor {vendor} is unknown{hint}; known: {', '.join(LICENCES)}")
    if len(set(vendors)) != len(vendors):
        raise UserError("--vendor names the same vendor twice: give each vendor once")


def find_packages(source: str | Path | None, vendors: Sequence[str]) -> Path:
    """The ``node_modules`` with the packages; without ``source``: ./node_modules, or a cache filled by npm."""
    packages = {f"emoji-datasource-{vendor}": DATASOURCE_VERSION for vendor in vendors}
    packages["emojibase-data"] = EMOJIBASE_VERSION

    def missing(folder: Path) -> list[str]:
        return [name for name in packages if not (folder / name / "package.json").is_file()]

    install = f"npm install {' '.join(f'{n}@{v}' for n, v in packages.items())}"
    if source is not None:
        if lacking := missing(Path(source)):
            raise UserError(f"--source {source} lacks {', '.join(lacking)}: unpack them, for example with '{install}'")
        return Path(source)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlp" / "emoji"
    for folder in (Path("node_modules"), cache / "node_modules"):
        if not missing(folder):
            return folder
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"no npm client, no ./node_modules with the packages: run '{install}' and name it by --source")
    cache.mkdir(parents=True, exist_ok=True)
    command = [
        npm,
        "install",
        "--prefix",
        str(cache),
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        *install.split()[2:],
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or missing(cache / "node_modules"):
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"'{install}' failed ({reason}): mend that, or unpack the packages and name them by --source")
    return cache / "node_modules"


def drawing(source: Path, vendor: str, emoji: Emoji) -> Path:
    return source / f"emoji-datasource-{vendor}" / "img" / vendor / "64" / emoji.image


def read_emoji(source: Path, vendor: str, languages: Sequence[str]) -> list[Emoji]:
    """All emoji that ``vendor``'s package lists and emojibase labels, with skin tones, in Unicode's order.

    Raises:
        UserError: a language that emojibase-data does not have.
    """
    english = _labels(source, "en")
    others = {language: _labels(source, language) for language in languages if language != "en"}
    groups = _json(source / "emojibase-data" / "meta" / "groups.json")
    found = []
    for record in _json(source / f"emoji-datasource-{vendor}" / "emoji.json"):
        base = english.get(_code(record["unified"]))
        if base is None:
            continue
        drawn = [record, *record.get("skin_variations", {}).values()]
        for variant in drawn:
            entry = english.get(_code(variant["unified"]))
            if entry is None:
                continue
            code = _code(variant["unified"])
            translations = {
                language: (labels[code]["label"], tuple(labels[code].get("tags", ())))
                for language, labels in others.items()
                if code in labels
            }
            found.append(_emoji(record, variant, base, entry, groups, translations))
    return sorted(found, key=lambda emoji: (emoji.order, emoji.hexcode))


def _emoji(
    record: dict[str, Any],
    variant: dict[str, Any],
    base: dict[str, Any],
    entry: dict[str, Any],
    groups: dict[str, Any],
    translations: dict[str, tuple[str, tuple[str, ...]]],
) -> Emoji:
    tone = entry.get("tone", ())
    return Emoji(
        hexcode=_code(variant["unified"]),
        base=_code(record["unified"]),
        image=variant["image"],
        character=entry["emoji"],
        label=entry["label"],
        base_label=base["label"],
        names=(record["name"], *record["short_names"]),
        tags=tuple(base.get("tags", ())),
        group=groups["groups"].get(str(base.get("group")), "component"),
        subgroup=groups["subgroups"].get(str(base.get("subgroup")), "component"),
        order=entry.get("order", 0),
        tones=tuple(tone) if isinstance(tone, list) else (tone,) if tone else (),
        gender=GENDERS.get(entry.get("gender", base.get("gender")), _gender_of(base["label"])),
        translations=translations,
    )


def _gender_of(label: str) -> str | None:
    """``female`` or ``male`` where the label names just one of them."""
    words = set(label.lower().replace(":", " ").replace(",", " ").split())
    female, male = words & {"woman", "women", "girl"}, words & {"man", "men", "boy"}
    return None if bool(female) == bool(male) else "female" if female else "male"


def _labels(source: Path, language: str) -> dict[str, dict[str, Any]]:
    folder = source / "emojibase-data"
    path = folder / language / "data.json"
    if not path.is_file():
        known = sorted(p.parent.name for p in folder.glob("*/data.json"))
        raise UserError(
            f"--language {language} is not in emojibase{nearest(language, known)}; known: {', '.join(known)}"
        )
    table: dict[str, dict[str, Any]] = {}
    for entry in _json(path):
        table[_code(entry["hexcode"])] = entry
        for skin in entry.get("skins", ()):
            table[_code(skin["hexcode"])] = {**skin, "tags": entry.get("tags", ())}
    return table


def _code(hexcode: str) -> str:
    """Hexcode without the emoji presentation selector, which the packages write differently."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): unpack the package again") from error


def sources_page(source: Path, vendors: Sequence[str], languages: Sequence[str], flatten: bool) -> str:
    """Markdown with the version, licence and attribution of each package, as CC-BY asks for."""

    def row(package: str, what: str, licence: str) -> str:
        version = _json(source / package / "package.json")["version"]
        return f"| {package} | {version} | {what} | {licence} |"

    ground = ", placed on white" if flatten else ""
    rows = [row(f"emoji-datasource-{v}", f"drawings by {v}", LICENCES[v]) for v in vendors]
    rows.append(row(f"emoji-datasource-{vendors[0]}", "names", "MIT, copyright Cal Henderson"))
    texts = "MIT, copyright Miles Johnson; texts from Unicode CLDR under the Unicode License"
    rows.append(row("emojibase-data", f"labels and tags ({', '.join(languages)})", texts))
    lines = ["# Sources", "", "| package | version | what | licence |", "|---|---|---|---|", *rows, ""]
    lines.append(f"Changes: drawings saved as RGBA PNG{ground}; evaluation pictures placed on white.")
    return "\n".join(lines) + "\n"
