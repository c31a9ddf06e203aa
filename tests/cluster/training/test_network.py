"""The interface of gloo: chosen on each of two hosts that share nothing but the network, and named as on Debian."""

import os
import shutil
import sys
import textwrap

import psutil
import pytest

from cluster.training.network import interface
from tests.hosts import Hosts

PROGRAM = """
    import os, sys, datetime
    import torch
    from cluster.training.network import interface
    os.environ["GLOO_SOCKET_IFNAME"] = interface(os.environ["ADDRESS"])
    torch.distributed.init_process_group(
        "gloo", init_method="tcp://10.77.0.1:29500", rank=int(sys.argv[1]), world_size=2,
        timeout=datetime.timedelta(seconds=240),
    )
    value = torch.tensor([float(sys.argv[1]) + 1])
    torch.distributed.all_reduce(value)
    print("sum", value.item())
"""


def test_each_address_of_this_machine_has_an_interface():
    assert interface("127.0.0.1") in psutil.net_if_addrs()
    assert interface("192.0.2.1") is None or "192.0.2.1" in str(psutil.net_if_addrs())


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_two_hosts_form_a_group_where_the_hostname_is_loopback(tmp_path):
    with Hosts(2, tmp_path) as hosts:
        for host in hosts:
            (host.outside / "disk" / "group.py").write_text(textwrap.dedent(PROGRAM))
        command = f"{sys.executable} group.py {{}}"
        hosts[1].start(command.format(1), log="log")
        done = hosts[0].run(command.format(0), timeout=500)
        assert "sum 3.0" in done.stdout, done.stdout + done.stderr
