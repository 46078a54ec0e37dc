"""What a swarm knows of its users and its world: facts with a source, a time and a trust; conversations; retrieval."""
