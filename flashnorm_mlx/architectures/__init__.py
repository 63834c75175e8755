"""One file a family, found by config.json's ``model_type``. A file declares Config, Model, its norms and TINY."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ..errors import FlashNormError

#: model_type of families whose blocks are another's.
ALIASES = {"mistral": "llama"}

#: Modules here that are no families.
SHARED = (
    *("base", "block", "config", "latent_config", "layernorm", "values"),
    *("gemma4_block", "gemma4_config", "gemma4_decode"),
)


def supported() -> list[str]:
    """Every ``model_type`` that can be loaded, sorted."""
    own = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED]
    return sorted([*own, *ALIASES])


def find(model_type: object) -> ModuleType:
    """The architecture's module for a config's ``model_type``.

    Raises:
        FlashNormError: naming the supported ones.
    """
    if model_type not in supported():
        kinds = ", ".join(supported())
        raise FlashNormError(
            f"config.json: model_type {model_type!r} is not supported (supported: {kinds}); mlx-lm may run it"
        )
    name = ALIASES.get(str(model_type), str(model_type))
    return importlib.import_module(f"{__name__}.{name}")
