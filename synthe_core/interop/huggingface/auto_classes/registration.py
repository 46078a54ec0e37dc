"""Makes `synthe` a model type of transformers, without an import by the user.

transformers has a table of configurations, a public function that adds to it, and no entry point that calls the
function. It imports torch before that table is complete, and torch calls the entry points of the group
`torch.backends`. Ours costs nothing but a look into `sys.modules`: if the table exists already, the type is added; if
not, an import hook waits for the table's module and goes away when it has come. In a process without transformers
nothing else happens. (`TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns that off; calling `register` does the same.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MODULE = "transformers.models.auto.configuration_auto"
"""The module of transformers' table."""


def register() -> None:
    """Adds the model type to transformers' tables: the configuration at once, and the model when a configuration is
    made, because its class takes longer to import."""
    from transformers import AutoConfig

    from synthe_core.interop.huggingface.auto_classes.configuration import SyntheConfig

    AutoConfig.register(SyntheConfig.model_type, SyntheConfig, exist_ok=True)
    SyntheConfig.prepare = staticmethod(register_model)


@cache
def register_model() -> None:
    """Adds the class of the model to transformers' tables, once."""
    from transformers import AutoModelForCausalLM

    from synthe_core.interop.huggingface.auto_classes.configuration import SyntheConfig
    from synthe_core.interop.huggingface.auto_classes.modeling import SyntheForCausalLM

    AutoModelForCausalLM.register(SyntheConfig, SyntheForCausalLM, exist_ok=True)


def autoload() -> None:
    """The entry point that torch calls when it is imported."""
    module = sys.modules.get(MODULE)
    if module is None:
        if not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Waiting(register))
    elif getattr(module.__spec__, "_initializing", False):  # it is this import that has brought torch
        module.__class__ = _Unfinished
    else:
        register()


class _Waiting(MetaPathFinder):
    """Calls `then` after the module of the table has been executed. It leaves `sys.meta_path` when the module is
    imported."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Following(spec.loader, self.then)
        return spec


class _Following(Loader):
    """The loader of a module, and a call after it."""

    def __init__(self, loader: Loader, then: Callable[[], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.then()


class _Unfinished(ModuleType):
    """The class of the table's module while it is executed. The first name that is read of it afterwards gives the
    module its own class back and adds our type."""

    def __getattribute__(self, name: str) -> Any:
        spec = ModuleType.__getattribute__(self, "__spec__")
        if not name.startswith("__") and not getattr(spec, "_initializing", False):
            self.__class__ = ModuleType  # type: ignore[assignment]
            register()
        return ModuleType.__getattribute__(self, name)
