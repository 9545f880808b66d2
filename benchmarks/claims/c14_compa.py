"""C14: hard captions that only their own picture meets raise the group score."""

from c04_negclip import DATA, LENGTH, PLACES, SETS, SWAPS, hard
from claim import Arm, Claim, Contrast

CLIP, OWN, ALL = "CLIP", "own scope", "all scope"
GROUP = {"": "val/twins/group_score", "held_out_": "val/held_out_twins/group_score"}

CLAIM = Claim(
    name="C14",
    title="CompA",
    promise="With hard captions that only their own picture meets, a CLIP finds both captions and both pictures of "
    "twins that differ in what belongs to what (Winoground's group score) more often.",
    paper="Ghosh et al., CompA, 2024: audio, CompA-order group score 11.5 to 33.85; on attributes no better than "
    "chance",
    shrunk="pictures instead of audio, and the second stage only (one hard caption of its own for each picture; no "
    "captions of parts); data, model and length of C4, whose arms CLIP and NegCLIP these are, too.",
    recipe="scenes.yaml",
    data=DATA,
    layers={"swaps": SWAPS},
    sets=SETS,
    arms={CLIP: Arm(LENGTH), OWN: hard("swaps", "own"), ALL: hard("swaps")},
    findings=[
        *(
            Contrast(f"{place}: group score, own scope - CLIP", GROUP[prefix], {OWN: 1.0, CLIP: -1.0}, "up")
            for prefix, place in PLACES.items()
        ),
        *(
            Contrast(
                f"{place}: {what} swaps, own scope - CLIP",
                f"val/{prefix}swaps/swap_{what}_accuracy",
                {OWN: 1.0, CLIP: -1.0},
                "up",
                decisive=False,
            )
            for prefix, place in PLACES.items()
            for what in ("attribute", "relation")
        ),
        *(
            Contrast(f"{place}: group score, own - all", GROUP[prefix], {OWN: 1.0, ALL: -1.0}, "same", 0.05, False)
            for prefix, place in PLACES.items()
        ),
    ],
)
