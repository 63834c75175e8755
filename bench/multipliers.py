"""How many multiplications a norm's gain and scale take, and how many of them FlashNorm saves (§1 to §4 of the paper).

    python bench/multipliers.py         writes bench/results/<device>/multipliers.json; takes a few seconds

Counted for one token and layer, from the shapes of this package's own modules for models/shapes/*.json; no weight is
computed. Counted are the multiplications by gains and scales. The n squares behind 1/RMS are the same in every form
(V needs the scale even where Q and K don't), and so are post-norms, which nothing folds into: both stand by themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mlx.core as mx
from random_model import SHAPES, read_shape, shape_name
from record import results_folder, save_row

from flashnorm_mlx import architectures
from flashnorm_mlx.architectures.base import named_arrays
from flashnorm_mlx.architectures.block import Block
from flashnorm_mlx.layers.attention import Attention
from flashnorm_mlx.layers.mlp import GatedMLP

Sizes = dict[str, int]


def sizes(block: Block) -> Sizes:
    """The lengths of the vectors that gains and scales multiply, in the paper's letters.

    ``n_attention``, ``n_ffn``: of what the two norms in front read (0: no such norm); ``q``, ``k``, ``v``, ``gate``,
    ``up``: rows of the projections behind them; ``h``: of a head; ``out``: of what the FFN adds; ``qk_norm``: of what
    the QK-norms norm; ``post``: of what post-norms do; ``biased``: of q and k, where a bias is added behind the scale.

    Raises:
        TypeError: for a block of other parts than attention and a gated MLP (DeepSeek's latents and experts).
    """
    parts = block.parts
    attention, mlp = parts.attention, parts.mlp
    if not isinstance(attention, Attention) or not isinstance(mlp, GatedMLP):
        raise TypeError(f"{type(attention).__name__} and {type(mlp).__name__} are not in the paper's figures")
    h = attention.head_dim
    q, k = attention.num_heads * h, attention.num_kv_heads * h
    rows = sum(layer["weight"].shape[0] for layer in attention.qkv_layers)
    gate_up = sum(layer["weight"].shape[0] for layer in mlp.gate_up_layers)
    post = [norm["weight"].size for norm in (parts.attention_post_norm, parts.mlp_post_norm) if norm is not None]
    n_attention, n_ffn = (
        norm["weight"].size if "weight" in norm else 0 for norm in (parts.attention_norm, parts.mlp_norm)
    )
    return {
        "n_attention": n_attention,
        "n_ffn": n_ffn,
        "q": q,
        "k": k,
        "v": rows - q - k,
        "gate": gate_up // 2,
        "up": gate_up - gate_up // 2,
        "h": h,
        "out": mlp.down_proj["weight"].shape[0],
        "qk_norm": 0 if attention.qk_norm_eps is None else q + k,
        "post": sum(post),
        "biased": q + k if any("bias" in layer for layer in attention.qkv_layers) else 0,
    }


def ffn_forms(s: Sizes) -> Sizes:
    """Multiplications for the FFN's norm. ``glu``: up's scale at the FFN's output; ``reglu``: both, as 1/RMS²."""
    if not s["n_ffn"]:
        return dict.fromkeys(("stock", "folded", "deferred", "glu", "reglu"), 0)
    return {
        "stock": s["n_ffn"] + s["n_ffn"],  # scale, gain
        "folded": s["n_ffn"],
        "deferred": s["gate"] + s["up"],
        "glu": s["gate"] + s["out"],
        "reglu": s["out"],
    }


def relu_forms(s: Sizes) -> Sizes:
    """The same for an FFN of these widths with ReLU and no gate: ``relu`` scales the FFN's output (§2.1)."""
    return {"stock": 2 * s["n_ffn"], "folded": s["n_ffn"], "deferred": s["up"], "relu": s["out"]}


def attention_forms(s: Sizes) -> Sizes:
    """Multiplications for attention's norm and the QK-norm. ``rope``: fused with cos and sin, h/2 distinct each (§3).

    ``cancelled``: a QK-norm follows, so q and k get its scale only, which stock multiplies with as well (§4.1), and
    its gains go into the tables, 2 for q and 2 for k (§4.2). Where there is none, it is ``rope``. A bias, which the
    scale has to be in front of, forbids both.
    """
    normed = s["qk_norm"]
    if not s["n_attention"]:
        tables = 4 * s["h"] if normed else 0
        return dict.fromkeys(("stock", "folded", "deferred", "rope"), 2 * normed) | {"cancelled": normed + tables}
    deferred = s["q"] + s["k"] + s["v"] + 2 * normed
    rope = deferred if normed or s["biased"] else s["h"] + s["v"]
    return {
        "stock": 2 * s["n_attention"] + 2 * normed,
        "folded": s["n_attention"] + 2 * normed,
        "deferred": deferred,
        "rope": rope,
        "cancelled": s["biased"] + s["v"] + normed + 4 * s["h"] if normed else rope,
    }


def count(s: Sizes) -> dict[str, int]:
    """All forms of one layer; each has what stands before it.

    ``engine``: this package's in plain operations, which leaves §2 out. Its kernels' is ``deferred``, for what they
    multiply in a product's epilogue costs nothing there.
    """
    a, f = attention_forms(s), ffn_forms(s)
    forms = {name: a[name] + f[name] for name in ("stock", "folded", "deferred")}
    forms["glu"] = a["deferred"] + f["glu"]
    forms["rope"] = a["rope"] + f["glu"]
    forms["cancelled"] = a["cancelled"] + f["glu"]
    forms["reglu"] = a["cancelled"] + f["reglu"]
    return forms | {"engine": a["cancelled"] + f["deferred"]}


def measure(shape: str) -> dict[str, Any]:
    """A shape's layers: sizes and forms of each kind that there is, and the mean over all."""
    config = read_shape(shape)
    family = architectures.find(config["model_type"])
    model = family.Model(family.Config.from_dict(config))
    layers = [sizes(block) for block in model.layers]
    counts = [count(s) for s in layers]
    products = sum(a.size for block in model.layers for name, a in named_arrays(block) if a.ndim == 2)
    kinds = {tuple(s.values()): {"sizes": s, "ffn": ffn_forms(s), "attention": attention_forms(s)} for s in layers}
    return {
        "shape": shape_name(shape),
        "model_type": config["model_type"],
        "layers": len(layers),
        "kinds": [kind | {"count": [tuple(s.values()) for s in layers].count(key)} for key, kind in kinds.items()],
        "mean": {name: round(sum(c[name] for c in counts) / len(counts)) for name in counts[0]},
        "post_norms": round(sum(2 * s["post"] for s in layers) / len(layers)),
        "squares": round(sum(s["n_attention"] + s["n_ffn"] + s["qk_norm"] + s["post"] for s in layers) / len(layers)),
        "matrix_products": round(products / len(layers)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=sorted(f.stem for f in SHAPES.glob("*.json")))
    parser.add_argument("--out", type=Path, default=results_folder())
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    for shape in args.shape:
        try:
            row = measure(shape)
        except TypeError as error:
            print(f"{shape}: left out: {error}")
            continue
        print(row["shape"], row["mean"], flush=True)
        save_row(args.out, "multipliers", row, ("shape",))


if __name__ == "__main__":
    main()
