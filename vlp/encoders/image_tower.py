"""timm towers that no name describes, such as SigLIP's ViT with another size or activation.

timm builds a tower from a directory, too: ``local-dir:DIR`` reads ``config.json`` there, an architecture with the
arguments that differ from it. ``open_clip_config.json`` holds these beside ``model_cfg``, as ``image_tower``, since a
path in ``model_cfg`` would be wrong once the directory has moved; open_clip itself reads the path.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = "image_tower"  # in a model directory: the tower's description for timm
KEY = "image_tower"  # beside model_cfg: the same
PLACE = "local-dir:"


def siglip_vit(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, mlp_ratio: float, act_layer: str
) -> dict[str, Any]:
    """timm's description of SigLIP's image tower: no class token, pooled by attention of one learned query."""
    arguments = {
        "img_size": image_size,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": layers,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio,
        "act_layer": act_layer,
    }
    return {
        "architecture": "vit_base_patch16_siglip_224",
        "pretrained_cfg": {"input_size": [3, image_size, image_size], "fixed_input_size": True},
        "model_args": arguments,
    }


@contextmanager
def named(openclip_config: dict[str, Any]) -> Iterator[str | None]:
    """timm's name of the tower as long as it lasts; None where ``model_cfg`` names it itself."""
    tower = openclip_config.get(KEY)
    if tower is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        _write(tower, Path(directory))
        yield PLACE + directory


def write(openclip_config: dict[str, Any], directory: Path, final: Path | None) -> None:
    """Describe the tower in ``directory``, and name the place where open_clip will find it."""
    (directory / FOLDER).mkdir(exist_ok=True)
    _write(openclip_config[KEY], directory / FOLDER)
    place = (final or directory).resolve() / FOLDER
    openclip_config["model_cfg"]["vision_cfg"]["timm_model_name"] = f"{PLACE}{place}"


def _write(tower: dict[str, Any], directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(tower, indent=2) + "\n", encoding="utf-8")
