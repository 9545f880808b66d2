"""Where a model comes from: a run, a checkpoint, an export, a hub, a tag; found, not yet built."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import open_clip

from vlp import resolve
from vlp.encoders import hub
from vlp.types import UserError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHTS_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
EMA_FILE = "ema.safetensors"
CAPTIONER_FILE = "captioner.safetensors"
_TRANSFORMERS_TEXT = {"hf_model_name", "hf_tokenizer_name"}
_TEXT_TOWER_CONFIG = "text_tower/config.json"


@dataclass(frozen=True)
class Source:
    """Weights with what belongs to them. ``model_cfg`` is None for a lone weights file.

    ``directory`` is where tokenizer files and the text tower's configuration may lie; ``ema`` is an average
    to use in place of the weights; ``is_tag`` tells open_clip's own weights of a named model; ``captioner_cfg``
    describes a captioning head and ``captioner`` has its weights; for ``correct_cls_mask`` see `config.of_options`.
    ``family`` tells weights under transformers' names; ``image_tower`` describes a tower that timm has no name for;
    ``text_cleaning`` "none" gives texts to the tokenizer as they are, as transformers does and open_clip does not.
    """

    described: str
    weights: Path
    model_cfg: dict[str, Any] | None = None
    preprocess_cfg: dict[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    ema: Path | None = None
    is_tag: bool = False
    captioner_cfg: dict[str, Any] | None = None
    captioner: Path | None = None
    correct_cls_mask: bool = False
    family: Literal["clip", "siglip"] | None = None
    image_tower: dict[str, Any] | None = None
    text_cleaning: Literal["none"] | None = None


def named_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of the model ``name``.

    Raises:
        UserError: no such model; the message names the nearest ones.
    """
    config = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        raise UserError(f"open_clip has no model '{name}'{_near(name)}; open_clip.list_models() has them all")
    return config


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.5)
    return f", did you mean {' or '.join(near)}?" if near else ""


def of_reference(reference: str) -> Source:
    """Find what a MODEL argument names: a directory, ``local-dir:``, ``hf-hub:``, ``NAME:TAG`` or ``NAME:FILE``.

    Raises:
        UserError: nothing is there, or it has no weights; the message says what was looked for.
    """
    found = _of_place(reference)
    if found is not None:
        return found
    name, colon, tag = reference.partition(":")
    known = open_clip.get_model_config(name.replace("/", "-")) is not None
    if known and colon:
        return _of_file(reference, Path(tag), named_config(name)) if Path(tag).is_file() else of_tag(name, tag)
    if known:
        tags = open_clip.list_pretrained_tags_by_model(name)
        example = f"such as {name}:{tags[0]}" if tags else "but open_clip has none for it"
        raise UserError(f"'{reference}' has random weights, no use to load: name a tag, {example}")
    if Path(reference).is_file():
        raise UserError(
            f"{reference} is a lone file: name its architecture before it, such as ViT-B-32:{reference}, or the "
            f"directory that holds it with {CONFIG_FILE}"
        )
    raise UserError(
        f"no model '{reference}': it is no directory (run, checkpoint, export, transformers), nor hf-hub:OWNER/MODEL, "
        f"local-dir:DIR or an open_clip NAME:TAG such as ViT-B-32:openai{_near(name)}"
    )


def of_init(init: str, name: str | None) -> Source:
    """Find what ``model.init`` names: as a MODEL, or a tag of the model ``name``, or a weights file."""
    found = _of_place(init)
    if found is not None:
        return found
    if Path(init).is_file():
        return _of_file(init, Path(init))
    if name is not None:
        return of_tag(name, init)
    if ":" in init:
        return of_reference(init)
    raise UserError(f"model.init: no file or directory '{init}', and a tag needs model.name")


def _of_file(described: str, path: Path, model_cfg: dict[str, Any] | None = None) -> Source:
    """Lone weights, of the architecture ``model_cfg``; a configuration beside them says how pictures are made."""
    if path.suffix not in WEIGHTS_ENDINGS:
        raise UserError(f"{described} is no weights file: give .safetensors, or .pt of plain tensors")
    beside = path.with_name(CONFIG_FILE)
    config = _read_config(beside) if beside.is_file() else {}
    head = beside.with_name(CAPTIONER_FILE)
    return Source(
        described,
        path,
        model_cfg,
        config.get("preprocess_cfg", {}) if model_cfg is not None else {},
        captioner_cfg=config.get("captioner_cfg") if head.is_file() else None,
        captioner=head,
        correct_cls_mask=bool(config.get("correct_cls_mask")),
    )


def of_tag(name: str, tag: str) -> Source:
    """Take from the cache, or download, the weights open_clip lists as ``tag`` of ``name``."""
    model_cfg = named_config(name)
    name = name.replace("/", "-")
    listed = open_clip.get_pretrained_cfg(name, tag)
    if not listed:
        tags = open_clip.list_pretrained_tags_by_model(name)
        hint = resolve.nearest(tag, tags) or f"; tags: {', '.join(tags) or 'none'}"
        raise UserError(f"'{tag}' is no file, no directory and no tag of {name}{hint}")
    # open_clip only warns when name and tag disagree on the activation; the weights decide what is right.
    model_cfg["quick_gelu"] = bool(listed.get("quick_gelu", False))
    repository, _, file = listed["hf_hub"].rpartition("/")
    weights = hub.Snapshot(repository, f"{name}:{tag}").require(*_safe_first(file))
    return Source(f"{name}:{tag}", weights, model_cfg, listed, is_tag=True)


