"""A model whose parameters are sharded over processes: torch's FSDP2."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from synthe_core.errors import InputError
from synthe_core.hardware.sequence import SequenceRanks
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import Backbone, Loss
from synthe_core.model.sharded_tensors import local
from synthe_core.recipe.schema import MeshSpec
from synthe_core.training.distributed.engine import ONLY_NORM, Forward, PassModule, SeveralProcesses
from synthe_core.training.distributed.mesh import Mesh
from synthe_core.training.distributed.ranks import Ranks, column_sums

CLIP_EPS = 1e-6
"""What torch's own clipping adds to a norm."""


class Shards(SeveralProcesses):
    """The parameters of every block, and those outside of blocks, in shards along their first dimension.

    A block's parameters are gathered for its pass and freed after it; those outside of blocks stay for the pass of the
    model. With `mesh.replicate` > 1 there are as many groups, each with all shards.
    """

    sharded = True

    def __init__(
        self,
        model: Model,
        ranks: Ranks,
        mesh: Mesh,
        spec: MeshSpec,
        device: torch.device,
        sequence: SequenceRanks | None = None,
    ) -> None:
        super().__init__(model, ranks, sequence)
        if not isinstance(model, Backbone):
            raise InputError(
                "runtime.mesh: transformers runs this model, whose blocks cannot be sharded",
                "copy it to every process: runtime.mesh.shard=1",
            )
        if spec.offload and device.type == "cpu":
            raise InputError(
                "runtime.mesh.offload moves what a GPU has to the CPU, and the device is one", "leave it out"
            )
        grid = torch.arange(mesh.size).view(mesh.grid)
        names = ("replicate", "shard")
        self.mesh = DeviceMesh(device.type, grid, mesh_dim_names=names)
        policy = MixedPrecisionPolicy(
            param_dtype=None if spec.param_dtype == "float32" else getattr(torch, spec.param_dtype),
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        options: dict[str, Any] = {
            "mesh": self.mesh if mesh.grid[0] > 1 else self.mesh["shard"],
            "mp_policy": policy,
            **({"offload_policy": CPUOffloadPolicy()} if spec.offload else {}),
        }
        self._shards = self.mesh["shard"].get_group()
        self._module: Any = PassModule(model)
        blocks: list[Any] = list(model.blocks)
        for block in blocks:
            block.sharded = True
            fully_shard(block, **options)
            register_fsdp_forward_method(block, "routed")
        fully_shard(self._module, **options)
        self._blocks = blocks
        for module in (self._module, *blocks):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # states may be views, and nothing changes them
        self._used: set[str] = set()
        self._depth = 0  # of `whole` in `whole`
        with self.whole():
            self._watch()

    def backward(self, forward: Forward, *, last: bool, layers_alone: bool = False) -> Loss:
        if not layers_alone:
            return self._run(self._module, forward)

        def with_layers(model: Model) -> tuple[Tensor, Loss]:
            for block in self._blocks:
                block.unshard()
            return forward(model)

        return self._run(self._module, with_layers)

    @contextmanager
    def whole(self) -> Iterator[None]:
        if not self._depth:
            self._gather()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._module.reshard()

    @contextmanager
    def changing(self) -> Iterator[None]:
        if self._depth:
            self._module.reshard()
        yield
        if self._depth:
            self._gather()

    def _gather(self) -> None:
        """Gathers what is outside of blocks: the root of FSDP does so before a pass, and does not free it after."""
        with torch.no_grad():
            self._module(lambda model: None)

    def same_passes(self, count: int) -> int:
        return round(max(each[0] for each in self.ranks.numbers(count)))

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        total = torch.nn.utils.get_total_norm([local(each) for each in gradients]).square()
        dist.all_reduce(total, group=self._shards)
        return total.sqrt()

    def clip(self, parameters: Sequence[nn.Parameter], limit: float, norm: Tensor) -> None:
        gradients = [local(each.grad) for each in parameters if each.grad is not None]
        torch._foreach_mul_(gradients, limit / (float(norm) + CLIP_EPS))

    def name_non_finite(self, search: Callable[[], str]) -> str:
        """Weights and gradients only: the passes are not run again."""
        for kind in ("weight", "gradient of"):
            for name, parameter in self.model.named_parameters():
                tensor = parameter if kind == "weight" else parameter.grad
                finite = tensor is None or bool(torch.isfinite(local(tensor)).all())
                if sum(column_sums(self.ranks.numbers(not finite))):
                    return f"the {kind} {name}"
        return ONLY_NORM

    def finish(self) -> None:
        """FSDP reduces zeros for what a process has not used; what none has used has no gradient, as in one process."""
        named = dict(self.model.named_parameters())
        used = column_any(self.ranks.numbers(*(name in self._used for name in named)))
        for parameter, some in zip(named.values(), used, strict=True):
            if not some:
                parameter.grad = None
        self._used.clear()

    def _watch(self) -> None:
        """Notes from now on which parameters get a gradient. Gathered ones are the same objects in every pass."""
        for block in self._blocks:
            block.unshard()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._used.add(name))
        for block in self._blocks:
            block.reshard()


def column_any(rows: Sequence[Sequence[float]]) -> list[bool]:
    """Whether any rank's number is not 0, of each of their numbers."""
    return [any(column) for column in zip(*rows, strict=True)]
