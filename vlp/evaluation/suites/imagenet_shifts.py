"""ImageNet and what remains of it under six shifts: v2, Sketch, A, R, O and ObjectNet.

The six are those of DataComp's group; CLIP_benchmark's imagenet_robustness is the same without ImageNet-O.
"""

from dataclasses import replace

from vlp.evaluation.suites.base import Suite
from vlp.evaluation.suites.datacomp38 import IMAGENET, SHIFTS
from vlp.evaluation.suites.datacomp38 import SUITE as DATACOMP

_ENTRIES = tuple(
    replace(entry, groups=tuple(group for group in entry.groups if group in (IMAGENET, SHIFTS)))
    for entry in DATACOMP.entries
    if {IMAGENET, SHIFTS} & set(entry.groups)
)

SUITE = Suite(_ENTRIES, groups=(IMAGENET, SHIFTS))
