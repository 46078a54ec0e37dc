"""Merging models: methods, inputs, the plan of a merge, and the verbs `merge`, `diff` and `extract_lora`.

A merge goes from `config` to `plan` (one job for each tensor of the result, all checked before any work), `stream`
(jobs run on threads, results in order) and `output` (a folder, written atomically).
"""
