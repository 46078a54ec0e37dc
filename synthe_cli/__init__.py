"""The command line of synthe: the only part that prints."""
