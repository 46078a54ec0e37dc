"""Tensors of the simulated device, and what each operator on them counts. Import `load` first.

with on_device():                                  # factories with device="cuda" make simulated tensors
    x = simulated(torch.randn(2, 3))               # x.device is cuda:0
    with counting() as counts: (x @ x.T).item()    # one launch, one wait
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.gpu.simulated import load  # isort: skip  # noqa: F401  (before torch)

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from tests.gpu.simulated.counts import Counts, current

CUDA = torch.device("cuda:0")

_VIEWS = (
    "_conj _neg_view _reshape_alias _unsafe_view alias as_strided chunk detach diagonal expand imag lift_fresh "
    "movedim narrow numpy_T permute real resolve_conj resolve_neg select slice split split_with_sizes squeeze t "
    "tensor_split transpose unbind unfold unsqueeze view view_as_complex view_as_real"
)
VIEWS = frozenset(_VIEWS.split())
"""Operators that launch nothing: they look at the same memory in another way."""
_FACTS = (
    "_has_compatible_shallow_copy_type _local_scalar_dense dim is_nonzero is_pinned is_same_size record_stream "
    "set_ size stride sym_numel sym_size sym_storage_offset sym_stride"
)
FACTS = frozenset(_FACTS.split())
"""Operators that compute nothing on the device."""
EMPTY = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])
COPIES = frozenset(["_to_copy", "copy_", "set_", "set_data", "swap"])
INDEXING = frozenset(["_index_put_impl_", "index", "index_put", "index_put_"])
"""Operators that take tensors of both devices: torch copies an index from the host, and waits for one with a mask."""
SCALARS = frozenset(["_local_scalar_dense", "equal", "is_nonzero", "item"])
DATA_SIZES = frozenset(["_unique2", "masked_select", "nonzero", "unique", "unique_consecutive", "unique_dim"])
"""Operators whose result's size is data: the host waits for it."""


class SimulatedTensor(Tensor):
    """A tensor that is on cuda:0 by its own account; `elem` has its numbers on the CPU."""

    elem: Tensor
    __slots__ = ["elem"]

    @staticmethod
    def __new__(cls: type[SimulatedTensor], elem: Tensor, requires_grad: bool = False) -> SimulatedTensor:
        made: SimulatedTensor = Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=CUDA,
            requires_grad=requires_grad,
        )
        made.elem = elem
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"simulated({self.elem})"

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def detach(self) -> SimulatedTensor:  # torch's own fails for a wrapper in inference mode
        return SimulatedTensor(self.elem.detach())

    def tolist(self) -> Any:
        if (counts := current()) is not None:
            counts.wait("tolist")
        return self.elem.detach().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run(func, args, kwargs or {})


class _OnDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


@contextmanager
def on_device() -> Iterator[None]:
    """Within the block, factories that name a CUDA device make simulated tensors."""
    with _OnDevice():
        yield


def simulated(tensor: Tensor) -> SimulatedTensor:
    """A tensor's numbers on the simulated device; the copy is not counted."""
    return SimulatedTensor(tensor.detach().clone())


def to_device(module: nn.Module) -> nn.Module:
    """The module with parameters and buffers on the simulated device; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for each in module.modules():
        for name, parameter in list(each._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(simulated(parameter), requires_grad=parameter.requires_grad)
                each._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in list(each._buffers.items()):
            if buffer is not None:
                each._buffers[name] = simulated(buffer)
    return module


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator: counted, computed on the CPU, and its results on the device where it would leave them there."""
    name = func._schema.name.split("::")[1]
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    ours = [each for each in tensors if isinstance(each, SimulatedTensor)]
    target = _target(name, args, kwargs)
    to_device_ = target is not None and target.type == "cuda"
    if ours and name not in COPIES | INDEXING:
        _refuse_mixed(name, tensors)
    if name == "_conj":  # the bit that torch sets in its place would be lost between the wrapper and its numbers
        return SimulatedTensor(args[0].elem.conj_physical())
    if name == "to":  # in inference mode it arrives whole, and may change nothing
        if ours and _is_unchanged(func, args, kwargs, target):
            return args[0]
        name = "_to_copy"
    if ours or to_device_:
        _count_waits(name, args, kwargs, ours, target)
    to_host = ours and (
        (name in ("_to_copy", "cpu") and target is not None and target.type == "cpu")
        or (name == "copy_" and not isinstance(args[0], SimulatedTensor))
    )
    stays = (bool(ours) or to_device_) and not to_host
    if stays:
        _count_launch(name, args, kwargs, ours, to_device_)
    out = _compute(func, name, args, kwargs)
    if not stays:
        return out
    out = tree_map(lambda each: SimulatedTensor(each) if isinstance(each, Tensor) else each, out)
    if name == "_to_copy":
        return out
    return return_and_correct_aliasing(func, args, kwargs, out)


