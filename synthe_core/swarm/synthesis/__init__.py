"""How the texts of several specialists become one answer."""
