"""The network between the workers of a training: gloo and NCCL use the interface that has the node's Ray address.

Otherwise gloo listens on what the hostname resolves to: on Debian and Ubuntu that is 127.0.1.1, which no other host
reaches.
"""

from __future__ import annotations

import os

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


def interface(address: str) -> str | None:
    """Return the network interface that has the address; None if there is none, as behind a translated address."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, all_of in interfaces if any(a.address == address for a in all_of)), None)


def choose_interface() -> None:
    """Name the interface with this node's Ray address for gloo and NCCL, unless the environment names another."""
    if name := interface(ray.util.get_node_ip_address()):
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, name)


class NetworkBackend(_TorchBackend):
    """Ray Train's backend, with the interface chosen on each worker before the process group is made."""

    def on_start(self, worker_group, backend_config) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class NetworkConfig(TorchConfig):
    """Ray Train's configuration of PyTorch, with `NetworkBackend`."""

    @property
    def backend_cls(self):
        return NetworkBackend
