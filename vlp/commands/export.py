"""A model directory for other libraries, checked for parity.

  vlp export runs/mine exported                        open_clip, any model
  vlp export runs/mine exported --to transformers      CLIPModel or SiglipModel, where the shape fits
  vlp export runs/mine exported --to onnx              two towers for onnxruntime (pip install 'vlp[onnx]')

What was written is loaded again by the other library alone and compared with the model, pixel by pixel, id by id and
feature by feature; what differs is removed. The README.md inside is a model card. docs/models.md has the whole story.
"""

from __future__ import annotations

import argparse
import json

from vlp import resolve
from vlp.commands import _model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _model.add_arguments(parser)
    parser.add_argument("directory", help="directory to write")
    formats = resolve.names("vlp.export.formats")
    parser.add_argument("--to", default="open_clip", choices=formats, help="format (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    _model.heed(arguments)
    from vlp.export import export

    print(json.dumps(export(arguments.model, arguments.directory, arguments.to), indent=1))
