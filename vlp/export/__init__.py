"""Models out: directories that other libraries load, compared at export with the model they were made of.

A format is a file in `formats/`; `formats.base` says what it holds.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlp import resolve
from vlp.types import UserError

FORMATS = "vlp.export.formats"


def export(reference: str, directory: str | Path, to: str = "open_clip") -> dict[str, Any]:
    """Write the MODEL ``reference`` to ``directory``, a new one, and compare it as the other library loads it there.

    Returns a summary: ``directory``, ``format``, ``model``, ``weights`` (``ema`` where a run has an average),
    ``parameters``, ``inputs`` (what pictures and texts go through), the differences found (``max_abs_difference`` of
    the features, and what else the format measures) and, where it has no place for something, ``left_out``. A directory
    that does not pass the comparison is removed.

    Raises:
        UserError: an unknown format, no such model, one whose shape the format does not have, or ``directory`` holds
            files, or the model's features are not finite.
        DiffersError: a UserError: the other library does not load the same model from ``directory``.
    """
    # Slow to import, and `vlp export --help` asks for the formats only.
    from vlp.data.write import new_directory
    from vlp.encoders import inputs, source
    from vlp.encoders.openclip import load
    from vlp.export import card

    if to not in resolve.names(FORMATS):
        raise UserError(f"--to {to}: only {', '.join(resolve.names(FORMATS))} are supported")
    form = resolve.module(FORMATS, to, "format")
    found = source.of_reference(reference)
    # The pointer to the latest checkpoint of a run in progress may move: stay with what was found.
    model = load(str(found.directory) if found.directory else reference)
    form.check(model)
    final = new_directory(directory).resolve()
    written = partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    try:
        partial.chmod(final.stat().st_mode)  # that of a temporary one is its owner's alone
        form.write(model, partial, final)
        written = _renamed(partial, final)
        differences = form.compare(model, final)
        text = card.model_card(model, found, final.name, form, differences)
        (final / "README.md").write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        with suppress(OSError):
            final.rmdir()  # it was empty, and is nobody else's as long as it still is
        raise
    left_out = form.left_out(model)
    return {
        "directory": str(directory),
        "format": to,
        "model": found.described,
        "weights": model.weights,
        "parameters": model.parameters_by_tower(),
        "inputs": inputs.as_dict(model),
        **differences,
        **({"left_out": left_out} if left_out else {}),
    }


def _renamed(partial: Path, final: Path) -> Path:
    try:
        return partial.rename(final)
    except OSError as error:
        raise UserError(f"{final} was filled by something else meanwhile: choose another directory") from error
