"""C6: terms that spread and align the features close the gap between pictures and texts."""

from claim import Arm, Claim, Contrast

INFONCE, UNIFORM, CROSS = "infonce", "+ alignment, uniformity", "+ cross-uniformity"
SET = "val/retrieval"
FIXED = "train.temperature=0.07"

CLAIM = Claim(
    name="C6",
    title="contrastive gap",
    promise="At a fixed temperature, adding alignment, uniformity and cross-modal uniformity to InfoNCE halves the "
    "distance between the centres of pictures and texts, or more, makes the two harder to tell apart by a line, and "
    "raises the effective rank of both, while retrieval stays as it was.",
    paper="Fahim et al., It's Not a Modality Gap, 2024: CUAXU, tables for d = 128",
    shrunk="from scratch on 8,000 drawn scenes of 32 px instead of fine-tuning ViT-B/32 on COCO; 500 steps of 64, "
    "d = 64. The temperature is fixed at 0.07 instead of 0.01, which is that of the weights they start from.",
    recipe="scenes.yaml",
    data={"plain": ("--num-train", "8000", "--num-eval", "400")},
    sets=("retrieval", "colour", "shape"),
    arms={
        INFONCE: Arm((FIXED,)),
        UNIFORM: Arm((FIXED, "objectives=[{name: infonce}, {name: alignment}, {name: uniformity}]")),
        CROSS: Arm(
            (FIXED, "objectives=[{name: infonce}, {name: alignment}, {name: uniformity}, {name: cross_uniformity}]")
        ),
    },
    findings=[
        Contrast("all terms - half of infonce", f"{SET}/modality_gap", {CROSS: 1, INFONCE: -0.5}, "down"),
        Contrast(
            "alignment, uniformity - half of infonce",
            f"{SET}/modality_gap",
            {UNIFORM: 1, INFONCE: -0.5},
            "down",
            decisive=False,
        ),
        Contrast("all terms - infonce", f"{SET}/linear_separability", {CROSS: 1, INFONCE: -1}, "down"),
        Contrast("all terms - infonce", f"{SET}/image_effective_rank", {CROSS: 1, INFONCE: -1}, "up"),
        Contrast("all terms - infonce", f"{SET}/text_effective_rank", {CROSS: 1, INFONCE: -1}, "up"),
        *(
            Contrast(
                "all terms - infonce: a null",
                f"{SET}/{direction}_R@1",
                {CROSS: 1, INFONCE: -1},
                "same",
                margin=0.01,
                decisive=False,
            )
            for direction in ("image_to_text", "text_to_image")
        ),
    ],
)
