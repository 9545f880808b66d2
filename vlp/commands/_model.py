"""What commands that take a MODEL share: the argument, ``--offline``, and what is said of its pictures."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlp.encoders.two_tower import TwoTower

HELP = (
    "run, checkpoint, exported or transformers directory, NAME:TAG or NAME:FILE of open_clip, hf-hub:OWNER/MODEL, "
    "local-dir:DIR"
)


def add_arguments(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """``model`` (``models``, one or more, with ``many``) and ``--offline``."""
    if many:
        parser.add_argument("models", nargs="+", metavar="MODEL", help=HELP)
    else:
        parser.add_argument("model", help=HELP)
    add_offline(parser)


def add_offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--offline",
        action="store_true",
        help="download nothing: what is neither here nor in the hub's cache is an error at once (as VLP_OFFLINE=1)",
    )


def heed(arguments: argparse.Namespace) -> None:
    """Forbid downloads if ``--offline`` says so; before anything is loaded."""
    if arguments.offline:
        from vlp.encoders import hub  # small: no torch

        hub.go_offline()


def tell(model: TwoTower) -> None:
    """Say on standard error how pictures and texts become the model's inputs."""
    from vlp.encoders import inputs

    print(inputs.as_line(model), file=sys.stderr)
