"""The rules of the gate that compare what a rewrite says with what its caption says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import product

from data_tools import _rewrite_similarity as similarity
from data_tools._english.facts import Facts
from data_tools._english.roles import Denial, Relation, Thing
from data_tools._english.words import (
    COLOURS,
    HUMANS,
    KEPT,
    LOOSE_PLACES,
    OPPOSITES,
    PAIRED,
    PERMISSIONS,
    PLACES,
    SOFT_ONES,
    SYMMETRICAL,
)

_ANY_PLACE = PLACES | LOOSE_PLACES
_LOST = {"thing": "lost_content", "action": "lost_content", "trait": "lost_attribute"}
_ADDED = {"thing": "added_object", "action": "added_action", "trait": "added_attribute"}


def unmatched_words(caption: Facts, rewrite: Facts) -> set[str]:
    """The words whose vectors the rules may ask for."""
    theirs, ours = caption.content.keys(), rewrite.content.keys()
    lonely = [word for word in theirs if not any(similarity.same_by_form(word, other) for other in ours)]
    new = [word for word in ours if not any(similarity.same_by_form(word, other) for other in theirs)]
    return {*lonely, *new, *(ours if lonely else ()), *(theirs if new else ())}


class Comparison:
    """A caption and its rewrite. Problems are (rule, what it stumbled over), in the order of the rules."""

    def __init__(self, caption: Facts, rewrite: Facts, synonym: float) -> None:
        self.caption = caption
        self.rewrite = rewrite
        self.synonym = synonym

    @cached_property
    def twins(self) -> dict[int, int]:
        """Number of a thing of the rewrite -> number of the caption's thing that it is."""
        return _matched(self.caption.things, self.rewrite.things, self.same)

    def same(self, one: str, two: str) -> bool:
        return similarity.same(one, two, self.synonym)

    def first_problems(self) -> Iterator[tuple[str, str]]:
        """Those of the first rules, which ask for no vectors."""
        yield from self._lost_figures()
        if self.caption.denied and not self.rewrite.denied:
            yield "lost_negation", self.caption.denied[0].word

    def other_problems(self) -> Iterator[tuple[str, str]]:
        yield from self._lost_plurals()
        yield from self._relations()
        yield from self._swapped_deeds()
        yield from self._swapped_heads()
        yield from self._swapped_attributes()
        yield from self._swapped_denials()
        yield from self._lost_words()
        yield from self._added_figures()
        if self.rewrite.denied and not self.caption.denied:
            yield "added_negation", self.rewrite.denied[0].word
        yield from self._added_words()
        yield from self._repeated()

    def _lost_figures(self) -> Iterator[tuple[str, str]]:
        for number in sorted(self.caption.numbers - self.rewrite.numbers):
            if not (number == "1" and self.rewrite.said & SOFT_ONES):
                yield "lost_number", number
        for colour in sorted(self.caption.colours):
            if not any(_same_colour(colour, other) for other in self.rewrite.colours):
                yield "lost_colour", colour

    def _added_figures(self) -> Iterator[tuple[str, str]]:
        for number in sorted(self.rewrite.numbers - self.caption.numbers):
            if number == "1" and "1" not in self.rewrite.said:
                continue
            two = self.caption.paired or (len(self.caption.things) > 1 and "both" in self.rewrite.said)
            if not (number == "2" and two):
                yield "added_number", number
        if self.rewrite.paired and not (self.caption.said & PAIRED or "2" in self.caption.numbers):
            yield "added_number", "pair"
        for colour in sorted(self.rewrite.colours):
            if not any(_same_colour(colour, other) for other in self.caption.colours):
                yield "added_colour", colour

    def _lost_plurals(self) -> Iterator[tuple[str, str]]:
        for number, twin in self.twins.items():
            ours, theirs = self.rewrite.things[number], self.caption.things[twin]
            counted = ours.numbers | theirs.numbers or self.caption.said & PAIRED  # "a 10 cent piece" is "10 cents"
            if ours.name == theirs.name and ours.plural != theirs.plural and not counted:
                yield (
                    ("lost_number" if theirs.plural else "added_number"),
                    f"{ours.name} {('one', 'several')[ours.plural]}",
                )

    def _repeated(self) -> Iterator[tuple[str, str]]:
        for word in self.caption.counts:
            times = [
                sum(count for other, count in facts.counts.items() if similarity.same_by_form(word, other))
                for facts in (self.caption, self.rewrite)
            ]
            if times[1] > times[0]:
                yield "repetition", word

    def _relations(self) -> Iterator[tuple[str, str]]:
        theirs, ours = (
            self.caption.relations,
            [_translated(relation, self.twins) for relation in self.rewrite.relations],
        )
        for relation in theirs:
            same_pair = [other for other in ours if _pair(other) == _pair(relation) and other.name in _ANY_PLACE]
            if any(_same_place(relation, other) for other in same_pair) or relation.name not in _ANY_PLACE:
                continue
            if any(not self._open(other) for other in same_pair):
                yield "swapped_roles", relation.words
            elif relation.name in PLACES or _listed(relation, ours):
                yield "lost_relation", relation.words
        for relation in ours:
            same_pair = [other for other in theirs if _pair(other) == _pair(relation) and other.name in _ANY_PLACE]
            if any(_same_place(relation, other) for other in same_pair) or relation.name not in _ANY_PLACE:
                continue
            if same_pair and not self._open(relation):
                yield "swapped_roles", relation.words
            elif relation.name in PLACES or _listed(relation, theirs):
                yield "added_relation", relation.words

    def _open(self, relation: Relation) -> bool:
        """Whether a place of the rewrite may be that of another thing, of which the caption says it."""
        said = any((other.name, other.ground) == (relation.name, relation.ground) for other in self.caption.relations)
        return relation.chained and said

    def _swapped_deeds(self) -> Iterator[tuple[str, str]]:
        """One that does it in the caption and one that it is done to have changed places."""
        for ours in self.rewrite.deeds:
            agents, others = ({self.twins.get(number, -1) for number in own} for own in (ours.agents, ours.others))
            theirs = [deed for deed in self.caption.deeds if self.same(deed.name, ours.name)]
            crossed = [
                (deed.agents & others) - agents and (deed.others & agents) - others - deed.agents for deed in theirs
            ]
            if theirs and all(crossed):
                yield "swapped_roles", ours.words

    def _swapped_heads(self) -> Iterator[tuple[str, str]]:
        """A computer disk is no computer with a disk."""
        if self.rewrite.things and 0 not in self.twins:
            name = self.rewrite.things[0].name
            parts = {part for twin in self.twins.values() for part in self.caption.things[twin].compound} - HUMANS
            if any(self.same(name, part) for part in parts):
                yield "swapped_roles", name

    def _swapped_attributes(self) -> Iterator[tuple[str, str]]:
        """An attribute of a thing that the caption gives to another thing alone."""
        for number, twin in self.twins.items():
            ours, theirs = self.rewrite.things[number], self.caption.things[twin]
            others = [thing for thing in self.caption.things if thing is not theirs]
            for attribute in sorted(ours.attributes):
                if self._has(theirs, attribute):
                    continue
                # A light-skinned person has light skin, and the sign of American Sign Language is American.
                owner = next((thing for thing in others if self._has(thing, attribute)), None)
                if owner and not any(self.same(owner.name, part) for part in ours.compound):
                    yield "swapped_roles", f"{attribute} {ours.name} for {attribute} {owner.name}"

    def _has(self, thing: Thing, attribute: str) -> bool:
        if attribute in COLOURS:
            return any(_same_colour(attribute, colour) for colour in thing.colours)
        return attribute in thing.numbers or any(self.same(attribute, trait) for trait in thing.traits)

    def _swapped_denials(self) -> Iterator[tuple[str, str]]:
        if not self.caption.denied:
            return
        for denial in self.rewrite.denied:
            if not any(self._same_denial(other, denial) for other in self.caption.denied):
                yield "swapped_roles", f"no {denial.word}".strip()

    def _same_denial(self, theirs: Denial, ours: Denial) -> bool:
        if theirs.word and ours.word and not self.same(theirs.word, ours.word):
            return False
        head = None if ours.head is None else self.twins.get(ours.head)
        if head is None or theirs.head is None or theirs.head not in self.twins.values() or theirs.head == head:
            return True
        # "no bicycles" in other words: "bicycles are prohibited"
        one, two = self.caption.things[theirs.head].name, self.caption.things[head].name
        return (not theirs.word and self.same(one, ours.word)) or (not ours.word and self.same(two, theirs.word))

    def _lost_words(self) -> Iterator[tuple[str, str]]:
        covered = _covered(self.caption, self.rewrite)
        for word, kind in self.caption.content.items():
            # "someone" is said for a person, though it is no content.
            said = len(word) > 1 and any(similarity.same_by_form(word, other) for other in self.rewrite.said)
            if not said and word not in covered and not any(self.same(word, other) for other in self.rewrite.content):
                yield _LOST[kind], word

    def _added_words(self) -> Iterator[tuple[str, str]]:
        covered = _covered(self.rewrite, self.caption)
        for word, kind in self.rewrite.content.items():
            opposite = any(frozenset((word, other)) in OPPOSITES for other in self.caption.content)
            if word in covered or (word in KEPT and not opposite) or (self.rewrite.denied and word in PERMISSIONS):
                continue
            if not any(self.same(word, other) for other in self.caption.content):
                yield _ADDED[kind], word


