"""What ``vlp data neighbours`` is asked for, and where its files lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlp.data.layer_files import layer_path
from vlp.data.shards import stem
from vlp.types import UserError

TOOL = "vlp data neighbours"


@dataclass(frozen=True)
class Job:
    """What embeddings and neighbours depend on; small enough to travel to every worker.

    ``weights`` and ``dim`` are those of the image tower that ``model`` names, see `model.identity`.
    """

    model: str
    weights: str
    dim: int
    captions: tuple[str, ...] = ("txt",)
    number: int = 3
    duplicate_above: float = 0.97
    root: str | None = None
    name: str = "neighbours"
    batch_size: int = 64
    device: str = "auto"

    def features(self, shard_path: str) -> Path:
        """float16 [samples, dim], of length 1; zeros where a picture cannot be decoded."""
        return self._embeddings(shard_path) / f"{stem(shard_path)}.npy"

    def pictures(self, shard_path: str) -> Path:
        """`facts.Pictures`; written last, so that it tells whether the pictures of a shard are done."""
        return self._embeddings(shard_path) / f"{stem(shard_path)}.pictures.npz"

    def captions_of(self, shard_path: str) -> Path:
        """`facts.Captions`"""
        return self._embeddings(shard_path) / f"{stem(shard_path)}.captions.npz"

    def index(self, first_shard: str) -> Path:
        """The folder of what is made of all shards together, a folder a corpus."""
        return self._folder(first_shard) / ".index"

    def _embeddings(self, shard_path: str) -> Path:
        return self._folder(shard_path) / ".embeddings" / self.weights

    def _folder(self, shard_path: str) -> Path:
        layer = layer_path(shard_path, self.name, self.root)
        if "://" in layer:
            raise UserError(f"cannot write the layer to {layer}: name a local folder with --root")
        return Path(layer).parent


def in_order(paths: Sequence[str]) -> list[str]:
    """The shards by their stems, so that nothing depends on the order in which they were named.

    Raises:
        UserError: two have the same stem, by which neighbours are named.
    """
    owners: dict[str, str] = {}
    for path in paths:
        other = owners.setdefault(stem(path), path)
        if other != path:
            raise UserError(
                f"{other} and {path} have the same name, so that neighbours in them could not be told apart: "
                "give the shards different names"
            )
    return [owners[name] for name in sorted(owners)]
