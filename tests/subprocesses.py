"""Runs Python in fresh processes, for tests that need other devices, signals or clean imports."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).parent.parent


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Returns the environment of a process with `devices` CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    if devices > 1:
        # With this scheduler devices may begin collectives in different orders and deadlock. Next
        # to other tests they may also wait longer than XLA's 40 seconds.
        flags += (
            " --xla_cpu_enable_concurrency_optimized_scheduler=false"
            " --xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
            " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        )
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        **more,
    }


def start_python(*args: str, devices: int = 1, **env: str) -> subprocess.Popen:
    """Starts `python ARGS` from the checkout's root, with its output piped as text."""
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env=environment(devices, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(*args: str, second: dict[str, str] | None = None, **more) -> list[subprocess.Popen]:
    """Starts `python ARGS` twice, as two processes of one run; `second` is set in the second."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        more["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free.getsockname()[1]}"
    own = [{"JAX_PROCESS_ID": "0"}, {"JAX_PROCESS_ID": "1", **(second or {})}]
    return [start_python(*args, JAX_NUM_PROCESSES="2", **env, **more) for env in own]


def run_python(code: str, *, devices: int = 1, **env: str) -> str:
    """Runs `code`, fails with its output unless it exits with 0, and returns that output."""
    process = start_python("-c", textwrap.dedent(code), devices=devices, **env)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output
