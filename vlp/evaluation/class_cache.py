"""Class embeddings kept on disk under a hash of all that they depend on.

What a text tower makes of prompts is a function of its weights, its configuration and the token ids, so these are what
is hashed; tokenizer, context length, templates and names are in the ids. Files are never wrong, only no longer asked
for: the oldest are removed where all of them exceed `LIMIT`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlp.encoders.two_tower import TwoTower

VERSION = "1"  # of what is computed of the ids: raise it when embed_texts or class_embeddings change
KIND = "vlp class embeddings"
LIMIT = 2**30  # bytes
_NOT_TEXT = ("visual.", "text_decoder.")
_NOT_TEXT_SCALARS = ("logit_scale", "logit_bias")


def folder() -> Path:
    """``$VLP_CACHE``, or ``vlp`` in the user's folder for caches; in it, that of class embeddings."""
    root = os.environ.get("VLP_CACHE")
    if root is None:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache"), "vlp")
    return Path(root).expanduser() / "class-embeddings"


def key_of(encoder: Any, prompts: Sequence[Sequence[str]]) -> str | None:
    """What the class embeddings of ``prompts`` depend on, as 64 hexadecimal digits.

    None for a model that cannot be known by its weights (it is no `TwoTower`), or that changes with every step.
    """
    if type(encoder) is not TwoTower or encoder.clip.training:
        return None
    ids_NL = encoder.tokenizer([prompt for of_class in prompts for prompt in of_class])
    tower = encoder.clip.text if hasattr(encoder.clip, "text") else encoder.clip.transformer
    about = {
        "version": VERSION,
        "config": {name: value for name, value in encoder.openclip_config["model_cfg"].items() if name != "vision_cfg"},
        "tower": f"{tower!r} {getattr(tower, 'config', '')}",
        "prompts": [len(of_class) for of_class in prompts],
        "computed": _computed(encoder.device),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    digest.update(_digest("ids", ids_NL))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        for of_tensor in pool.map(_digest, *zip(*_text_tensors(encoder), strict=True)):
            digest.update(of_tensor)
    return digest.hexdigest()


def read(key: str, num_classes: int) -> tuple[Tensor | None, list[str]]:
    """The embeddings CD kept under ``key``, on the CPU; None where there are none, and why a file is of no use."""
    path = _path(key)
    try:
        path.stat()
        with safe_open(path, framework="pt") as file:
            about, names = file.metadata() or {}, list(file.keys())
            class_CD: Tensor = file.get_tensor("class_CD") if names == ["class_CD"] else torch.empty(0)
    except (FileNotFoundError, NotADirectoryError):
        return None, []
    except (SafetensorError, OSError) as error:
        return None, [f"{path} is damaged ({error}): the class embeddings were computed anew"]
    is_ours = about.get("kind") == KIND and about.get("key") == key
    if not is_ours or class_CD.ndim != 2 or len(class_CD) != num_classes or about.get("sum") != _sum(class_CD):
        return None, [f"{path} holds something else: the class embeddings were computed anew"]
    with suppress(OSError):  # a folder that others wrote, or that another process has just tidied
        os.utime(path)
    return class_CD, []


def write(key: str, class_CD: Tensor) -> list[str]:
    """Keep them under ``key``; a sentence where that is not possible, which is no reason to stop."""
    path = _path(key)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    class_CD = class_CD.detach().cpu().contiguous()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({"class_CD": class_CD}, partial, {"kind": KIND, "key": key, "sum": _sum(class_CD)})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        with suppress(OSError):  # another process may tidy, too
            _remove_oldest(path.parent)
    except (SafetensorError, OSError) as error:
        return [f"class embeddings could not be kept in {path.parent}: {getattr(error, 'strerror', None) or error}"]
    return []


def _path(key: str) -> Path:
    return folder() / f"{key}.safetensors"


def _remove_oldest(directory: Path) -> None:
    files = sorted(((file.stat(), file) for file in directory.glob("*.safetensors")), key=lambda one: one[0].st_mtime)
    total = sum(stat.st_size for stat, _ in files)
    for stat, file in files[:-1]:
        if total <= LIMIT:
            return
        file.unlink(missing_ok=True)
        total -= stat.st_size


def _text_tensors(encoder: TwoTower) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in encoder.clip.state_dict().items():
        if not name.startswith(_NOT_TEXT) and name not in _NOT_TEXT_SCALARS:
            yield name, tensor


def _digest(name: str, tensor: Tensor) -> bytes:
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _sum(tensor: Tensor) -> str:
    return _digest("class_CD", tensor).hex()


def _computed(device: torch.device) -> str:
    """In what precision the tower computes now."""
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return f"{device.type} {autocast} {torch.get_float32_matmul_precision()}"
