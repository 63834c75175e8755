"""Stock mlx-lm and our three arms on one checkpoint, loaded side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import first_line
from ..loader import Progress, compute_dtype, load_model
from .loop import Timer, Trial


def load_arm(name: str, folder: Path, dtype: str | None) -> nn.Module:
    """An arm's model. All compute in one dtype: stock's weights are cast to the one that ours take."""
    if name != "mlx-lm":
        return load_model(folder, arm=name, dtype=dtype)
    from mlx_lm.utils import load_model as load_stock

    model = load_stock(folder, lazy=True)[0]
    computing = compute_dtype(dtype)
    if computing is not None:
        model.set_dtype(computing)
    mx.eval(model.parameters())
    return model


def load_all(
    folder: Path,
    names: Iterable[str],
    dtype: str | None,
    timer: Timer,
    progress: Progress,
    load: Callable[[str, Path, str | None], Any] = load_arm,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, str]]:
    """The arms' models, what was seen of each as it was loaded, and why the others could not be.

    ``model_bytes`` is the memory that loading added; ``first_token_s`` the time of the very first token, kernels'
    compilation included, though not of those that an arm before it has had compiled.
    """
    models: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    unavailable: dict[str, str] = {}
    names = list(names)
    for done, name in enumerate(names):
        progress(f"loading {name}", done, len(names))
        try:
            models[name], facts[name] = _loaded(partial(load, name, folder, dtype), timer)
        except Exception as error:  # the others go on
            unavailable[name] = described(error).replace(f"{folder}: ", "")
    return models, facts, unavailable


def _loaded(load: Callable[[], Any], timer: Timer) -> tuple[Any, dict[str, Any]]:
    """A model that has made its first token, and what was seen; of one that can't, nothing is left in memory."""
    gc.collect()
    mx.clear_cache()
    before, start = mx.get_active_memory(), timer.clock()
    model = load()
    timer.finish()
    loaded, model_bytes = timer.clock(), mx.get_active_memory() - before
    Trial("prefill", 16, 0, 0, 1).run(model, 16, timer)
    facts = {"load_s": loaded - start, "first_token_s": timer.clock() - loaded, "model_bytes": model_bytes}
    return model, facts


def described(error: Exception) -> str:
    """An error as one line of a report."""
    return f"{type(error).__name__}: {first_line(error)}"[:300]
