"""What trained models are worth, on text that they have not been trained on."""
