"""Checkpoints of the LayerNorm families: layouts, quantised ones, conversion, what info says, and bad configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import edit_config, relative_error, write_tokenizer
from layer_norms import FAMILIES, TOLERANCE, ids_for, model_of, token_by_token, wanted
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as load_stock
from mlx_lm.utils import quantize_model

from flashnorm_mlx import FlashNormError, architectures, cli, load
from flashnorm_mlx.checkpoint import open_checkpoint
from flashnorm_mlx.converter import Options, convert, convert_with_report
from flashnorm_mlx.info import inspect
from flashnorm_mlx.layers.layernorm import DeferredLayerNorm, LayerNorm
from flashnorm_mlx.layers.norm import FlashNorm
from flashnorm_mlx.loader import load_model
from flashnorm_mlx.plan import EXPLICIT, UNWRITABLE
from flashnorm_mlx.verify import verify

WIDE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 128, "n_head": 4},
    "stablelm": {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2},
    "olmo": {"d_model": 128, "n_heads": 4, "mlp_hidden_size": 256},
}
FORMS = [(f, {}) for f in FAMILIES] + [("olmo", {"weight_tying": True}), ("stablelm", {"use_qkv_bias": False})]


def save(folder: Path, config: dict[str, Any], weights: dict[str, mx.array], *, tokenizer: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        write_tokenizer(folder, config["vocab_size"])
    return folder


def saved(folder: Path, family: str, *, dtype: mx.Dtype = mx.float32, **options: Any) -> tuple[Path, mx.array, Any]:
    """A checkpoint in mlx-lm's layout, ids, and stock mlx-lm's logits of them."""
    config, stock, weights = model_of(family, **{**WIDE[family], **options})
    weights = {k: v.astype(dtype) for k, v in weights.items()}
    stock.load_weights([(k, v.astype(mx.float32)) for k, v in weights.items()])
    ids = ids_for(config)
    return save(folder, config, weights), ids, wanted(config, stock, ids)


def norms_of(model: Any) -> set[type]:
    return {type(m) for _, m in model.named_modules() if isinstance(m, LayerNorm | FlashNorm)}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("arm", ["baseline", "flashnorm", "none"])
@pytest.mark.parametrize(("family", "options"), FORMS)
def test_load(tmp_path: Path, family: str, options: dict[str, Any], arm: str, dtype: mx.Dtype) -> None:
    """Low-precision weights are folded in float32, and rounded only to the compute dtype."""
    path, ids, want = saved(tmp_path / "m", family, dtype=dtype, **options)
    model = load_model(path, arm=arm, dtype="float32")
    assert (relative_error(model(ids), want) <= TOLERANCE) == (arm != "none")
    assert norms_of(model) == {"baseline": {LayerNorm}, "flashnorm": {FlashNorm}, "none": set()}[arm]
    assert {a.dtype for _, a in tree_flatten(model.parameters())} == {mx.float32}


@pytest.mark.parametrize("prefix", ["", "transformer.", "model."])
@pytest.mark.parametrize("transposed", [True, False])
def test_layouts_of_gpt2(tmp_path: Path, prefix: str, transposed: bool) -> None:
    """Hugging Face's ``[in, out]`` and mlx-lm's, whatever the names; masks saved as tensors are no weights."""
    config, stock, weights = model_of("gpt2", **WIDE["gpt2"])
    held = {k.replace("model.", prefix): v.T if transposed and _is_conv(k) else v for k, v in weights.items()}
    for i in range(config["n_layer"]):
        held[f"{prefix}h.{i}.attn.bias"] = mx.tril(mx.ones((1, 1, 64, 64)))
        held[f"{prefix}h.{i}.attn.masked_bias"] = mx.array(-1e4)
    path, ids = save(tmp_path / "m", config, held), ids_for(config)
    want = stock(ids)
    for arm in ("baseline", "flashnorm"):
        assert relative_error(load_model(path, arm=arm)(ids), want) <= TOLERANCE
    convert(path, tmp_path / "t", quantize=False)
    assert relative_error(load_stock(tmp_path / "t")[0](ids), want) <= TOLERANCE
    assert relative_error(load_model(tmp_path / "t")(ids), want) <= TOLERANCE


def _is_conv(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def test_a_tensor_of_gpt2_under_two_names(tmp_path: Path) -> None:
    config, _, weights = model_of("gpt2")
    path = save(tmp_path / "m", config, {**weights, "wte.weight": weights["model.wte.weight"]})
    with pytest.raises(FlashNormError, match=r"are both model\.wte\.weight; remove one"):
        load_model(path)


@pytest.mark.parametrize("every", [True, False], ids=["all", "one layer"])
@pytest.mark.parametrize(("family", "options"), FORMS)
def test_quantised_checkpoint_keeps_its_norms(
    tmp_path: Path, family: str, options: dict[str, Any], every: bool
) -> None:
    """As mlx_lm.convert -q writes it. One writer that can't be centred keeps all norms explicit."""
    config, stock, _ = model_of(family, **{**WIDE[family], **options})
    ids = ids_for(config)
    one = architectures.find(family).WRITERS[-1].name.format(i=1)
    predicate = None if every else lambda path, module: path == one
    stock, config = quantize_model(stock, config, 32, 4, quant_predicate=predicate)
    path = save(tmp_path / "q", config, dict(tree_flatten(stock.parameters())))
    model = load_model(path)
    assert relative_error(model(ids), wanted(config, stock, ids)) <= TOLERANCE
    assert norms_of(model) == {DeferredLayerNorm}
    assert {fate.mean for fate in inspect(path).norms} == {f"kept: {EXPLICIT}"}
    assert mx.all(mx.isfinite(load_model(path, arm="none")(ids))).item()


