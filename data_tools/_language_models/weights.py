"""Causal language models from a directory, a GGUF file or the hub, without running or unpickling anything of theirs."""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vlp.types import UserError

_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")  # what a model is made of; no pickles, no code
_PIECES, _PIECE = 64, 4096


def locate(model: str) -> Path:
    """The GGUF file or the directory; a name of the hub is downloaded, or found among what was.

    Raises:
        UserError: there is none, or its weights are no safetensors.
    """
    path = Path(model).expanduser()
    if model.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model {model} is no file: give the path of a GGUF file that is there")
        return path
    if not path.is_dir():
        path = _downloaded(model)
    if not any(path.glob("*.safetensors")):
        found = sorted(file.name for suffix in ("bin", "pt", "pth", "gguf") for file in path.glob(f"*.{suffix}"))
        raise UserError(
            f"model {model} has no weights as *.safetensors (it has {', '.join(found) or 'no weights at all'}): give a "
            "GGUF file by its path, and have pickled weights converted, for they can run code when they are read"
        )
    return path


def _downloaded(model: str) -> Path:
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UserError(f"model {model} is no directory: give one, a GGUF file, or a name of the hub (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_FILES), ignore_patterns=["*/*", "consolidated*"]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {model} is neither a directory here nor to be had from the hub ({_first_line(error)}): "
            "give the path of a directory or of a GGUF file"
        ) from error


def fingerprint(path: Path) -> str:
    """A hash, 16 digits, of every file's name, its size and 64 pieces of 4 KiB spread over it.

    So it takes no minutes; it does not see a change between the pieces, such as a single tensor edited by hand.
    """
    files = [path] if path.is_file() else sorted({file for pattern in _FILES for file in path.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            for piece in range(_PIECES):
                opened.seek(size * piece // _PIECES)
                digest.update(opened.read(_PIECE))
    return digest.hexdigest()[:16]


def device_of(name: str) -> torch.device:
    """The device of that name; ``auto`` is the accelerator where there is one, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device '{name}' here ({_first_line(error)}): give cpu, cuda, cuda:1 or mps") from error


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto`` is bfloat16 where the device multiplies it in hardware, else float32."""
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        native = any(has.get(kind) for kind in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


@lru_cache(maxsize=1)
def load(path: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """(model, tokenizer); the last one stays loaded.

    Raises:
        UserError: it is no causal language model that transformers knows.
    """
    import transformers
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
    where: dict[str, Any] = {"pretrained_model_name_or_path": path, "trust_remote_code": False}
    how: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if path.suffix == ".gguf":
        where |= {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        if hasattr(transformers, "GgufConfig"):  # else the weights stay packed, for kernels that come from the hub
            how["quantization_config"] = transformers.GgufConfig(dequantize=True)
            if find_spec("kernels"):
                raise UserError(
                    f"model {path} cannot be read while the package kernels is installed, since transformers would "
                    "then run code from the hub: uninstall kernels, or give a directory with *.safetensors"
                )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        model = transformers.AutoModelForCausalLM.from_pretrained(**where, **how)
    except ImportError as error:
        raise UserError(f"model {path} needs a package that is not installed ({_first_line(error)})") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"model {path} cannot be used by transformers: {_first_line(error)}") from error
    return model.to(device).eval(), tokenizer


def window(model: Any) -> int | None:
    """Tokens that prompt and text may have together; None where the model knows no bound."""
    bound = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(bound) if bound else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
