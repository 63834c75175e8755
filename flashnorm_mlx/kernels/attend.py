"""QK-norm → RoPE → attention against the cache, one launch (two where a long sequence is split)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from . import dialect
from .packed import Uncovered

#: Tokens that wait in the tail before they are appended to the cache.
TAIL = 32

#: A threadgroup's SIMD groups times head_dim: so many results wait in its memory, of which Metal has 32 KB.
MOST = 4096

#: Up to this capacity a sequence is not split.
SHORT = 1024


@dataclass(frozen=True)
class Heads:
    """What of a layer's attention the kernel needs to know.

    Args:
        qk_norm: what the QK-norm is: ``head``, an RMSNorm of each head; ``layer``, a LayerNorm without bias of each;
            ``all``, one RMSNorm of all heads of q, and one of all of k.
        v_norm: values are normed too, an RMSNorm of each head with the QK-norm's ε and no gain.
        k_eq_v: keys are values, too, before they are normed and rotated.
        shares: there are queries only; keys and values, the new ones among them, are those of an earlier layer.
        growth: β and n of queries that grow with their position: ``1 + β · ln(1 + floor(position / n))`` times.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rotary_dims: int
    traditional: bool = False
    qk_norm_eps: float | None = None
    qk_norm: str = "head"
    softcap: float | None = None
    window: int | None = None
    growth: tuple[float, float] | None = None
    v_norm: bool = False
    k_eq_v: bool = False
    shares: bool = False

    def check(self) -> None:
        """Raise :class:`Uncovered` for a shape that the kernel has no form for."""
        if self.head_dim not in (64, 80, 96, 112, 128, 160, 192, 256, 512):
            raise Uncovered(f"a head_dim of {self.head_dim}")

    def query_factors(self, positions: np.ndarray) -> np.ndarray:
        """What queries are multiplied by that stand at ``positions``."""
        if self.growth is None:
            return np.ones_like(positions)
        beta, original = self.growth
        return 1 + beta * np.log1p(np.floor(positions / original))

    def tail_size(self, batch: int) -> int:
        """Elements of the tail that it writes: ``[2, batch, kv_heads, TAIL, head_dim]``; none where it has no keys."""
        return 0 if self.shares else 2 * batch * self.kv_heads * TAIL * self.head_dim

    def output_size(self, batch: int, length: int, layout: Layout, dtype: mx.Dtype) -> int:
        """Elements of the kernel's output: the tail, and results or, where the sequence is split, their parts."""
        splits, d = layout.splits, self.head_dim
        each = d if splits == 1 else splits * (d + 2) * 4 // dtype.size
        return self.tail_size(batch) + batch * length * self.heads * each


class Layout(NamedTuple):
    """How the work is laid out over threads."""

    splits: int  #: parts of the sequence that are done side by side
    group: int  #: query heads of one key head that a threadgroup does
    simdgroups: int  #: in a threadgroup


