"""vlp: pretrain, fine-tune and benchmark CLIP-style image-text models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp.api import Functions as Functions
    from vlp.api import Model as Model
    from vlp.api import Result as Result
    from vlp.api import evaluate as evaluate
    from vlp.api import load as load

__version__ = "0.1.0"
__all__ = ["Functions", "Model", "Result", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    """The names of `vlp.api`, imported when they are used: torch takes seconds, and `vlp --help` has none."""
    if name not in __all__:
        raise AttributeError(f"module 'vlp' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("vlp.api"), name)
