"""Our checkpoints in the classes of transformers: AutoConfig, AutoTokenizer and AutoModelForCausalLM load them."""
