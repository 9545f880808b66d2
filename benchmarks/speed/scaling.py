"""What a step sends over 2 and 4 real processes, and from it an estimate for 8 to 1,024 GPUs: docs/scaling.md.

    python benchmarks/speed/scaling.py [--ranks 2 4] [--engines ddp zero1 fsdp2] [--json FILE] [--page FILE]

Measured here, over gloo: the bytes that each process sends for each collective of the loss and for a whole step of a
tiny CLIP under each engine, by Linux's own count, beside those that the estimate computes; of the real models the
weights, FLOPs, kernels of a step and bytes of activations under autocast to bf16. The rest is arithmetic
(`scaling_estimate.py`), whose assumptions the page names. ``--page`` writes the tables between the markers of the page.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import socket
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import scaling_estimate
import scaling_page
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlp import distributed, flops, recipe
from vlp.bench import _traffic
from vlp.bench._our_loop import OurLoop
from vlp.encoders.blocks import blocks
from vlp.encoders.openclip import ModelOptions, build, outline
from vlp.encoders.two_tower import TwoTower
from vlp.engines.launch import start
from vlp.types import Batch

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
TINY: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 128, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
STEPS = 3  # whose bytes are counted
ENGINES = ("ddp", "zero1", "fsdp2")


def sent(world: int, engine: str, rows: int) -> dict[str, float]:
    """Bytes that each of ``world`` processes sends: in a step of the tiny CLIP and in what its loss needs of others.

    ``computed`` is what the estimate has for the step, had it been NCCL's collectives in fp32.
    """
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        arguments = (world, engine, rows, port, folder)
        multiprocessing.start_processes(_rank, arguments, world, start_method="fork")
        results = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    return {name: sum(result[name] for result in results) / world for name in results[0]}


def _rank(rank: int, world: int, engine: str, rows: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    options = recipe.validate(
        {
            "name": "scaling",
            "data": {"train": "none"},
            "model": {"config": TINY},
            "objectives": [{"name": "infonce"}],
            "train": {"steps": 10, "global_batch_size": rows * world, "engine": engine},
        },
        "the recipe of this benchmark",
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # where the process that forked this one has used it
    launch = start(options)
    loop = OurLoop(options, launch, [_batch(rows, rank)], num_samples=rows * world)
    weights = sum(parameter.numel() for parameter in loop.model.parameters())
    loop.train(2)  # the first builds DDP's buckets
    found = {"weights": weights, "step": _bytes(lambda: loop.train(STEPS)) / STEPS, **_of_loss(rows, rank)}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # DeepSpeed's threads would outlive the rest


def _batch(rows: int, rank: int) -> Batch:
    generator = torch.Generator().manual_seed(rank)
    size, length = TINY["vision_cfg"]["image_size"], TINY["text_cfg"]["context_length"]
    image_VNCHW = torch.randint(256, (1, rows, 3, size, size), generator=generator).byte()
    text_VNL = torch.randint(1, 49406, (1, rows, length), generator=generator)
    return Batch(image_VNCHW, text_VNL, ("",) * rows, ("",) * rows)


def _of_loss(rows: int, rank: int) -> dict[str, float]:
    """Bytes of gathering the texts, of scattering their gradient, and of the sums of the softmax."""
    generator = torch.Generator().manual_seed(rank)
    image, text = (torch.randn(rows, TINY["embed_dim"], generator=generator).requires_grad_() for _ in range(2))
    gathered: list[Tensor] = []
    gathering = _bytes(lambda: gathered.append(distributed.gather_rows(text)))
    scattering = _bytes(lambda: gathered[0].sum().backward())
    whole = _bytes(lambda: _traffic.ours(image, text, torch.tensor(3.0)).backward())
    peer = _bytes(lambda: _traffic.open_clip(image, text, torch.tensor(3.0)).backward())
    return {"gather": gathering, "scatter": scattering, "sums": whole - gathering - scattering, "open_clip": peer}


def _bytes(work: Callable[[], object]) -> float:
    dist.barrier()
    before = _traffic._bytes_sent()
    work()
    return _traffic._bytes_sent() - before


def sizes(name: str) -> scaling_estimate.Model:
    """Of a model of open_clip: counted on the device ``meta``, activations measured on one picture and two."""
    shape = outline(ModelOptions(name=name))
    forward = flops.forward(shape)
    return scaling_estimate.Model(
        name=name,
        weights=sum(parameter.numel() for parameter in shape.parameters()),
        width=shape.openclip_config["model_cfg"]["embed_dim"],
        image=forward.image,
        text=forward.text,
        launches=launches(shape),
        saved=saved_bytes(name),
        layers=len(blocks(shape)),
    )


class _Kernels(TorchDispatchMode):
    """Counts operations that compute."""

    number = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = operation._schema.name
        self.number += not (operation.is_view or name.startswith(("aten::empty", "aten::detach", "prim::")))
        return operation(*arguments, **(options or {}))


def launches(shape: TwoTower) -> int:
    """Operations of a forward and backward pass of the towers; where nothing is fused, each is a kernel or more."""
    with _Kernels() as kernels:
        image_ND, text_ND = _features(shape, 2, "meta")
        (image_ND.sum() + text_ND.sum()).backward()
    return kernels.number


def saved_bytes(name: str) -> float:
    """Bytes that a further picture with its text keeps for backward, under autocast to bf16."""
    model = build(ModelOptions(name=name), seed=0)

    def kept(rows: int) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
            return tensor

        alive: list[Tensor] = []  # so that no place in memory is used twice
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            _features(model, rows, "cpu")
        return sum(storages.values())

    return float(kept(2) - kept(1))


def _features(model: TwoTower, rows: int, device: str) -> tuple[Tensor, Tensor]:
    image_NCHW = torch.zeros(rows, 3, *model.picture_format.size, dtype=torch.uint8, device=device)
    text_NL = torch.ones(rows, 77, dtype=torch.long, device=device)
    return model.encode_image(image_NCHW), model.encode_text(text_NL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, nargs="*", default=[2, 4], help="processes whose bytes are counted (default: %(default)s)")
    add("--engines", nargs="*", default=list(ENGINES), help="(default: %(default)s)")
    add("--rows", type=int, default=64, help="pairs of each process (default: %(default)s)")
    add("--models", nargs="*", default=list(MODELS), help="names of open_clip (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    add("--page", type=Path, metavar="FILE", help="write the tables between the markers of this page")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"rows": arguments.rows, "width": TINY["embed_dim"], "traffic": {}, "models": {}}
    for world in arguments.ranks:
        for engine in arguments.engines:
            found = sent(world, engine, arguments.rows)
            result["traffic"].setdefault(str(world), {})[engine] = found
            print(f"{world} processes, {engine}: {found['step']:,.0f} bytes a step of each", flush=True)
    for name in arguments.models:
        result["models"][name] = asdict(sizes(name))
        print(f"{name}: {result['models'][name]}", flush=True)
    result["machine"] = asdict(scaling_estimate.Machine())
    result["versions"] = {name: importlib.metadata.version(name) for name in ("accelerate", "open_clip_torch", "torch")}
    result["python"] = platform.python_version()
    print(scaling_page.tables(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.page:
        scaling_page.write(arguments.page, result)


if __name__ == "__main__":
    main()
