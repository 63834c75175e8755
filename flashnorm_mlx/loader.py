"""A folder or a hub repository, stock or converted, as an mlx-lm model and its tokenizer."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from . import architectures
from .architectures.base import Decoder
from .checkpoint import Checkpoint, open_checkpoint, read_json
from .errors import FlashNormError, first_line
from .kernels.dialect import backend
from .kernels.packed import Failed, Uncovered
from .layers.norm import ARMS
from .paths import check_globless, local
from .plan import MARKED
from .reader import Progress, Reader

#: What of a hub repository is needed; no code.
DOWNLOADED = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja"]

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def load(
    path_or_repo: str | Path,
    *,
    arm: str = "flashnorm",
    dtype: str | mx.Dtype | None = None,
    kernels: str = "auto",
    revision: str | None = None,
    progress: Progress | None = None,
) -> tuple[Decoder, TokenizerWrapper]:
    """Load a model and its tokenizer; gains are folded as the weights come in.

    Args:
        path_or_repo: a folder, or a Hugging Face repository (``org/name``). Stock mlx-lm and Hugging Face
            checkpoints, already quantised ones (their gains are kept and applied, nothing is requantised), and
            converted ones.
        arm: ``flashnorm``; ``baseline``, with explicit norms; or ``none``, without the foldable norms (wrong output,
            the upper bound on speed).
        dtype: ``float32``, ``float16`` or ``bfloat16`` for activations and unquantised weights. None: the file's,
            except on the CPU, where it is float32 (MLX's float16 is slower there, quantised tens of times).
        kernels: ``auto``, for each operation the faster of fused kernel and plain MLX operations, measured once and
            remembered; ``fused``, kernels only, which raises where they are not to be had; ``reference``, plain
            operations only. ``FLASHNORM_KERNELS`` in the environment replaces ``auto``.
        revision: a branch, tag or commit of the repository.
        progress: called with a word, the steps done and the steps in all.

    Raises:
        FlashNormError: if it can't be loaded, or an option is not one of those above.
    """
    path = resolve(path_or_repo, revision)
    model = load_model(path, arm=arm, dtype=dtype, kernels=kernels, progress=progress)
    return model, load_tokenizer(path)


def resolve(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The local folder of a path or a repository; a repository is downloaded, or found in the hub's cache."""
    path = local(path_or_repo)
    if path.exists():
        if revision is not None:
            raise FlashNormError(f"{path}: a folder has no revisions; leave out revision {revision!r}")
        return path
    name = str(path_or_repo)
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or name.endswith("/"):
        raise FlashNormError(f"{name}: no such folder (a hub repository would be written org/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=DOWNLOADED))
    except Exception as error:  # the hub's client raises many kinds, from HTTP, files and validation
        at = f" at revision {revision!r}" if revision else ""
        raise FlashNormError(
            f"{name}: no such folder here, and it could not be had from the hub{at} (check the spelling, and "
            f"the network): {first_line(error)}"
        ) from None


def load_model(
    path: Path,
    *,
    arm: str = "flashnorm",
    dtype: str | mx.Dtype | None = None,
    kernels: str = "auto",
    lazy: bool = False,
    progress: Progress | None = None,
) -> Decoder:
    """The model of a local folder, see :func:`load`. ``lazy``: weights are read when they are first used."""
    kernels = os.environ.get("FLASHNORM_KERNELS") or kernels if kernels == "auto" else kernels
    check_options(arm, kernels)
    checkpoint = open_checkpoint(path)
    model = _with_weights(checkpoint, {"arm": arm, "compute_dtype": compute_dtype(dtype)})
    if lazy:
        model.pack()
    else:
        progress = progress or (lambda word, done, total: None)
        reader = Reader(model, path, progress)
        if kernels == "fused" or (kernels == "auto" and backend() is not None):
            _fuse(model, kernels, reader, progress)
        reader.read(model)
    return model


def _fuse(model: Decoder, kernels: str, reader: Reader, progress: Progress) -> None:
    """Have the model decode by kernels, which are compiled now; ``auto`` goes without where there are none."""

    def read(part: nn.Module) -> None:
        reader.read(part)
        if part is model:
            progress("compiling kernels", 0, 1)

    try:
        model.fuse(measure=kernels == "auto", read=read)
        model.try_prompt()
    except Uncovered as reason:
        if kernels == "fused":
            why = "the kernels fail for" if isinstance(reason, Failed) else "there is no kernel for"
            raise FlashNormError(f"kernels='fused': {why} {reason}; use kernels='auto'") from None
        if isinstance(reason, Failed):
            warnings.warn(f"flashnorm: fused kernels fail, plain operations take their place: {reason}", stacklevel=3)
    if not reader.left:
        progress("compiling kernels", 1, 1)


def check_options(arm: str, kernels: str) -> None:
    """Raise a FlashNormError unless both are known and can be had."""
    if arm not in ARMS:
        raise FlashNormError(f"arm {arm!r} is not known; choose one of {', '.join(ARMS)}")
    if kernels not in ("auto", "reference", "fused"):
        raise FlashNormError(f"kernels {kernels!r} is not known; choose auto, reference or fused")
    if kernels == "fused" and backend() is None:
        raise FlashNormError("kernels='fused': fused kernels need a GPU, Metal or CUDA; use kernels='auto'")


def compute_dtype(dtype: str | mx.Dtype | None) -> mx.Dtype | None:
    """The dtype to compute in, from what was asked for; None: whatever the file has."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise FlashNormError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if dtype is not None and dtype not in DTYPES.values():
        raise FlashNormError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    return mx.float32 if dtype is None and mx.default_device() == mx.cpu else dtype


def configured(checkpoint: Checkpoint, options: dict[str, Any]) -> Decoder:
    """The architecture's model for a checkpoint, with no weights in it yet."""
    config = checkpoint.config
    if config.get("model_file") is not None:
        raise FlashNormError(
            f"{checkpoint.path}: the model brings its own code (model_file), which is never run; try mlx-lm"
        )
    if config.get("tie_word_embeddings") is None:
        options = {"tie_word_embeddings": "lm_head.weight" not in checkpoint.tensors, **options}
    try:
        _check_quantization(config)
        module = architectures.find(config.get("model_type"))
        args = module.Config.from_dict({**config, **options})
        if args.num_hidden_layers > len(checkpoint.tensors):
            raise FlashNormError(
                f"config.json: num_hidden_layers is {args.num_hidden_layers}, and the files hold "
                f"{len(checkpoint.tensors)} tensors in all"
            )
        return module.Model(args)
    except FlashNormError as error:
        raise FlashNormError(f"{checkpoint.path}: {error}") from None


def _check_quantization(config: dict[str, Any]) -> None:
    """Raise for an entry that is none of MLX's, nor one that mlx-lm turns into MLX's for any architecture."""
    entry, foreign = config.get("quantization"), config.get("quantization_config")
    for name, value in (("quantization", entry), ("quantization_config", foreign)):
        if not isinstance(value, dict | None):
            raise FlashNormError(f"config.json: {name} must be an object, not {value!r}")
    if entry is not None:
        for key, allowed in (("bits", (2, 3, 4, 5, 6, 8)), ("group_size", (16, 32, 64, 128))):
            if entry.get(key) not in allowed:
                values = ", ".join(map(str, allowed))
                raise FlashNormError(
                    f"config.json: quantization: {key} must be one of {values}, not {entry.get(key)!r}"
                )
        if entry.get("mode", "affine") not in ("affine", "mxfp4", "mxfp8", "nvfp4"):
            raise FlashNormError(f"config.json: quantization: mode {entry['mode']!r} is not known")
    elif foreign and foreign.get("quant_method") not in ("awq", "gptq"):
        raise FlashNormError(
            f"config.json: quantization by {foreign.get('quant_method')!r} is not supported; use MLX's, awq or gptq"
        )
    if config.get("quantize_activations"):
        raise FlashNormError("config.json: quantize_activations is not supported")


def _with_weights(checkpoint: Checkpoint, options: dict[str, Any]) -> Decoder:
    """The model with lazy weights in place: mlx-lm's loader knows every quantisation format, so it does the work."""
    from mlx_lm.utils import load_model as load_with_mlx_lm

    check_globless(checkpoint.path)
    blank = configured(checkpoint, options)
    check_tensors(checkpoint, blank)

    try:
        model, _ = load_with_mlx_lm(
            checkpoint.path,
            lazy=True,
            model_config={**options, "tie_word_embeddings": blank.args.tie_word_embeddings},
            get_model_classes=lambda config: (type(blank), type(blank.args)),
        )
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FlashNormError(f"{checkpoint.path}: {' '.join(lines[:2])}") from None
    return model


def check_tensors(checkpoint: Checkpoint, model: Decoder) -> None:
    """Raise a FlashNormError for a tensor that is missing, left over, or of the wrong shape."""
    have = model.headers(checkpoint.tensors)
    if any(name.endswith(".qweight") for name in have):
        return  # awq or gptq, which mlx-lm's loader turns into MLX's format
    want = model.stored_shapes(have)
    quantised = {name.removesuffix(".scales") for name in have if name.endswith(".scales")}
    extra_of_quantised = {f"{q}.{part}" for q in quantised for part in ("scales", "biases", "global_scale")}
    gains = {f"{step.norm}.weight" for step in model.plan(have).steps if step.kept == MARKED}
    missing = sorted(want.keys() - have.keys() - gains)
    extra = sorted(have.keys() - want.keys() - extra_of_quantised)
    for kind, names in (("missing from", missing), ("not part of the model but in", extra)):
        if names:
            more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
            raise FlashNormError(
                f"{checkpoint.path}: tensor {names[0]}{more} {kind} the files; is config.json this model's?"
            )
    for name, shape in want.items():
        if name not in have:
            continue
        got, dtype = have[name].shape, have[name].dtype
        packed = name.removesuffix(".weight") in quantised
        if dtype not in (("U32",) if packed else ("F16", "BF16", "F32")):
            raise FlashNormError(
                f"{have[name].file}: tensor {name} is of dtype {dtype}, a quantisation that config.json does not name"
            )
        if (got[:-1], len(got)) != (shape[:-1], len(shape)) if packed else got != shape:
            raise FlashNormError(
                f"{have[name].file}: tensor {name} has shape {list(got)}, config.json asks for {list(shape)}"
            )


def load_tokenizer(path: Path) -> TokenizerWrapper:
    """The folder's tokenizer; it stops at any end token that config, generation config or tokenizer names."""
    from mlx_lm.utils import load_tokenizer as load_with_mlx_lm

    try:
        tokenizer = load_with_mlx_lm(path, {})
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if not has_tokenizer(path):
            reason = "there is no tokenizer.json or tokenizer.model; copy the original model's there"
        raise FlashNormError(f"{path}: the tokenizer can't be loaded: {reason}") from None
    tokenizer.eos_token_ids = stop_tokens(path) | {i for i in (tokenizer.eos_token_id,) if i is not None}
    return tokenizer


def has_tokenizer(path: Path) -> bool:
    """Whether a folder has any of a tokenizer's files."""
    return any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))


def stop_tokens(path: Path) -> set[int]:
    """The union of ``eos_token_id`` in config.json and generation_config.json, each an id or a list of ids."""
    ids: set[int] = set()
    for file in (path / "config.json", path / "generation_config.json"):
        if file.exists():
            value = read_json(file).get("eos_token_id")
            ids |= {i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)}
    return ids
