"""GGUF files as generators, through llama-cpp-python's low-level functions: what the rest of the house uses of it."""

from tunesmith.generate.llama_cpp.batch import LlamaGenerator
from tunesmith.generate.llama_cpp.contract import contract_of_gguf
from tunesmith.generate.llama_cpp.file import read_gguf
from tunesmith.generate.llama_cpp.library import require_llama_cpp
from tunesmith.generate.llama_cpp.live import LiveLlama
from tunesmith.generate.llama_cpp.model import LlamaModel

__all__ = [
    "LiveLlama",
    "LlamaGenerator",
    "LlamaModel",
    "contract_of_gguf",
    "read_gguf",
    "require_llama_cpp",
]
