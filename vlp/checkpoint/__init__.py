"""Checkpoints: everything a run needs to go on, written beside the steps, checked before it is used.

A checkpoint is an open_clip model directory with the optimiser, the average and the counters beside the weights. There
are no random states in it: every draw is a function of (seed, step) or (seed, position). Whole tensors, whatever engine
and number of processes wrote them, so any others can go on.
"""

from vlp.checkpoint.early_stopping import EarlyStopping, EarlyStoppingOptions
from vlp.checkpoint.options import CheckpointOptions
from vlp.checkpoint.resume import newest, read, read_state, resuming
from vlp.checkpoint.snapshot import FUSION_FILE, LORA_FILE, MOMENTUM_FILE, OPTIMIZER_FILE, Snapshot, to_host
from vlp.checkpoint.writer import Writer

__all__ = [
    "FUSION_FILE",
    "LORA_FILE",
    "MOMENTUM_FILE",
    "OPTIMIZER_FILE",
    "CheckpointOptions",
    "EarlyStopping",
    "EarlyStoppingOptions",
    "Snapshot",
    "Writer",
    "newest",
    "read",
    "read_state",
    "resuming",
    "to_host",
]
