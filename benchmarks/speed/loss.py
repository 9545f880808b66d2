"""vlp's large-batch losses with backward beside open_clip's: CPU time, memory, rounding, bytes between processes.

    python benchmarks/speed/loss.py [--softmax 8192 16384] [--sigmoid 8192] [--width 512] [--repeats 5] [--json FILE]

fp32, one process, one thread. Each measurement is a forked child of its own, turn by turn; memory is what its
high-water mark rises by above the inputs. A ratio is theirs / ours of one repeat. The emulations (``--emulated``) are
of Inf-CL, which needs CUDA, and of open_clip's sigmoid loss in chunks, which 3.3.0 lacks. ``--alone`` measures vlp's
softmax loss at one more size, where open_clip's would need four times what it needs at half of it. `vlp bench loss
RECIPE` makes the same comparisons at a recipe's own size.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlp.bench import _losses, _traffic
from vlp.bench.loss import print_rounding, print_row, print_traffic

KINDS = {"softmax": "infonce", "sigmoid": "siglip"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--softmax", type=int, nargs="*", default=[8192, 16384], metavar="B", help="batch sizes (default: %(default)s)")
    add("--sigmoid", type=int, nargs="*", default=[8192], metavar="B", help="batch sizes (default: %(default)s)")
    add(
        "--emulated", type=int, default=8192, metavar="B", help="largest of them with emulations (default: %(default)s)"
    )
    add("--alone", type=int, default=32768, metavar="B", help="vlp's softmax alone, 0 for none (default: %(default)s)")
    add("--rounding", type=int, default=4096, metavar="B", help="batch in bf16 (default: %(default)s)")
    add("--ranks", type=int, nargs="*", default=[2, 4], help="processes whose bytes are counted (default: %(default)s)")
    add("--rows", type=int, default=2048, help="pairs of each of them (default: %(default)s)")
    add("--width", type=int, default=512, help="of the embeddings (default: %(default)s)")
    add("--repeats", type=int, default=5, help="alternated repeats (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    width = arguments.width
    result: dict[str, Any] = {"width": width, "repeats": arguments.repeats, "rows": {}}
    for kind, name in KINDS.items():
        for rows in getattr(arguments, kind):
            peers = {
                peer: loss
                for peer, loss in _losses.PEERS[name].items()
                if rows <= arguments.emulated or not peer.endswith("emulated")
            }
            row = _losses.compare(name, rows, width, arguments.repeats, peers)
            result["rows"][f"{kind}, batch {rows}"] = row
            print_row(row)
    if arguments.alone:
        alone = _losses.measure(partial(_losses.ours, "infonce"), arguments.alone, width)
        result["alone"] = {"batch": arguments.alone, **alone}
        print(f"\nvlp's softmax alone, batch {arguments.alone:,}: {alone['seconds']:.2f} s and {alone['mib']:.0f} MiB")
    result["rounding"] = _losses.rounding(arguments.rounding, width)
    print_rounding(result["rounding"])
    result["traffic"] = {world: _traffic.sent(world, arguments.rows, width) for world in arguments.ranks}
    print_traffic(result["traffic"])
    result["versions"] = {name: importlib.metadata.version(name) for name in ("open_clip_torch", "torch")}
    result["python"] = platform.python_version()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
