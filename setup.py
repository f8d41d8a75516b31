"""Builds the package; with INFERFLOW_NATIVE=1 the request path is compiled to C with mypyc.

`make build` does it in place: extension modules stand beside their sources and are imported instead of them.
`make plain` takes them away again. Which sources they were made of is kept in `shared/native.json`
(`shared/native.py` reads it), so that a stale one is noticed at the start of a process.

Not compiled: kernels (numba compiles those), modules whose classes msgspec or enum make or whose base is a C
type, those whose objects are weakly referenced (`dag/plan.py`), and what is not on the request path.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
MODULES = """
components/collect.py components/columns.py components/derived.py components/feature.py components/feature_init.py
components/fetched.py components/groups.py components/keys.py
components/numerix.py components/numerix_wire.py components/onfs_wire.py components/predator.py
components/scratch.py components/tensors.py components/triton_wire.py components/wire.py
dag/component.py dag/executor.py dag/layout.py dag/meters.py dag/schedule.py
frontdoor/dispatcher.py frontdoor/door.py frontdoor/links.py
rpc/calls.py rpc/client.py rpc/client_codec.py rpc/client_connection.py rpc/connection.py rpc/endpoint.py
rpc/frames.py rpc/hpack.py rpc/limits.py rpc/server_codec.py rpc/server_connection.py rpc/timers.py rpc/wire.py
shared/board.py shared/feature_cache.py shared/frames.py shared/shm_matrix.py
workers/call_meters.py workers/coalescing.py workers/doors.py workers/meters.py
workers/requests.py workers/responses.py workers/service.py workers/upstreams.py
""".split()


def compiled() -> list[object]:
    """The extension modules to build; writes down which sources they are made of."""
    from mypyc.build import mypycify

    # A changed source or another compiler makes other C code; the directory keeps what did not change.
    # (mypy's cache is its own: `make lint` may run at the same time.)
    extensions = mypycify(["--cache-dir=build/mypy", *MODULES], opt_level="2", multi_file=True)
    digests = {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in MODULES}
    (ROOT / "shared/native.json").write_text(json.dumps(digests, indent=1))
    return list(extensions)


setup(ext_modules=compiled() if os.environ.get("INFERFLOW_NATIVE") == "1" else [])
