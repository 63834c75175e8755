"""Layers that see a window, in families whose stock model sees everything: against stock with a window's mask.

transformers has these windows, too: see test_transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import our_model, relative_error, stock_with_weights, tiny_config, write_checkpoint
from decode_runs import Action, checkpoint, error, fused, rounding, run
from mlx_lm.models import gemma2 as stock_gemma2
from mlx_lm.models import llama as stock_llama
from mlx_lm.models import ministral3 as stock_ministral3
from mlx_lm.models import phi3 as stock_phi3
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from test_models import TOLERANCE, ids_for

from flashnorm_mlx import architectures
from flashnorm_mlx.loader import load_model
from flashnorm_mlx.verify import verify

WINDOW = 6
#: Of Gemma 2 the first layer alone, which is a local one.
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "mistral": (stock_llama, {}),
    "ministral3": (stock_ministral3, {}),
    "phi3": (stock_phi3, {}),
    "gemma2": (stock_gemma2, {"num_hidden_layers": 1}),
}


def config_of(family: str, **options: Any) -> dict[str, Any]:
    base = tiny_config("llama") | {"model_type": family} if family == "mistral" else tiny_config(family)
    return base | {"sliding_window": WINDOW, **FAMILIES[family][1], **options}


def args_of(config: dict[str, Any]) -> Any:
    return architectures.find(config["model_type"]).Config.from_dict(config)


@pytest.mark.parametrize("arm", ["baseline", "flashnorm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_window(family: str, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(family)
    stock, weights = stock_with_weights(config)
    ids = ids_for(config)
    everything = stock(ids)

    def mask(h: mx.array, cache: Any = None, **options: Any) -> Any:
        return create_attention_mask(h, cache, window_size=WINDOW, return_array=True)

    monkeypatch.setattr(FAMILIES[family][0], "create_attention_mask", mask)
    want = stock(ids)
    assert relative_error(everything, want) > 1e-2
    model = our_model(config, weights, arm)
    assert relative_error(model(ids), want) <= TOLERANCE
    cache = make_prompt_cache(model)
    assert {type(c) for c in cache} == {RotatingKVCache}
    parts = [model(ids[:, :9], cache=cache), *(model(ids[:, i : i + 1], cache=cache) for i in range(9, ids.shape[1]))]
    assert relative_error(mx.concatenate(parts, axis=1), want) <= TOLERANCE


def test_which_layers_see_one() -> None:
    full, local = "full_attention", "sliding_attention"
    gemma = config_of("gemma2", num_hidden_layers=4)
    assert [args_of(gemma).window(i) for i in range(4)] == [WINDOW, None, WINDOW, None]
    longer = {key: value for key, value in gemma.items() if key != "sliding_window"} | {"max_position_embeddings": 8192}
    assert [args_of(longer).window(i) for i in range(2)] == [4096, None]
    mixed = config_of("mistral", layer_types=[full, local, full])
    assert [args_of(mixed).window(i) for i in range(3)] == [None, WINDOW, None]
    for family in ("mistral", "ministral3", "phi3"):
        assert [args_of(config_of(family)).window(i) for i in range(3)] == [WINDOW] * 3
        assert args_of(config_of(family, sliding_window=None)).window(0) is None
    llama = tiny_config("llama") | {"sliding_window": WINDOW}  # transformers doesn't read it either
    assert args_of(llama).window(0) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_as_long_as_any_context_is_none(family: str) -> None:
    config = config_of(family, sliding_window=512, max_position_embeddings=512)
    assert args_of(config).window(0) is None
    assert {type(c) for c in make_prompt_cache(our_model(config, stock_with_weights(config)[1]))} == {KVCache}


@pytest.mark.parametrize("family", ["gemma2", "phi3"])
def test_steps_by_kernels(family: str, tmp_path: Path, device: str, passes: list) -> None:
    """With soft caps, and with layers that are all local."""
    path = checkpoint(tmp_path / "m", family, sliding_window=WINDOW, rope_scaling=None)
    plan: list[Action] = [("prompt", 9), *[("step", 1)] * 40]
    model = fused(path)
    passes.clear()
    got = run(model, plan)
    assert len(passes) == 40
    assert error(got, run(load_model(path, kernels="reference"), plan)) <= rounding(path, plan, device)


def test_gemma2_without_soft_caps() -> None:
    """Null is none; a key that isn't there, what transformers takes for it."""
    config = tiny_config("gemma2")
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    absent = args_of({key: value for key, value in config.items() if key not in caps})
    assert [getattr(absent, key) for key in caps] == [50.0, 30.0]
    null = args_of(config | dict.fromkeys(caps))
    assert [getattr(null, key) for key in caps] == [None, None]
    weak = config | dict.fromkeys(caps, 1e6)  # as good as none
    stock, weights = stock_with_weights(weak)
    ids = ids_for(config)
    assert relative_error(our_model(config | dict.fromkeys(caps), weights)(ids), stock(ids)) <= TOLERANCE
    assert relative_error(our_model(config, weights)(ids), stock(ids)) > 1e-4


def test_a_soft_cap_is_read_by_the_families_that_have_one() -> None:
    for family in ("gemma", "llama"):
        config = tiny_config(family, final_logit_softcapping=0.1)
        stock, weights = stock_with_weights(config)
        ids = ids_for(config)
        assert relative_error(our_model(config, weights)(ids), stock(ids)) <= TOLERANCE


@pytest.mark.parametrize(("family", "options"), [("mistral", {"sliding_window": 20}), ("gpt2", {"n_positions": 30})])
def test_verify_compares_what_is_the_same_in_stock(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Stock's Mistral sees beyond its window, and GPT-2 has no more positions."""
    path = write_checkpoint(tmp_path / "m", family, **options)
    (path / "text.txt").write_text(" ".join(f"w{i}" for i in range(2, 42)))
    shorter = verify(path, text=path / "text.txt", max_tokens=5, greedy_tokens=3)
    assert shorter.ok and (shorter.tokens, shorter.greedy_tokens) == (5, 3)
    found = verify(path, text=path / "text.txt")
    assert found.ok and found.tokens == next(iter(options.values())) and found.greedy_tokens == found.tokens - 16
