"""The converter's own check: logits of a fixed prompt, with one block in memory at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from .architectures.base import Decoder
from .errors import FlashNormError
from .loader import Progress, load_model

#: Token ids that the self-check runs on, modulo the vocabulary.
CHECK_PROMPT = (1, 17, 290, 5, 88, 1033, 7, 412, 59, 23, 3, 640)

#: Above this error of the folded model (float32, against the source's explicit norms), conversion fails.
FOLD_TOLERANCE = 1e-3

#: The same for an unquantised result, which is rounded to its dtype.
ROUNDING_TOLERANCE = 0.1


@dataclass(frozen=True)
class SelfCheck:
    """Largest logit errors, relative to the source's largest logit."""

    #: Of folding alone, in float32.
    fold_error: float
    #: Of what was written: rounded, and quantised if that was asked for.
    target_error: float
    positions: int


def self_check(source: Path, written: Path, progress: Progress, *, quantised: bool) -> SelfCheck:
    """Compare the source with explicit norms, the source folded in float32, and what was written.

    Raises:
        FlashNormError: if folding alone changed the logits, or what was written gives NaN or, unquantised, logits
            that rounding does not explain.
    """
    logits = []
    for i, (path, arm) in enumerate(((source, "baseline"), (source, "flashnorm"), (written, "flashnorm"))):
        progress("checking", i, 3)
        with mx.stream(mx.cpu):  # GPUs may round float32 products to TF32, which would hide what is looked for
            model = load_model(path, arm=arm, dtype="float32", lazy=True)
            ids = mx.array([[t % model.args.vocab_size for t in CHECK_PROMPT]])
            logits.append(layerwise_logits(model, ids))
        del model
        mx.clear_cache()
    progress("checking", 3, 3)
    reference, folded, result = logits
    fold_error, target_error = relative_error(folded, reference), relative_error(result, reference)
    if not fold_error <= FOLD_TOLERANCE:
        raise FlashNormError(
            f"{source}: the folded model's logits differ from the source's by {fold_error:.1e} "
            f"(tolerance {FOLD_TOLERANCE:.0e}); nothing was written. Is a tensor not finite?"
        )
    if not math.isfinite(target_error) or (target_error > ROUNDING_TOLERANCE and not quantised):
        raise FlashNormError(
            f"{source}: converted, its logits are off by {target_error:.1e}; try another dtype. Nothing was written"
        )
    return SelfCheck(fold_error, target_error, positions=reference.shape[1])


def relative_error(got: mx.array, want: mx.array) -> float:
    """``max |got - want| / max |want|``; infinite where either is not finite."""
    error = float(np.array(mx.max(mx.abs(got - want)) / mx.max(mx.abs(want))))
    return error if math.isfinite(error) else math.inf


def layerwise_logits(model: Decoder, ids: mx.array) -> mx.array:
    """``model(ids)`` with one block's weights in memory at a time; a lazy model is used up by it."""
    blocks = list(model.layers)
    caches = [None] * len(blocks)
    h = model.opened(ids, None, caches)
    inputs, context = model.layer_inputs(ids, h), model.context(h, caches)
    mx.eval(h, inputs, context)
    model.layers.clear()
    if not model.args.tie_word_embeddings:
        model.stack.pop(model.EMBEDDING, None)
    for own in inputs:
        block = blocks.pop(0)
        h = block(h, *context[block.kind], None, *own)
        del block
        mx.eval(h)
        mx.clear_cache()
    logits = model.head(h)
    mx.eval(logits)
    return logits
