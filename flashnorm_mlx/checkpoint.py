"""Checkpoints on disk: a folder with config.json and safetensors, checked before anything is read from it."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .errors import FlashNormError
from .paths import check_plain, local

#: Bytes an element of each safetensors dtype takes, and MLX's name of it (None: MLX has no such type).
DTYPES: dict[str, tuple[int, mx.Dtype | None]] = {
    "BOOL": (1, mx.bool_),
    "U8": (1, mx.uint8),
    "I8": (1, mx.int8),
    "U16": (2, mx.uint16),
    "I16": (2, mx.int16),
    "F16": (2, mx.float16),
    "BF16": (2, mx.bfloat16),
    "U32": (4, mx.uint32),
    "I32": (4, mx.int32),
    "F32": (4, mx.float32),
    "U64": (8, mx.uint64),
    "I64": (8, mx.int64),
    "F64": (8, None),
    "F8_E4M3": (1, mx.uint8),  # mlx-lm reads packed float8 formats as bytes
    "F8_E5M2": (1, None),
    "F8_E8M0": (1, mx.uint8),
}

#: What a folder may hold instead of safetensors, and what to say then.
_FOREIGN = {
    ".bin": "pickle files only, which can run code; get the safetensors version of this model",
    ".pt": "pickle files only, which can run code; get the safetensors version of this model",
    ".pth": "pickle files only, which can run code; get the safetensors version of this model",
    ".gguf": "a GGUF file, which is llama.cpp's format; get the safetensors version of this model",
    ".npz": "an .npz file of an old MLX version; convert the original model again",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as its file's header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][0]


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose config and headers were read and found sound; no tensor was."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    def arrays(self) -> dict[str, mx.array]:
        """Every tensor, lazily: an array is read from disk when it is evaluated."""
        out: dict[str, mx.array] = {}
        for file in sorted({t.file for t in self.tensors.values()}):
            try:
                out.update(mx.load(str(file)))  # type: ignore[arg-type]
            except RuntimeError as error:
                raise FlashNormError(f"{file}: {error}") from None
        return out


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check the config and every safetensors header of a folder.

    Raises:
        FlashNormError: for a missing or broken file, naming it and the remedy.
    """
    path = local(path)
    if not path.is_dir():
        raise FlashNormError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
    config = read_json(path / "config.json")
    if (generation := path / "generation_config.json").exists():
        read_json(generation)
    files = sorted(path.glob("model*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        named = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
        present = {file.name for file in files}
        if missing := sorted(named - present):
            raise FlashNormError(
                f"{path}: {len(missing)} of {len(named)} shards are missing, first {missing[0]}; download it again"
            )
    if not files:
        raise FlashNormError(f"{path}: {_why_no_weights(path)}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = read_header(file)
        if twice := sorted(tensors.keys() & found.keys()):
            raise FlashNormError(
                f"{path}: {tensors[twice[0]].file.name} and {file.name} both hold {twice[0]}; remove one"
            )
        tensors.update(found)
    return Checkpoint(path, config, tensors)


def _why_no_weights(path: Path) -> str:
    suffixes = {f.suffix for f in path.iterdir()}
    for suffix, what in _FOREIGN.items():
        if suffix in suffixes:
            return what
    if ".safetensors" in suffixes:
        return "no model*.safetensors, only safetensors of other names; rename the model's weights"
    return "no model*.safetensors; this is not a model's folder, or its download did not finish"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or a FlashNormError that names the file and the place."""
    check_plain(file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlashNormError(f"{file.parent}: no {file.name}; this is not a model's folder") from None
    except OSError as error:
        raise FlashNormError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise FlashNormError(f"{file}: not JSON ({error}); download the file again") from None
    if not isinstance(value, dict):
        raise FlashNormError(f"{file}: a JSON {type(value).__name__}, not an object; download the file again")
    return value


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file holds, from its header, which must agree with the file's size.

    Raises:
        FlashNormError: for a truncated file or a header that lies about sizes, shapes or dtypes.
    """

    def bad(what: str) -> FlashNormError:
        return FlashNormError(f"{file}: {what}; download the file again")

    check_plain(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            start = f.read(8)
            if len(start) < 8:
                raise bad(f"{size} bytes, too short for a safetensors file")
            length = struct.unpack("<Q", start)[0]
            if length > size - 8:
                raise bad(f"truncated, or no safetensors file: a header of {length} bytes in a file of {size}")
            header = json.loads(f.read(length))
    except OSError as error:
        raise FlashNormError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise bad("its header is not JSON") from None
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if dtype not in DTYPES or DTYPES[dtype][1] is None:
                raise bad(f"tensor {name} has dtype {dtype}, which MLX does not know")
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise bad(f"its header describes tensor {name} wrongly") from None
        tensors[name] = Tensor(file, dtype, shape)
        spans.append((begin, end, name))
        if end - begin != tensors[name].nbytes:
            raise bad(f"tensor {name} of shape {list(shape)} {dtype} can't take {end - begin} bytes")
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise bad(f"tensor {name} does not start where the one before it ends")
        position = end
    if 8 + length + position != size:
        raise bad(f"truncated or padded: {size} bytes, its header says {8 + length + position}")
    return tensors


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` when the block ends well, and else disappears."""
    if target.exists() or target.is_symlink():
        raise FlashNormError(f"{target}: exists already; choose another name or remove it first")
    parent = target.absolute().parent
    if not parent.is_dir():
        raise FlashNormError(f"{parent}: no such folder; create it first")
    try:
        work = Path(tempfile.mkdtemp(prefix=".flashnorm-", suffix=".partial", dir=parent))
    except OSError as error:
        raise FlashNormError(f"{parent}: {error.strerror}; choose another target") from None
    try:
        yield work
        work.chmod(0o777 & ~_umask())
        work.rename(target)
    except OSError as error:
        raise FlashNormError(f"{target}: {error.strerror or error}; nothing was written") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@dataclass(frozen=True)
class Part:
    """Tensors that are made together: their sizes in bytes, and how to make them."""

    sizes: Mapping[str, int]
    make: Callable[[], dict[str, mx.array]]

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())


def write_shards(
    folder: Path,
    parts: Iterable[Part],
    *,
    shard_bytes: int = 1 << 30,
    done: Callable[[int], None] = lambda parts: None,
) -> None:
    """Write tensors as safetensors shards and an index, in mlx-lm's layout.

    Parts are made one at a time; what they made is held until its shard, of about ``shard_bytes``, is written.
    ``done`` is called with the number of parts made so far.

    Raises:
        FlashNormError: if the disk hasn't the room.
    """
    shards: list[list[Part]] = [[]]
    for part in parts:
        if shards[-1] and sum(p.nbytes for p in shards[-1]) + part.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(part)
    need, free = sum(p.nbytes for shard in shards for p in shard), shutil.disk_usage(folder).free
    if need > free:
        raise FlashNormError(f"{folder.parent}: {need / 1e6:.1f} MB are needed, and {free / 1e6:.1f} MB are free")
    weight_map: dict[str, str] = {}
    made = 0
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        arrays: dict[str, mx.array] = {}
        for part in shard:
            arrays.update(part.make())
            mx.eval(arrays)
            made += 1
            done(made)
        weight_map |= dict.fromkeys(arrays, file)
        try:
            mx.save_safetensors(str(folder / file), arrays, metadata={"format": "mlx"})
        except RuntimeError as error:
            raise FlashNormError(f"{folder / file}: {error}; is the disk full?") from None
        del arrays
        mx.clear_cache()
    index = {"metadata": {"total_size": need}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=4) + "\n", encoding="utf-8")
