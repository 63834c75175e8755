"""Norm → project → epilogue: four of a block's five operations and the head, each one launch."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from . import dialect
from .packed import Packed

#: Activations, a gate's or of the projection itself, by the names that config.json has for them.
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu", "relu", "relu2")

#: Rows of x that one launch can take.
MAX_ROWS = 8


#: Words of a row of W that a threadgroup has at once, at most: 4 a lane.
MAX_WORDS = 4 * 32 * 32


class Variant(NamedTuple):
    """How the work is laid out over threads."""

    rows: int  #: rows of W in a batch
    batches: int  #: batches that a simdgroup goes through
    words: int  #: words of each row a lane loads at once
    split: int  #: simdgroups that share the columns of the same rows
    teams: int  #: such teams in a threadgroup


def project(
    x: mx.array,
    w: Packed,
    *,
    rows: int = 1,
    eps: float | None = None,
    centred: bool = False,
    activation: str | None = None,
    gated: bool = True,
    softcap: float | None = None,
    times: mx.array | None = None,
    residual: mx.array | None = None,
    pending: mx.array | None = None,
    post_eps: float | None = None,
    x_offset: int = 0,
    variant: Variant | None = None,
) -> mx.array:
    """``residual + epilogue((x ⊙ gain) Wᵀ / RMS(x) + bias)``, in one launch (FlashNorm, §1).

    Args:
        x: the first ``rows · w.columns`` elements behind ``x_offset`` are read, ``[rows, columns]``; dtype ``w.dtype``.
        eps: that of the norm; None: no norm.
        centred: the norm is a LayerNorm, of x without its mean; its bias is in that of ``w``.
        activation: W holds a gate above an up projection; the result is ``activation(gate) ⊙ up``, half as wide.
        gated: False: there is no gate, and the result is ``activation(y)``.
        softcap: ``cap · tanh(y / cap)`` of the result.
        times: multiplies the result; ``[rows, out]``.
        residual: added last; ``[rows, out]``.
        pending: a projection ``[rows, columns]`` that still awaits its post-norm (Gemma 2 and 3), whose gain is in
            ``w``: then ``(x + RMSNorm(pending)) · factor``, clipped to what float16 holds, takes the place of x.
        post_eps: that of the post-norm; None: ``eps``.

    Returns:
        ``[rows, out]`` in x's dtype; sums are float32, and scaled before they are rounded. With ``pending``, a flat
        array of that and, behind it, what took the place of x.
    """
    gated = gated and activation is not None
    v = variant or default_variant(w, rows, gated=gated, whole=centred or pending is not None)
    out = w.rows // 2 if gated else w.rows
    half = v.rows // 2 if gated else v.rows
    if not 0 < rows <= MAX_ROWS or rows * v.rows > 32:
        raise ValueError(f"{rows} rows with {v.rows} of W at a time")
    if pending is not None and None not in (eps, post_eps) and eps != post_eps:
        raise ValueError(f"a norm of ε {eps} behind a post-norm of ε {post_eps}")
    template: dialect.Template = {
        "T": w.dtype,
        "M": rows,
        "N": w.rows,
        "K": w.columns,
        "BITS": w.bits,
        "GROUP": w.group_size,
        "R": v.rows,
        "BATCHES": v.batches,
        "LW": v.words,
        "KS": v.split,
        "TEAMS": v.teams,
        "NORM": eps is not None,
        "EPS": dialect.bits_of(eps or post_eps or 0.0),
        "BIAS": w.bias,
        "GAIN": w.gain,
        "GATED": gated,
        "ACTIVE": activation is not None,
        "ACT": ACTIVATIONS.index(activation) if activation else 0,
        "CAP": dialect.bits_of(softcap or 0.0),
        "XOFF": x_offset,
        "CENTRED": centred,
        "POST": pending is not None,
        "FACTOR": w.factor,
        "LIMIT": dialect.bits_of(65504.0 if w.dtype == mx.float16 else 3e38),
    }
    inputs = {"x": x, "w": w.buffer}
    inputs |= {name: a for name, a in (("f", times), ("h", residual), ("p", pending)) if a is not None}
    simdgroups = v.split * v.teams
    (y,) = dialect.launch(
        "project",
        inputs,
        template,
        grid=(32, -(-out // (half * v.batches * v.teams)) * simdgroups, 1),
        threadgroup=(32, simdgroups, 1),
        shape=(rows, out) if pending is None else (rows * (out + w.columns),),
        dtype=w.dtype,
        defines={
            "TIMES(i)": "1.0f" if times is None else "float(f[i])",
            "RESIDUAL(i)": "0.0f" if residual is None else "float(h[i])",
            "PENDING": "x" if pending is None else "p",
        },
    )
    return y


def covers_whole(w: Packed) -> bool:
    """Whether there is a kernel for a post-norm or a mean, which take all of a row of x at once."""
    return w.columns * w.bits // 32 <= MAX_WORDS


def default_variant(w: Packed, rows: int, *, gated: bool, whole: bool = False) -> Variant:
    """A layout that is good for a shape, before anything was measured: few rows a simdgroup where W is small.

    ``whole``: each threadgroup has all of a row of x at once, for a post-norm or a mean.
    """
    row_words = w.columns * w.bits // 32
    if rows == 1:
        words = 4 if row_words >= 128 else 2
    else:  # a lane holds so many columns of each row of x in registers
        columns = 16 if rows <= 4 and w.columns >= 2048 else 8
        words = min(4, columns * w.bits // 32)
    while whole and words < 4 and row_words > 16 * 32 * words:
        words *= 2
    split = min(32 if whole else 16, -(-row_words // words // 32))
    if rows > 1:
        tall = w.rows >= (12288 if rows == 2 else 2048) and rows <= 4
        return Variant(8 if tall else 4, 4 if rows == 2 and w.rows >= 65536 else 1, words, split, 1)
    if split > 8 and not whole:  # two steps of half as many threads, of which more threadgroups fit on a GPU core
        split = -(-split // 2)
    # each threadgroup reads x and its gains, and does a pending post-norm, anew
    batches = 8 if w.rows >= 65536 else 4 if w.rows >= 12288 else 2 if whole else 1
    return Variant(4 if w.rows >= 3072 or whole else 2, batches, words, split, 1)
