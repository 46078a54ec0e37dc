"""What lies on disk: checkpoints, manifests, tensor files, and how they are written whole or not at all."""
