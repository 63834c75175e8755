"""The model that ships: trained, ours, and the same through every path that a user may take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.generate import generate_step

from flashnorm_mlx import FlashNormError, demo, generate, load
from flashnorm_mlx.demo import converted_demo, demo_source
from flashnorm_mlx.loader import load_model
from flashnorm_mlx.paths import cache_folder
from flashnorm_mlx.verify import read_ids, verify

QUESTIONS = ("What is FlashNorm?", "What is 45 plus 38?", "Tell me a story about a fox.")


def test_converted_once_into_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = converted_demo()
    assert folder.parent == cache_folder() == tmp_path / "flashnorm"
    (folder / "model.safetensors").unlink()
    assert converted_demo() == folder and (folder / "model.safetensors").is_file()  # what is damaged is made anew
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted_demo() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FlashNormError, match="set XDG_CACHE_HOME"):
        converted_demo()


def test_missing_demo_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "package" / "demo.py"))
    with pytest.raises(FlashNormError, match="did not come with this installation"):
        demo_source()


def test_two_hundred_greedy_tokens_are_stock_mlx_lms() -> None:
    """Token by token, float32, all questions, past any end token."""
    stock, tokenizer = mlx_lm.load(str(demo_source()))
    stock.set_dtype(mx.float32)
    ours = load_model(demo_source(), dtype="float32")
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        want, got = (
            [int(t) for t, _ in generate_step(mx.array(prompt), model, max_tokens=200)] for model in (stock, ours)
        )
        assert len(want) == 200
        assert got == want


def test_verification_of_the_demo() -> None:
    found = verify(demo_source(), greedy_tokens=16, max_tokens=256)
    assert found.ok
    errors = {r.arm: r.logit_error for r in found.results}
    assert errors["baseline"] <= 5e-6
    assert errors["flashnorm"] <= 5e-6
    assert errors["none"] > 1


def test_answers_whole_sentences_after_conversion() -> None:
    """The 4-bit folded demo still knows its sums and its subject, and stops by itself."""
    model, tokenizer = load(converted_demo())
    answers = []
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        answers.append(generate(model, tokenizer, prompt, max_tokens=200))
    assert "83" in answers[1]
    assert "fox" in answers[2].lower()
    assert all(a.rstrip().endswith((".", "!", "?")) for a in answers)


def test_stock_mlx_lm_generates_from_the_shipped_and_the_converted_folder() -> None:
    """`mlx_lm generate` as a process of its own, on the folder that `convert` wrote."""
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(converted_demo())]
    command += ["--prompt", "What is 45 plus 38?", "--max-tokens", "40", "--verbose", "False"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "83" in done.stdout


def test_held_out_text_can_be_read_and_bad_text_is_said(tmp_path: Path) -> None:
    _, tokenizer = load(demo_source())
    ids = read_ids(demo_source() / "heldout.jsonl", tokenizer)
    assert len(ids) > 10_000
    bad = tmp_path / "bad.jsonl"
    for text in ("{", json.dumps({"message": 1}), json.dumps({"messages": [{"role": "king", "content": "x"}]})):
        bad.write_text(text)
        with pytest.raises(FlashNormError, match=r"bad\.jsonl: not lines of"):
            read_ids(bad, tokenizer)
