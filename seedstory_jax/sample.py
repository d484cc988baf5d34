"""Generate stories: python sample.py --workdir=runs/toy --image=a.png --text="..." --length=30 --out=out/story."""

from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli


def main(arguments: Sequence[str]) -> int:
    """Parses the flags, generates the story or stories, and writes their folders."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="a run of train.py")
    parser.add_argument("--config", help="must agree with the workdir's own; may be left out")
    parser.add_argument("--out", required=True, type=Path, help="folder of story.json, images and index.html")
    parser.add_argument("--image", help="the first image")
    parser.add_argument("--text", help="the first caption")
    parser.add_argument("--captions", type=Path, help="text file, a caption a line, for the turns that follow")
    parser.add_argument("--stories", type=Path, help="StoryStream JSONL: a prompt from the first turn of every story")
    parser.add_argument("--image_root", type=Path, help="folder of the images of --stories; the file's own if left out")
    parser.add_argument("--length", type=int, default=25, help="turns at most, the prompt included")
    parser.add_argument("--exact_length", action="store_true", help="the model may not end a story before --length")
    parser.add_argument("--policy", default="multimodal_sink", help="eviction policy of the KV cache")
    parser.add_argument("--positions", default="slot", help="slot or absolute")
    parser.add_argument("--window", type=int, help="newest turns that stay")
    parser.add_argument("--image_sink_cap", type=int, help="most old images that stay (multimodal_sink)")
    parser.add_argument("--mode", default="generate", help="generate, or visualize: render the given captions")
    parser.add_argument("--text_only", action="store_true", help="write no images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, help="0 is greedy, as published; the config's if left out")
    parser.add_argument("--top_p", type=float, help="nucleus: share of the probability that is sampled from")
    parser.add_argument("--at_limit", default="force_image", help="after max_text_tokens: force_image or stop")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--guidance", type=float, help="guidance scale")
    parser.add_argument("--batch", type=int, default=8, help="stories generated at once with --stories")
    flags, overrides = parser.parse_strictly(arguments)

    from seedstory_jax.locks import owned
    from seedstory_jax.sampling import run_sampling

    with owned(flags.out, by="sample", beside=True):
        return run_sampling(flags, overrides)
