"""Questions of several turns, answered by models and judged by a model or a server."""
