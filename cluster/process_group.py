"""The process group of a training's workers, as Ray Train's TorchConfig makes it.

TorchConfig lives in a module that imports torch, so that Ray Train's controller would import it, too: 3 s in which no
worker starts. Here the workers alone import it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_SHUTDOWN_SECONDS = 30


@dataclass
class ProcessGroup(BackendConfig):
    """torch.distributed over all workers."""

    backend: str
    """`gloo` or `nccl`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Joining

    @property
    def train_func_context(self) -> Callable[[], Any]:
        return _on_own_device

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend}


class _Joining(Backend):
    """Lets the workers join the group before their work, and leave it after it. Runs in the controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        joined = [
            worker_group.execute_single_async(
                rank, _join, backend_config.backend, f"{address}", str(port), rank, len(worker_group)
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        left = worker_group.execute_async(_leave, len(worker_group) > 1)
        ray.wait(left, num_returns=len(left), timeout=_SHUTDOWN_SECONDS)


def _join(backend: str, address: str, port: str, rank: int, world: int) -> None:
    from ray.train.torch import config

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": port}
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, world, "env://")


def _leave(destroy: bool) -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=destroy)


@contextmanager
def _on_own_device() -> Iterator[None]:
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


class Group(WorkerGroup):
    """Ray Train's group of workers, which gives its processors back if it does not start.

    Ray Train forgets a group of which a worker dies while it joins the others, and starts another. The forgotten one
    keeps its placement group, and its workers wait for the dead one, so that the other would wait for ever.
    """

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            if (begun := self._worker_group_state) is not None:
                begun.shutdown()
            raise


class _UsesGroup(ControllerCallback):
    """Runs in the process of Ray Train's controller."""

    def after_controller_start(self, train_run_context: Any) -> None:
        TrainController.worker_group_cls = Group


class Trainer(DataParallelTrainer):
    """Ray Train's trainer, without the actor that would hand out shards of Ray data sets: workers load their own."""

    def _create_default_callbacks(self) -> list[Any]:
        usual = super()._create_default_callbacks()
        return [_UsesGroup(), *(each for each in usual if type(each).__name__ != "DatasetsCallback")]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Nothing. Else Ray Train takes Ctrl-C for itself in the main thread, and ends the process with its own exit
        code."""