@pytest.mark.parametrize(("family", "options"), FORMS)
def test_conversion_leaves_the_norms_to_loading(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    source, ids, want = saved(tmp_path / "s", family, **options)
    for quantize in (False, True):
        target = tmp_path / f"t{quantize}"
        report = convert_with_report(source, target, Options(quantize=quantize))
        assert {step.kept for step in report.plan.steps} == {UNWRITABLE}
        config = json.loads((target / "config.json").read_text())
        assert set(config["flashnorm"]["kept"].values()) == {UNWRITABLE}
        assert not config["flashnorm"]["folded"]
        assert open_checkpoint(target).tensors.keys() >= open_checkpoint(source).tensors.keys()
        stock, ours = load_stock(target)[0], load_model(target)
        assert relative_error(ours(ids), wanted(config, stock, ids)) <= TOLERANCE
        assert norms_of(ours) == ({DeferredLayerNorm} if quantize else {FlashNorm})
        if not quantize:
            assert relative_error(ours(ids), want) <= TOLERANCE
            assert report.check.target_error <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"n_ctx": ...}),
        (
            "stablelm",
            {
                "rope_theta": ...,
                "partial_rotary_factor": ...,
                "rope_parameters": {"rope_theta": 7e3, "partial_rotary_factor": 0.5, "rope_type": "default"},
            },
        ),
        ("stablelm", {"use_qkv_bias": ..., "num_key_value_heads": ...}),
        ("olmo", {"mlp_hidden_size": ..., "mlp_ratio": 2}),
    ],
)
def test_keys_that_stock_asks_for_are_written(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    options = {"use_qkv_bias": False, "num_key_value_heads": 4} if "use_qkv_bias" in changes else {}
    source, ids, _ = saved(tmp_path / "m", family, **options)
    edit_config(source, **changes)
    want = load_model(source, arm="baseline")(ids)
    with pytest.raises((TypeError, ValueError)):
        load_stock(source)
    target = convert(source, tmp_path / "t", quantize=False)
    config = json.loads((target / "config.json").read_text())
    assert relative_error(wanted(config, load_stock(target)[0], ids), want) <= TOLERANCE
    assert relative_error(load_model(target)(ids), want) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "name"),
    [("gpt2", "model.wpe.weight"), ("olmo", "model.transformer.ff_out.weight"), ("stablelm", "model.norm.bias")],
)
def test_values_that_are_not_finite(tmp_path: Path, family: str, name: str) -> None:
    config, _, weights = model_of(family)
    weights[name] = weights[name] * float("nan")
    with pytest.raises(FlashNormError, match=r"tensor \S+ has values that are not finite"):
        load_model(save(tmp_path / "m", config, weights))


