"""A bank of slots that is read sparsely and written by novelty, and its kernels."""

from synthe_core.ops.slot_memory import chunked, native, triton
from synthe_core.ops.slot_memory.reference import Policy, SlotOutput, slot_memory

__all__ = ["Policy", "SlotOutput", "chunked", "native", "slot_memory", "triton"]
