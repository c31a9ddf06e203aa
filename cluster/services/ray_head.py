"""A local Ray head with its dashboard, until SIGTERM: python -m cluster.services.ray_head PORT DASHBOARD_PORT."""

from __future__ import annotations

import os
import signal
import sys

from cluster.connect import start_local
from cluster.process_env import configure


def main() -> None:
    """Start the head, print its address, and wait for SIGTERM. All its processes end with this one."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    configure()
    os.environ["RAY_GCS_SERVER_PORT"] = sys.argv[1]
    reaper = start_local(include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(sys.argv[2]))
    print(f"Ray's head answers at 127.0.0.1:{sys.argv[1]}", flush=True)
    signal.pause()
    assert reaper


if __name__ == "__main__":
    main()
