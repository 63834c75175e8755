"""The shapes are those of the public models that they are named after."""

from __future__ import annotations

from flashnorm_mlx.measure.random_model import parameters
from flashnorm_mlx.measure.shapes import shape_names

#: Millions of parameters, as their makers give them.
PUBLIC = {
    "SmolLM2-135M": 134.5,
    "SmolLM2-360M": 361.8,
    "OpenELM-270M": 271.5,
    "Gemma-3-270M": 268.1,
    "Gemma-3-1B": 999.9,
    "Qwen3-0.6B": 596.0,
    "Qwen2.5-0.5B": 494.0,
    "Llama-3.2-1B": 1235.8,
    "Llama-3.1-8B": 8030.3,
    "SmolLM2-1.7B": 1711.4,
    "Llama-2-7B": 6738.4,
    "Llama-3.2-3B": 3212.7,
    "Mistral-7B": 7248.0,
    "Qwen3-1.7B": 1720.6,
    "Qwen3-4B": 4022.5,
    "Qwen3-8B": 8190.7,
    "OLMo-2-1B": 1484.9,
    "OLMo-2-7B": 7298.6,
    "DeepSeek-V2-Lite": 15706.5,
    "OpenELM-450M": 457.2,
    "OpenELM-1.1B": 1079.9,
    "OpenELM-3B": 3036.6,
    "Gemma-2B": 2506.2,
    "Gemma-2-2B": 2614.3,
    "Gemma-3-4B": 3880.3,
    "GPT-2": 124.4,
    "StableLM-2-1.6B": 1644.5,
    "OLMo-1B": 1176.8,
    "Phi-3-mini": 3821.1,
    "Gemma-4-E2B": 4628.6,
    "Ministral-3-3B": 3429.0,
}


def test_shapes_have_the_public_models_sizes() -> None:
    found = {name: round(parameters(name) / 1e6, 1) for name in shape_names()}
    assert found == PUBLIC
