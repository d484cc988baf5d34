"""`seedstory parity DIR`: see `seedstory_jax.parity.runner`."""

from seedstory_jax import cli
from seedstory_jax.parity.runner import main

if __name__ == "__main__":
    cli.run(main)
