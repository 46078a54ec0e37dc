"""One thin file a command: parse, call the core, render its events."""
