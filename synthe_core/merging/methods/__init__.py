"""The merge methods by name, each in a file of its own; imported on first use."""

from __future__ import annotations

from synthe_core.registry import Table

_HERE = "synthe_core.merging.methods"

METHODS = Table(
    "merge method",
    "synthe.merge_methods",
    {
        "breadcrumbs": f"{_HERE}.breadcrumbs:breadcrumbs",
        "breadcrumbs_ties": f"{_HERE}.breadcrumbs_ties:breadcrumbs_ties",
        "dare_linear": f"{_HERE}.dare_linear:dare_linear",
        "dare_ties": f"{_HERE}.dare_ties:dare_ties",
        "della": f"{_HERE}.della:della",
        "della_linear": f"{_HERE}.della_linear:della_linear",
        "karcher": f"{_HERE}.karcher:karcher",
        "linear": f"{_HERE}.linear:linear",
        "magnitude_prune": f"{_HERE}.magnitude_prune:magnitude_prune",
        "model_stock": f"{_HERE}.model_stock:model_stock",
        "multislerp": f"{_HERE}.multislerp:multislerp",
        "nearswap": f"{_HERE}.nearswap:nearswap",
        "nuslerp": f"{_HERE}.nuslerp:nuslerp",
        "passthrough": f"{_HERE}.passthrough:passthrough",
        "sce": f"{_HERE}.sce:sce",
        "slerp": f"{_HERE}.slerp:slerp",
        "task_arithmetic": f"{_HERE}.task_arithmetic:task_arithmetic",
        "ties": f"{_HERE}.ties:ties",
    },
)
