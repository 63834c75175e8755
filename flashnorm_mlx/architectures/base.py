"""The decoder around a family's blocks: embeddings, blocks, final norm and head, as an mlx-lm model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import cache as stock
from mlx_lm.models.base import create_attention_mask

from .. import fold
from ..cache import KVCache
from ..layers import rope
from ..layers.attention import Attention
from ..layers.fused import FusedBlock
from ..layers.mlp import GatedMLP
from ..layers.norm import ARMS, settled
from ..layers.prompt import MANY, PromptBlock, whole
from ..plan import MARKED, Fold, Plan, make_plan
from .config import Config
from .decode import DecodeStep

Norm = Callable[[], nn.Module]


class Block(nn.Module):
    """A pre-norm decoder block in its five operations."""

    def __init__(self, attention: Attention, mlp: GatedMLP, norm: Norm) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()

    def __call__(self, h: mx.array, positions: rope.Positions, mask: Any = None, cache: Any = None) -> mx.array:
        qkv = self.self_attn.qkv(self.input_layernorm, h, positions)
        a = self.self_attn.attend(qkv, mask, cache)
        h = self.self_attn.project_add(a, h)
        f = self.mlp.gate_up(self.post_attention_layernorm, h)
        return self.mlp.project_add(f, h)

    def fused(self, dtype: mx.Dtype) -> FusedBlock:
        """The same block by kernels, for activations of ``dtype``; shares the weights."""
        return FusedBlock(self.self_attn, self.mlp, self.input_layernorm, self.post_attention_layernorm, dtype)

    def prompt(self, dtype: mx.Dtype, *, measure: bool) -> PromptBlock:
        """The same block for many tokens, once it is fused."""
        norms = self.input_layernorm, self.post_attention_layernorm
        return PromptBlock(self.self_attn, self.mlp, *norms, dtype, measure=measure)


class Stack(nn.Module):
    """Embeddings, blocks and final norm, under the names that checkpoints use."""

    def __init__(self, vocab_size: int, hidden_size: int, layers: list[nn.Module], norm: Norm) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.layers = layers
        self.norm = norm()


class Decoder(nn.Module):
    """A causal language model with mlx-lm's interface: ``model(ids [B, L], cache) -> logits [B, L, V]``.

    A family's Model builds its blocks in :meth:`block` and declares its norms in ``FOLDS``.
    """

    FOLDS: ClassVar[tuple[Fold, ...]]

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        blocks = [self.block(i) for i in range(args.num_hidden_layers)]
        self.model = Stack(args.vocab_size, args.hidden_size, blocks, self.norm)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)
        self._step: DecodeStep | None = None
        self._inv_freq = mx.array(
            rope.inverse_frequencies(args.head_size, args.rope_theta, args.rope_scaling), mx.float32
        )

    def norm(self) -> nn.Module:
        """A foldable norm over the hidden size, in the arm that was asked for."""
        return ARMS[self.args.arm](self.args.hidden_size, self.args.rms_norm_eps)

    def block(self, index: int) -> nn.Module:
        raise NotImplementedError

    def __call__(
        self, inputs: mx.array, cache: list | None = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        if self._step is not None and input_embeddings is None:
            if inputs.size > 1 and self._step.is_stale():
                self._step = None
            elif cache and self._step.takes(inputs, cache):
                return self._step(inputs, cache)
        h = self.embed(inputs) if input_embeddings is None else input_embeddings
        cache = cache or [None] * len(self.layers)
        context = self.context(h, cache)
        layers = self.layers
        if self._step is not None and h.shape[0] * h.shape[1] >= MANY:
            layers = self._step.prompt_blocks
        for i, (layer, c) in enumerate(zip(layers, cache, strict=True)):
            h = self.step(i, layer, h, context, c)
        return self.head(whole(h))

    def embed(self, ids: mx.array) -> mx.array:
        """``[B, L] -> [B, L, hidden]``, in the compute dtype: a table in an fp4 or fp8 format yields bfloat16."""
        h = self.model.embed_tokens(ids)
        return h.astype(self.args.compute_dtype) if self.args.compute_dtype else h

    def context(self, h: mx.array, cache: list) -> Any:
        """What all blocks of one pass share: the new positions, and the attention mask."""
        offset = 0 if cache[0] is None else cache[0].offset
        return rope.Positions(self._inv_freq, offset, h.shape[1]), create_attention_mask(h, cache[0])

    def step(self, index: int, layer: nn.Module, h: mx.array, context: Any, cache: Any) -> mx.array:
        """One block of a pass."""
        positions, mask = context
        return layer(h, positions, mask, cache)

    def head(self, h: mx.array) -> mx.array:
        """The final norm and the output projection, tied or not: ``[B, L, hidden] -> [B, L, vocab]``."""
        layer = self.model.embed_tokens if self.args.tie_word_embeddings else self.lm_head
        return settled(*self.model.norm(h, layer))

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers

    def make_cache(self) -> list:
        kind = stock.KVCache if self._step is None else KVCache
        return [kind() for _ in self.layers]

    def fuse(self, *, measure: bool = False) -> None:
        """From now on decode by fused kernels. Weights move into the buffers that they read.

        Args:
            measure: use plain operations where they prove faster than a kernel.

        Raises:
            Uncovered: if there is no kernel for one of the layers.
            Failed: if there is one, and it fails on this device.
        """
        self._step = DecodeStep(self, self.embed(mx.array([[0]])).dtype, measure=measure)

    @property
    def kernels(self) -> str:
        """``fused`` or ``reference``: how this model decodes."""
        return "reference" if self._step is None else "fused"

    def plan(self, names: Any) -> Plan:
        """What becomes of each norm of a checkpoint that holds the tensors ``names``."""
        return make_plan(self.FOLDS, self.args.num_hidden_layers, names, marked=self.args.marked)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """A stock checkpoint's tensors as this model wants them: cast, and folded unless the arm is ``baseline``.

        mlx-lm calls this on every load. Lazy in, lazy out.
        """
        weights = {k: v for k, v in weights.items() if not self.is_unused(k)}
        plan = self.plan(weights)
        for step in plan.steps:
            if step.kept == MARKED:  # published "strict" checkpoints have dropped the norms
                weights.setdefault(f"{step.norm}.weight", mx.ones(self.args.hidden_size))
        if self.args.arm != "baseline":
            for consumer, step in plan.gain_of.items():
                name, gain = f"{consumer}.weight", weights[f"{step.norm}.weight"]
                dtype = self.args.compute_dtype or weights[name].dtype
                weights[name] = fold.fold_gain(weights[name], gain, plus_one=step.fold.plus_one, dtype=dtype)
            for step in set(plan.gain_of.values()):
                name = f"{step.norm}.weight"
                weights[name] = fold.identity_gain(weights[name], plus_one=step.fold.plus_one)
        return {k: self._cast(v) for k, v in weights.items()}

    def is_unused(self, name: str) -> bool:
        """Whether a tensor of a stock checkpoint has no place in the model."""
        return "rotary_emb.inv_freq" in name or (self.args.tie_word_embeddings and name.startswith("lm_head."))

    def pack(self) -> None:
        """Lay the weights out for decoding, once they are in place. Values don't change."""
        for _, module in self.named_modules():
            if module is not self and hasattr(module, "pack"):
                module.pack()

    def _cast(self, value: mx.array) -> mx.array:
        floating = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(self.args.compute_dtype) if floating and self.args.compute_dtype else value


def named_arrays(module: nn.Module) -> list[tuple[str, mx.array]]:
    """A module's parameters with their names, in order."""
    return list(tree_flatten(module.parameters()))  # type: ignore[arg-type]


def attention_and_mlp(
    args: Config, *, qkv_bias: bool = False, o_bias: bool = False, mlp_bias: bool = False, qk_norm: bool = False
) -> tuple[Attention, GatedMLP]:
    """A block's two halves, of the sizes that the config gives."""
    attention = Attention(
        args.hidden_size,
        args.num_attention_heads,
        args.kv_heads,
        args.head_size,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm_eps=args.rms_norm_eps if qk_norm else None,
    )
    return attention, GatedMLP(args.hidden_size, args.intermediate_size, bias=mlp_bias)
