"""A GGUF file that computes, through llama.cpp's own low-level functions: token ids in, logits out.

Each answer has a slot with keys and values of its own (llama.cpp: a sequence in a stream), so what an answer attends to
lies in the same places whoever else is there. llama.cpp's tokenizer, templates and samplers are not used.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith import console
from tunesmith.errors import ModelError, OutOfRoom
from tunesmith.generate.llama_cpp.file import GgufFile, read_gguf
from tunesmith.generate.llama_cpp.library import (
    complaints,
    forget_complaints,
    last_complaint,
    require_llama_cpp,
)

BATCH = 512  # most tokens in one call, as llama.cpp's own tools have it
_F32_FILE = 0  # general.file_type
_NO_CELL = 1  # llama_decode: no room for the keys and values


class LlamaModel:
    """A loaded GGUF with `slots` sequences of `room` tokens each. Works for one at a time (`claim`).

    Weights in F32 compute in F32: keys and values too, and without flash attention, which rounds to F16 (measured on
    a CPU: logits within 2e-4 of transformers', against 4e-2). Else as llama.cpp's own programs do.
    """

    def __init__(self, file: GgufFile, adapter: Path | None, context: int, slots: int) -> None:
        """See `open`."""
        library = require_llama_cpp()
        forget_complaints()
        self.path, self.adapter, self.slots = file.path, adapter, slots
        self._busy = threading.Lock()
        self._library = library
        model = self._load_weights(file)
        half = weakref.finalize(self, library.llama_model_free, model)
        self._adapter = self._load_adapter(model, file, adapter) if adapter else None
        trained = int(library.llama_model_n_ctx_train(model)) or context
        self._context = self._make_context(model, file, min(context, trained))
        half.detach()
        self._close = weakref.finalize(self, _free, library, self._context, model)
        self._memory = library.llama_get_memory(self._context)
        if self._adapter is not None:
            self._use_adapter()
        self.width = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)))
        self.room = min(context, trained, int(library.llama_n_ctx_seq(self._context)))
        self._batch = _Batch(library, max(BATCH, slots))

    @classmethod
    def open(cls, path: Path, *, adapter: Path | None = None, context: int, slots: int) -> LlamaModel:
        """Loads a GGUF file, and over it an adapter's. All layers go to the card where llama.cpp was built for one.

        context: most tokens that a prompt and its answer may have together. slots: most answers side by side.
        ModelError where a file is not what it has to be, OutOfRoom where memory does not take keys and values.
        """
        if context < 1 or slots < 1:
            raise ValueError(f"context {context} and slots {slots} must be at least 1")
        file = read_gguf(path)
        if file.is_adapter:
            raise ModelError(
                "this GGUF holds an adapter and no model", where=str(path), fix="name the base's GGUF file"
            )
        if int(file.metadata.get("split.count", 0)) > 1:
            raise ModelError(
                f"this GGUF is one of {file.metadata['split.count']} parts",
                where=str(path),
                fix="make one file of them: llama-gguf-split --merge FIRST_PART OUT.gguf",
            )
        if adapter is not None:
            _require_adapter_of(file, read_gguf(adapter))
        if slots > (most := int(require_llama_cpp().llama_max_parallel_sequences())):
            raise ModelError(
                f"llama.cpp writes at most {most} answers side by side, not {slots}",
                where=str(path),
                fix="ask for fewer: evaluate.batch, serve --slots",
            )
        return cls(file, adapter, context, slots)

    @cached_property
    def key(self) -> str:
        """Names the weights, as they answer now: SHA-256 over the files."""
        digest = hashlib.sha256()
        for path in (self.path, *([self.adapter] if self.adapter else [])):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def close(self) -> None:
        """Frees the memory. A second time it is nothing."""
        self._close()

    def claim(self) -> None:
        """From now on it works for the caller, until `release`. RuntimeError where it works for somebody else."""
        if not self._close.alive:
            raise RuntimeError(f"{self.path} has been closed")
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(f"{self.path} is at work for another generator")

    def release(self) -> None:
        """Its slots are free, and anybody may claim it."""
        self.forget_all()
        self._busy.release()

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- computing

    @property
    def batch_size(self) -> int:
        """Most tokens in one `decode`."""
        return self._batch.size

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int], wanted: Sequence[bool]
    ) -> Tensor:
        """fp32 [n, V]: logits behind the wanted ones of these tokens, in their order; keys and values are kept."""
        if not self._close.alive:
            raise RuntimeError(f"{self.path} has been closed")
        library, count = self._library, sum(map(bool, wanted))
        forget_complaints()
        code = library.llama_decode(self._context, self._batch.fill(tokens, positions, slots, wanted))
        if code == _NO_CELL:
            raise OutOfRoom(f"slots of {self.room} tokens are too small", where=str(self.path))
        if code:
            console.note(complaints())
            raise RuntimeError(f"llama.cpp can't compute (code {code}): {last_complaint()}")
        if not count:
            return torch.empty(0, self.width)
        address = library.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(address, (count, self.width)).copy())

    def forget(self, slot: int) -> None:
        """Frees a slot."""
        if self._close.alive:
            self._library.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def forget_all(self) -> None:
        """Frees all slots, whatever state a failed step has left them in."""
        if self._close.alive:
            self._library.llama_memory_clear(self._memory, True)

    def logits(self, ids: Sequence[Sequence[int]], wanted: Sequence[Sequence[bool]]) -> Tensor:
        """fp32 [n, V]: logits behind the wanted tokens of each row, row after row. Rows go through one by one."""
        found = []
        self.claim()
        try:
            for row, marks in zip(ids, wanted, strict=True):
                if len(row) > self.room:
                    raise ModelError(
                        f"a row has {len(row)} tokens, more than the {self.room} that there is room for",
                        where=str(self.path),
                        fix="shorten it",
                    )
                for begin in range(0, len(row), BATCH):
                    part = range(begin, min(begin + BATCH, len(row)))
                    chunk = row[part.start : part.stop]
                    found.append(self.decode(chunk, part, [0] * len(part), marks[part.start : part.stop]))
                self.forget(0)
        finally:
            self.release()
        return torch.cat(found) if found else torch.empty(0, self.width)

    # ---- loading

    def _load_weights(self, file: GgufFile) -> int:
        library = self._library
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = -1 if library.llama_supports_gpu_offload() else 0
        model = library.llama_model_load_from_file(bytes(file.path), parameters)
        if not model:
            console.note(complaints())
            raise ModelError(
                f"llama.cpp can't load this file: {last_complaint()}",
                where=str(file.path),
                fix="update llama-cpp-python (pip install --upgrade llama-cpp-python), or export the model again",
            )
        return int(model)

    def _load_adapter(self, model: int, file: GgufFile, path: Path) -> Any:
        adapter = self._library.llama_adapter_lora_init(model, bytes(path))
        if not adapter:
            console.note(complaints())
            raise ModelError(
                f"this adapter does not fit the model: {last_complaint()}",
                where=f"{path}, over {file.path}",
                fix="use the GGUF of the base that the adapter was trained on",
            )
        return adapter

    def _make_context(self, model: int, file: GgufFile, context: int) -> int:
        library = self._library
        parameters = library.llama_context_default_params()
        # llama.cpp gives each sequence an equal part, in steps of 256 tokens
        parameters.n_ctx = -(-context // 256) * 256 * self.slots
        parameters.n_batch = parameters.n_ubatch = max(BATCH, self.slots)
        parameters.n_seq_max, parameters.kv_unified = self.slots, False
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        parameters.no_perf = True
        if file.metadata.get("general.file_type") == _F32_FILE:
            parameters.type_k = parameters.type_v = library.GGML_TYPE_F32
            parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        made = library.llama_init_from_model(model, parameters)
        if not made:
            console.note(complaints())
            raise OutOfRoom(
                f"there is no memory for {self.slots} answers of {context} tokens: {last_complaint()}",
                where=str(file.path),
                fix="ask for fewer answers side by side, or for shorter ones",
            )
        return int(made)

    def _use_adapter(self) -> None:
        library = self._library
        which = (library.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        if library.llama_set_adapters_lora(self._context, which, 1, (ctypes.c_float * 1)(1.0)):
            raise ModelError(
                f"llama.cpp refuses this adapter: {last_complaint()}",
                where=str(self.adapter),
                fix="export it again: tunesmith export RUN",
            )


class _Batch:
    """llama.cpp's batch over arrays that are filled at once, not token by token."""

    def __init__(self, library: Any, size: int) -> None:
        self.size = size
        self._tokens, self._positions, self._slots, self._ones = (np.ones(size, np.int32) for _ in range(4))
        self._wanted = np.zeros(size, np.int8)
        each = ctypes.POINTER(ctypes.c_int32)
        begin, step = self._slots.ctypes.data, self._slots.itemsize
        self._of = (each * size)(*(ctypes.cast(begin + step * i, each) for i in range(size)))
        self._batch = library.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._ones),
            ("logits", self._wanted),
        ):
            kind = dict(library.llama_batch._fields_)[name]
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, kind))
        self._batch.seq_id = ctypes.cast(self._of, dict(library.llama_batch._fields_)["seq_id"])

    def fill(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int], wanted: Sequence[bool]
    ) -> Any:
        """The batch with these tokens; at most `size`."""
        count = len(tokens)
        self._tokens[:count], self._positions[:count] = tokens, positions
        self._slots[:count], self._wanted[:count] = slots, wanted
        self._batch.n_tokens = count
        return self._batch


