"""What this machine is and how fast: device, precision and kernels."""
