"""Mends Triton's interpreter before any kernel is imported; in a process that has TRITON_INTERPRET=1."""

from synthe_core.ops.triton_launch import interpreted

if interpreted():
    import tests.gpu.interpreter.patches  # noqa: F401
