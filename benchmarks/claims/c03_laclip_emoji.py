"""C3 on drawings that were not made for it: rewrites by small language models, and captions in other words."""

from c03_laclip import HigherLoss
from claim import Arm, Claim, Contrast, Finding

CLIP, GATED = "captions alone", "rewrites that pass the gate"
LAYERS = {GATED: "rewrites", "rewrites of any content": "rewrites_of_any_content"}
SETS = ("unseen_drawings", "unseen_things")
DIRECTIONS = {"image to text": "image_to_text_R@5", "text to image": "text_to_image_R@5"}


def _findings(arm: str) -> list[Finding]:
    """The claim is about what the tool writes by default; what the gate is worth is told beside it."""
    difference, decisive, name = {arm: 1.0, CLIP: -1.0}, arm == GATED, arm.removeprefix("rewrites ")
    findings: list[Finding] = [HigherLoss(f"{name}: loss", arm, CLIP, decisive=decisive)]
    for one in SETS:
        for direction, figure in DIRECTIONS.items():
            for words in ("_other_words", ""):
                asked = f"{name}: {direction}, {'other words' if words else 'labels'}"
                judged = decisive and bool(words)
                findings.append(Contrast(asked, f"val/{one}{words}/{figure}", difference, "up", decisive=judged))
    return findings


CLAIM = Claim(
    name="C3",
    title="LaCLIP on drawings",
    promise="With rewrites by a language model among its captions, a CLIP finds more of what is asked for in words "
    "that its captions do not use; its training loss is higher.",
    paper="Fan et al., Improving CLIP Training with Language Rewrites, 2023: CC12M, ViT-B/16, zero-shot ImageNet 40.2 "
    "to 48.4 %, rewrites of LLaMA-7B",
    shrunk="7,300 emoji and clip-art stamps, 200 steps of 128; three rewrites a caption by SmolLM2-135M-Instruct "
    "(4 bits, on a CPU), drawn evenly with the caption: those that pass the gate of vlp data rewrite, or, in a third "
    "arm, all that have the form of a caption, whatever they say: 781 and 17,825 of 21,909. Recall among 5 of things "
    "that no training picture shows and of new drawings of known things, as the first place alone moves by chance; "
    "some 115 of each are asked for in other words.",
    recipe="drawings.yaml",
    data={},
    sets=tuple(f"{one}{words}" for words in ("", "_other_words") for one in SETS),
    arms={
        CLIP: Arm(),
        **{
            arm: Arm((f"data.captions=[{{source: txt}}, {{source: layer.{layer}, each: true}}]",))
            for arm, layer in LAYERS.items()
        },
    },
    findings=[finding for arm in LAYERS for finding in _findings(arm)],
)
