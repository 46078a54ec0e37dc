"""A CUDA device without a card, for a process of its own: tensors that say `cuda:0` and compute on the CPU.

    python -m tests.gpu.simulated.recipes tiny          # prints launches and host waits of the recipe as JSON

`load` must come before torch is imported: it loads a device guard (guard.cpp, compiled once into the cache) without
which torch's autograd accepts no CUDA tensor. `tensor` has the tensors, `counts` what is counted: an operator that
would be a kernel, a wait of the host for the device, a copy from the host, each with the line of `synthe_core` that
led to it. Operators with tensors of both devices raise, as they do on a card. No time is measured anywhere.
"""
