"""Meshes and partition rules: parameter paths -> logical axes -> mesh axes, each written once.

The models know nothing of this. A parameter's path matches the first rule that fits; a logical axis that its mesh axis
does not divide stays whole.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seedstory_jax.config import MeshConfig
from seedstory_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig) -> Mesh:
    """All devices as (data, fsdp, tensor); raises UserError if the sizes do not multiply to their number."""
    count = jax.device_count()
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1:
        raise UserError(f"mesh {tuple(sizes)}: only one axis may be -1")
    if -1 in sizes:
        rest = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = count // rest if rest and count % rest == 0 else 0
    if int(np.prod(sizes)) != count:
        given = (config.data, config.fsdp, config.tensor)
        raise UserError(f"mesh (data, fsdp, tensor) = {given} does not make {count} devices; set mesh.data=-1")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh, skip_axes: int = 0) -> NamedSharding:
    """The batch axis, after `skip_axes` others, split over data and fsdp."""
    return NamedSharding(mesh, P(*(None,) * skip_axes, ("data", "fsdp")))
