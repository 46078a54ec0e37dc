"""Models made of models: methods, inputs, the plan of a merge, and the verbs `merge`, `diff` and `extract_lora`.

The way of a merge: `config` (what was asked) -> `plan` (one job for each tensor of the result, all checked before any
work) -> `stream` (jobs run on threads, results in order) -> `output` (a folder, whole or absent).
"""
