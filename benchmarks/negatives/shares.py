"""What generators make of captions, what the judge takes, and how much a classifier finds without a picture.

    python benchmarks/negatives/shares.py SHEET.json ...    (as vlp data negatives --json writes them)

Keeps the figures of each sheet in results/ and writes the tables of README.md from all that lie there.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARKS = "<!-- tables: written by shares.py -->\n", "<!-- end of tables -->"
LEFT_OUT = ("sheet", "asked")
NOTHING_TO_CHANGE = "nothing to change"

Sheet = dict[str, Any]


def keep(sheet: Path, results: Path) -> None:
    """The figures of a sheet, without its samples."""
    content = json.loads(sheet.read_text(encoding="utf-8"))
    figures = {name: value for name, value in content.items() if name not in LEFT_OUT}
    for found in (*figures["without_negative"].values(), *figures["left_out"].values()):
        found.pop("examples")  # they name paths
    name = re.sub(r"\W+", "-", " ".join(titles(content))).strip("-").lower()
    results.mkdir(exist_ok=True)
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    (results / f"{name}.json").write_text(text, encoding="utf-8")


def titles(sheet: Sheet) -> tuple[str, str]:
    """What made the changes, and of which captions."""
    generator = sheet["origin"]["generator"].replace("_", " ")
    return sheet["origin"].get("model", generator), sheet["name"].partition(":")[0]


def outcomes(found: list[Sheet]) -> str:
    """A column a sheet, a row a rule that rejected anything."""
    rules = list(dict.fromkeys(rule["name"] for sheet in found for rule in sheet["rules"] if rule["texts"]))
    texts = [
        Counter({"": sheet["accepted"], **{rule["name"]: rule["texts"] for rule in sheet["rules"]}}) for sheet in found
    ]

    def nothing(sheet: Sheet) -> int:
        return int(sheet["without_negative"].get(NOTHING_TO_CHANGE, {"number": 0})["number"])

    def with_a_change(sheet: Sheet) -> str:
        none = sum(one["number"] for one in sheet["without_negative"].values())
        return f"**{1 - none / sheet['captions']:.1%}**"

    rows = [
        ["captions", *(f"{sheet['captions']:,}" for sheet in found)],
        ["nothing to change", *(f"{nothing(sheet) / sheet['captions']:.1%}" for sheet in found)],
        ["**captions with a change**", *map(with_a_change, found)],
        ["changes", *(f"{sheet['texts']:,}" for sheet in found)],
        ["**accepted**", *(f"**{sheet['accepted'] / max(1, sheet['texts']):.1%}**" for sheet in found)],
        *([f"`{rule}`", *(f"{own[rule] / own.total():.1%}" if own[rule] else "" for own in texts)] for rule in rules),
    ]
    return table(["", *(", ".join(titles(sheet)) for sheet in found)], rows)


def kinds(found: list[Sheet]) -> str:
    """A row a kind, a column a sheet: how many were accepted, and the accuracy of the blind test."""
    named = [{kind["name"]: kind for kind in sheet["kinds"] if kind["accepted"]} for sheet in found]
    names = list(dict.fromkeys(name for own in named for name in own))

    def cell(kind: Sheet | None) -> str:
        return "" if kind is None else f"{kind['accepted']:,} · {blind(kind['blind'])}"

    rows: list[list[str]] = [["**all**", *(f"{s['accepted']:,} · **{blind(s['blind']['overall'])}**" for s in found)]]
    rows += [[name, *(cell(own.get(name)) for own in named)] for name in sorted(names)]
    return table(["accepted · blind", *(", ".join(titles(sheet)) for sheet in found)], rows)


def blind(accuracy: Sheet | None) -> str:
    if accuracy is None:
        return "–"
    return f"{100 * accuracy['accuracy']:.0f} % ({100 * accuracy['low']:.0f}–{100 * accuracy['high']:.0f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(readme: Path, results: Path) -> None:
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json"))]
    found.sort(key=lambda sheet: titles(sheet)[::-1])
    before, rest = readme.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    text = f"{before}{MARKS[0]}\n{outcomes(found)}\n{kinds(found)}\n{MARKS[1]}{after}"
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    for sheet in sys.argv[1:]:
        keep(Path(sheet), HERE / "results")
    write(HERE / "README.md", HERE / "results")


if __name__ == "__main__":
    main()
