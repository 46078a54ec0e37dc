"""A memory that learns at test time span by span, and its faster kernels."""

from synthe_core.ops.span_memory import framed, triton
from synthe_core.ops.span_memory.reference import (
    SpanOutput,
    SpanState,
    largest_error,
    learning_rate,
    projected,
    span_memory,
)

__all__ = [
    "SpanOutput",
    "SpanState",
    "framed",
    "largest_error",
    "learning_rate",
    "projected",
    "span_memory",
    "triton",
]
