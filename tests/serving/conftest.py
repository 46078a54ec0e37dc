"""The models and the engine of the decoder's tests."""

from tests.inference.conftest import ask, engine, memory, memory_path, whole, window  # noqa: F401  (fixtures)
