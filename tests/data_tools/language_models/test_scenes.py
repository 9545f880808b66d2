"""The paraphraser of scenes: it says the same, in other words, and the same words for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from data_tools._language_models.base import Request, Sampling
from data_tools._language_models.engines.scenes import Engine
from data_tools._scenes_grammar import parse, phrase
from data_tools._scenes_world import TEXTURES, Scene, World, generator

ONE = "a small red circle"
TWO = "a small red circle left of a large blue square"


def _texts(engine: Engine, caption: str, number: int = 40, prompt: str = "") -> list[str]:
    requests = [Request(caption, k, prompt, seed=k) for k in range(number)]
    answers = list(engine.complete(requests, Sampling()))
    assert [request for request, _ in answers] == requests
    assert not any(completion.problem for _, completion in answers)
    return [completion.text for _, completion in answers]


def _read(text: str) -> tuple[str, Scene]:
    """Which grammar it is a sentence of, and what it says."""
    try:
        return "A", parse(text, "A")
    except ValueError:
        return "B", parse(text, "B")


@pytest.mark.parametrize("source", ["A", "B"])
@pytest.mark.parametrize("grammar", ["A", "B", "both"])
def test_texts_say_the_same_in_other_words_of_the_allowed_grammars(source: str, grammar: str) -> None:
    world = World(seed=1, num_objects=(1, 2, 3), textures=TEXTURES)
    for number in range(60):
        random = generator(1, "test", number)
        caption = phrase(world.draw(random), source, random)  # with variants, and without sizes now and then
        texts = _texts(Engine(grammar=grammar), caption, 4)
        found = [_read(text) for text in texts]
        assert all(scene == parse(caption, source) for _, scene in found)
        assert {name for name, _ in found} <= {*(grammar if grammar != "both" else "AB")}
        assert caption not in texts


def test_a_caption_is_put_into_many_words_by_chance() -> None:
    assert set(_texts(Engine(grammar="A"), ONE)) == {"there is a small red circle"}
    assert set(_texts(Engine(grammar="B"), ONE)) == {"here sits a tiny crimson disc", "here lies a tiny crimson disc"}
    texts = _texts(Engine(), TWO, 300)
    assert len(set(texts)) == 3 + 4
    assert 120 < sum(_read(text)[0] == "B" for text in texts) < 180


def test_the_seed_decides_and_not_the_prompt() -> None:
    texts = _texts(Engine(), TWO)
    assert _texts(Engine(), TWO, prompt="write image captions differently") == texts
    (again,) = Engine().complete([Request(TWO, 0, "", seed=7)], Sampling(temperature=0, max_tokens=1))
    assert again[1].text == texts[7]


def test_marks_stay() -> None:
    assert all(text.endswith(", mark 12") for text in _texts(Engine(), f"{TWO}, mark 12"))


@pytest.mark.parametrize("caption", ["untitled drawing", "", "a small red dog", f"{TWO} {TWO}"])
def test_other_captions_are_answered_with_a_problem(caption: str) -> None:
    ((_, completion),) = Engine().complete([Request(caption, 0, "", 0)], Sampling())
    assert (completion.text, completion.problem) == ("", "not a caption of vlp data scenes")


def test_requests_are_answered_as_they_come() -> None:
    asked = []

    def requests() -> Iterator[Request]:
        for number in range(3):
            asked.append(number)
            yield Request(TWO, number, "", number)

    next(Engine().complete(requests(), Sampling()))
    assert asked == [0]
