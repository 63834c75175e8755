"""Small random checkpoints, as stock mlx-lm writes them: what the tests load, convert and break."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from flashnorm_mlx import architectures

FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "openelm", "olmo2", "phi3", "ministral3")


def tiny_config(model_type: str, **overrides: Any) -> dict[str, Any]:
    return {**architectures.find(model_type).TINY, "model_type": model_type, **overrides}


def tying(model_type: str, tied: bool) -> dict[str, bool]:
    """What config.json says for a tied or an untied head; some families have tied ones only."""
    key = "share_input_output_layers" if model_type == "openelm" else "tie_word_embeddings"
    return {key: tied or model_type in ("gemma", "gemma2")}


def stock_model(config: dict[str, Any]) -> nn.Module:
    """mlx-lm's own model of a config: the independent reference."""
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    if config["model_type"] == "gemma3_text" and config["tie_word_embeddings"]:
        model.sanitize({})  # it ties the head when it sees no tensors for it
    return model


def random_weights(model: nn.Module, seed: int = 0) -> dict[str, mx.array]:
    """Weights of a stock model, with gains far from 1 and biases far from 0, so that no folding bug can hide."""
    mx.random.seed(seed)
    weights = {}
    family = getattr(model, "model_type", "")
    stored = 1.0 if family in ("gemma", "gemma2", "gemma3_text") else 0.0  # a gain's weight is so much less
    for name, value in tree_flatten(model.parameters()):
        if "norm" in name or name.endswith(("scale", "layer_scalar")):
            weights[name] = mx.random.uniform(0.3, 2.0, value.shape) - stored
            if family == "gemma4_text" and name.endswith(("q_norm.weight", "k_norm.weight")):
                weights[name] *= value.size**-0.25  # its scores have no other scale
        elif name.endswith(".bias"):
            weights[name] = mx.random.normal(value.shape)
        elif "embed" in name:
            weights[name] = mx.random.normal(value.shape) * 0.05
        else:
            weights[name] = mx.random.normal(value.shape) * value.shape[-1] ** -0.5
    mx.eval(weights)
    return weights


def stock_with_weights(config: dict[str, Any], seed: int = 0) -> tuple[nn.Module, dict[str, mx.array]]:
    model = stock_model(config)
    weights = random_weights(model, seed)
    model.load_weights(list(weights.items()))
    return model, weights


def our_model(
    config: dict[str, Any], weights: dict[str, mx.array], arm: str = "flashnorm", *, pack: bool = True
) -> Any:
    """This package's model of the same weights, folded as they come in."""
    module = architectures.find(config["model_type"])
    model = module.Model(module.Config.from_dict({**config, "arm": arm}))
    model.load_weights(list(model.sanitize(dict(weights)).items()))
    if pack:
        model.pack()
    return model


def write_checkpoint(
    folder: Path,
    model_type: str = "llama",
    *,
    dtype: mx.Dtype = mx.float32,
    shards: int = 1,
    tokenizer: bool = True,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """A folder with config.json, weights and a tokenizer, in stock layout."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(model_type, **overrides)
    weights = {k: v.astype(dtype) for k, v in random_weights(stock_model(config), seed).items()}
    names = sorted(weights)
    weight_map = {}
    for i in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[i::shards]}
        mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        write_tokenizer(folder, config["vocab_size"])
    return folder


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer whose tokens are w0, w1, …; its end token is 0."""
    tokenizers = importlib.import_module("tokenizers")
    transformers = importlib.import_module("transformers")
    vocab = {"</s>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, vocab_size)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of a checkpoint's config.json; a value of ``...`` removes the key."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def relative_error(got: mx.array, want: mx.array) -> float:
    """Largest difference, relative to the largest wanted value; NaN counts as infinite."""
    error = (mx.max(mx.abs(got.astype(mx.float32) - want)) / mx.max(mx.abs(want))).item()
    return float(error) if error == error else float("inf")