def _same_colour(one: str, two: str) -> bool:
    return not COLOURS.get(one, frozenset({one})).isdisjoint(COLOURS.get(two, frozenset({two})))


def _covered(facts: Facts, other: Facts) -> set[str]:
    """Words of ``facts`` that ``other`` has as they stand, or in two words for one, or in one for two."""
    found = {word for word in facts.content if len(word) > 1 and (word in other.said or word in other.joined)}
    for whole, parts in facts.joined.items():
        if whole in other.said or whole in other.joined:
            found |= set(parts)
    return found


def _pair(relation: Relation) -> frozenset[int | None]:
    return frozenset((relation.figure, relation.ground))


def _listed(relation: Relation, others: Iterable[Relation]) -> bool:
    """Whether the others but list the two things."""
    return any(other.name == "and" and _pair(other) == _pair(relation) for other in others)


def _same_place(one: Relation, two: Relation) -> bool:
    """Of relations of the same pair; "on" is said for "above"."""
    if one.name in SYMMETRICAL:
        return one.name == two.name
    alike = one.name == two.name or {one.name, two.name} == {"on", "above"}
    return alike and one.figure == two.figure


def _translated(relation: Relation, twins: dict[int, int]) -> Relation:
    def of(number: int | None) -> int | None:
        return None if number is None else twins.get(number, -1 - number)

    return replace(relation, figure=of(relation.figure), ground=of(relation.ground))


def _matched(theirs: tuple[Thing, ...], ours: tuple[Thing, ...], same: Callable[[str, str], bool]) -> dict[int, int]:
    """Each thing of ours with the one of theirs that it is: of several by a name the one with the same attributes."""
    pairs = [(a, b) for a, b in product(range(len(theirs)), range(len(ours))) if same(theirs[a].name, ours[b].name)]

    def shared(pair: tuple[int, int]) -> int:
        one, two = theirs[pair[0]], ours[pair[1]]
        colours = sum(any(_same_colour(colour, other) for other in two.colours) for colour in one.colours)
        traits = sum(any(same(trait, other) for other in two.traits) for trait in one.traits)
        return colours + traits + len(one.numbers & two.numbers)

    found: dict[int, int] = {}
    for a, b in sorted(pairs, key=lambda pair: -shared(pair)):
        if b not in found and a not in found.values():
            found[b] = a
    return found
