"""C18: the more a set is inflated, with rewrites here, the weaker its augmentation should be."""

from claim import REWRITES, Arm, Claim, Contrast, Finding

SIZES = {"250": "250 scenes", "1000": "1,000 scenes"}
AUGMENT = {
    "weak": "{crop_scale: [1, 1], crop_ratio: [1, 1]}",
    "strong": "{crop_scale: [0.6, 1], crop_ratio: [1, 1], colour_jitter: [0.4, 0.4, 0.3, 0.03]}",
}
CAPTIONS = {"captions": "[{source: txt}]", "rewrites": "[{source: txt}, {source: layer.rewrites, each: true}]"}
FIGURES = {"image to text": "val/retrieval/image_to_text_R@1", "text to image": "val/retrieval/text_to_image_R@1"}


def _arm(size: str, captions: str, strength: str) -> str:
    return f"{size}, {captions}, {strength}"


def _gain(size: str, strength: str, sign: float = 1.0) -> dict[str, float]:
    """Of the rewrites over the captions alone."""
    return {_arm(size, "rewrites", strength): sign, _arm(size, "captions", strength): -sign}


def _findings(size: str, label: str) -> list[Finding]:
    findings: list[Finding] = []
    for direction, figure in FIGURES.items():
        interaction = {**_gain(size, "weak"), **_gain(size, "strong", -1.0)}
        findings.append(Contrast(f"{label}: gain with weak - with strong, {direction}", figure, interaction, "up"))
        for strength in AUGMENT:
            name = f"{label}: gain with {strength}, {direction}"
            findings.append(Contrast(name, figure, _gain(size, strength), "up", decisive=False))
    return findings


CLAIM = Claim(
    name="C18",
    title="inflation and augmentation",
    promise="What rewrites add to retrieval is larger with weak augmentation of the pictures than with strong one: an "
    "inflated set wants weaker augmentation.",
    paper="Wang et al., Do Generated Data Always Help Contrastive Learning?, 2024 (AdaInf): SimCLR on CIFAR-10 91.6 %, "
    "with generated pictures 91.4 %, and 93.4 % once the augmentation is weaker",
    shrunk="rewrites inflate the captions instead of generated pictures the pictures: five a caption by vlp data "
    "rewrite --engine scenes, drawn evenly with it, half of them in a phrasing that the evaluation does not use; 500 "
    "steps of 64, of 250 and of 1,000 drawn scenes of 32 px. Weak is no augmentation at all, strong a crop of 60 % of "
    "the area or more and colours that vary. On trials (seed 100, not among these; half-way through 1,000 steps, and "
    "with crops of 50 % at 1,000 scenes) strong did no harm to captions alone at 250 scenes, which are soon learned by "
    "heart, and rewrites added more with it (R@1 +0.11) than with weak (+0.03); at 1,000 it did harm, and rewrites "
    "added 0.06 with weak and took 0.10 with strong. As the promise does not say for which sizes, both decide.",
    recipe="scenes.yaml",
    data={size: ("--num-train", size, "--num-eval", "400") for size in SIZES},
    layers={"rewrites": (*REWRITES, "--grammar", "both")},
    sets=("retrieval",),
    arms={
        _arm(size, captions, strength): Arm((f"data.captions={sources}", f"data.augment={augment}"), size)
        for size in SIZES
        for captions, sources in CAPTIONS.items()
        for strength, augment in AUGMENT.items()
    },
    findings=[finding for size, label in SIZES.items() for finding in _findings(size, label)],
)
