"""A folder of safetensors: headers, tensors, and the digest of the content. Never pickle."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

import torch

from merging.digest import json_digest
from merging.errors import SourceError
from merging.not_weights import no_weights, not_a_folder
from merging.regular_file import check_not_sparse, is_there, open_file, read_file
from merging.wording import malformed

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the element types that can be read."""

Progress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all."""

CHUNK = 1 << 22  # bytes hashed at a time
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
WRAPPERS = ("module.", "_orig_mod.")
MAX_DIMS = 16  # dimensions of a tensor
MAX_NUMBER = 1 << 60  # of bytes, and of elements counted as if no dimension were empty


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `num_bytes` bytes of `path` from `offset` on.

    `dtype` is safetensors' name of the element type, such as "BF16".
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one safetensors file says of itself: tensors by name, and free-form metadata."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files with the folder's weights: those that transformers loads, else all.

    Raises SourceError if there are none, or if the index names a shard that is missing.
    """
    if not folder.is_dir():
        raise SourceError(not_a_folder(folder))
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if _is_there(single):
        return (single,)
    if _is_there(index):
        return _shards(index)
    files = tuple(sorted(path for path in folder.glob("*.safetensors") if _is_there(path)))
    if not files:
        raise SourceError(no_weights(folder))
    return files


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(read_file(index))["weight_map"].values()))
        # A shard is a file of this folder: an index must not reach out of it.
        shards = tuple(index.parent / Path(name).name for name in names)
    except OSError as error:
        raise SourceError(f"{index} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{index} is not an index of safetensors: {malformed(error)}") from error
    missing = [path.name for path in shards if not _is_there(path)]
    if missing:
        raise SourceError(f"{index} names shards that are missing: {', '.join(missing)}")
    return shards


def _is_there(path: Path) -> bool:
    try:
        return is_there(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def read_header(path: Path) -> Header:
    """Read the header of one safetensors file, and no tensor data.

    Raises SourceError, with the file and the sizes, if it is truncated or is not safetensors.
    """
    with _opened(path) as file:
        return _parse_header(file, path)


def tensor_entries(folder: Path) -> Mapping[str, TensorEntry]:
    """Every tensor of the folder by name, sorted, from the headers alone. What DataParallel or
    torch.compile put before all names is left out.

    Raises SourceError if a file cannot be read, or if two files hold a tensor of the same name.
    """
    found: dict[str, TensorEntry] = {}
    for path in weight_files(folder):
        for name, entry in read_header(path).entries.items():
            if name in found:
                raise SourceError(f"tensor {name} is both in {found[name].path} and in {path}")
            found[name] = entry
    wrapper = wrapper_of(found)
    bare = {name.removeprefix(wrapper): entry for name, entry in found.items()}
    return {n: replace(entry, name=n) if wrapper else entry for n, entry in sorted(bare.items())}


def wrapper_of(names: Iterable[str]) -> str:
    """What a wrapper of the model put before all names of tensors; empty if there was none."""
    wrapper, left = "", list(names)
    while left and (
        own := next((w for w in WRAPPERS if all(name.startswith(w) for name in left)), "")
    ):
        wrapper, left = wrapper + own, [name.removeprefix(own) for name in left]
    return wrapper


def read_tensors(path: Path) -> tuple[Header, Mapping[str, torch.Tensor]]:
    """Copy a whole file into memory, through one handle: replacing the file cannot mix two."""
    with _opened(path) as file:
        header = _parse_header(file, path)
        return header, {name: _read(file, entry) for name, entry in header.entries.items()}


def checkpoint_digest(folder: Path, progress: Progress | None = None) -> str:
    """Digest of the content of all tensors of a folder: "sha256:" and 64 hex digits.

    It is the SHA-256 of the canonical JSON of the sorted list of [name, dtype, shape, SHA-256 of
    the raw bytes]: sharding, file names and metadata do not matter. Tensors are streamed, so memory
    use does not grow with the model. Raises SourceError as `tensor_entries` does.
    """
    entries = tensor_entries(folder)
    total, done = sum(entry.num_bytes for entry in entries.values()), 0
    rows = []
    for entry in entries.values():
        content = hashlib.sha256()
        for chunk in _chunks(entry):
            content.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        rows.append([entry.name, entry.dtype, list(entry.shape), content.hexdigest()])
    return json_digest(rows)


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with open_file(path) as file:
            check_not_sparse(file)
            yield file
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _parse_header(file: BufferedReader, path: Path) -> Header:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER):
        raise SourceError(
            f"{path} is truncated or not safetensors: it has {size} bytes, "
            f"and its first eight announce a header of {length}"
        )
    start = 8 + length
    try:
        header = json.loads(file.read(length))
        metadata = {
            str(key): _text(str(value))
            for key, value in (header.pop("__metadata__", None) or {}).items()
        }
        entries = {name: _entry(name, value, path, start) for name, value in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = malformed(error)
        raise SourceError(f"{path} is not safetensors, by its header: {told}") from error
    _check_layout(entries, path, start, size)
    return Header(entries, metadata)


def _entry(name: str, value: Mapping[str, object], path: Path, start: int) -> TensorEntry:
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise ValueError(f"tensor {name!r} is described by {value!r}")
    if not all(type(n) is int and 0 <= n <= MAX_NUMBER for n in (*shape, *offsets)):
        raise ValueError(f"tensor {name!r} has shape {shape} and data_offsets {offsets}")
    if len(shape) > MAX_DIMS or math.prod(n or 1 for n in shape) > MAX_NUMBER:
        raise ValueError(f"tensor {name!r} is too large: {shape}")
    begin, end = offsets
    return TensorEntry(_text(name), dtype, tuple(shape), path, start + begin, end - begin)


def _text(text: str) -> str:
    """The text, which must be Unicode: JSON can also spell halves of surrogate pairs."""
    text.encode()
    return text


def _check_layout(entries: Mapping[str, TensorEntry], path: Path, start: int, size: int) -> None:
    """Each tensor has the bytes that its shape needs, and together they fill the file."""
    end = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.num_bytes)):
        if entry.dtype not in DTYPES:
            raise SourceError(f"{path}: tensor {entry.name} has an unknown dtype, {entry.dtype}")
        expected = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if entry.offset != end or entry.num_bytes != expected:
            raise SourceError(
                f"{path}: tensor {entry.name}, {entry.dtype} {list(entry.shape)}, needs {expected} "
                f"bytes at {end}, and the header says {entry.num_bytes} at {entry.offset}"
            )
        end += entry.num_bytes
    if end != size:
        raise SourceError(
            f"{path} is truncated or damaged: by its header it has {end} bytes, in fact {size}"
        )


def _read(file: BufferedReader, entry: TensorEntry) -> torch.Tensor:
    file.seek(entry.offset)
    data = bytearray(entry.num_bytes)
    if file.readinto(data) != entry.num_bytes:
        raise SourceError(f"{entry.path} ended inside {entry.name}: it changed while it was read")
    if not data:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def _chunks(entry: TensorEntry) -> Iterator[bytes]:
    remaining = entry.num_bytes
    with _opened(entry.path) as file:
        file.seek(entry.offset)
        while remaining:
            chunk = file.read(min(CHUNK, remaining))
            if not chunk:
                raise SourceError(f"{entry.path} ended inside {entry.name}: it changed meanwhile")
            remaining -= len(chunk)
            yield chunk
