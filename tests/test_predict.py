"""The predictor: what a token costs, fits that find what was planted, and checks that can fail."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import pytest
from checkpoints import tiny_config
from mlx.utils import tree_flatten
from test_gemma4 import MOE

from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.measure import predict
from flashnorm_mlx.measure.footprint import Footprint, footprint
from flashnorm_mlx.measure.predict import Calibration, Sample
from flashnorm_mlx.measure.random_model import stock_model
from flashnorm_mlx.measure.shapes import read_shape, shapes_folder

# ---- what a token costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", sorted(f.stem for f in shapes_folder().glob("*.json")))
def test_launches_are_stock_mlx_lms_layers(shape: str) -> None:
    config = read_shape(shape)
    leaves = [module for _, module in stock_model(config).named_modules() if not module.children()]
    norms = sum("Norm" in type(module).__name__ for module in leaves)
    counted = footprint(config).launches
    assert counted["mlx-lm"] - counted["mlx-lm, no norms"] == norms
    blocks = next(
        config[k] for k in ("num_hidden_layers", "num_transformer_layers", "n_layers", "n_layer") if k in config
    )
    if shape != "DeepSeek-V2-Lite":  # its experts' and latents' layers are no Linear
        head = not any(name.startswith("lm_head") for name, _ in tree_flatten(stock_model(config).parameters()))
        linear = sum(type(module) is nn.Linear for module in leaves) + head
        assert counted["mlx-lm, no norms"] == linear + 8 * blocks + 3
        tables = 2 if config["model_type"] == "gpt2" else 1  # of tokens, and of positions
        each = 7 if config.get("hidden_size_per_layer_input") else 5
        assert counted["flashnorm"] == counted["none"] == each * blocks + 2 + tables < counted["baseline"]


def test_a_llama_block_is_seventeen_launches() -> None:
    small, large = (footprint(tiny_config("llama", num_hidden_layers=n)).launches["mlx-lm"] for n in (3, 4))
    assert large - small == 17


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_of_quantised_files(tied: bool) -> None:
    config = tiny_config("llama", hidden_size=128, head_dim=32, intermediate_size=192, tie_word_embeddings=tied)
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = stock_model(config)
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=64, bits=4)
    table = 0 if tied else sum(a.nbytes for _, a in tree_flatten(model.model.embed_tokens.parameters()))
    stored = sum(a.nbytes for _, a in tree_flatten(model.parameters())) - table
    assert footprint(config).bytes == stored
    assert footprint(config, bits=8).bytes != stored


def test_a_cache_is_read_and_idle_experts_are_not() -> None:
    config = read_shape("Llama-3.2-1B")
    assert footprint(config, depth=10).bytes - footprint(config).bytes == 10 * 2 * 16 * 8 * 64 * 2
    assert footprint(read_shape("DeepSeek-V2-Lite"), bits=0).bytes < 0.2 * 2 * 15706e6


def test_a_family_without_kernels_has_no_fused_arms() -> None:
    for config in (tiny_config("gemma4_text", **MOE), tiny_config("deepseek_v2")):
        assert set(footprint(config).launches) == {"mlx-lm", "mlx-lm, no norms"}


def test_an_input_of_each_layer_is_two_launches_more() -> None:
    """Gemma 4's six layers."""
    for dims, each in ((12, 7), (0, 5)):
        config = tiny_config("gemma4_text", hidden_size_per_layer_input=dims)
        assert footprint(config).launches["flashnorm"] == 6 * each + 3


def test_a_table_of_positions_is_a_launch_more_and_a_layer_norm_is_taken_off() -> None:
    """GPT-2's three layers: two norms each, and the last."""
    launches = footprint(tiny_config("gpt2")).launches
    assert (launches["flashnorm"], launches["baseline"]) == (3 * 5 + 4, 3 * 7 + 5)


# ---- predictions ------------------------------------------------------------------------------------------------

TRUE = Calibration(launch=5e-6, share=0.6)
PEAK = 1e11


def samples(true: Calibration = TRUE) -> list[Sample]:
    sizes = [("a", 10**8, 100), ("a", 2 * 10**8, 100), ("b", 10**9, 300), ("c", 10**7, 500), ("d", 10**8, 200)]
    return [Sample(s, 0, nbytes, n, 1 / true.seconds(nbytes, n, PEAK)) for s, nbytes, n in sizes]


def test_the_papers_pair_comes_back() -> None:
    calibration, model = predict.published(), footprint(read_shape("OpenELM-270M"))
    m1 = predict.machines()["M1"].bandwidth
    speeds = [1 / calibration.seconds(model.bytes, n, m1) for n in list(model.launches.values())[:2]]
    assert speeds == pytest.approx([204, 225])
    assert calibration.launch == pytest.approx((1 / 204 - 1 / 225) / 65)
    assert 0.5 < calibration.share < 1


@pytest.mark.parametrize("pair", [(225, 204), (204, 10**6), (2000, 2001)])
def test_an_impossible_pair_is_refused(pair: tuple[float, float]) -> None:
    model = Footprint(153_000_000, {"mlx-lm": 261, "mlx-lm, no norms": 196})
    with pytest.raises(FlashNormError, match="don't fit"):
        predict.from_pair(model, 68.25e9, *pair)


@pytest.mark.parametrize("true", [TRUE, Calibration(0.0, 0.5), Calibration(1e-5, 1.0)], ids=str)
def test_a_fit_finds_what_was_planted(true: Calibration) -> None:
    found = predict.fitted(samples(true), PEAK)
    assert (found.launch, found.share) == pytest.approx((true.launch, true.share), abs=1e-12)


def test_a_fit_stays_possible() -> None:
    """Faster than the peak allows: the share ends at 1, the launch cost at 0."""
    found = predict.fitted([replace(s, speed=10 * s.speed) for s in samples()], PEAK)
    assert found.launch >= 0 and 0 < found.share <= 1


def test_the_check_leaves_the_shape_out() -> None:
    assert max(abs(c.error) for c in predict.cross_checked(samples(), PEAK)) < 1e-9
    odd = [replace(s, speed=s.speed / 2) if s.shape == "a" else s for s in samples()]
    errors = {c.sample.nbytes: c.error for c in predict.cross_checked(odd, PEAK) if c.sample.shape == "a"}
    assert list(errors.values()) == pytest.approx([1, 1])  # were it fitted to them too, it would be less


def test_measured_rows_are_all_predicted() -> None:
    measured = predict.measured_reports()
    assert set(measured) == {"NVIDIA H100 80GB HBM3", "NVIDIA H200"}
    for machine, reports in measured.items():
        rows = [row for report in reports for row in report["rows"] if (row["test"], row["batch"]) == ("decode", 1)]
        assert len(rows) >= 10
        for arm in ("mlx-lm", "flashnorm"):
            found = predict.samples_of(reports, arm)
            uncounted = sum(r["model"]["name"] == "DeepSeek-V2-Lite" for r in reports) if arm == "flashnorm" else 0
            assert len(found) == sum("tokens_per_second" in row["arms"].get(arm, {}) for row in rows) - uncounted
            checks = predict.cross_checked(found, predict.machines()[machine].bandwidth)
            assert 0 < predict.typical_error(checks) < 0.5


def test_every_machine_has_its_source() -> None:
    known = predict.machines()
    assert all(m.source and 50e9 < m.bandwidth < 5e12 for m in known.values())
    for generation in (1, 2):
        assert known[f"M{generation} Ultra"].bandwidth == 2 * known[f"M{generation} Max"].bandwidth
    assert {name.split()[0] for name in known} == {"M1", "M2", "M3", "M4", "M5", "NVIDIA"}
