"""open_clip: a directory that `open_clip.create_model_and_transforms("local-dir:DIR")` loads; any model."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from torch import Tensor

from vlp.encoders import image_tower
from vlp.encoders.captioner import is_causal, is_coca
from vlp.encoders.openclip import save_openclip_directory
from vlp.encoders.source import CAPTIONER_FILE
from vlp.encoders.text_tower import FOLDER
from vlp.encoders.two_tower import TwoTower
from vlp.export.formats.base import TEXTS, TOLERANCE, DiffersError, largest, pictures

LIBRARY = "open_clip"


def check(model: TwoTower) -> None:
    """Every model is one of open_clip."""


def left_out(model: TwoTower) -> list[str]:
    found = []
    if model.captioner is not None:
        count = model.parameters_by_tower()["captioner"]
        found.append(
            f"A captioning head ({count:,} parameters) lies beside the towers in {CAPTIONER_FILE}: "
            "`vlp caption DIRECTORY PICTURE` tells captions with it; open_clip loads the towers alone."
        )
    if model.openclip_config.get("text_cleaning") == "none":
        found.append(
            "The model was made for texts as they are; open_clip repairs their encoding, HTML entities and white space "
            "before its tokenizer sees them, which changes the ids of few texts; vlp does not."
        )
    return found


def write(model: TwoTower, directory: Path, final: Path) -> None:
    save_openclip_directory(model, directory, final=final)


def compare(model: TwoTower, directory: Path) -> dict[str, float]:
    """Made pictures and texts go through both whole ways; pixels and token ids must be the same."""
    other, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    if model.openclip_config.get("correct_cls_mask"):
        other.text.correct_cls_mask = True
    ours_NCHW = torch.stack([model.eval_transform(picture) for picture in pictures()]).to(model.device)
    theirs_NCHW = torch.stack([preprocess(picture) for picture in pictures()])
    ours_NL, theirs_NL = model.tokenizer(TEXTS), tokenizer(TEXTS)
    if not torch.equal(model.normalise(ours_NCHW).cpu(), theirs_NCHW):
        raise DiffersError(f"{directory}: open_clip makes other pixels of a picture than the model was given")
    if not torch.equal(ours_NL, theirs_NL):
        raise DiffersError(f"{directory}: open_clip makes other token ids of a text than the model was given")
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
    return {"max_abs_difference": largest(pairs, TOLERANCE, f"{directory}: features as open_clip loads them")}


def _logits(model: TwoTower, image_NCHW: Tensor, text_NL: Tensor, theirs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of the ids told by both models, (M, vocabulary)."""
    path, said_NL = model.caption_path(), text_NL[: len(image_NCHW), :-1]
    assert path is not None
    ours_NLV = path.states(said_NL, model.caption_memory(image_NCHW)) @ path.head_WV
    told_NL = model.special_tokens.told(text_NL[: len(image_NCHW)])
    return ours_NLV[told_NL], theirs["logits"][told_NL.cpu()]


def usage(model: TwoTower) -> str:
    imports, arguments = ["import open_clip", "from PIL import Image"], ""
    lines = ['directory = "path/to/this/directory"']
    # open_clip_config.json can only hold full paths, which are wrong once the directory has moved.
    if "hf_model_name" in model.openclip_config["model_cfg"]["text_cfg"]:
        imports.insert(0, "import json")
        lines += [
            'text_cfg = json.load(open(f"{directory}/open_clip_config.json"))["model_cfg"]["text_cfg"]',
            f'text_cfg |= {{"hf_model_name": f"{{directory}}/{FOLDER}", "hf_model_pretrained": False}}',
        ]
        arguments += ", text_cfg=text_cfg"
    if image_tower.KEY in model.openclip_config:
        imports = ["import json", *(line for line in imports if line != "import json")]
        lines += [
            'vision_cfg = json.load(open(f"{directory}/open_clip_config.json"))["model_cfg"]["vision_cfg"]',
            f'vision_cfg |= {{"timm_model_name": f"{image_tower.PLACE}{{directory}}/{image_tower.FOLDER}"}}',
        ]
        arguments += ", vision_cfg=vision_cfg"
    lines += [
        f'model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{directory}}"{arguments})',
        'tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")',
        "model.eval()",
    ]
    if model.openclip_config.get("correct_cls_mask"):
        lines.append("model.text.correct_cls_mask = True  # open_clip has no configuration that says so")
    lines += [
        "",
        'picture, texts = Image.open("picture.jpg").convert("RGB"), ["a red circle", "two cats"]',
        "image_features = model.encode_image(preprocess(picture)[None], normalize=True)",
        "text_features = model.encode_text(tokenizer(texts), normalize=True)",
        "print(image_features @ text_features.T)",
    ]
    return "\n".join([*imports, "", *lines])
