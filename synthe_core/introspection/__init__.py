"""Looking inside a model while it reads: what learners decide and remember, and which tokens a reading comes from."""
