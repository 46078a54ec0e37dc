"""Decoding beside other programs: the same greedy requests by the engine, by our server, llama.cpp and transformers."""