def _free(library: Any, context: int, model: int) -> None:
    library.llama_free(context)
    library.llama_model_free(model)  # and its adapters


def _require_adapter_of(model: GgufFile, adapter: GgufFile) -> None:
    if not adapter.is_adapter:
        raise ModelError(
            "this GGUF holds a model and no adapter",
            where=str(adapter.path),
            fix="name it as the model, or name an adapter's GGUF file",
        )
    if adapter.architecture != model.architecture:
        raise ModelError(
            f"this adapter was made for {adapter.architecture or 'another architecture'}, the model is "
            f"{model.architecture}",
            where=f"{adapter.path}, over {model.path}",
            fix="use the GGUF of the base that the adapter was trained on",
        )
    for name, (shape, _) in adapter.tensors.items():
        base, dot, part = name.rpartition(".")
        if dot and part in ("lora_a", "lora_b") and base in model.tensors:
            wanted = model.tensors[base][0]
            # GGUF counts the fastest dimension first: A is [inputs, rank], B is [rank, outputs]
            has, needs = (shape[0], wanted[0]) if part == "lora_a" else (shape[-1], wanted[-1])
            if has == needs or base.startswith("token_embd"):
                continue
            raise ModelError(
                f"this adapter is of another base: {name} has {has} where the model has {needs}",
                where=f"{adapter.path}, over {model.path}",
                fix="use the GGUF of the base that the adapter was trained on",
            )
        if dot and part in ("lora_a", "lora_b"):
            raise ModelError(
                f"this adapter is of another base: the model has no tensor {base}",
                where=f"{adapter.path}, over {model.path}",
                fix="use the GGUF of the base that the adapter was trained on",
            )
