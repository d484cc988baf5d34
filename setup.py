"""What pyproject.toml cannot say: configs/ at the root is installed as seedstory_jax/configs, from its only copy."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["seedstory_jax", "seedstory_jax.*"]), "seedstory_jax.configs"],
    package_dir={"seedstory_jax.configs": "configs"},
)
