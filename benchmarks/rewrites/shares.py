"""How much of what a language model writes passes the gate, and which rules reject the rest.

    python benchmarks/rewrites/shares.py SHEET.json ...    (as vlp data rewrite --json writes them)

Keeps the figures of each sheet in results/ and writes the table of README.md from all that lie there.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
MARKS = "<!-- table: written by shares.py -->\n", "<!-- end of table -->"
KEPT = ("name", "origin", "gate", "samples", "captions", "texts", "accepted", "rules", "tokens", "vocabulary")


def keep(sheet: Path) -> None:
    """The figures of a sheet, without its samples."""
    content = json.loads(sheet.read_text(encoding="utf-8"))
    figures = {name: content[name] for name in KEPT}
    name = re.sub(r"\W+", "-", f"{content['name'].partition(':')[0]} {content['origin']['model']}").strip("-").lower()
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    (HERE / "results" / f"{name}.json").write_text(text, encoding="utf-8")


def table(found: list[dict]) -> str:
    """A column a sheet, a row a rule that rejected anything."""
    rules = list(dict.fromkeys(rule["name"] for sheet in found for rule in sheet["rules"] if rule["texts"]))
    share = [{rule["name"]: rule["texts"] / sheet["texts"] for rule in sheet["rules"]} for sheet in found]
    rows = [
        ["", *(f"{sheet['origin']['model']}, {sheet['name'].partition(':')[0]}" for sheet in found)],
        ["---", *("---:" for _ in found)],
        ["captions, different", *(f"{sheet['captions']:,}" for sheet in found)],
        ["texts, counted once a sample", *(f"{sheet['texts']:,}" for sheet in found)],
        ["**accepted**", *(f"**{sheet['accepted'] / sheet['texts']:.1%}**" for sheet in found)],
        *([f"`{rule}`", *(f"{own.get(rule, 0):.1%}" for own in share)] for rule in rules),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    for sheet in sys.argv[1:]:
        keep(Path(sheet))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((HERE / "results").glob("*.json"))]
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    readme.write_text(f"{before}{MARKS[0]}\n{table(found)}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
