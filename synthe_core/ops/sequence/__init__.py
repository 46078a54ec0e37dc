"""Recurrent operators over a sequence that is cut over ranks: what each needs of the tokens before its own."""

from synthe_core.ops.sequence import channels, inputs, memories

__all__ = ["channels", "inputs", "memories"]
