"""Train the stages of a config: python train.py --config=configs/toy.py --workdir=runs/toy [--config.KEY=VALUE ...]."""

import sys
from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli

STOPPED = 75  # EX_TEMPFAIL: the work was saved and can go on; schedulers start it again on this code


def main(arguments: Sequence[str]) -> int:
    """Parses the flags and trains; 75 if a signal stopped the run, which the same command takes up again."""
    parser = cli.Parser(prog="train.py", description=__doc__)
    parser.add_argument("--config", required=True, help="config file; any of its keys as --config.KEY=VALUE")
    parser.add_argument("--workdir", required=True, type=Path, help="everything the run writes; run again to go on")
    parser.add_argument("--dry_run", action="store_true", help="one step of each stage on random data: bytes and time")
    from seedstory_jax import distributed

    distributed.add_flags(parser)
    flags, overrides = parser.parse_strictly(arguments)
    distributed.join(flags)

    from seedstory_jax.config import load_config
    from seedstory_jax.training.loop import Interrupted
    from seedstory_jax.training.train import train

    if flags.dry_run:
        from seedstory_jax.training.dry_run import dry_run

        dry_run(load_config(flags.config, overrides))
        return 0
    try:
        train(load_config(flags.config, overrides), flags.workdir)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    return 0


if __name__ == "__main__":
    cli.tune_allocator()
    cli.run(main)
