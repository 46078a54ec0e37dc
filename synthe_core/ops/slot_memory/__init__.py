"""A bank of slots that is read sparsely and written by novelty, and its chunked kernel."""

from synthe_core.ops.slot_memory import chunked, triton
from synthe_core.ops.slot_memory.reference import Policy, SlotOutput, slot_memory

__all__ = ["Policy", "SlotOutput", "chunked", "slot_memory", "triton"]
