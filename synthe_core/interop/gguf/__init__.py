"""Published models in GGUF files, as llama.cpp runs them."""
