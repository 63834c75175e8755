"""Against Hugging Face transformers, the models' first home: its files load here, and converted files load there.

Needs torch (the ``transformers`` extra).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import write_checkpoint

from flashnorm_mlx import architectures, convert, fold
from flashnorm_mlx.architectures import ministral3
from flashnorm_mlx.loader import load_model

torch = pytest.importorskip("torch", reason="transformers' models need torch, which is not installed")
transformers = pytest.importorskip("transformers")

TOLERANCE = 5e-6
SIZES: dict[str, Any] = {
    "hidden_size": 84,
    "num_hidden_layers": 3,
    "intermediate_size": 111,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "vocab_size": 331,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
# mlx-lm and this package round √d to bfloat16, transformers to the weights' dtype: a d whose root is exact in both
GEMMA3 = {
    "hidden_size": 144,
    "num_hidden_layers": 4,
    "layer_types": LAYERS,
    "sliding_window": 6,
    "query_pre_attn_scalar": 20,
}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "untied", {"tie_word_embeddings": False}),
    ("llama", "tied", {"tie_word_embeddings": True}),
    ("llama", "biases, llama3", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    ("qwen3", "untied", {"tie_word_embeddings": False}),
    ("qwen3", "tied, biases", {"tie_word_embeddings": True, "attention_bias": True}),
    ("gemma2", "tied", {"query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}),
    ("gemma2", "windows", {"query_pre_attn_scalar": 20, "sliding_window": 6}),
    ("gemma2", "no caps", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("mistral", "window", {"sliding_window": 6}),
    ("mistral", "no window", {"sliding_window": None}),
    ("phi3", "window", {"sliding_window": 6, "head_dim": 14}),
    ("ministral3", "window", {"sliding_window": 6, "rope_parameters": ministral3.TINY["rope_parameters"]}),
    ("gemma3_text", "tied", GEMMA3),
    ("gemma3_text", "untied", GEMMA3 | {"tie_word_embeddings": False}),
    ("olmo2", "untied", {"tie_word_embeddings": False, "num_key_value_heads": 6, "head_dim": 14}),
    ("olmo2", "tied", {"tie_word_embeddings": True, "head_dim": 14}),
]
CASES = [case for case in CASES if case[0] in architectures.supported()]
CONVERTED = [case for case in CASES if case[0] in ("llama", "qwen3", "gemma3_text")]
IDS = np.random.default_rng(7).integers(0, SIZES["vocab_size"], (2, 21))


def names(cases: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    return [f"{family}-{name}" for family, name, _ in cases]


def random_model(family: str, options: dict[str, Any]) -> Any:
    """transformers' model, with gains far from 1 and biases far from 0."""
    config = transformers.AutoConfig.for_model(family, **SIZES | options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    torch.manual_seed(0)
    stored = 1.0 if family.startswith("gemma") else 0.0  # a gain's weight is so much less
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape)
        if "norm" in name:
            value = torch.rand(parameter.shape) * 1.7 + 0.3 - stored
        elif "embed" in name:
            value *= 0.05
        elif parameter.ndim == 2:
            value *= parameter.shape[-1] ** -0.5
        parameter.data = value
    return model


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.float().numpy()


def our_logits(path: Path, arm: str = "flashnorm") -> list[np.ndarray]:
    """Of the whole text at once, and of its tokens one by one."""
    model, ids = load_model(path, arm=arm, dtype="float32"), mx.array(IDS)
    cache = model.make_cache()
    steps = [model(ids[:, i : i + 1], cache=cache) for i in range(ids.shape[1])]
    return [np.array(model(ids)), np.array(mx.concatenate(steps, axis=1))]


def relative(got: np.ndarray, want: np.ndarray) -> float:
    error = np.abs(got - want).max() / np.abs(want).max()
    return float(error) if np.isfinite(error) else float("inf")


def load_theirs(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype="float32").eval()


@pytest.mark.parametrize(("family", "name", "options"), CASES, ids=names(CASES))
def test_logits_are_those_of_transformers(family: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = random_model(family, options)
    theirs.save_pretrained(tmp_path / "m")
    want = their_logits(theirs)
    for arm in ("baseline", "flashnorm"):
        for got in our_logits(tmp_path / "m", arm):
            assert relative(got, want) <= TOLERANCE
    assert relative(our_logits(tmp_path / "m", "none")[0], want) > 0.1


@pytest.mark.parametrize(("family", "name", "options"), CONVERTED, ids=names(CONVERTED))
def test_transformers_runs_what_was_converted(family: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = random_model(family, options)
    theirs.save_pretrained(tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "folded", quantize=False)
    again = load_theirs(tmp_path / "folded")
    assert relative(their_logits(again), their_logits(theirs)) <= TOLERANCE
    norms = {n: p.detach().numpy() for n, p in again.named_parameters() if "input_layernorm" in n}
    assert len(norms) == len(again.model.layers)
    for gain in norms.values():
        assert np.all(gain == (0.0 if family.startswith("gemma") else 1.0))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_transformers_runs_what_was_converted_from_mlx_lms_layout(family: str, tmp_path: Path) -> None:
    """config.json with the keys at the top level, as mlx-lm and transformers 4 have them."""
    wide = {"hidden_size": 144} if family == "gemma3_text" else {}
    path = write_checkpoint(tmp_path / "m", family, **wide)
    convert(path, tmp_path / "folded", quantize=False)
    config = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert "rope_parameters" not in config
    assert relative(their_logits(load_theirs(tmp_path / "folded")), our_logits(path)[0]) <= TOLERANCE


# negative controls: what these comparisons must notice


def test_control_unfolded_gains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = random_model("llama", {})
    theirs.save_pretrained(tmp_path / "m")
    monkeypatch.setattr(fold, "fold_gain", lambda weight, gain, **options: weight)
    assert relative(our_logits(tmp_path / "m")[0], their_logits(theirs)) > 1e-2


@pytest.mark.parametrize("key", ["full_attention", "sliding_attention"])
def test_control_bases_of_each_layer_type(key: str, tmp_path: Path) -> None:
    """transformers 5 writes Gemma 3's two RoPE bases into rope_parameters only."""
    theirs = random_model("gemma3_text", GEMMA3)
    theirs.save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"][key]["rope_theta"] = 321.0
    file.write_text(json.dumps(config))
    assert relative(our_logits(tmp_path / "m")[0], their_logits(theirs)) > 1e-3