def default_layout(h: Heads, capacity: int) -> Layout:
    """Short sequences: a threadgroup a query head. Long ones: parts of 512 tokens, read once for up to 4 heads.

    Models of few key heads have shorter parts, so that there is something to do for most of a GPU's cores.
    """
    if capacity <= SHORT:
        return Layout(1, 1, min(16, MOST // h.head_dim))
    shared = h.heads // h.kv_heads
    group = max(g for g in (1, 2, 3, 4) if shared % g == 0 and g * h.head_dim <= 1024)
    enough = min(48 // (h.heads // group), capacity // 128)
    return Layout(min(32, max(capacity // 512, enough)), group, 8)


def step_rows(
    appended: int,
    waiting: int | np.ndarray,
    capacity: int,
    splits: int,
    angles: np.ndarray,
    factor: float = 1.0,
    query_factors: np.ndarray | None = None,
    padding: int | np.ndarray = 0,
) -> np.ndarray:
    """What the kernels need to know of a step, a row a sequence, float32 ``[..., batch, size]``: see ``attend.msl``.

    Args:
        appended: tokens in the cache's buffer; ``waiting``: tokens in its tail; ``capacity``: room in the buffer.
        splits: of the layout.
        angles: RoPE's, of the new tokens ``[..., batch, length, rotary_dims / 2]``.
        factor: what RoPE multiplies the channels by that it rotates.
        query_factors: what each new token's query is multiplied by besides ``[..., batch, length]``; None: 1.
        padding: the first tokens of each sequence that are none; they and all counts: ``[..., batch]``.
    """
    rows = angles.shape[:-2]
    counts = [np.broadcast_to(count, rows) for count in (appended, waiting, capacity, splits, padding, 0, 0, 0)]
    tables = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1) * factor
    queries = np.ones(angles.shape[:-1]) if query_factors is None else query_factors
    parts = [np.stack(counts, axis=-1), tables.reshape(*rows, -1), queries]
    unused = -sum(part.shape[-1] for part in parts) % 4  # rows are read 16 bytes at a time
    return np.concatenate([*parts, np.zeros((*rows, unused))], axis=-1).astype(np.float32)


def attend(
    qkv: mx.array,
    kv: mx.array,
    tail: mx.array,
    step: mx.array,
    h: Heads,
    *,
    gains: mx.array | None = None,
    batch: int = 1,
    length: int = 1,
    layout: Layout | None = None,
) -> tuple[mx.array, mx.array, int]:
    """Attention of ``length`` new tokens against the cache.

    Args:
        qkv: the projections ``[batch·length, (heads + 2·kv_heads)·head_dim]``, neither normed nor rotated; with
            ``k_eq_v`` without values, with ``shares`` queries alone.
        kv: the cache ``[2, batch, kv_heads, capacity, head_dim]``.
        tail: an array that starts with ``[2, batch, kv_heads, TAIL, head_dim]``, the newest tokens;
            with ``shares`` the new ones too.
        step: see :func:`step_rows`.
        gains: of the QK-norm, float32: q's and k's ``[2, head_dim]``, or each head's ``[heads + kv_heads, head_dim]``.
        layout: None: one that suits the cache's capacity. ``group · simdgroups`` is at most 32.

    Returns:
        The result, an array that starts with the new tail (``tail`` itself with ``shares``), and where in the first the
        ``[batch·length, heads·head_dim]`` results start.
    """
    d = h.head_dim
    lanes = 8 if d < 128 else 16 if d < 256 else 32
    layout = layout or default_layout(h, kv.shape[3])
    if layout.group * layout.simdgroups > 32:
        raise ValueError(f"{layout}: that many heads and SIMD groups need more registers than a GPU has")
    if layout.simdgroups * d > MOST:
        raise ValueError(f"{layout}: that many SIMD groups with heads of {d} need more memory than a threadgroup has")
    splits, group, simdgroups = layout
    log2e = 1.4426950408889634
    template: dialect.Template = {
        "T": qkv.dtype,
        "B": batch,
        "L": length,
        "H": h.heads,
        "HKV": h.kv_heads,
        "D": d,
        "RD": h.rotary_dims,
        "HALVES": not h.traditional,
        "NEW": 0 if h.shares else 1 if h.k_eq_v else 2,
        "VNORM": h.v_norm,
        "QKNORM": h.qk_norm_eps is not None,
        "CENTRED": h.qk_norm == "layer",
        "JOINT": h.qk_norm == "all",
        "EPS": dialect.bits_of(h.qk_norm_eps or 0.0),
        "SCALE": dialect.bits_of(h.scale * (1.0 if h.softcap else log2e)),
        "SOFTCAP": dialect.bits_of(h.softcap or 0.0),
        "WINDOW": h.window or 0,
        "TAIL": TAIL,
        "GT": group,
        "LPK": lanes,
        "NSG": simdgroups,
        "SPLIT": splits > 1,
    }
    rows, start = batch * length, h.tail_size(batch)
    each = gains is not None and gains.size > 2 * d
    inputs = {"qkv": qkv, "kv": kv, "tail": tail, "step": step} | ({} if gains is None else {"gains": gains})
    (y,) = dialect.launch(
        "attend",
        inputs,
        template,
        grid=(32 * (h.heads // group) * splits, simdgroups * batch, length),
        threadgroup=(32, simdgroups, 1),
        shape=(h.output_size(batch, length, layout, qkv.dtype),),
        dtype=qkv.dtype,
        defines={
            "QGAIN": "step" if gains is None else "(gains + (head + g) * D)" if each else "gains",
            "KGAIN": "step" if gains is None else "(gains + (H + key_head) * D)" if each else "(gains + D)",
        },
    )
    new = tail if h.shares else y
    if splits == 1:
        return y, new, start
    (a,) = dialect.launch(
        "join",
        {"x": y, "step": step},
        {"T": qkv.dtype, "D": d, "SKIP": start},
        grid=(d, rows * h.heads, 1),
        threadgroup=(d, 1, 1),
        shape=(rows, h.heads * d),
        dtype=qkv.dtype,
    )
    return a, new, 0
