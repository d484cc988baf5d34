"""The `build` sub-command."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli, outputs
from seedstory_jax.chat_client import KEY_VARIABLE, ChatClient, check_address, read_key
from seedstory_jax.data.names import read_regular
from seedstory_jax.data.storystream import caption_lines
from seedstory_jax.errors import UserError
from seedstory_jax.locks import owned
from seedstory_jax.storystream.build.narrate import read_prompts
from seedstory_jax.storystream.build.pipeline import Build, BuildConfig

ABOUT = """A StoryStream dataset from videos or folders of frames.

Subtitles (.srt, .vtt) are taken from beside a video. Pictures and texts are sent to the endpoint you name, and nowhere
else; --dry_run says how much that would be and sends nothing. Everything that has been answered is kept in OUT/work, so
a run that was stopped, or had failures, goes on where it was when the command is given again."""


def main(arguments: Sequence[str]) -> int:
    """Run a build; exit code 1 if stories are missing."""
    defaults = BuildConfig()
    parser = cli.Parser(prog="seedstory data build", description=ABOUT)
    parser.add_argument("sources", type=Path, nargs="+", metavar="VIDEO", help="videos, or folders of frames")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--title", default="the series", help="what the series is called")
    parser.add_argument("--background", default="", help="who and what the series is about: a text, or @FILE")
    parser.add_argument("--captions", type=Path, help="text file, a line a picture of the one folder: asks nobody")
    parser.add_argument("--endpoint", help="an OpenAI-compatible address, like http://localhost:8000/v1")
    parser.add_argument("--model", default="", help="the model to ask there; it must see pictures")
    parser.add_argument("--api_key_env", default=KEY_VARIABLE, help="environment variable that holds the key")
    parser.add_argument("--proxy", default="", help="address of a proxy; the environment's are not used")
    parser.add_argument("--prompts", type=Path, help="folder of prompts to edit (written there if it has none)")
    parser.add_argument("--scene", type=float, default=defaults.scene, help="change that makes a keyframe, 0 to 1")
    parser.add_argument(
        "--least_gap", type=float, default=defaults.least_gap, help="seconds between keyframes, at least"
    )
    parser.add_argument("--longest_gap", type=float, default=defaults.longest_gap, help="seconds, at most")
    parser.add_argument(
        "--near", type=int, default=defaults.near, help="near-duplicates differ by up to this of 256 bits"
    )
    parser.add_argument("--group", type=int, default=defaults.group, help="frames of a story")
    parser.add_argument(
        "--least_group", type=int, default=defaults.least_group, help="fewest frames of a source's last"
    )
    parser.add_argument("--concurrency", type=int, default=defaults.concurrency, help="questions asked at once")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for an answer")
    parser.add_argument("--tries", type=int, default=5, help="how often a question is tried")
    parser.add_argument(
        "--dry_run", action="store_true", help="find the keyframes, estimate calls and cost, ask nobody"
    )
    parser.add_argument("--price_in", type=float, default=0.0, help="price of a million prompt tokens")
    parser.add_argument("--price_out", type=float, default=0.0, help="price of a million answer tokens")
    parser.add_argument("--image_tokens", type=int, default=800, help="tokens that a picture counts as")
    flags, _ = parser.parse_strictly(arguments)

    if flags.endpoint:
        check_address(flags.endpoint, "--endpoint")
    with owned(flags.out, by="build", beside=True):
        return _build(flags)


def _build(flags: argparse.Namespace) -> int:
    outputs.claim_folder(flags.out, by="build")
    background = flags.background
    if background.startswith("@"):
        try:
            background = read_regular(Path(background[1:])).decode("utf-8-sig").strip()
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"--background={background}: {error}") from None
    prompts = read_prompts(flags.prompts, title=flags.title, background=background)
    config = BuildConfig(
        scene=flags.scene,
        least_gap=flags.least_gap,
        longest_gap=flags.longest_gap,
        near=flags.near,
        group=flags.group,
        least_group=flags.least_group,
        concurrency=flags.concurrency,
    )
    build = Build(flags.sources, flags.out, config, prompts, flags.model)
    if flags.captions:
        print(f"{build.write_captioned(caption_lines(flags.captions)):,} stories in {flags.out / 'stories.jsonl'}")
        return 0
    if flags.dry_run:
        estimate = build.estimate(build.stories(), image_tokens=flags.image_tokens)
        print(
            f"{estimate.stories:,} stories of {estimate.frames:,} frames; to ask: {estimate.describe_calls:,} "
            f"descriptions and {estimate.narrate_calls:,} narratives, about {estimate.prompt_tokens:,} tokens in and "
            f"{estimate.answer_tokens:,} out"
        )
        if flags.price_in or flags.price_out:
            print(f"about {estimate.price(flags.price_in, flags.price_out):.2f} at the prices given")
        return 0
    if not flags.endpoint or not flags.model:
        raise UserError("--endpoint and --model say whom to ask; --dry_run goes without")
    key = read_key(flags.endpoint, flags.api_key_env)
    endpoint = ChatClient(
        flags.endpoint, flags.model, key=key, timeout=flags.timeout, tries=flags.tries, proxy=flags.proxy
    )
    count, failed = build.run(endpoint)
    print(
        f"{count:,} stories in {flags.out / 'stories.jsonl'}; {endpoint.calls:,} answers, "
        f"{endpoint.prompt_tokens:,} tokens in and {endpoint.answer_tokens:,} out"
    )
    for name, reason in failed.items():
        print(f"missing: {name}: {reason}")
    if failed:
        print("give the command again to ask once more for what is missing")
    return 1 if failed else 0
