"""Where the ranks of a job meet: said in torchrun's variables, which training reads.

The first rank takes a free port and writes it down beside the job's record, on the disk that all ranks share.
No name of a node needs to be known to anybody.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from submitit.core.job_environment import JobEnvironment

from snpdeconv.errors import ResourceError
from snpdeconv.files import read_record, write_json

_FIRST_PORT = 20_000
_NUM_PORTS = 12_000
"""Below the ports that systems give away by themselves."""
_PATIENCE_S = 300.0
_LOOPBACK = "127.0.0.1"
# Held to the end of the process: the port is nobody else's until training listens there.
_reserved: list[socket.socket] = []


@dataclass(frozen=True)
class _Place:
    address: str
    port: int


def join_ranks(environment: JobEnvironment, folder: Path) -> None:
    """Says where this process stands among those of the job; a site's own MASTER_ADDR and MASTER_PORT stay.

    Args:
        environment: submitit's.
        folder: One that all ranks see.

    Raises:
        ResourceError: The first rank does not say where it is.
    """
    if environment.num_tasks == 1:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)  # of the shell that submitted: this rank would wait for others
        return
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not (address and port):
        place = _meeting_place(environment, folder)
        address, port = address or place.address, port or str(place.port)
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=port,
        RANK=str(environment.global_rank),
        WORLD_SIZE=str(environment.num_tasks),
        # Where each process is shown its own GPU only, that one is number 0.
        LOCAL_RANK=str(environment.local_rank % len(visible) if visible else environment.local_rank),
        LOCAL_WORLD_SIZE=str(environment.num_tasks // environment.num_nodes),
    )
    # gloo would look up the name of its own node, and settle on the loopback where nobody knows it.
    interface = _interface(_own_address(address))
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _meeting_place(environment: JobEnvironment, folder: Path) -> _Place:
    starts = os.environ.get("SLURM_RESTART_COUNT") or os.environ.get("SNPDECONV_LOCAL_START") or "0"
    path = folder / f"meeting-{environment.job_id}-{starts}.json"
    if environment.global_rank == 0:
        address = _LOOPBACK
        if environment.num_nodes > 1:
            # The node that SLURM has started the ranks from is reached by all of them.
            address = _own_address(os.environ.get("SLURM_LAUNCH_NODE_IPADDR", socket.gethostname()))
        place = _Place(address, _free_port(environment.job_id))
        write_json(path, asdict(place))
        return place
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return read_record(path, _Place, mend="start the job again")
        time.sleep(0.1)
    raise ResourceError(
        f"the first rank has not said where it is for {_PATIENCE_S:.0f} s",
        where=path,
        mend="do all nodes see the home (SNPDECONV_HOME)? See the log of rank 0",
    )


def _free_port(job_id: str) -> int:
    """The first free port from one of the job's own on, held from now on."""
    first = zlib.crc32(job_id.encode())
    for n in range(_NUM_PORTS):
        port = _FIRST_PORT + (first + n) % _NUM_PORTS
        held = socket.socket()
        try:
            held.bind(("", port))
        except OSError:
            held.close()
            continue
        # Bound without this, so that no other rank could take it; set now, so that training can.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _reserved.append(held)
        return port
    raise ResourceError("no port is free", where=socket.gethostname(), mend="set MASTER_PORT")


def _own_address(other: str) -> str:
    """The address of this node that reaches another one; that one itself where it cannot be told."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return other


def _interface(address: str) -> str | None:
    """The network interface that has an address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None
