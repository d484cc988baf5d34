"""`seedstory sample` from a checkout: python sample.py --help."""

from seedstory_jax import cli
from seedstory_jax.sample import main

if __name__ == "__main__":
    cli.tune_allocator()
    cli.run(main)
