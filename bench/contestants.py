"""Stock mlx-lm and our arms on one checkpoint, loaded side by side and timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model as load_stock

from flashnorm_mlx.loader import load_model
from flashnorm_mlx.measure import loop
from flashnorm_mlx.measure.arms import described

TIMER = loop.Timer()

#: A measurement: a model in, tokens a second out.
Measure = Callable[[Any], float]

CONTESTANTS: dict[str, Callable[[Path], Any]] = {
    "mlx-lm": lambda folder: load_stock(folder)[0],
    "flashnorm": lambda folder: load_model(folder, arm="flashnorm"),
    "baseline": lambda folder: load_model(folder, arm="baseline"),
    "none": lambda folder: load_model(folder, arm="none"),
    "reference": lambda folder: load_model(folder, arm="flashnorm", kernels="reference"),
}


def load_all(folder: Path, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The contestants' models, and what was seen of each as it loaded; one that can't be loaded has its error there.

    ``model_bytes`` is the memory that loading added; ``first_token_ms`` the time of the very first token, kernels'
    compilation included, though not of those that a contestant before it has had compiled.
    """
    models: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        mx.clear_cache()
        before, start = mx.get_active_memory(), time.perf_counter()
        try:
            model = CONTESTANTS[name](folder)
            loaded = time.perf_counter()
            model_bytes = mx.get_active_memory() - before
            first_token(model, mx.arange(1, 17))
            facts[name] = {
                "load_s": round(loaded - start, 3),
                "first_token_ms": round(1000 * (time.perf_counter() - loaded), 1),
                "model_bytes": model_bytes,
            }
            models[name] = model
        except Exception as error:  # the others go on
            facts[name] = {"error": described(error).replace(f"{folder}: ", "")}
    return models, facts


def compare(models: dict[str, Any], facts: dict[str, dict[str, Any]], measure: Measure, repeat: int) -> dict[str, Any]:
    """Every contestant's median speed over ``repeat`` repetitions, forwards and backwards in turn.

    Ratios are medians of those within a repetition. A first repetition is left out; peak memory is read in it, as the
    model's own bytes and what the run added to the memory in use. A contestant that raises has its error instead.
    """
    out = {name: dict(fact) for name, fact in facts.items()}
    runs: dict[str, list[float]] = {name: [] for name in models}
    for i in range(repeat + 1):
        for name in runs if i % 2 == 0 else reversed(runs):
            if "error" in out[name]:
                continue
            mx.reset_peak_memory()
            active = mx.get_active_memory()
            try:
                speed = measure(models[name])
            except Exception as error:  # the others go on
                out[name]["error"] = described(error)
                continue
            if i == 0:
                out[name]["peak_bytes"] = out[name]["model_bytes"] + max(0, mx.get_peak_memory() - active)
            else:
                runs[name].append(speed)
    whole = {name: values for name, values in runs.items() if len(values) == repeat}
    for name, values in whole.items():
        out[name] |= {"tokens_per_second": round(statistics.median(values), 3), "runs": [round(v, 3) for v in values]}
        for other in ("mlx-lm", "none"):
            if other in whole:
                ratio = statistics.median(a / b for a, b in zip(values, whole[other], strict=True))
                out[name][f"over_{other.replace('-', '_')}"] = round(ratio, 4)
    return out


def decode(model: Any, ids: mx.array, tokens: int) -> float:
    """Greedy decoding behind the prompt ``ids [1, length]``, by mlx-lm's own loop; timed from token to token."""
    cache = loop.filled_cache(model, ids[:, :-1], TIMER)
    stamps = [time.perf_counter() for _ in generate_step(ids[0, -1:], model, max_tokens=tokens, prompt_cache=cache)]
    TIMER.finish([c.state for c in cache])
    return (tokens - 1) / (stamps[-1] - stamps[0])


def decode_batch(model: Any, ids: mx.array, tokens: int) -> float:
    """Greedy decoding of several rows ``ids [batch, length]`` at once; the next step is under way as one is read."""
    cache = loop.filled_cache(model, ids[:, :-1], TIMER)
    return loop.decode(model, ids[:, -1:], cache, tokens, TIMER).tokens_per_second


def prefill(model: Any, ids: mx.array) -> float:
    """Prompt tokens a second up to the first new token; the prompt ``ids [1, length]`` goes through in one pass."""
    start = time.perf_counter()
    first_token(model, ids[0])
    return ids.shape[1] / (time.perf_counter() - start)


def first_token(model: Any, ids: mx.array) -> None:
    """Work out the token behind the prompt ``ids [length]``."""
    for _ in generate_step(ids, model, max_tokens=0, prefill_step_size=len(ids)):
        pass
