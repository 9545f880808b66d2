"""The world of ``vlp data scenes``: its factors, how scenes are drawn, and what is true of them.

A scene is a chain of objects: relation i holds between objects i and i + 1. "A left of B" and "B right of A"
are the same scene. Every draw is a pure function of (seed, stream, number), whatever else is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random

from vlp.types import UserError

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checked")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)
COUNTS = (1, 2, 3, 4)

# One family of scenes in so many is kept for evaluation; a family holds all swaps of attributes and relations
RESERVED_SHARE = 8
DUPLICATE_POOL = 64
MAX_DRAWS = 10_000


@dataclass(frozen=True)
class Thing:
    """One object. None means unsaid: in a claim or a pattern it agrees with every value."""

    shape: str | None
    colour: str | None
    size: str | None
    texture: str | None = "plain"

    def agrees(self, other: Thing) -> bool:
        """Whether everything said here is so in ``other``."""
        pairs = zip(self.values(), other.values(), strict=True)
        return all(mine is None or mine == theirs for mine, theirs in pairs)

    def kind(self) -> Thing:
        """Shape and colour only."""
        return Thing(self.shape, self.colour, None, None)

    def values(self) -> tuple[str | None, str | None, str | None, str | None]:
        return (self.shape, self.colour, self.size, self.texture)


@dataclass(frozen=True)
class Scene:
    """A chain of one to three objects, or several equal ones.

    Attributes:
        mark: the value of the planted shortcut, where there is one.
        count: how many there are of the only object; None: there is one, and nobody counts.
        absent: what a caption denies, by shape and colour; no matter of the picture.
    """

    objects: tuple[Thing, ...]
    relations: tuple[str, ...] = ()
    mark: int | None = None
    count: int | None = None
    absent: Thing | None = None

    @property
    def shown(self) -> tuple[Thing, ...]:
        """All objects that there are to see."""
        return self.objects * (self.count or 1)

    def reverse(self) -> Scene:
        """The same scene told from the other end: "B right of A" for "A left of B"."""
        relations = tuple(OPPOSITE[relation] for relation in reversed(self.relations))
        return replace(self, objects=self.objects[::-1], relations=relations)

    def facts(self) -> Iterator[tuple[int, str, int]]:
        """(i, relation, j) for every relation stated or implied, in both directions."""
        told = [(i, relation, i + 1) for i, relation in enumerate(self.relations)]
        if len(self.relations) == 2 and self.relations[0] == self.relations[1]:
            told.append((0, self.relations[0], 2))
        for i, relation, j in told:
            yield i, relation, j
            yield j, OPPOSITE[relation], i

    def canonical(self) -> tuple[object, ...]:
        """Equal for two scenes exactly when they look the same up to symmetry (the mark does not matter)."""
        ends = (self, self.reverse())
        return (*min((tuple(thing.values() for thing in end.objects), end.relations) for end in ends), self.count)

    def family(self) -> str:
        """Equal for all scenes that arise by swapping attributes, turning relations or changing the number."""
        columns = zip(*(thing.values() for thing in self.objects), strict=True)
        factors = [",".join(sorted(str(value) for value in column)) for column in columns]
        axes = sorted("x" if relation in ("left of", "right of") else "y" for relation in self.relations)
        return ";".join([*factors, *axes, *(["counted"] if self.count is not None else [])])


def holds(claim: Scene, scene: Scene) -> bool:
    """Whether ``claim`` (what a caption says, see ``_scenes_grammar.parse``) is true of ``scene``."""
    if claim.mark is not None and claim.mark != scene.mark:
        return False
    if claim.absent is not None and any(claim.absent.agrees(thing) for thing in scene.objects):
        return False
    if claim.count is not None:
        return claim.count == sum(claim.objects[0].agrees(thing) for thing in scene.shown)
    facts = set(scene.facts())
    return any(
        all(said.agrees(scene.objects[k]) for said, k in zip(claim.objects, places, strict=True))
        and all((places[i], relation, places[i + 1]) in facts for i, relation in enumerate(claim.relations))
        for places in permutations(range(len(scene.objects)), len(claim.objects))
    )


def generator(seed: int, stream: str, number: int) -> Random:
    """The random numbers of one sample."""
    return Random(f"scenes/{seed}/{stream}/{number}")


@dataclass(frozen=True)
class World:
    """Which scenes there are. ``hold_out`` are claims that no training scene fulfils."""

    seed: int
    num_objects: tuple[int, ...] = (1, 2)
    textures: tuple[str, ...] = ("plain",)
    long_tail: float = 0.0
    hold_out: tuple[Scene, ...] = ()

    def draw(self, random: Random, num_objects: Sequence[int] | None = None, long_tail: float = 0.0) -> Scene:
        """Any scene of this world; n objects come in proportion to n squared, as they have more to say."""
        counts = self.num_objects if num_objects is None else num_objects
        count = random.choices(counts, [n * n for n in counts])[0]
        weights = [(rank + 1) ** -long_tail for rank in range(len(SHAPES))]
        for _ in range(MAX_DRAWS):
            shapes = random.choices(SHAPES, weights, k=count)
            colours = random.choices(COLOURS, weights, k=count)
            if len(set(zip(shapes, colours, strict=True))) == count:
                break
        sizes = random.choices(SIZES, k=count)
        textures = random.choices(self.textures, k=count)
        relations = random.choices(RELATIONS, k=count - 1)
        if count == 3:  # A left of B right of C would put A and C on the same spot
            relations[1] = random.choice([r for r in RELATIONS if r != OPPOSITE[relations[0]]])
        things = tuple(map(Thing, shapes, colours, sizes, textures))
        return Scene(things, tuple(relations))

    def is_held_out(self, scene: Scene) -> bool:
        return any(holds(claim, scene) for claim in self.hold_out)

    def is_reserved(self, scene: Scene) -> bool:
        """Whether the scene is kept for evaluation. Single objects never are: there are too few of them.

        Where objects are counted, an eighth of the things is: they come in no number other than uncounted.
        """
        if len(scene.objects) == 1 and scene.count is None:
            return False
        digest = hashlib.blake2b(f"{self.seed}/{scene.family()}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % RESERVED_SHARE == 0

    def training_scene(self, random: Random) -> Scene:
        """A scene that is neither held out nor kept for evaluation.

        Raises:
            UserError: the hold-outs leave nothing.
        """
        for _ in range(MAX_DRAWS):
            scene = self.draw(random, long_tail=self.long_tail)
            if not self.is_reserved(scene) and not self.is_held_out(scene):
                return scene
        raise UserError("--hold-out leaves no scene to train on: hold out less")

    def single(self, random: Random) -> Scene:
        """A scene of one object that is not held out, all factors equally frequent."""
        for _ in range(MAX_DRAWS):
            scene = self.draw(random, num_objects=(1,))
            if not self.is_held_out(scene):
                return scene
        raise UserError("--hold-out leaves no single object to evaluate on: hold out less")

    def training_count(self, random: Random) -> Scene:
        """One to four equal objects, of a kind that is neither held out nor kept for evaluation."""
        return self._count(random, reserved=False, long_tail=self.long_tail)

    def evaluation_count(self, random: Random) -> Scene:
        """One to four equal objects of a kind that training shows, but never counts."""
        return self._count(random, reserved=True, long_tail=0.0)

    def _count(self, random: Random, reserved: bool, long_tail: float) -> Scene:
        for _ in range(MAX_DRAWS):
            scene = self.draw(random, num_objects=(1,), long_tail=long_tail)
            scene = replace(scene, count=random.choice(COUNTS))
            if self.is_reserved(scene) == reserved and not self.is_held_out(scene):
                return scene
        raise UserError("--hold-out leaves nothing to count: hold out less")

    def missing(self, scene: Scene, random: Random) -> Thing:
        """A shape in a colour that ``scene`` does not show and training may name."""
        for _ in range(MAX_DRAWS):
            thing = self.draw(random, num_objects=(1,), long_tail=self.long_tail).objects[0].kind()
            if not any(thing.agrees(other) for other in scene.objects) and not self.is_held_out(Scene((thing,))):
                return thing
        raise UserError("--hold-out leaves nothing to deny: hold out less")

    def evaluation_scenes(self, stream: str, num_objects: int) -> Iterator[Scene]:
        """Distinct scenes that training never shows, factors equally frequent, until no more are found."""

        def drawn(random: Random) -> Scene | None:
            scene = self.draw(random, num_objects=(num_objects,))
            return scene if self.is_reserved(scene) and not self.is_held_out(scene) else None

        return _distinct(drawn, self.seed, stream)

    def captioned_scenes(self, stream: str, counting: float) -> Iterator[Scene]:
        """Distinct scenes of as many objects as training shows, a share ``counting`` of them counted ones.

        Training has shown none but the single objects that nobody counts. All factors are equally frequent.
        """

        def drawn(random: Random) -> Scene | None:
            if random.random() < counting:
                return self.evaluation_count(random)
            scene = self.draw(random)
            for _ in range(MAX_DRAWS):
                is_new = len(scene.objects) == 1 or self.is_reserved(scene)
                if is_new and not self.is_held_out(scene):
                    return scene
                scene = self.draw(random, num_objects=(len(scene.objects),))
            return None

        return _distinct(drawn, self.seed, stream)

    def held_out_scenes(self, stream: str, num_objects: int) -> Iterator[Scene]:
        """Distinct scenes that fulfil one of the hold-outs."""

        def drawn(random: Random) -> Scene | None:
            claim = random.choice(self.hold_out)
            scene = _impose(claim, self.draw(random, num_objects=(num_objects,)), random)
            kinds = {(thing.shape, thing.colour) for thing in scene.objects}
            return scene if len(kinds) == num_objects else None

        return _distinct(drawn, self.seed, stream)


def _distinct(drawn: Callable[[Random], Scene | None], seed: int, stream: str) -> Iterator[Scene]:
    seen: set[tuple[object, ...]] = set()
    number = last_new = 0
    while number - last_new < MAX_DRAWS:
        number += 1
        scene = drawn(generator(seed, stream, number))
        if scene is not None and scene.canonical() not in seen:
            seen.add(scene.canonical())
            last_new = number
            yield scene


def _impose(claim: Scene, scene: Scene, random: Random) -> Scene:
    """``scene`` changed so that ``claim`` holds of it."""
    start = random.randrange(len(scene.objects) - len(claim.objects) + 1)
    objects, relations = list(scene.objects), list(scene.relations)
    for offset, said in enumerate(claim.objects):
        pairs = zip(said.values(), objects[start + offset].values(), strict=True)
        objects[start + offset] = Thing(*(mine if mine is not None else theirs for mine, theirs in pairs))
    relations[start : start + len(claim.relations)] = claim.relations
    return Scene(tuple(objects), tuple(relations))
