"""The evaluation sets of ``vlp data scenes``, in the layouts of CLIP_benchmark, SugarCrepe and Winoground.

Whatever the training set suffers (noise, boilerplate, duplicates, long tail), the evaluation does not: its
captions are canonical and complete, its factors equally frequent. Where training has a planted shortcut,
evaluation pictures carry a random mark that their captions do not name; only ``eval/shortcut`` asks for it.

A scorer that never looks at the picture gets exactly half of the pairs of swaps right, and no twin. ``eval/order``
is another matter: its false captions are no sentences, so that one who only knows what captions look like gets all
of them right. It is a set of its own, which no mean over other suites takes in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from data_tools._scenes_draw import arrange, draw
from data_tools._scenes_grammar import GRAMMARS, Style, parse, phrase
from data_tools._scenes_slots import SLOTS_FILE, slots
from data_tools._scenes_twins import (
    Swap,
    Twins,
    count_twins,
    negation_twins,
    shuffle_words,
    swap_attribute,
    swap_objects,
    swap_relation,
    turn_relation,
    twins,
)
from data_tools._scenes_world import COLOURS, SHAPES, SIZES, Scene, Thing, World, generator, holds
from vlp.data.write import (
    CaptionedTwins,
    CaptionPair,
    encode_image,
    write_classification_set,
    write_pairs,
    write_retrieval_set,
    write_twins,
)
from vlp.types import UserError

SWAPS: dict[str, Swap] = {"swap_attribute": swap_attribute, "swap_relation": swap_relation}
"""Suite of eval/swaps -> how its false captions are made."""
TWINS: dict[str, Swap] = {"attribute": swap_attribute, "object": swap_objects, "relation": turn_relation}
"""Tag of eval/twins -> how the second scene is made."""

MAX_CAPTIONS = 400
"""Pictures that a captioner describes, of which each costs as much as the embedding of many."""

Source = Callable[[str, int], Iterator[Scene]]
"""(stream, number of objects) -> distinct scenes."""


@dataclass(frozen=True)
class Evaluation:
    """Writes ``directory/NAME + suffix`` in one phrasing, ``number`` items a set.

    ``tick`` is called once a picture. The pictures depend on neither the phrasing nor the number.
    """

    world: World
    directory: Path
    grammar: str
    suffix: str
    number: int
    image_size: int
    num_marks: int
    counting: float
    negation: bool
    tick: Callable[[], None]

    @property
    def pair_objects(self) -> int | None:
        """Number of objects in scenes of retrieval and swaps; None where training has single objects only."""
        return min((count for count in self.world.num_objects if count > 1), default=None)

    @property
    def num_pictures(self) -> int:
        """At most so many pictures are drawn: sets of single objects, and of several where there are any."""
        pairs = 0 if self.pair_objects is None else 11 if self.world.hold_out else 6
        items = self.number * (2 + pairs + bool(self.num_marks) + bool(self.counting) + self.negation)
        return items + min(self.number, MAX_CAPTIONS) * (2 if self.world.hold_out else 1)

    def write(self) -> dict[str, int]:
        """Write all sets; returns the number of items of each.

        Raises:
            UserError: the world has fewer distinct scenes than asked for.
        """
        counts = {}
        if self.pair_objects is not None:
            counts["retrieval"] = self._retrieval("retrieval", self._evaluation_scenes())
            counts |= self._swaps("swaps", self.world.evaluation_scenes)
            counts["twins"] = self._twins("twins", self.world.evaluation_scenes)
            counts["order"] = self._order()
            if self.world.hold_out:
                counts["held_out"] = self._retrieval(
                    "held_out", self.world.held_out_scenes("held_out", self.pair_objects)
                )
                counts |= self._swaps("held_out_swaps", self.world.held_out_scenes)
                counts["held_out_twins"] = self._twins("held_out_twins", self.world.held_out_scenes)
        counts["captions"] = self._captions("captions", self.world.captioned_scenes("captions", self.counting))
        if self.world.hold_out:
            assert self.pair_objects is not None
            held_out = self.world.held_out_scenes("held_out_captions", self.pair_objects)
            counts["held_out_captions"] = self._captions("held_out_captions", held_out)
        for factor in ("colour", "shape"):
            counts[factor] = self._classification(factor)
        if self.num_marks:
            counts["shortcut"] = self._shortcut()
        if self.counting:
            counts["counting"] = self._suite("counting", count_twins(self.world))
        if self.negation:
            counts["negation"] = self._suite("negation", negation_twins(self.world))
        return {self._folder(name).relative_to(self.directory).as_posix(): count for name, count in counts.items()}

    def _folder(self, name: str) -> Path:
        head, *tail = name.split("/")
        return Path(self.directory, head + self.suffix, *tail)

    def _picture(self, scene: Scene, stream: str, number: int) -> bytes:
        random = generator(self.world.seed, f"picture/{stream}", number)
        if self.num_marks and scene.mark is None:
            scene = replace(scene, mark=random.randrange(self.num_marks))
        places = arrange(scene, random, self.image_size, max(self.world.num_objects))
        self.tick()
        return encode_image(draw(scene, places, random, self.image_size))

    def _evaluation_scenes(self) -> list[Scene]:
        assert self.pair_objects is not None
        scenes = list(islice(self.world.evaluation_scenes("retrieval", self.pair_objects), self.number))
        if len(scenes) < self.number:
            raise UserError(
                f"--num-eval {self.number} is more than the {len(scenes)} distinct scenes that this world keeps "
                "for evaluation: lower it"
            )
        return scenes

    def _retrieval(self, name: str, scenes: Iterable[Scene]) -> int:
        items = (
            (self._picture(scene, name, number), "png", [phrase(scene, self.grammar)])
            for number, scene in enumerate(islice(scenes, self.number))
        )
        return write_retrieval_set(self._folder(name), items)

    def _captions(self, name: str, scenes: Iterable[Scene]) -> int:
        """A set of retrieval, and what a caption of each picture has to say; smaller where the world has no more."""
        told = list(islice(scenes, min(self.number, MAX_CAPTIONS)))
        count = self._retrieval(name, told)
        text = json.dumps(slots(told, self.grammar, self.world), indent=1)
        (self._folder(name) / SLOTS_FILE).write_text(text + "\n", encoding="utf-8")
        return count

    def _classification(self, factor: str) -> int:
        values = COLOURS if factor == "colour" else SHAPES

        def items() -> Iterator[tuple[bytes, str, int]]:
            for number in range(self.number):
                scene = self.world.single(generator(self.world.seed, factor, number))
                label = values.index(str(getattr(scene.objects[0], factor)))
                yield self._picture(scene, factor, number), "png", label

        words = getattr(GRAMMARS[self.grammar], f"{factor}s")
        templates = prompts(factor, self.world.textures, self.grammar)
        return write_classification_set(self._folder(factor), items(), [words[value] for value in values], templates)

    def _shortcut(self) -> int:
        def items() -> Iterator[tuple[bytes, str, int]]:
            for number in range(self.number):
                random = generator(self.world.seed, "shortcut", number)
                mark = random.randrange(self.num_marks)
                scene = replace(self.world.single(random), mark=mark)
                yield self._picture(scene, "shortcut", number), "png", mark

        kinds = enumerate(zip(SHAPES, COLOURS, strict=True))
        things = [Thing(shape, colour, SIZES[k % 2]) for k, (shape, colour) in kinds]
        templates = [phrase(Scene((thing,)), self.grammar) + ", {c}" for thing in things]
        classnames = [f"mark {value}" for value in range(self.num_marks)]
        return write_classification_set(self._folder("shortcut"), items(), classnames, templates)

    def _swaps(self, name: str, source: Source) -> dict[str, int]:
        """Suites of caption pairs in which every caption is once the true and once the false one."""
        assert self.pair_objects is not None
        suites: dict[str, Iterable[CaptionPair]] = {}
        counts = {}
        for suite, swap in SWAPS.items():
            stream = f"{name}/{suite}"
            found = twins(source(stream, self.pair_objects), swap, self.world.seed, stream)
            suites[suite], counts[stream] = self._both_ways(found, stream)
        write_pairs(self._folder(name), suites)
        return counts

    def _twins(self, name: str, source: Source) -> int:
        """As many twins of each tag; fewer where the world has no more of them."""
        assert self.pair_objects is not None
        told: list[tuple[str, Twins]] = []
        for place, (tag, swap) in enumerate(TWINS.items()):
            stream = f"{name}/{tag}"
            found = twins(source(stream, self.pair_objects), swap, self.world.seed, stream)
            share = self.number * (place + 1) // len(TWINS) - self.number * place // len(TWINS)
            told += [(tag, pair) for pair in islice(found, share)]

        def drawn() -> Iterator[CaptionedTwins]:
            for number, (tag, (one, other)) in enumerate(told):
                pair = self._pair(one, other, name, 2 * number)
                yield CaptionedTwins(
                    (pair.image, self._picture(other, name, 2 * number + 1)),
                    (pair.caption, pair.negative_caption),
                    tag,
                )

        return write_twins(self._folder(name), drawn())

    def _order(self) -> int:
        """A suite whose false captions are the words of the true one in an order that makes no sentence."""
        assert self.pair_objects is not None
        scenes = list(islice(self.world.evaluation_scenes("order", self.pair_objects), self.number))

        def drawn() -> Iterator[CaptionPair]:
            for number, scene in enumerate(scenes):
                caption = phrase(scene, self.grammar)
                shuffled = shuffle_words(caption, self.grammar, generator(self.world.seed, "shuffle", number))
                yield CaptionPair(self._picture(scene, "order", number), "png", caption, shuffled)

        write_pairs(self._folder("order"), {"shuffled_words": drawn()})
        return len(scenes)

    def _suite(self, name: str, found: Iterator[Twins]) -> int:
        """A set of one suite, in which every caption is once the true and once the false one."""
        pairs, count = self._both_ways(found, name)
        write_pairs(self._folder(name), {name: pairs})
        return count

    def _both_ways(self, found: Iterator[Twins], stream: str) -> tuple[Iterator[CaptionPair], int]:
        """(pairs in which either scene of a twin is once the one that is drawn, their number)."""
        both_ways = (pair for one, other in found for pair in ((one, other), (other, one)))
        ordered = list(islice(both_ways, self.number))
        return (self._pair(*pair, stream, number) for number, pair in enumerate(ordered)), len(ordered)

    def _pair(self, scene: Scene, other: Scene, stream: str, number: int) -> CaptionPair:
        """The picture of ``scene`` with its caption and that of ``other``, which is false.

        Every other twin has what is absent in front: to believe what comes first is right of half of them.
        """
        style = Style(denial_first=number % 4 >= 2)
        caption, negative = (phrase(told, self.grammar, style=style) for told in (scene, other))
        assert holds(parse(caption, self.grammar), scene), caption
        assert not holds(parse(negative, self.grammar), scene), negative
        return CaptionPair(self._picture(scene, stream, number), "png", caption, negative)


def prompts(factor: str, textures: tuple[str, ...], grammar: str) -> list[str]:
    """Canonical captions of single objects with the word of ``factor`` (colour or shape) left open as {c}."""
    words = getattr(GRAMMARS[grammar], f"{factor}s")
    others = [
        Thing(SHAPES[0], value, size, texture) if factor == "shape" else Thing(value, COLOURS[0], size, texture)
        for value in (COLOURS if factor == "shape" else SHAPES)
        for size in SIZES
        for texture in textures
    ]
    return [phrase(Scene((t,)), grammar).replace(words[getattr(t, factor)], "{c}") for t in others]
