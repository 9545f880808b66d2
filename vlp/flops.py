"""How much arithmetic a model's training takes, how much a GPU could do, and the memory it took.

FLOPs are those of the model, as the share of peak (MFU) of PaLM counts them (Chowdhery et al., arXiv:2204.02311,
appendix B): every picture whole and every text of full length, whatever the run leaves out; backward twice forward;
nothing for what is computed again, and nothing for a twin, a teacher, a fusion tower or the loss. So a run that drops
patches or padding can show more than its GPU does, and the figures of two runs of one model compare by their speed.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vlp.encoders import captioner
from vlp.encoders.evaluating import evaluating
from vlp.encoders.two_tower import TwoTower
from vlp.objectives.base import Objective, hard_texts, image_views, needs, text_views


class Peak(NamedTuple):
    """Dense TFLOP/s of a GPU: tensor cores in half precision (bf16 and fp16 alike) and in TF32, other cores in fp32."""

    half: float
    tf32: float | None
    fp32: float
    bf16: bool = True


# From the vendors' data sheets, without sparsity (which they print, doubled) and with sums in fp32. The first pattern
# that is found in the name of the device counts.
_PEAKS = {
    r"GB[23]00": Peak(2500, 1250, 80),
    r"B200|B300": Peak(2250, 1100, 80),
    r"H[12]00 NVL": Peak(835, 417, 60),
    r"H100 PCIe": Peak(756, 378, 51),
    r"G?H[12]00|H800": Peak(989, 494, 67),
    r"H20": Peak(148, 74, 44),
    r"A[18]00": Peak(312, 156, 19.5),
    r"A40": Peak(149.7, 74.8, 37.4),
    r"A30": Peak(165, 82, 10.3),
    r"A10": Peak(125, 62.5, 31.2),
    r"L40S": Peak(362, 183, 91.6),
    r"L40": Peak(181, 90.5, 90.5),
    r"L4": Peak(121, 60, 30.3),
    r"RTX A6000": Peak(154.8, 77.4, 38.7),
    r"RTX 6000 Ada": Peak(364.2, 182.1, 91.1),
    r"RTX 3090": Peak(71, 35.6, 35.6),
    r"RTX 4090": Peak(165.2, 82.6, 82.6),
    r"RTX 5090": Peak(209.5, 104.8, 104.8),
    r"V100-PCIE": Peak(112, None, 14, bf16=False),
    r"V100": Peak(125, None, 15.7, bf16=False),
    r"T4": Peak(65, None, 8.1, bf16=False),
    r"MI250X": Peak(191.5, None, 23.9),  # torch sees its two halves as two devices
    r"MI300X": Peak(1307.4, 653.7, 163.4),
}


class Forward(NamedTuple):
    """FLOPs of a forward pass: of one picture, of one text, and of telling a caption besides."""

    image: float
    text: float
    caption: float


def peak(device_name: str, precision: str) -> float | None:
    """FLOP/s that the GPU of this name has at most in ``precision`` (fp32, bf16, fp16); None where it is not known."""
    found = next((p for name, p in _PEAKS.items() if re.search(rf"\b{name}\b", device_name, re.IGNORECASE)), None)
    if found is None or (precision == "bf16" and not found.bf16):
        return None
    if precision != "fp32":
        return found.half * 1e12
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return (found.tf32 if tf32 and found.tf32 is not None else found.fp32) * 1e12


def peak_of(device: torch.device, precision: str) -> float | None:
    """`peak` of a device; None for what is no GPU."""
    return peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def forward(outline: TwoTower, telling: bool = False) -> Forward:
    """Count matrix products, convolutions and attention of one whole picture and one text of full length.

    Args:
        outline: as `encoders.openclip.outline` makes it, on the device ``meta``.
        telling: whether captions are told, too.
    """
    assert outline.device.type == "meta", "counting runs the model, which must cost and change nothing"
    size, length = outline.picture_format.size, outline.tokenizer.context_length  # type: ignore[attr-defined]
    pixels_NCHW = torch.empty(1, 3, *size, dtype=torch.uint8, device="meta")
    text_NL = torch.empty(1, length, dtype=torch.long, device="meta")
    with evaluating(outline):
        image = _counted(lambda: outline.encode_image(pixels_NCHW))
        text = _counted(lambda: _text(outline.clip, text_NL))
        if not telling:
            return Forward(image, text, 0)
        path = outline.caption_path()
        assert path is not None, "a model that tells no captions"
        told = _counted(lambda: path.states(text_NL[:, :-1], outline.caption_memory(pixels_NCHW)) @ path.head_WV)
        own_half = outline.captioner is not None and outline.captioner.own_half is not None
    return Forward(image, text, max(0, told - image - (0 if own_half else text)))


def per_row(outline: TwoTower, objectives: Sequence[Objective]) -> float:
    """FLOPs of training on one row of the global batch, forward and backward, with all its views.

    Args:
        outline: as for `forward`, with the locks of the run: a locked tower has no backward pass, of a tower locked in
            part that share of its weights has one which is trained (embeddings aside, which take no arithmetic).
    """
    wanted = needs(objectives)
    image, text, caption = forward(outline, "captions" in wanted)
    clip = outline.clip
    image_passes = image_views(objectives)
    text_passes = text_views(objectives) + hard_texts(objectives) + ("masked_text" in wanted)
    rest = [module for name, module in clip.named_children() if name not in ("visual", "text_decoder")]
    decoder: list[nn.Module] = [outline.captioner] if outline.captioner is not None else []
    decoder += [clip.text_decoder] if captioner.is_coca(clip) else []
    return (
        image_passes * image * (1 + 2 * _trained(clip.visual))
        + text_passes * text * (1 + 2 * _trained(*rest))
        + caption * (1 + 2 * _trained(*decoder))
    )


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that was in use at once: of a GPU, by tensors; else the resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _counted(work: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _text(clip: Any, text_NL: Tensor) -> Tensor:
    tower = getattr(clip, "text", None)
    if not isinstance(tower, HFTextEncoder):
        return clip.encode_text(text_NL)
    # With the mask of a text of full length, which is none: transformers would look at its values.
    return tower.proj(tower.transformer(input_ids=text_NL).last_hidden_state[:, 0])


def _trained(*modules: nn.Module) -> float:
    """The trained share of the weights that take arithmetic."""
    parts = [part for module in modules for part in module.modules() if not isinstance(part, nn.Embedding)]
    weights = {weight for part in parts for weight in part.parameters(recurse=False) if weight.ndim > 1}
    total = sum(weight.numel() for weight in weights)
    return sum(weight.numel() for weight in weights if weight.requires_grad) / total if total else 0.0
