"""The generalised delta rule, and its faster kernels."""

from synthe_core.ops.generalized_delta_rule import chunked, fla, native, triton
from synthe_core.ops.generalized_delta_rule.reference import generalized_delta_rule

__all__ = ["chunked", "fla", "generalized_delta_rule", "native", "triton"]
