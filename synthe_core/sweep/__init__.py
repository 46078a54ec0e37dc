"""Sweeps: a grid of training runs under one folder, several at once, on this machine or a cluster."""