@pytest.mark.parametrize(("family", "options"), FORMS)
def test_info_says_what_becomes_of_each_part(
    tmp_path: Path, family: str, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, _ = saved(tmp_path / "m", family, **options)
    info = inspect(path)
    assert [fate.count for fate in info.norms] == [3, 3, 1]
    assert all(fate.scale.startswith("deferred: ") and fate.mean.startswith("removed: ") for fate in info.norms)
    affine = family != "olmo"
    assert {fate.gain for fate in info.norms} == {"folded into the weights" if affine else "none"}
    assert {fate.bias for fate in info.norms} == {"folded into the biases" if affine else ""}
    total = open_checkpoint(path).nbytes
    tables = {"gpt2": 64, "stablelm": 331, "olmo": 0 if options else 331}[family]
    assert info.bytes_per_token == total - tables * 128 * 4
    assert cli.main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "mean: removed: every writer of the residual is centred" in " ".join(said.split())


def test_info_of_head_norms_and_a_parallel_residual(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path / "m", "stablelm", qk_layernorm=True, use_parallel_residual=True)
    first, last, q, k = inspect(path).norms
    assert first.into == ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    assert last.into == ("lm_head",)
    assert q.gain == k.gain == "stays, a LayerNorm for each head"
    assert q.mean == q.bias == ""


def test_verify_and_generate(tmp_path: Path) -> None:
    for family in ("gpt2", "stablelm"):
        path, _, _ = saved(tmp_path / family, family)
        write_tokenizer(path, 331)
        (path / "text.txt").write_text(" ".join(f"w{i}" for i in range(2, 42)))
        found = verify(path, text=path / "text.txt", greedy_tokens=4)
        assert found.ok, found.results
        model, _ = load(path)
        assert model.kernels == "reference"


def test_verify_says_where_mlx_lm_fails(tmp_path: Path) -> None:
    """Its olmo takes no prompt: the mask is a word that it adds to the scores."""
    path, ids, _ = saved(tmp_path / "m", "olmo")
    write_tokenizer(path, 331)
    with pytest.raises(FlashNormError, match="stock mlx-lm can't load it or run it"):
        verify(path)
    stock = load_stock(path)[0]
    with pytest.raises(ValueError, match="inplace addition"):
        stock(ids)
    assert token_by_token(stock, ids, 0).shape == (*ids.shape, 331)


ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("stablelm", {"partial_rotary_factor": [0.5]}, "partial_rotary_factor must be a positive number"),
    ("olmo", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported for olmo"),
    ("gpt2", {"n_embd": ...}, "n_embd is missing"),
    ("gpt2", {"n_positions": ...}, "n_positions is missing"),
    ("gpt2", {"layer_norm_epsilon": ...}, "layer_norm_epsilon is missing"),
    ("gpt2", {"n_embd": 95}, "n_embd 95 is not a multiple of n_head 4"),
    ("gpt2", {"n_layer": 2}, "not part of the model but in the files"),
    ("gpt2", {"n_positions": 65}, r"model.wpe.weight has shape \[64, 128\], config.json asks for \[65, 128\]"),
    ("gpt2", {"n_inner": 100}, "n_inner 100 is not supported"),
    ("gpt2", {"activation_function": "relu"}, "activation_function 'relu' is not supported"),
    ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not supported"),
    ("gpt2", {"num_key_value_heads": 2}, "num_key_value_heads 2 is not n_head 4"),
    ("gpt2", {"n_head": "many"}, "n_head must be a positive integer, not 'many'"),
    ("stablelm", {"layer_norm_eps": ...}, "layer_norm_eps is missing"),
    ("stablelm", {"partial_rotary_factor": ...}, "partial_rotary_factor is missing"),
    ("stablelm", {"partial_rotary_factor": 0.1}, "rotates 3 of 32"),
    ("stablelm", {"partial_rotary_factor": 1.5}, "rotates 48 of 32"),
    ("stablelm", {"partial_rotary_factor": "half"}, "partial_rotary_factor must be a positive number, not 'half'"),
    ("stablelm", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is .*; remove one"),
    ("stablelm", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is not supported for stablelm"),
    ("stablelm", {"rope_theta": ...}, "rope_theta is missing"),
    ("stablelm", {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ("stablelm", {"use_qkv_bias": "yes"}, "use_qkv_bias must be a bool"),
    ("stablelm", {"use_qkv_bias": False}, "q_proj.bias|k_proj.bias"),
    ("stablelm", {"use_parallel_residual": True}, "not part of the model but in the files"),
    ("stablelm", {"qk_layernorm": True}, "missing from the files"),
    ("stablelm", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ("stablelm", {"tie_word_embeddings": True}, "tie_word_embeddings is not supported for stablelm"),
    ("stablelm", {"head_dim": 16}, "head_dim 16 is not hidden_size 128 / num_attention_heads 4"),
    ("olmo", {"d_model": ...}, "d_model is missing"),
    ("olmo", {"d_model": ..., "hidden_size": 128}, "transformers' layout of OLMo"),
    ("olmo", {"embedding_size": ...}, "embedding_size is missing"),
    ("olmo", {"mlp_hidden_size": 255}, "mlp_hidden_size 255 is odd"),
    ("olmo", {"alibi": True}, "alibi True is not supported"),
    ("olmo", {"clip_qkv": 8.0}, "clip_qkv 8.0 is not supported"),
    ("olmo", {"layer_norm_type": "rms"}, "layer_norm_type 'rms' is not supported"),
    ("olmo", {"rope_traditional": True}, "rope_traditional is not supported"),
    ("olmo", {"n_kv_heads": 1}, "n_kv_heads 1 is not n_heads 4"),
    ("olmo", {"weight_tying": "no"}, "weight_tying must be a bool"),
]


@pytest.mark.parametrize(("family", "changes", "message"), ERRORS)
def test_bad_configs(tmp_path: Path, family: str, changes: dict[str, Any], message: str) -> None:
    path, _, _ = saved(tmp_path / "m", family)
    edit_config(path, **changes)
    with pytest.raises(FlashNormError, match=message) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
