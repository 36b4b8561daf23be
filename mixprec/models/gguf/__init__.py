"""GGUF, llama.cpp's file, as a model: its parts, names of tensors, metadata, tokenizer, and whether it is whole."""
