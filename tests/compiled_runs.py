"""Models whose passes are compiled as on a GPU, computed on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import our_model, stock_with_weights, tiny_config
from layer_norms import FAMILIES as LAYER_NORMS
from layer_norms import model_of
from mlx_lm.models.cache import make_prompt_cache

from flashnorm_mlx.engine import compiled

PLAN = (9, 1, 7, 1, 1, 2)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the default device were one; what is asked of MLX itself is done on the CPU. One block pays."""
    with monkeypatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: mx.gpu)
        patch.setattr(compiled, "MANY", 1)
        yield


def ours(family: str, arm: str = "flashnorm", **options: Any) -> tuple[Any, dict[str, Any]]:
    if family in LAYER_NORMS:
        config, _, weights = model_of(family, **options)
    else:
        config = tiny_config(family, **options)
        _, weights = stock_with_weights(config)
    return our_model(config, weights, arm), config


def passes(model: Any, ids: mx.array, plan: tuple[int, ...] = PLAN, cache: list | None = None) -> mx.array:
    cache, outputs, at = cache or make_prompt_cache(model), [], 0
    for count in plan:
        outputs.append(model(ids[:, at : at + count], cache=cache))
        at += count
    return mx.concatenate(outputs, axis=1)
