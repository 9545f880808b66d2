"""Which emoji show one and the same thing, and which things are left out of training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from data_tools._emoji_captions import names
from data_tools._emoji_source import Emoji
from vlp.types import UserError

_PERSONS = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}
# Joiner, gender signs, hair and the arrow of "facing right": marks of a variant, not of another thing.
_MARKS = {"200D", "2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_GENDERED = re.compile(r"\b(?:man|woman|person|men|women|people|adult)\b")
# Pairs by gender or age that no rule on codes or labels finds.
_RELATIVES = (
    {"prince", "princess", "person with crown"},
    {"Santa Claus", "Mrs. Claus", "Mx Claus"},
    {"merman", "mermaid", "merperson"},
    {"boy", "girl", "child"},
    {"breast-feeding", "woman feeding baby"},
)


@dataclass(frozen=True)
class Thing:
    """Emoji that must stay on one side of the split; the first is the plainest."""

    members: tuple[Emoji, ...]

    @property
    def base(self) -> Emoji:
        return self.members[0]


@dataclass(frozen=True)
class Split:
    """Of ``unseen`` things training has nothing, of ``withheld`` ones it lacks the drawings of one vendor."""

    unseen: tuple[Thing, ...]
    withheld: tuple[Thing, ...]


def group_things(emoji: Sequence[Emoji], fingerprints: Sequence[frozenset[str]]) -> list[Thing]:
    """Unite emoji that share a code without variant marks, a name without gender, or an identical drawing.

    Args:
        emoji: in Unicode's order.
        fingerprints: for each emoji the digests of its drawings' pixels.
    """
    parent = list(range(len(emoji)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[str, int] = {}
    for i, (one, drawn) in enumerate(zip(emoji, fingerprints, strict=True)):
        for key in sorted(_keys(one) | drawn):
            a, b = root(owner.setdefault(key, i)), root(i)
            parent[max(a, b)] = min(a, b)
    members: dict[int, list[Emoji]] = {}
    for i, one in enumerate(emoji):
        members.setdefault(root(i), []).append(one)
    return [Thing(tuple(sorted(m, key=lambda e: (len(e.tones), e.order)))) for m in members.values()]


def _keys(emoji: Emoji) -> frozenset[str]:
    parts = [_PERSONS.get(p, p) for p in emoji.hexcode.split("-") if p not in _MARKS | _TONES]
    keys = {"code " + "-".join(parts or emoji.hexcode.split("-"))}
    if emoji.subgroup == "family":
        return frozenset(keys | {"family"})  # couples and families differ by the sex and number of their people only
    spellings = [emoji.base_label, *names(emoji)]
    keys.update(_plain(text, emoji.group) for text in spellings)
    keys.update(f"relatives {n}" for n, relatives in enumerate(_RELATIVES) if emoji.base_label in relatives)
    return frozenset(keys)


def _plain(text: str, group: str) -> str:
    """A name without what tells variants apart: the gender of people, "face" of animals and moons."""
    text = text.casefold()
    if group == "people-body":
        bare = _GENDERED.sub("", text.split(":")[0].replace("older", "old").replace("facing right", ""))
        return "person " + " ".join(bare.split())
    return "name " + (text if group == "smileys-emotion" else text.removesuffix(" face"))


def split_things(things: Sequence[Thing], num_unseen: int, num_withheld: int, seed: int) -> Split:
    """Draw the things by a digest of (seed, code), so that new emoji do not reshuffle the old ones."""
    drawable = [t for t in things if t.base.group != "component"]
    if num_unseen + num_withheld >= len(drawable):
        raise UserError(
            f"--unseen-things {num_unseen} and --unseen-drawings {num_withheld} leave nothing to train on: "
            f"there are {len(drawable)} things"
        )
    order = sorted(drawable, key=lambda t: hashlib.sha256(f"{seed} {t.base.hexcode}".encode()).hexdigest())

    def in_unicode_order(chosen: list[Thing]) -> tuple[Thing, ...]:
        return tuple(sorted(chosen, key=lambda t: t.base.order))

    return Split(in_unicode_order(order[:num_unseen]), in_unicode_order(order[num_unseen : num_unseen + num_withheld]))
