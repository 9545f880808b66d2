"""C3 on drawings that were not made for it: rewrites by small language models, and captions in other words."""

from c03_laclip import HigherLoss
from claim import Arm, Claim, Contrast, Finding

CLIP = "captions alone"
LAYERS = {"smollm2": "SmolLM2-135M's rewrites", "gemma3": "Gemma 3 270M's rewrites"}
SETS = ("unseen_drawings", "unseen_things")
DIRECTIONS = {"image to text": "image_to_text_R@5", "text to image": "text_to_image_R@5"}


def _findings(arm: str) -> list[Finding]:
    difference = {arm: 1.0, CLIP: -1.0}
    findings: list[Finding] = [HigherLoss(f"{arm}: loss", arm, CLIP)]
    for one in SETS:
        for direction, figure in DIRECTIONS.items():
            name = f"{arm}: {direction}"
            findings.append(Contrast(f"{name}, other words", f"val/{one}_other_words/{figure}", difference, "up"))
            findings.append(Contrast(name, f"val/{one}/{figure}", difference, "up", decisive=False))
    return findings


CLAIM = Claim(
    name="C3",
    title="LaCLIP on drawings",
    promise="With rewrites by a language model among its captions, a CLIP finds more of what is asked for in words "
    "that its captions do not use; its training loss is higher.",
    paper="Fan et al., Improving CLIP Training with Language Rewrites, 2023: CC12M, ViT-B/16, zero-shot ImageNet 40.2 "
    "to 48.4 %, rewrites of LLaMA-7B",
    shrunk="7,300 emoji and clip-art stamps, 300 steps of 128; rewrites by models of 135 and 270 million weights that "
    "run on a CPU, as far as they pass the gate of vlp data rewrite, drawn evenly with the caption. Of 200 drawings, "
    "and of 200 things that no training picture shows, recall is taken among 5, as the first place alone moves by "
    "chance. How the captions of the sets were said otherwise stands with the sets.",
    recipe="drawings.yaml",
    data={},
    sets=tuple(f"{one}{words}" for words in ("", "_other_words") for one in SETS),
    arms={
        CLIP: Arm(),
        **{
            arm: Arm((f"data.captions=[{{source: txt}}, {{source: layer.{layer}, each: true}}]",))
            for layer, arm in LAYERS.items()
        },
    },
    findings=[finding for arm in LAYERS.values() for finding in _findings(arm)],
)
