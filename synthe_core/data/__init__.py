"""From text to batches: sources -> documents -> tokens in memory-mapped shards -> a stream with a cursor."""