def _safe_first(file: str) -> list[str]:
    """Names under which a hub may have weights: safetensors before pickles."""
    if not file:
        return [WEIGHTS_FILE, "open_clip_pytorch_model.bin"]
    stem, _, ending = file.rpartition(".")
    return [f"{stem}.safetensors", file] if ending in ("bin", "pth") else [file]


def _of_place(reference: str) -> Source | None:
    if reference.startswith("hf-hub:"):
        return _of_hub(reference.removeprefix("hf-hub:"))
    path = Path(reference.removeprefix("local-dir:"))
    if path.is_dir():
        return _of_directory(path)
    if reference.startswith("local-dir:"):
        raise UserError(f"there is no directory {path}")
    return None


def _of_directory(path: Path) -> Source:
    """A run (its `chosen_checkpoint`), a checkpoint, or a directory as open_clip writes it."""
    if (path / "checkpoints").is_dir() and not (path / CONFIG_FILE).is_file():
        latest = chosen_checkpoint(path)
        if latest is None:
            raise UserError(f"run {path} has no checkpoint yet: train it further first")
        path = latest
    config_file = path / CONFIG_FILE
    if not config_file.is_file() and (path / "config.json").is_file():
        from vlp.encoders import transformers_directory  # slow, and other models do without it

        return transformers_directory.read(path, str(path))
    if not config_file.is_file():
        raise UserError(
            f"{path} holds no model: neither checkpoints/ (a run) nor {CONFIG_FILE} nor transformers' config.json is "
            "in it"
        )
    config = _read_config(config_file)
    weights = open_clip.factory._find_checkpoint_in_dir(path) if not (path / WEIGHTS_FILE).is_file() else None
    if weights is None and not (path / WEIGHTS_FILE).is_file():
        raise UserError(f"{path} has {CONFIG_FILE} but no weights ({WEIGHTS_FILE})")
    ema = path / EMA_FILE
    return Source(
        str(path),
        Path(weights) if weights else path / WEIGHTS_FILE,
        config["model_cfg"],
        config.get("preprocess_cfg", {}),
        path,
        ema if ema.is_file() else None,
        captioner=path / CAPTIONER_FILE,
        **_beside(config),
    )


def _beside(config: dict[str, Any]) -> dict[str, Any]:
    """What vlp writes beside open_clip's configuration."""
    return {
        "captioner_cfg": config.get("captioner_cfg"),
        "correct_cls_mask": bool(config.get("correct_cls_mask")),
        "image_tower": config.get("image_tower"),
        "text_cleaning": config.get("text_cleaning"),
    }


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, the oldest first."""
    root = run / "checkpoints"
    found = [path for path in root.iterdir() if step_of(path) is not None] if root.is_dir() else []
    return sorted(found, key=lambda path: step_of(path) or 0)


def step_of(path: Path | str) -> int | None:
    """The step that a checkpoint was saved at; None for what is none, by its name."""
    found = re.fullmatch(r"step-(\d{7,})", Path(path).name)
    return int(found[1]) if found else None


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; ``latest``, its link for people, may lag behind by one."""
    return next(reversed(checkpoints(run)), None)


def best_checkpoint(run: Path) -> Path | None:
    """The one that early stopping found best, by its link; None without one."""
    link = run / "checkpoints" / "best"
    best = link.with_name(link.readlink().name) if link.is_symlink() else link
    return best if best.is_dir() else None


def chosen_checkpoint(run: Path) -> Path | None:
    """What a run stands for as a MODEL: its best checkpoint where it has one, else the newest."""
    return best_checkpoint(run) or latest_checkpoint(run)


def _of_hub(model: str) -> Source:
    snapshot = hub.Snapshot(model)
    found = snapshot.file(CONFIG_FILE)
    if found is None and snapshot.file("config.json") is not None:
        from vlp.encoders import transformers_directory

        return transformers_directory.from_hub(snapshot, f"hf-hub:{model}")
    config = _read_config(found or snapshot.require(CONFIG_FILE))
    weights = snapshot.require(*_safe_first(""))
    with_captioner = config.get("captioner_cfg") is not None
    directory = _text_files(snapshot) if _TRANSFORMERS_TEXT & config["model_cfg"]["text_cfg"].keys() else None
    return Source(
        f"hf-hub:{snapshot.repository}@{snapshot.commit}",
        weights,
        config["model_cfg"],
        config.get("preprocess_cfg", {}),
        directory,
        captioner=snapshot.require(CAPTIONER_FILE) if with_captioner else None,
        **_beside(config),
    )


def _text_files(snapshot: hub.Snapshot) -> Path | None:
    """Where tokenizer and configuration of a text tower of transformers lie, if they are in the repository itself.

    An export has them: the names in its configuration are places of the machine that wrote it.
    """
    found = [snapshot.file(name) for name in (_TEXT_TOWER_CONFIG, *hub.TOKENIZER_FILES)]
    return snapshot.require(CONFIG_FILE).parent if any(found) else None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise UserError(f"{path} has no 'model_cfg': it is not a model configuration of open_clip")
    for tower in ("vision_cfg", "text_cfg"):
        if not isinstance(config["model_cfg"].get(tower), dict):
            raise UserError(f"{path} has no 'model_cfg.{tower}': it is not a model configuration of open_clip")
    if config.get("text_cleaning") not in (None, "none"):
        raise UserError(f"{path} has text_cleaning {config['text_cleaning']!r}: only 'none' is known, or leave it out")
    return config
