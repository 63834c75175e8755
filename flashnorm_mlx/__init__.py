"""FlashNorm for MLX: language models with their norms off the decode path.

``load`` and ``convert`` are this package's; ``generate`` and ``stream_generate`` are mlx-lm's, which run any model
that ``load`` returns.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load": "flashnorm_mlx.loader",
    "convert": "flashnorm_mlx.converter",
    "generate": "mlx_lm",
    "stream_generate": "mlx_lm",
    "FlashNormError": "flashnorm_mlx.errors",
}

__all__ = ["FlashNormError", "__version__", "convert", "generate", "load", "stream_generate"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``flashnorm --help`` must not wait for transformers."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
