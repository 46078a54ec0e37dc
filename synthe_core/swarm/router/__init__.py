"""Which specialists answer a request: features, an estimate that learns, combinations, and a decision in words."""
