"""The `features` sub-command: what a trained or converted ViT and VAE make of every picture, for stages to read."""

from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli
from seedstory_jax.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Run the sub-command."""
    parser = cli.Parser(prog="seedstory data features", description=__doc__)
    parser.add_argument("source", type=Path, metavar="FILE", help="JSONL, a folder of it, or a TFDS folder")
    parser.add_argument("--workdir", type=Path, required=True, help="a run of train.py whose ViT and VAE are used")
    parser.add_argument("--config", help="the run's config file, where train.py has not begun it yet")
    parser.add_argument("--out", type=Path, required=True, help="folder for the arrays; give it as data.features")
    parser.add_argument("--image_root", type=Path, help="what image paths are relative to")
    parser.add_argument(
        "--kinds",
        default="squash",
        help="squash (the ViT, stage 2), crop (the ViT, stages 1 and 3), moments (the VAE, stages 1 and 3)",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    flags, overrides = parser.parse_strictly(arguments)

    from seedstory_jax.checkpoints.layout import is_run, read_config
    from seedstory_jax.checkpoints.load import load_parameters
    from seedstory_jax.config import load_config
    from seedstory_jax.data.sources import open_source
    from seedstory_jax.features.cache import Encoder, write_cache
    from seedstory_jax.locks import owned

    if flags.config:
        config = load_config(flags.config, overrides)
    elif is_run(flags.workdir):
        config = read_config(flags.workdir)
    else:
        raise UserError(f"{flags.workdir} is no workdir of train.py: it has no config.json; or give --config=FILE")
    source = open_source(flags.source, flags.image_root)
    with owned(flags.out, by="features"):
        for kind in flags.kinds.split(","):
            encoder = Encoder(config, kind)
            parameters = load_parameters(config.model, (encoder.part,), flags.workdir, seed=config.seed)
            array = write_cache(encoder, parameters, source, flags.out, dtype=flags.dtype, max_bad=config.data.max_bad)
            print(f"{kind} {list(array.shape)} {flags.dtype} in {array.filename}")
    return 0
