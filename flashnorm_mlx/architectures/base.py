"""The decoder around a family's blocks: embeddings, blocks, final norm and head, as an mlx-lm model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import cache as stock
from mlx_lm.models.base import create_attention_mask

from .. import fold
from ..cache import KVCache
from ..checkpoint import Tensor
from ..engine.ahead import MadeAhead
from ..engine.under_way import UnderWay
from ..layers.norm import ARMS, PostNorm, settled
from ..layers.prompt import whole
from ..layers.rope import Positions, Rotation, rotation
from ..plan import MARKED, Fold, Plan, Stored, make_plan
from ..rotating import RotatingKVCache
from .config import Config


class Stack(nn.Module):
    """Embeddings, blocks and final norm, under the names that a checkpoint uses."""

    def __init__(
        self, vocab_size: int, hidden_size: int, layers: list[nn.Module], norm: nn.Module, embedding: str
    ) -> None:
        super().__init__()
        self[embedding] = nn.Embedding(vocab_size, hidden_size)
        self.layers = layers
        self.norm = norm


class Decoder(MadeAhead):
    """A causal language model with mlx-lm's interface: ``model(ids [B, L], cache) -> logits [B, L, V]``.

    A family's Model builds its blocks in :meth:`block` and declares its norms in ``FOLDS``; where they depend on the
    config, in :attr:`folds`.
    """

    FOLDS: ClassVar[tuple[Fold, ...]]
    #: What a checkpoint calls the stack, and the embedding table in it.
    STACK: ClassVar[str] = "model"
    EMBEDDING: ClassVar[str] = "embed_tokens"

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        blocks = [self.block(i) for i in range(args.num_hidden_layers)]
        self[self.STACK] = Stack(args.vocab_size, args.hidden_size, blocks, self.norm(), self.EMBEDDING)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def norm(self) -> nn.Module:
        """A foldable norm over the hidden size, in the arm that was asked for."""
        return ARMS[self.args.arm](self.args.hidden_size, self.args.rms_norm_eps)

    def post_norm(self) -> PostNorm:
        return PostNorm(self.args.hidden_size, self.args.rms_norm_eps)

    def rotation(self, index: int) -> Rotation:
        """A layer's RoPE; layers whose RoPE is the same share one."""
        return rotation(self.args.head_size, *self.args.rope(index))

    def block(self, index: int) -> nn.Module:
        raise NotImplementedError

    def __call__(
        self, inputs: mx.array, cache: list | None = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        given = inputs if input_embeddings is None else input_embeddings
        if cache and (given.shape[1] > 1 or is_empty(cache[0])):
            self.renew()  # not between the steps of a sequence, of which it would take a part
        if input_embeddings is None and (logits := self.stepped(inputs, cache)) is not None:
            return logits
        caches = self.caches(cache)
        h = self.opened(inputs, input_embeddings, caches)
        context, layer_inputs = self.context(h, caches), self.layer_inputs(inputs, h)
        blocks = self.blocks(h.shape) if cache else self.layers
        under_way = UnderWay(h, caches) if cache and h.shape[1] > 1 else None
        for block, c, own in zip(blocks, caches, layer_inputs, strict=True):
            if under_way is not None and c is not None:  # behind the last cache only logits depend on it
                under_way.add(h)
            h = block(h, *context[block.kind], c, *own)
        return self.head(whole(h))

    def trial_pass(self, ids: mx.array) -> mx.array:
        """A prompt's pass without most of its blocks: all that is compiled for it, and little of its memory.

        Of blocks that are alike the first two: one may be given a residual, the next a sum that is still to be made.
        """
        caches, seen = self.caches(self.make_cache()), Counter[int]()
        h = self.opened(ids, None, caches)
        context, layer_inputs = self.context(h, caches), self.layer_inputs(ids, h)
        for block, c, own in zip(self.blocks(h.shape), caches, layer_inputs, strict=True):
            alike = id(getattr(block, "form", block))
            seen[alike] += 1
            if seen[alike] <= 2:
                h = block(h, *context[block.kind], c, *own)
        return self.head(whole(h))

    def caches(self, cache: list | None) -> list:
        """An entry for each layer."""
        return cache or [None] * len(self.layers)

    def opened(self, ids: mx.array, embeddings: mx.array | None, caches: list) -> mx.array:
        """The residual in front of the first block."""
        return self.embed(ids) if embeddings is None else self.scaled(embeddings)

    def embed(self, ids: mx.array) -> mx.array:
        """``[B, L] -> [B, L, hidden]``, in the compute dtype: a table in an fp4 or fp8 format yields bfloat16."""
        h = self.embedding(ids)
        return self.scaled(h.astype(self.args.compute_dtype) if self.args.compute_dtype else h)

    def scaled(self, h: mx.array) -> mx.array:
        """Embeddings times the factor that the family has for them, rounded to their dtype."""
        factor = self.args.embedding_factor
        return h if factor == 1.0 else h * mx.array(factor, h.dtype)

    def context(self, h: mx.array, cache: list) -> Any:
        """What all blocks of one kind share in a pass: the new positions, and the attention mask."""
        shared: dict[Any, tuple[Positions, Any]] = {}
        for layer, c in zip(self.layers, cache, strict=True):
            window, rotation = kind = layer.kind
            if kind not in shared:
                offset = 0 if c is None else c.offset
                if isinstance(offset, mx.array):  # a batched cache may add to its own in place
                    offset = mx.array(offset)
                positions = self.positions(rotation, offset, h.shape[1])
                as_array = layer.needs_mask_array
                shared[kind] = positions, create_attention_mask(h, c, window_size=window, return_array=as_array)
        return shared

    def head(self, h: mx.array) -> mx.array:
        """The final norm and the output projection, tied or not: ``[B, L, hidden] -> [B, L, vocab]``."""
        logits = settled(*self.stack.norm(h, self.output))
        cap = self.args.logit_cap
        return logits if cap is None else mx.tanh(logits / cap) * cap

    @property
    def stack(self) -> Stack:
        return self[self.STACK]

    @property
    def embedding(self) -> nn.Module:
        layer: nn.Module = getattr(self.stack, self.EMBEDDING)
        return layer

    @property
    def tables(self) -> tuple[nn.Module, ...]:
        """Whose rows are added up in front of the blocks: the tokens' and, if there is another, the positions'."""
        return (self.embedding,)

    @property
    def looked_up(self) -> set[str]:
        """The tables of which a token reads a row, by name; one that is the head, too, is read whole."""
        return {path for path, m in self.named_modules() if isinstance(m, nn.Embedding) and m is not self.output}

    def layer_inputs(self, ids: mx.array | None, h: mx.array) -> list[tuple[mx.array, ...]]:
        """What each layer has as its own input, ``[batch, length, dims]``; ``h``: the embeddings."""
        return [()] * len(self.layers)

    @property
    def output(self) -> nn.Module:
        """The head's layer: of its own, or the embedding table."""
        layer: nn.Module = self.embedding if self.args.tie_word_embeddings else self.lm_head
        return layer

    @property
    def layers(self) -> list[nn.Module]:
        return self.stack.layers

    def make_cache(self) -> list:
        """One for each layer, which holds no more than the layer sees."""
        full, rotating = (stock.KVCache, stock.RotatingKVCache) if self._step is None else (KVCache, RotatingKVCache)
        windows = [layer.kind[0] for layer in self.layers]
        return [full() if window is None else rotating(window) for window in windows]

    @property
    def folds(self) -> tuple[Fold, ...]:
        """The norms of this config's model."""
        return self.FOLDS

    def plan(self, names: Any) -> Plan:
        """What becomes of each norm of a checkpoint that holds the tensors ``names``."""
        stored_as = partial(self.stored_as, names=names)
        return make_plan(self.folds, self.args.num_hidden_layers, names, marked=self.args.marked, stored_as=stored_as)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """A stock checkpoint's tensors as this model wants them: cast, and folded unless the arm is ``baseline``.

        mlx-lm calls this on every load. Lazy in, lazy out.
        """
        weights = {k: v for k, v in weights.items() if not self.is_unused(k)}
        plan = self.plan(weights)
        for step in plan.steps:
            if step.kept == MARKED:  # published "strict" checkpoints have dropped the norms
                identity = fold.identity_gain(mx.ones(self.size_of(step.norm)), plus_one=step.fold.plus_one)
                weights.setdefault(f"{step.norm}.weight", identity)
        if self.args.arm != "baseline":
            for consumer, step in plan.gain_of.items():
                name, gain = f"{consumer}.weight", weights[f"{step.norm}.weight"]
                dtype, plus_one = self.args.compute_dtype or weights[name].dtype, step.fold.plus_one
                weights[name] = fold.fold_gain(
                    weights[name], gain, plus_one=plus_one, axis=step.axis(consumer), dtype=dtype
                )
            for step in set(plan.gain_of.values()):
                name = f"{step.norm}.weight"
                weights[name] = fold.identity_gain(weights[name], plus_one=step.fold.plus_one)
        for name in [f"{step.norm}.weight" for step in plan.steps if step.fold.plus_one]:
            weights[name] = fold.effective_gain(weights[name], plus_one=True).astype(weights[name].dtype)
        return {k: v if self.is_exact(k) else self._cast(v) for k, v in weights.items()}

    def size_of(self, norm: str) -> int:
        """How many entries the gain of a norm has."""
        return dict(named_arrays(self))[f"{norm}.weight"].size

    def is_exact(self, name: str) -> bool:
        """Whether a tensor keeps the dtype that it is stored in."""
        return False

    def stored_as(self, module: str, names: Container[str]) -> tuple[str, ...]:
        """What a checkpoint of the tensors ``names`` calls one of this model's modules, if not by its own name."""
        return (module,)

    def stored_shapes(self, names: Container[str]) -> dict[str, tuple[int, ...]]:
        """The tensors that a checkpoint must have, under the names and in the shapes that it has them."""
        return {name: tuple(a.shape) for name, a in named_arrays(self)}

    def arranged(self, name: str, value: mx.array) -> dict[str, mx.array]:
        """The tensors that a converted checkpoint has for one of its source's, before they are quantised."""
        return {name: value}

    def read_share(self, name: str) -> float:
        """The share of a stored tensor that one decoded token reads."""
        return 1.0

    def stored(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
        """Where a checkpoint of these names and shapes has each of the model's tensors."""
        return {name: Stored(name) for name in shapes if not self.is_unused(name)}

    def headers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same, as the tensors' headers, in the model's own names and layout."""
        stored = self.stored({name: t.shape for name, t in tensors.items()})
        transposed = {name: replace(t, shape=t.shape[::-1]) for name, t in tensors.items()}
        return {name: (transposed if s.transposed else tensors)[s.name] for name, s in stored.items()}

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


def is_empty(cache: Any) -> bool:
    """Whether a sequence begins; of a batch it isn't asked, for its offsets lie on the device."""
    offset = getattr(cache, "offset", None)
    return isinstance(offset, int) and offset == 0


def named_arrays(module: nn.Module) -> list[tuple[str, mx.array]]:
    """A module's parameters with their names, in order."""
    return list(tree_flatten(module.parameters()))  # type: ignore[arg-type]
