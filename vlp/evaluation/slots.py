"""Slot accuracy: whether a caption says the right colour, shape, size, relation and number of the right objects.

Words and truth stand in ``slots.json`` beside an evaluation set, so that this reads captions of any small world. A
caption is read word by word, as far as words are known, so that broken ones are read too: attributes up to a noun (or
to what cannot belong to them) are an object; relations hold between the objects whose places in a sentence say so.

The order in a caption is free. What it says is matched with what there is, object by object, in the way that makes
most attributes right, then most relations. A slot is right where the matched object has what was said of it. There are
as many slots of an attribute as there are objects in the picture, or in the caption where it names more: what is left
out is wrong, and so is what is too much. A relation is right if it holds between the matched objects; there are as many
as a whole caption tells, or as the caption has. ``count`` is one slot a picture: how many things there are in all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from vlp.evaluation import intervals
from vlp.options import explain
from vlp.types import UserError

FILE = "slots.json"
MAX_OBJECTS = 6  # of a caption that are matched: 720 ways at most; who names more is wrong in what is too much

Relation = tuple[int, str, int]


class Truth(BaseModel, frozen=True, extra="forbid"):
    """What a picture shows. ``relations`` are what a whole caption tells, ``facts`` all that hold, both ways round."""

    objects: list[dict[str, str | int]] = Field(min_length=1, max_length=MAX_OBJECTS)  # ``count`` of equal ones, or 1
    relations: list[Relation]
    facts: list[Relation]

    @property
    def number(self) -> int:
        return sum(int(thing.get("count", 1)) for thing in self.objects)


class Slots(BaseModel, frozen=True, extra="forbid"):
    """The content of ``slots.json``.

    Attributes:
        attributes: attribute -> words -> what they mean.
        noun: the attribute whose word ends what is said of an object.
        counts: words -> how many equal objects; without one it is one.
        relations: words -> what they mean.
        denials: words after which an object is one that is not there.
        unsaid: attribute -> what a caption means that does not say it.
        orders: objects (numbers) and relations (the two numbers between which they hold) in the order of a sentence.
        sentences: regular expressions; a caption that one of them matches in full is a sentence.
        pictures: the truth, in the order of the set.
    """

    kind: Literal["vlp caption slots"]
    version: Literal[1]
    attributes: dict[str, dict[str, str]]
    noun: str
    counts: dict[str, int]
    relations: dict[str, str]
    denials: list[str]
    unsaid: dict[str, str]
    orders: list[list[int | tuple[int, int]]]
    sentences: list[str]
    pictures: list[Truth]

    @cached_property
    def names(self) -> list[str]:
        """The kinds of slots of this set."""
        return [*self.attributes, *(["relation"] if any(p.relations for p in self.pictures) else []), "count"]

    @cached_property
    def lexicon(self) -> dict[tuple[str, ...], tuple[str, Any]]:
        """Words -> (kind, meaning)."""
        of_kind: dict[str, Mapping[str, Any]] = {**self.attributes, "count": self.counts, "relation": self.relations}
        of_kind["denial"] = dict.fromkeys(self.denials)
        return {
            tuple(phrase.lower().split()): (kind, value)
            for kind, phrases in of_kind.items()
            for phrase, value in phrases.items()
        }

    @cached_property
    def patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(sentence) for sentence in self.sentences]

    def is_sentence(self, caption: str) -> bool:
        """Whether a caption is one of the set's grammar; upper case, white space and a full stop do not count."""
        plain = " ".join(caption.lower().split()).removesuffix(".").rstrip()
        return any(pattern.fullmatch(plain) for pattern in self.patterns)


@dataclass
class Thing:
    """An object that a caption names; an attribute of which it says two things is None."""

    attributes: dict[str, str | None] = field(default_factory=dict)
    count: int = 1

    def add(self, kind: str, value: Any) -> None:
        if kind == "count":
            self.count = value
        else:
            self.attributes[kind] = value if self.attributes.get(kind, value) == value else None


@dataclass(frozen=True)
class Said:
    """What a caption says; ``num_relations`` also counts those of which it is not clear between what they hold."""

    objects: list[Thing]
    relations: list[Relation]
    num_relations: int

    @property
    def number(self) -> int:
        return sum(thing.count for thing in self.objects)


def read_slots(path: Path, num_pictures: int) -> Slots:
    """The slots of a set of ``num_pictures``.

    Raises:
        UserError: the file is damaged, or of another set.
    """
    try:
        slots = Slots.model_validate(json.loads(path.read_text(encoding="utf-8")))
        _ = slots.patterns
    except ValidationError as error:
        raise explain(error, Slots, str(path)) from error
    except (ValueError, re.error) as error:
        raise UserError(f"{path} is damaged ({error}): write the set again with vlp data scenes") from error
    if len(slots.pictures) != num_pictures:
        raise UserError(
            f"{path} tells of {len(slots.pictures)} pictures, but the set has {num_pictures}: write the set again"
        )
    return slots


def read(caption: str, slots: Slots) -> Said:
    """What a caption says, as far as its words are known."""
    parts: list[Thing | str] = []
    thing, is_denied = Thing(), False
    for kind, value in _known(caption, slots):
        ends = kind in ("relation", "denial")
        if not ends:
            thing.add(kind, value)
        if ends or kind == slots.noun:
            parts += [thing] if thing.attributes and not is_denied else []
            thing, is_denied = Thing(), kind == "denial"
        if kind == "relation":
            parts.append(value)
    parts += [thing] if thing.attributes and not is_denied else []
    objects = [part for part in parts if isinstance(part, Thing)]
    for thing in objects:
        thing.attributes = {**slots.unsaid, **thing.attributes}
    return Said(objects, _relations(parts, slots.orders), len(parts) - len(objects))


