"""Captions as the words that the measures of captions count: tokens of the Penn Treebank, without punctuation.

The field's library tokenises with Stanford's program, which needs Java; figures of papers are made of its tokens. Where
there is no Java, a stand-in of ours has the same tokens for plain English captions, and others in rare cases, such as
``gonna``, which is two words there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

PTB = "Stanford's PTBTokenizer"
STAND_IN = "a stand-in for Stanford's PTBTokenizer, which needs Java"

_TOKEN = re.compile(
    r"""
      (?:[a-z]\.){2,}                                     # u.s.
    | \b(?:[a-z](?=\.[ ]\w)|mr|mrs|ms|dr|st|ave|jr|sr|ft|etc|vs)\.(?=[ ]\S|$)
    | -?\.?\d+(?:[.,:]\d+)+ | \.\d+                       # 1,000  10:30  .50
    | can(?=not\b) | (?<=can)not\b
    | \w+?(?=n['’]t\b) | n['’]t\b                         # do n't
    | ['’](?:s|m|d|re|ve|ll)\b                            # dog 's
    | \w+(?:[-/_.]\w+)*(?:['’](?!(?:s|m|d|re|ve|ll|t)\b)\w+)?
    | [?!]+ | \.+ | -+ | [^\w\s]
    """,
    re.VERBOSE,
)
_NO_WORD = re.compile(r"[.,:;?!'’‘`\"“”…–—]|\.+|-+")
_SPELT = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "€": "$",
    "£": "#",
    "n’t": "n't",
    **{f"’{ending}": f"'{ending}" for ending in ("s", "m", "d", "re", "ve", "ll")},
}


class LeftOut(Exception):
    """A figure that cannot be had here; the message says why."""


def java() -> str:
    """The program ``java``.

    Raises:
        LeftOut: there is none.
    """
    found = shutil.which("java")
    if found is None:
        raise LeftOut("Java is not installed: install a JRE, such as the package default-jre-headless")
    return found


def tokenised(texts: Sequence[str]) -> tuple[list[str], str]:
    """Each text as lower-case tokens with a blank between two, and the name of the tokenizer: `PTB` or `STAND_IN`."""
    lines = [" ".join(text.split()) for text in texts]  # whatever else ends a line would move the captions behind it
    try:
        return by_java(lines), PTB
    except LeftOut as error:
        return [stand_in(line) for line in lines], f"{STAND_IN} ({error})"


def by_java(lines: Sequence[str]) -> list[str]:
    """The tokens of pycocoevalcap's own tokenizer, whose program is run without a file in the package's folder.

    Raises:
        LeftOut: it cannot be run.
    """
    library = import_module("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = Path(str(library.__file__)).parent / library.STANFORD_CORENLP_3_4_1_JAR
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    run = subprocess.run(
        [java(), "-cp", str(jar), *program], input="\n".join(lines).encode(), capture_output=True, check=False
    )
    found = run.stdout.decode(errors="replace").split("\n")
    if run.returncode or len(found) < len(lines):
        raise LeftOut(f"the tokenizer failed: {last_line(run.stderr)}")
    marks = set(library.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in marks) for line in found[: len(lines)]]


def stand_in(line: str) -> str:
    """Nearly the tokens of `by_java`."""
    words = (word for word in _TOKEN.findall(line.lower()) if not _NO_WORD.fullmatch(word))
    return " ".join(_SPELT.get(word, word) for word in words)


def last_line(output: bytes) -> str:
    """Of what a program said."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
