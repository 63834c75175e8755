"""The demo model's tokenizer: SentencePiece BPE with byte fallback, and the fast tokenizer made from it.

Ids: 0 unknown, 1 <s>, 2 </s>, 3 padding, 4 to 7 the chat's control tokens, then 256 bytes, then pieces. No space is put
before a text and none is removed, so that encoding and decoding give back the same characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import sentencepiece as spm

SIZE = 2048
UNKNOWN, BOS, EOS, PAD = range(4)
CONTROLS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ROLE_IDS = {"system": 4, "user": 5, "assistant": 6}
END = 7
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", *CONTROLS)
SPACE = "\u2581"  # how SentencePiece writes a space

CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('unknown role ' + message['role']) -}}
    {%- endif -%}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""


def train(texts: Iterable[str], path: Path) -> None:
    """Train the SentencePiece model on the texts and write it to `path`. Every printable ASCII character gets a piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spm.SentencePieceTrainer.train(
        sentence_iterator=chain(texts, ["".join(map(chr, range(33, 127)))]), model_prefix=str(path.with_suffix("")), vocab_size=SIZE, model_type="bpe",
        byte_fallback=True, split_digits=True, character_coverage=1.0, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, unk_id=UNKNOWN, bos_id=BOS, eos_id=EOS, pad_id=PAD,
        control_symbols=list(CONTROLS), num_threads=1, minloglevel=2,
    )
    path.with_suffix(".vocab").unlink(missing_ok=True)


def load(path: Path) -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_file=str(path))


def merges(pieces: list[str], first: int) -> list[tuple[str, str]]:
    """BPE's merge list, in order of rank: each piece from `first` on, split at every place where both parts are pieces."""
    known = {piece: rank for rank, piece in enumerate(pieces)}
    found = []
    for piece in pieces[first:]:
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        found += [cut for cut in cuts if cut[0] in known and cut[1] in known]
    return found


def write_fast(model: Path, target: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja for the SentencePiece model into `target`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    processor = load(model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    first = len(SPECIALS) + 256
    fast = Tokenizer(models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges(pieces, first), unk_token="<unk>", fuse_unk=True,
        byte_fallback=True,
    ))
    fast.normalizer = normalizers.Replace(" ", SPACE)
    fast.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)])
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    fast.save(str(target / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "additional_special_tokens": list(CONTROLS), "clean_up_tokenization_spaces": False,
        "model_max_length": 1024, "add_bos_token": True, "add_eos_token": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (target / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
