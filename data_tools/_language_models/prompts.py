"""Prompts as data: YAML files that say what a model is asked, and how its words are drawn."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from data_tools._language_models.base import Messages, Request, Sampling
from vlp import resolve
from vlp.options import explain
from vlp.types import UserError

_OURS = Path(__file__).parent.parent / "prompts"
_TEMPLATES = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_EXAMPLES = ("a red bus", "two cats")
_NOT_FILLABLE = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)  # what expressions of a template raise


class Message(BaseModel, frozen=True, extra="forbid"):
    role: str = Field(pattern="^(system|user|assistant)$")
    content: str


class Prompt(BaseModel, frozen=True, extra="forbid"):
    """Templates (Jinja) that see ``caption`` and ``pairs``, ``draw`` examples drawn from the pool without replacement.

    ``text`` is for models that go on with a text, ``messages`` for those that answer in a conversation.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    draw: int = Field(default=0, ge=0)
    sampling: Sampling = Sampling()
    _file: str = PrivateAttr("the prompt")

    @model_validator(mode="after")
    def _is_whole(self) -> Prompt:
        if (self.text is None) == (not self.messages):
            raise ValueError("give either text or messages")
        if self.draw > len(self.pairs):
            raise ValueError(f"draw {self.draw} is more than the {len(self.pairs)} pairs there are")
        if self.pairs and not self.draw:
            raise ValueError("pairs have no effect without draw: say how many of them a prompt shows")
        try:
            one, other = (self._shown(caption, 0, 0)[0] for caption in _EXAMPLES)
        except _NOT_FILLABLE as error:
            raise ValueError(f"the template cannot be filled in: {error}") from error
        if one == other:
            raise ValueError("the template does not show the caption: write {{ caption }} where it belongs")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all that stands in it but the sampling, first 16 digits."""
        content = json.dumps(self.model_dump(exclude={"sampling"}), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def request(self, caption: str, number: int, seed: int) -> Request:
        """Text ``number`` about ``caption``: all that is random in it is a function of the three arguments.

        Raises:
            UserError: the template cannot be filled in for this caption.
        """
        try:
            prompt, own = self._shown(caption, number, seed)
        except _NOT_FILLABLE as error:
            raise UserError(
                f"{self._file}: the template cannot be filled in for the caption '{caption}' ({error}): "
                "change it so that it takes any caption"
            ) from error
        return Request(caption, number, prompt, own)

    def _shown(self, caption: str, number: int, seed: int) -> tuple[str | Messages, int]:
        """What the model sees, and the seed with which it draws."""
        digest = hashlib.sha256(json.dumps([seed, caption, number]).encode()).digest()
        own = int.from_bytes(digest[:4], "little") >> 1  # servers take 31 bits
        values = {"caption": caption, "pairs": Random(digest).sample(self.pairs, self.draw)}
        if self.text is not None:
            return _filled(self.text, values), own
        return tuple((m.role, _filled(m.content, values)) for m in self.messages), own


def _filled(template: str, values: dict[str, Any]) -> str:
    return _compiled(template).render(values)


@lru_cache(maxsize=256)
def _compiled(template: str) -> jinja2.Template:
    return _TEMPLATES.from_string(template)


def names() -> list[str]:
    return sorted(file.stem for file in _OURS.glob("*.yaml"))


def load(name: str) -> Prompt:
    """The prompt of a YAML file, or of that name among ours.

    Raises:
        UserError: no such file, or what stands in it is no prompt.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _OURS / f"{name}.yaml"
    if not path.is_file():
        near = resolve.nearest(name, names())
        raise UserError(f"no prompt '{name}'{near}; known: {', '.join(names())}, or a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: save it as such") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping with text or messages: see data_tools/prompts for examples")
    try:
        prompt = Prompt.model_validate(content)
    except ValidationError as error:
        raise explain(error, Prompt, str(path)) from error
    prompt._file = str(path)
    return prompt
