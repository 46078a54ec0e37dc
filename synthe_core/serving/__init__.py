"""Many texts written at once by models with a state, for whoever asks: the engine, and the server in front of it."""
