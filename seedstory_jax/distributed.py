"""Several processes that train together, one a host or one a device: joining them, and what each holds and writes.

Every process runs the same program on the same files in one workdir that all can see. Arrays of the mesh lie on the
devices of all of them; caches, metrics and pictures are written by process 0.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from seedstory_jax.errors import UserError

# Set by Slurm's srun and by Open MPI's mpirun for every process of a job: how many there are.
PROCESS_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that tell a process of the others."""
    parser.add_argument(
        "--distributed", action="store_true", help="join the job's other processes (TPU pod, Slurm, MPI)"
    )
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0, where jax cannot know it")
    parser.add_argument("--num_processes", type=int, help="with --coordinator")
    parser.add_argument("--process_id", type=int, help="with --coordinator: 0 to num_processes - 1")


def join(flags: argparse.Namespace) -> None:
    """Joins the other processes if flags or environment speak of any; before anything else is asked of jax.

    Under srun or mpirun with several processes this needs no flag, on a TPU pod --distributed. Raises UserError for
    flags that do not go together, or if the others cannot be found.
    """
    given = (flags.coordinator or None, flags.num_processes, flags.process_id)
    explicit = [value is not None for value in given]
    if any(explicit) and not all(explicit):
        raise UserError("--coordinator, --num_processes and --process_id go together: give all three or none")
    if all(explicit) and not 0 <= flags.process_id < flags.num_processes:
        raise UserError(f"--process_id={flags.process_id} is none of --num_processes={flags.num_processes}")
    in_a_job = any(int(os.environ.get(name) or 1) > 1 for name in PROCESS_COUNTS)
    if not (all(explicit) or flags.distributed or in_a_job):
        return
    try:
        jax.distributed.initialize(*given) if all(explicit) else jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes ({str(error).splitlines()[0]}); "
            "give --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def place(value: Any, at: NamedSharding) -> jax.Array:
    """An array where `at` says; every process must hold the same value, or its part of an array that lies there."""
    if isinstance(value, jax.Array) and value.sharding.is_equivalent_to(at, value.ndim):
        return value
    if at.is_fully_addressable:
        return jax.device_put(value, at)
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, at, lambda part: host[part])


def on_this_process(value: Any) -> Any:
    """The whole of an array that may lie on other processes' devices too, here; all processes must ask for it."""
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        return value
    if value.is_fully_replicated:
        return value.addressable_data(0)
    return multihost_utils.process_allgather(value, tiled=True)


def on_host(tree: Any) -> Any:
    """`on_this_process` of every leaf, as numpy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(on_this_process(leaf)), tree)


@contextlib.contextmanager
def first_process_first(what: str) -> Iterator[None]:
    """Lets process 0 through this block before the others, which then find the files it made."""
    alone = jax.process_count() == 1
    if not alone and jax.process_index():
        multihost_utils.sync_global_devices(what)
    yield
    if not alone and not jax.process_index():
        multihost_utils.sync_global_devices(what)


def rows_here(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Numbers of those of a batch's rows that this process's devices hold, in order."""
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))
