"""Text that is read while a model trains on it: in shards of tokens, made ahead of their use, of which few are kept."""