def _known(caption: str, slots: Slots) -> Iterator[tuple[str, Any]]:
    """(kind, meaning) of the words that are known, the longest phrases first."""
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", caption.lower())
    longest = max(map(len, slots.lexicon), default=0)
    place = 0
    while place < len(words):
        for length in range(longest, 0, -1):
            found = slots.lexicon.get(tuple(words[place : place + length]))
            if found:
                yield found
                break
        place += length if found else 1


def _relations(parts: Sequence[Thing | str], orders: Sequence[Sequence[int | tuple[int, int]]]) -> list[Relation]:
    """The relations between the objects, which are numbered as they follow one another; none where no order fits."""
    is_relation = [isinstance(part, str) for part in parts]
    fitting = [order for order in orders if [isinstance(one, tuple) for one in order] == is_relation[: len(order)]]
    order = max(fitting, key=len, default=[])
    role = [one for one in order if isinstance(one, int)]
    between = [one for one in order if isinstance(one, tuple)]
    told = [part for part in parts if isinstance(part, str)]
    return [
        (role.index(first), relation, role.index(second))
        for (first, second), relation in zip(between, told, strict=False)
    ]


@dataclass(frozen=True)
class Score:
    """Of one caption: slot -> (how many are right, how many there are)."""

    slots: dict[str, tuple[int, int]]

    @property
    def share(self) -> float:
        """Of all slots of this picture."""
        return sum(right for right, _ in self.slots.values()) / sum(number for _, number in self.slots.values())

    @property
    def wrong(self) -> list[str]:
        return [name for name, (right, number) in self.slots.items() if right < number]


def score(said: Said, truth: Truth, slots: Slots) -> Score:
    """How much of what ``said`` says is right of a picture, and how much of the picture it says."""
    matched = max(_matchings(said, truth), key=lambda pairs: _right(pairs, said, truth, slots))
    _, right_relations, right = _right(matched, said, truth, slots)
    number = max(len(said.objects), len(truth.objects))
    found = {name: (count, number) for name, count in zip(slots.attributes, right, strict=True)}
    num_relations = max(len(truth.relations), said.num_relations)
    if num_relations:
        found["relation"] = (min(right_relations, num_relations), num_relations)
    return Score({**found, "count": (int(said.number == truth.number), 1)})


def _matchings(said: Said, truth: Truth) -> Iterator[dict[int, int]]:
    """Object of the caption -> object of the picture, in all ways that match as many as can be."""
    mine, theirs = range(min(len(said.objects), MAX_OBJECTS)), range(len(truth.objects))
    if len(mine) <= len(theirs):
        yield from (dict(zip(mine, places, strict=True)) for places in permutations(theirs, len(mine)))
    else:
        yield from (dict(zip(places, theirs, strict=True)) for places in permutations(mine, len(theirs)))


def _right(pairs: Mapping[int, int], said: Said, truth: Truth, slots: Slots) -> tuple[int, int, tuple[int, ...]]:
    """(right attributes, right relations, right ones of each attribute), larger for a better match."""
    right = tuple(
        sum(said.objects[mine].attributes.get(name) == truth.objects[other].get(name) for mine, other in pairs.items())
        for name in slots.attributes
    )
    told = {
        frozenset((first, second))
        for first, relation, second in said.relations
        if first in pairs and second in pairs and (pairs[first], relation, pairs[second]) in truth.facts
    }
    return sum(right), len(told), right


def baseline(slots: Slots) -> Said:
    """What one says who never looks: as many objects as most pictures show, all of the most frequent values."""

    def most_frequent(values: Sequence[Any]) -> Any:
        return Counter(values).most_common(1)[0][0]

    number = most_frequent([len(truth.objects) for truth in slots.pictures])
    things = [thing for truth in slots.pictures for thing in truth.objects]
    same: dict[str, str | None] = {
        name: most_frequent([thing.get(name) for thing in things]) for name in slots.attributes
    }
    told = [relation for truth in slots.pictures for _, relation, _ in truth.relations]
    between = range(number - 1) if told else ()
    relations = [(first, most_frequent(told), first + 1) for first in between]
    count = most_frequent([int(thing.get("count", 1)) for thing in things])
    return Said([Thing(dict(same), count) for _ in range(number)], relations, len(relations))


@dataclass(frozen=True)
class Accuracy:
    """A share with its 95 % interval."""

    share: float
    interval: intervals.Interval


def accuracies(scores: Sequence[Score]) -> dict[str, Accuracy]:
    """Of each slot the share that is right; ``mean`` of these; ``all``, the share of captions without a fault."""
    rows = [
        (name, is_right, picture)
        for picture, one in enumerate(scores)
        for name, (right, number) in one.slots.items()
        for is_right in [True] * right + [False] * (number - right)
    ]
    of_name: dict[str, Accuracy] = {}
    for name in dict.fromkeys(name for name, _, _ in rows):
        values, pictures = zip(*((right, picture) for slot, right, picture in rows if slot == name), strict=True)
        of_name[name] = Accuracy(sum(values) / len(values), intervals.of_mean(values, pictures))
    names, values, pictures = zip(*rows, strict=True)
    mean = sum(accuracy.share for accuracy in of_name.values()) / len(of_name)
    whole = [not one.wrong for one in scores]
    return {
        "mean": Accuracy(mean, intervals.of_category_mean(values, names, pictures)),
        **of_name,
        "all": Accuracy(sum(whole) / len(whole), intervals.of_mean(whole, range(len(whole)))),
    }
