"""GGUF files as generators, through llama-cpp-python's low-level functions: what the rest of the house uses of it."""

from tunesmith.generate.llama_cpp_batch import LlamaGenerator
from tunesmith.generate.llama_cpp_contract import contract_of_gguf
from tunesmith.generate.llama_cpp_file import read_gguf
from tunesmith.generate.llama_cpp_library import require_llama_cpp
from tunesmith.generate.llama_cpp_live import LiveLlama
from tunesmith.generate.llama_cpp_model import LlamaModel

__all__ = [
    "LiveLlama",
    "LlamaGenerator",
    "LlamaModel",
    "contract_of_gguf",
    "read_gguf",
    "require_llama_cpp",
]
