"""llama.cpp's libraries, found and loaded: its C interface by ctypes, without a compiler.

The servers that Python packages bring give the likeliest tokens only; the libraries inside them export llama.cpp's
whole C interface. It is found inside the package `xllamacpp` (which need not be imported for that), or in the
folder that the environment's RAZOR_LLAMA_CPP names, with `libllama` and `libggml*` in it. Nothing here knows
models; see `razor.models.llama_runtime`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from razor.errors import RazorError

FOLDER = "RAZOR_LLAMA_CPP"
LOUD = (3, 4)
"""Levels of messages: warnings and errors."""


class Params(ctypes.Structure):
    """Room for a parameter struct of any version; ctypes passes it by value."""

    _fields_ = (("words", ctypes.c_int32 * 256),)


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
DEBUG, GOES_ON = 1, 5
said: deque[tuple[int, str]] = deque(maxlen=400)
"""Level and text of llama.cpp's last messages."""


@_LOG
def _listen(level: int, text: bytes, _: Any) -> None:
    if level == GOES_ON and said:  # the last message
        before, start = said.pop()
        said.append((before, start + text.decode(errors="replace")))
    elif level != DEBUG:
        said.append((level, text.decode(errors="replace")))


def complaint() -> str:
    """What llama.cpp said last that sounded like trouble, in one line."""
    loud = [text for level, text in said if level in LOUD] or [text for _, text in said]
    return " ".join(" ".join(loud[-3:]).split())[:300] or "it gave no reason"


def find_library() -> Path:
    """The file or folder with llama.cpp: RAZOR_LLAMA_CPP, else the package xllamacpp.

    Raises:
        RazorError: there is none.
    """
    if folder := os.environ.get(FOLDER):
        if not _named(Path(folder), "llama"):
            raise RazorError(f"{FOLDER}='{folder}' holds no llama.cpp: it needs libllama and libggml files.")
        return Path(folder)
    spec = importlib.util.find_spec("xllamacpp")
    home = Path(spec.origin).parent if spec and spec.origin else None
    found = sorted(f for f in home.iterdir() if f.suffix in (".so", ".pyd")) if home else []
    if not found:
        raise RazorError(
            "llama.cpp is not here: pip install 'razor-qad[llama-cpp]' (the package xllamacpp), or let "
            f"{FOLDER} name a folder with libllama and libggml."
        )
    return found[0]


def _named(folder: Path, *names: str) -> list[Path]:
    """For each name the first library of a folder that is called so, whatever its version and system."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    ends = (".so", ".dylib", ".dll")
    libraries = [file for file in files if any(end in file.name for end in ends)]
    called = [[f for f in libraries if f.name.removeprefix("lib").split(".")[0] == name] for name in names]
    return [found[0] for found in called if found]


def load_library() -> ctypes.CDLL:
    """llama.cpp, loaded once, its messages kept and not printed.

    Raises:
        RazorError: see `find_library`; or it cannot be loaded, or lacks functions.
    """
    library = _loaded()
    library.llama_log_set(_listen, None)  # again: a server of this process may have taken them
    return library


@cache
def _loaded() -> ctypes.CDLL:
    path = find_library()
    try:
        if path.is_dir():  # whose parts have to find each other
            files = _named(path, "ggml-base", "ggml", "llama")
            library = [ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL) for file in files][-1]
        else:
            library = ctypes.CDLL(str(path))
        _declare(library)
    except (OSError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RazorError(f"llama.cpp in '{path}' cannot be used: {reason}") from error
    library.llama_log_set(_listen, None)  # before the first thing it has to say
    if path.is_dir():
        library.ggml_backend_load_all_from_path(str(path).encode())
    library.llama_backend_init()
    return library


def _declare(library: ctypes.CDLL) -> None:
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    flags = [ctypes.c_bool, ctypes.c_bool]
    floats = ctypes.POINTER(ctypes.c_float)
    for name, result, arguments in (
        ("llama_log_set", None, [_LOG, pointer]),
        ("llama_backend_init", None, []),
        ("llama_model_default_params", Params, []),
        ("llama_context_default_params", Params, []),
        ("llama_model_load_from_file", pointer, [text, Params]),
        ("llama_init_from_model", pointer, [pointer, Params]),
        ("llama_model_free", None, [pointer]),
        ("llama_free", None, [pointer]),
        ("llama_n_ctx", ctypes.c_uint32, [pointer]),
        ("llama_n_batch", ctypes.c_uint32, [pointer]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", integer, [pointer]),
        ("llama_tokenize", integer, [pointer, text, integer, pointer, integer, *flags]),
        ("llama_set_n_threads", None, [pointer, integer, integer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_memory_seq_rm", ctypes.c_bool, [pointer, integer, integer, integer]),
        ("llama_batch_init", Batch, [integer, integer, integer]),
        ("llama_batch_free", None, [Batch]),
        ("llama_decode", integer, [pointer, Batch]),
        ("llama_get_logits_ith", floats, [pointer, integer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.ggml_backend_load_all_from_path.restype = None
    for name in ("llama_version", "ggml_version"):  # newer ones have them
        if hasattr(library, name):
            getattr(library, name).restype = text


def version() -> str:
    """Version of the llama.cpp that would be used."""
    library = load_library()
    for name in ("llama_version", "ggml_version"):
        if hasattr(library, name):
            return str(getattr(library, name)().decode())
    return "unknown"


def decode_row(function: str, packed: NDArray[np.uint8], numbers: int) -> NDArray[np.float32]:
    """Numbers of packed blocks by llama.cpp's own reference, e.g. `dequantize_row_q2_0`.

    Raises:
        RazorError: this llama.cpp lacks the function.
    """
    library = load_library()
    if not hasattr(library, function):
        raise RazorError(f"This llama.cpp ({version()}) lacks {function}.")
    decode = getattr(library, function)
    decode.restype, decode.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    packed, out = np.ascontiguousarray(packed), np.empty(numbers, np.float32)
    decode(packed.ctypes.data, out.ctypes.data, numbers)
    return out


def block_size(number: int, function: str) -> tuple[int, int]:
    """(numbers, bytes) of a block of a ggml type; (0, 0) if this llama.cpp does not know it.

    Args:
        number: of the type.
        function: that decodes it. ggml looks types up in a table without looking at its length, so it is asked only
            about those that it has a function for.
    """
    library = load_library()
    if not hasattr(library, function):
        return 0, 0
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    return int(library.ggml_blck_size(number)), int(library.ggml_type_size(number))
