"""GGUF files: the merged model in llama.cpp's format, its quantised kinds, and the adapter alone."""
