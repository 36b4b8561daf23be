"""GGUF, llama.cpp's file: names and order of tensors, metadata, tokenizer, writer, reader, importance matrix."""
