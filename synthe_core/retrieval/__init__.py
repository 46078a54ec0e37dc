"""Finding passages of documents: an index in one SQLite file, searched by words and by meaning."""