def _is_unchanged(func: Any, args: Any, kwargs: dict[str, Any], target: torch.device | None) -> bool:
    """Whether `to` of a tensor of the device gives the tensor itself."""
    if target is not None and target.type != "cuda":
        return False
    return _compute(func, "to", args, kwargs) is args[0].elem


def _target(name: str, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The device that the call names."""
    named = kwargs.get("device")
    if named is None and name == "to":
        named = next((each for each in args[1:] if isinstance(each, (torch.device, str))), None)
    return None if named is None else torch.device(named)


def _refuse_mixed(name: str, tensors: list[Tensor]) -> None:
    """RuntimeError as on a card: only a number without dimensions may come from the host."""
    if any(each.dim() > 0 and not isinstance(each, SimulatedTensor) for each in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({name})")


def _count_waits(
    name: str, args: Any, kwargs: dict[str, Any], ours: list[SimulatedTensor], target: torch.device | None
) -> None:
    if (counts := current()) is None:
        return
    if name in SCALARS:
        counts.wait("item")
    elif name in DATA_SIZES or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        counts.wait(name)
    elif name in INDEXING and any(
        each.dtype in (torch.bool, torch.uint8) for each in tree_flatten(args[1])[0] if isinstance(each, Tensor)
    ):
        counts.wait(f"{name} by mask")
    elif name in INDEXING and any(
        not isinstance(each, SimulatedTensor) for each in tree_flatten(args[1])[0] if isinstance(each, Tensor)
    ):
        counts.wait("index from the host")
    elif name == "_to_copy" and ours and target is not None and target.type == "cpu":
        counts.wait("copy to the host")
    elif name == "_to_copy" and not ours:
        _count_copy(counts, bool(kwargs.get("non_blocking")))
    elif name == "copy_":
        to, source, blocks = args[0], args[1], not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        if not isinstance(to, SimulatedTensor):
            counts.wait("copy to the host")
        elif not isinstance(source, SimulatedTensor):
            _count_copy(counts, not blocks)


def _count_copy(counts: Counts, non_blocking: bool) -> None:
    """A copy from the host: the host waits for all queued work, unless the copy is said not to block."""
    counts.copy()
    if not non_blocking:
        counts.wait("copy from the host")


def _count_launch(name: str, args: Any, kwargs: dict[str, Any], ours: list[SimulatedTensor], moves: bool) -> None:
    counts = current()
    if counts is None or name in VIEWS or name in FACTS or name in EMPTY:
        return
    same_type = name == "_to_copy" and ours and kwargs.get("dtype") in (None, ours[0].dtype)
    if same_type and kwargs.get("memory_format") is None and not moves:
        return
    counts.launch(name)


def _compute(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    def plain(each: Any) -> Any:
        return each.elem if isinstance(each, SimulatedTensor) else each

    arguments, options = tree_map(plain, args), dict(tree_map(plain, kwargs))
    if options.get("device") is not None:
        options["device"] = torch.device("cpu")
    arguments = tuple(torch.device("cpu") if isinstance(each, torch.device) else each for each in arguments)
    if "pin_memory" in options:
        options["pin_memory"] = False
    if name == "mm" and func._overloadname == "dtype":  # CUDA's alone: of 16-bit matrices, with sums in float32
        return arguments[0].to(arguments[2]) @ arguments[1].to(arguments[2])
    if name in EMPTY:
        return func(*arguments, **options).fill_(0)  # so that a result never depends on what memory held
    with torch._C.DisableTorchFunctionSubclass():
        return func(*arguments, **options)


_torch_tensor: Callable[..., Tensor] = torch.tensor


def _tensor(data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    """`torch.tensor` for the device: a copy from the host, which waits."""
    made = _torch_tensor(data, dtype=dtype, **options)
    if device is None or torch.device(device).type != "cuda":
        return made
    if (counts := current()) is not None:
        _count_copy(counts, non_blocking=False)
    return SimulatedTensor(made)


torch.tensor = _tensor
Tensor.pin_memory = lambda self, *args: self  # type: ignore[method-assign]
