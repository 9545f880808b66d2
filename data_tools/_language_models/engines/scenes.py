"""A paraphraser of the captions of ``vlp data scenes``, without a model: for tests, and for claims about rewrites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import Any, Literal

from pydantic import Field

from data_tools._language_models import base
from data_tools._language_models.base import Completion, Request, Sampling
from data_tools._scenes_grammar import GRAMMARS, parse, phrase
from data_tools._scenes_world import Scene

NO_SCENE = "not a caption of vlp data scenes"


class Engine(base.Engine, frozen=True, extra="forbid"):
    """Says the scene of the caption again, in other words, without loss. Prompt and sampling have no effect on it."""

    grammar: Literal["A", "B", "both"] = Field(
        default="both", description="phrasing of its texts, as of vlp data scenes: A, B or one of both by chance"
    )

    def identity(self) -> dict[str, Any]:
        return {"engine": "scenes", "grammar": self.grammar}

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        for request in requests:
            scene = _scene(request.caption)
            if scene is None:
                yield request, Completion("", problem=NO_SCENE)
            else:
                yield request, Completion(self._rewrite(request, scene))

    def _rewrite(self, request: Request, scene: Scene) -> str:
        grammars = list(GRAMMARS) if self.grammar == "both" else [self.grammar]
        random = Random(request.seed)
        grammar = random.choice(grammars)
        while True:  # every grammar has a second sentence for every scene
            text = phrase(scene, grammar, random)
            if text != request.caption and parse(text, grammar) == scene:  # captions of training may omit the sizes
                return text


def _scene(caption: str) -> Scene | None:
    for grammar in GRAMMARS:
        try:
            return parse(caption, grammar)
        except ValueError:
            continue
    return None
