"""Versions, devices and flags of this machine, as a bug report needs them."""

import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib import metadata

from seedstory_jax import __version__, cli

# Variables that change what XLA compiles or where it runs; no wider, for a report is public and others may hold keys.
FLAGS = re.compile(r"(JAX|XLA|LIBTPU)_\w+|TF_(CPP|XLA)_\w+|CUDA_VISIBLE_DEVICES|GLIBC_TUNABLES|MALLOC_\w+")


def requirements(package: str = "seedstory_jax") -> list[str]:
    """Names of the packages that `package` requires, without its extras, as its installed metadata lists them."""
    lines = [line for line in metadata.requires(package) or () if "extra ==" not in line]
    return [re.match(r"[\w.-]+", line)[0] for line in lines]


def version_of(package: str) -> str:
    """The installed version, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, str]:
    """What is installed and what it runs on, by name, in the order of printing."""
    import jax

    try:
        packages = ["jaxlib", *requirements()]
    except metadata.PackageNotFoundError:  # run from a checkout, without an installation
        packages = ["jaxlib", "jax", "flax", "optax", "orbax-checkpoint", "numpy"]
    facts = {"seedstory_jax": __version__, "python": f"{platform.python_version()} ({sys.executable})"}
    facts |= {"platform": platform.platform(), "cpus": str(os.cpu_count())}
    facts |= {name: version_of(name) for name in sorted(packages)}
    try:
        kinds = [device.device_kind for device in jax.devices()]
        facts["devices"] = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
        facts["backend"] = f"{jax.default_backend()}, {jax.process_count()} process(es)"
    except RuntimeError as error:  # an accelerator that cannot be reached is what the report is about
        facts["devices"] = f"none: {str(error).splitlines()[0]}"
    return facts | {name: value for name, value in sorted(os.environ.items()) if FLAGS.fullmatch(name)}


def main(arguments: Sequence[str]) -> int:
    """Prints the environment, a line a fact."""
    cli.Parser(description=__doc__).parse_strictly(arguments)
    facts = environment()
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
    return 0
