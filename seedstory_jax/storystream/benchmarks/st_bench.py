"""ST-Bench (StoryMem, 2025): 30 scripts of shots, text only; prompts for `--mode=visualize`.

Read: JSON files `{story_overview, scenes: [{scene_num, cut, video_prompts: [...]}]}`. A script brings no picture:
--pictures names a folder with one a script (`black.png` for `black.json`). Its scores are of videos, so nothing is
written in its layout.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks.story_set import Item, Options, Skipped, own_picture, read_json


def read(folder: Path, options: Options) -> Iterator[Item | Skipped]:
    """A story a script: its overview is the given turn's caption, its prompts the captions to come.

    Raises UserError for a folder without scripts.
    """
    root = folder / "story" if (folder / "story").is_dir() else folder
    files = [root] if root.is_file() else sorted(root.glob("*.json"))
    scripts = [(file, data) for file in files if isinstance(data := read_json(file), Mapping) and "scenes" in data]
    if not scripts:
        raise UserError(f"{folder} holds no ST-Bench: give the folder of its scripts (StoryMem's story/)")
    for file, data in scripts:
        try:
            yield _script(file.stem, data, options)
        except (KeyError, TypeError, AttributeError) as error:
            yield Skipped(file.stem, f"{type(error).__name__}: {error}")


def _script(name: str, data: Mapping, options: Options) -> Item | Skipped:
    prompts, scenes = [], []
    for scene in data["scenes"]:
        beats = scene["video_prompts"]
        beats = [beats] if isinstance(beats, str) else beats
        prompts += [text for text in beats if text.strip()]
        scenes += [scene.get("scene_num")] * (len(prompts) - len(scenes))
    if not prompts:
        return Skipped(name, "the script has no video_prompts")
    picture = own_picture(options.pictures, name)
    if picture is None:
        return Skipped(name, f"text only: put its first picture into --pictures as {name}.png")
    overview = data.get("story_overview") or prompts[0]
    source = {"benchmark": "st-bench", "script": name, "scenes": scenes, "own_picture": True}
    return Item(name, (picture,), (overview,), tuple(prompts), source)
