"""Directories that other libraries load, compared at export with the model they were made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from vlp.data.write import new_directory
from vlp.encoders import source
from vlp.encoders.captioner import is_causal, is_coca
from vlp.encoders.openclip import load, save_openclip_directory
from vlp.encoders.source import CAPTIONER_FILE
from vlp.encoders.text_tower import FOLDER
from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

FORMATS = ("open_clip",)
TOLERANCE = 1e-5
TEXTS = [
    "a red circle left of a blue square",
    "",
    "Two CATS, one dog & a very long caption " + "about pictures " * 60,
    "ein grüner Stern über dem gelben Dreieck – 星",
]


def export(reference: str, directory: str | Path, to: str = "open_clip") -> dict[str, Any]:
    """Write the MODEL ``reference`` to ``directory``, a new one, and compare it as open_clip loads it from there.

    Returns a summary: ``directory``, ``model``, ``weights`` (``ema`` where a run has an average), ``parameters``
    and ``max_abs_difference`` of the features. A directory that does not pass the comparison is removed.

    Raises:
        UserError: an unknown format, no such model, or ``directory`` holds files.
        RuntimeError: open_clip does not load the same model from ``directory``.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: only {', '.join(FORMATS)} is supported now")
    found = source.of_reference(reference)
    # The pointer to the latest checkpoint of a run in progress may move: stay with what was found.
    model = load(str(found.directory) if found.directory else reference)
    final = new_directory(directory).resolve()
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_openclip_directory(model, partial, final=final)
        (partial / "README.md").write_text(model_card(model, found.directory, final.name), encoding="utf-8")
        partial.rename(final)
        difference = check_parity(model, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        raise
    return {
        "directory": str(directory),
        "model": found.described,
        "weights": model.weights,
        "parameters": model.parameters_by_tower(),
        "max_abs_difference": difference,
    }


def check_parity(model: TwoTower, directory: Path) -> float:
    """Largest difference of any feature between ``model`` and what open_clip alone loads from ``directory``.

    Made pictures and texts go through both whole ways; pixels and token ids must be the same.

    Raises:
        RuntimeError: they are not, or features differ by more than `TOLERANCE`.
    """
    other, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    if model.openclip_config.get("correct_cls_mask"):
        other.text.correct_cls_mask = True
    pictures = _pictures()
    ours_NCHW = torch.stack([model.eval_transform(picture) for picture in pictures]).to(model.device)
    theirs_NCHW = torch.stack([preprocess(picture) for picture in pictures])
    ours_NL, theirs_NL = model.tokenizer(TEXTS), tokenizer(TEXTS)
    if not torch.equal(model.normalise(ours_NCHW).cpu(), theirs_NCHW):
        raise RuntimeError(f"{directory}: open_clip makes other pixels of a picture than the model was given")
    if not torch.equal(ours_NL, theirs_NL):
        raise RuntimeError(f"{directory}: open_clip makes other token ids of a text than the model was given")
    other.eval()
    ours_NL = ours_NL.to(model.device)
    with torch.no_grad():
        pairs = [  # open_clip's CoCa normalises features where nothing is said, its other models do not
            (model.encode_image(ours_NCHW), other.encode_image(theirs_NCHW, normalize=False)),
            (model.encode_text(ours_NL), other.encode_text(theirs_NL, normalize=False)),
            (model.clip.logit_scale, other.logit_scale),
        ]
        if is_coca(other) and is_causal(model.clip.text):
            pairs.append(_logits(model, ours_NCHW, ours_NL, other(theirs_NCHW, theirs_NL[:3])))
        if model.clip.logit_bias is not None:
            pairs.append((model.clip.logit_bias, other.logit_bias))
        difference = max(float((a.cpu() - b).abs().max()) for a, b in pairs)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{directory}: features as open_clip loads them differ by {difference:.2g}")
    return difference


def _logits(model: TwoTower, image_NCHW: Tensor, text_NL: Tensor, theirs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of the ids told by both models, (M, vocabulary)."""
    path, said_NL = model.caption_path(), text_NL[: len(image_NCHW), :-1]
    assert path is not None
    ours_NLV = path.states(said_NL, model.caption_memory(image_NCHW)) @ path.head_WV
    told_NL = model.special_tokens.told(text_NL[: len(image_NCHW)])
    return ours_NLV[told_NL], theirs["logits"][told_NL.cpu()]


def _pictures() -> list[Image.Image]:
    """Noise and a gradient in three shapes, so that resizing and cropping take part."""
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, size, dtype=np.uint8) for size in ((97, 61, 3), (40, 200, 3))]
    gradient = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    return [Image.fromarray(pixels) for pixels in (*noise, gradient)]


def model_card(model: TwoTower, checkpoint: Path | None, title: str) -> str:
    """The README of an exported directory: how to load it, and what is known of the run it came from."""
    counts = model.parameters_by_tower()
    height, width = model.picture_format.size
    average = " The weights are their average over the run (EMA)." if model.weights == "ema" else ""
    parts = [
        "---\nlibrary_name: open_clip\npipeline_tag: zero-shot-image-classification\n"
        "tags:\n- clip\n- zero-shot-image-classification\n- vlp\n---",
        f"# {title}",
        f"An image tower ({counts['image']:,} parameters, {width} x {height} pixels) and a text tower "
        f"({counts['text']:,} parameters, {model.tokenizer.context_length} tokens) with a common space of "  # type: ignore[attr-defined]
        f"{model.openclip_config['model_cfg']['embed_dim']} dimensions.{average}",
        "## Use\n\n```python\n" + _usage(model) + "\n```",
    ]
    if model.captioner is not None:
        parts.append(
            f"A captioning head ({counts['captioner']:,} parameters) lies beside the towers in {CAPTIONER_FILE}: "
            "`vlp caption DIRECTORY PICTURE` tells captions with it; open_clip loads the towers alone."
        )
    if checkpoint is not None:
        parts += _run_facts(checkpoint)
    return "\n\n".join(parts) + "\n"


def _usage(model: TwoTower) -> str:
    lines = ["import open_clip", "", 'directory = "path/to/this/directory"']
    argument = ""
    if "hf_model_name" in model.openclip_config["model_cfg"]["text_cfg"]:
        # open_clip_config.json can only hold a full path, which is wrong once the directory has moved.
        lines.insert(0, "import json")
        lines += [
            'text_cfg = json.load(open(f"{directory}/open_clip_config.json"))["model_cfg"]["text_cfg"]',
            f'text_cfg |= {{"hf_model_name": f"{{directory}}/{FOLDER}", "hf_model_pretrained": False}}',
        ]
        argument = ", text_cfg=text_cfg"
    lines += [
        f'model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{directory}}"{argument})',
        'tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")',
    ]
    if model.openclip_config.get("correct_cls_mask"):
        lines.append("model.text.correct_cls_mask = True  # open_clip has no configuration that says so")
    return "\n".join(lines)


def _run_facts(checkpoint: Path) -> list[str]:
    """Step, scores and recipe, as far as the checkpoint's run has them."""
    parts = []
    if (checkpoint / "state.json").is_file():
        step = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"]
        parts.append(f"Trained by vlp for {step:,} steps.")
    scores = _scores(checkpoint.parent.parent) if checkpoint.parent.name == "checkpoints" else []
    if scores:
        parts.append("## Evaluation\n\n| set | metric | score | chance |\n|---|---|---|---|\n" + "\n".join(scores))
    if (checkpoint / "recipe.yaml").is_file():
        recipe = (checkpoint / "recipe.yaml").read_text(encoding="utf-8")
        parts.append(f"## Recipe\n\n```yaml\n{recipe.strip()}\n```")
    return parts


def _scores(run: Path) -> list[str]:
    rows = []
    for path in sorted((run / "evaluation").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for result in content if isinstance(content, list) else [content]:
            chances = result.get("chance", {})
            for metric, score in result["metrics"].items():
                chance = chances.get(metric)
                if score is not None:
                    shown = "" if chance is None else f"{chance:.4f}"
                    rows.append(f"| {result['dataset']} | {metric} | {score:.4f} | {shown} |")
    return rows
