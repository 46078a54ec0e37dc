"""Models: blocks of learners between an embedding and a head, and text from them."""
