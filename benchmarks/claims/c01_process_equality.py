"""C1: two processes compute what one computes."""

from claim import Arm, Claim, SameLosses

CLAIM = Claim(
    name="C1",
    title="gathered negatives",
    promise="Two processes with half of the batch each log the same losses as one process with all of it, to 1e-4 over "
    "50 steps: the gather carries the exact gradient, so the number of processes does not change what a run computes.",
    paper="no paper's claim but a requirement; in-batch negatives over all devices are those of CLIP and ALIGN",
    shrunk="2 gloo processes on one machine, batch 64, 50 steps, a ViT of 24 px without batch norm and dropout. The "
    "gathers without gradient, which would drift away, are not in vlp, so they have no arm.",
    recipe="equality.yaml",
    data={"plain": ("--num-train", "8000", "--num-eval", "400", "--image-size", "24")},
    sets=("retrieval",),
    arms={"one process": Arm(), "two processes": Arm(processes=2)},
    findings=[SameLosses("largest difference at a step", ("one process", "two processes"), bound=1e-4)],
)
