"""What the inputs of a command are: pictures and directories of them, or shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vlp.data.samples import IMAGE_EXTENSIONS, BadSample
from vlp.data.store import is_remote
from vlp.types import UserError


class Picture(NamedTuple):
    """A file, and what it is called in the output."""

    path: Path
    name: str

    def read(self) -> bytes:
        """
        Raises:
            BadSample: "unreadable file".
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise BadSample("unreadable file", str(error.strerror)) from error


def is_shards(name: str) -> bool:
    """Whether an input is shards (a tar, a pattern or directory of them, anything remote); else it is pictures.

    Raises:
        UserError: it is neither shards nor pictures, or both.
    """
    path, ending = Path(name).expanduser(), name.rpartition(".")[2].lower()
    if path.is_dir():
        endings = {entry.suffix.lower().lstrip(".") for entry in path.iterdir()}
        if "tar" in endings and not endings.isdisjoint(IMAGE_EXTENSIONS):
            raise UserError(f"{name} holds both shards and pictures: name {name}/*.tar, or the pictures")
        return "tar" in endings
    if is_remote(name) and ending in IMAGE_EXTENSIONS:
        raise UserError(f"{name} is not on this machine: download pictures first, only shards are read from elsewhere")
    if is_remote(name) or ending == "tar":
        return True
    if not path.exists():
        raise UserError(f"{name} does not exist: name pictures, directories of them, or shards (.tar)")
    return False


def pictures_in(directory: Path) -> list[Path]:
    """Paths, relative to ``directory``, of all files with a picture's ending, however deep, sorted."""
    files = (file for file in directory.rglob("*") if file.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
    return [file.relative_to(directory) for file in sorted(files) if file.is_file()]


def find_pictures(inputs: Sequence[str]) -> list[Picture]:
    """The files, and of directories all files with a picture's ending, sorted.

    Names are as given, of a directory that stands alone relative to it.

    Raises:
        UserError: a file is no picture, or a directory holds none.
    """
    found: list[Picture] = []
    for given_name in inputs:
        path = Path(given_name).expanduser()
        if path.is_dir():
            inside = pictures_in(path)
            if not inside:
                raise UserError(f"{given_name} holds no pictures ({', '.join(IMAGE_EXTENSIONS)}): check the path")
            prefix = Path() if len(inputs) == 1 else Path(given_name)
            found += [Picture(path / file, str(prefix / file)) for file in inside]
            continue
        if path.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS:
            try:
                Image.open(path).close()
            except Exception as error:  # Pillow's plug-ins raise nearly every built-in error
                raise UserError(f"{given_name} is no picture: name pictures, directories of them, or shards") from error
        found.append(Picture(path, given_name))
    return found
