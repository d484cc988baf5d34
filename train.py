"""`seedstory train` from a checkout: python train.py --help."""

from seedstory_jax import cli
from seedstory_jax.train import main

if __name__ == "__main__":
    cli.tune_allocator()
    cli.run(main)
