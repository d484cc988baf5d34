"""The steps of a build, each with its results on disk, so that a run can stop anywhere and go on."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seedstory_jax import outputs
from seedstory_jax.chat_client import ChatClient, NoAnswer
from seedstory_jax.data.names import folder_name
from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_path
from seedstory_jax.storystream.build.keyframes import (
    VIDEOS,
    Frame,
    drop_near_duplicates,
    extract_keyframes,
    folder_frames,
)
from seedstory_jax.storystream.build.narrate import Prompts, describe, narrate, narrate_question
from seedstory_jax.storystream.build.subtitles import find_subtitles, read_subtitles, said_between
from seedstory_jax.storystream.lines import write_jsonl, written_whole


@dataclass(frozen=True)
class BuildConfig:
    """How frames are chosen and grouped. Gaps in seconds; `near`: hash bits of 256 that duplicates may differ by."""

    scene: float = 0.3
    least_gap: float | int = 1
    longest_gap: float | int = 10
    near: int = 12
    group: int = 30
    least_group: int = 10
    concurrency: int = 4

    def __post_init__(self):
        if not 2 <= self.least_group <= self.group:
            raise UserError(
                f"groups of {self.least_group} to {self.group} frames: give 2 or more, and not more than --group"
            )
        if self.concurrency < 1:
            raise UserError(f"--concurrency={self.concurrency}: give 1 or more")


@dataclass(frozen=True)
class Moment:
    """A kept frame: its picture, time, and what is said until the next."""

    picture: Path
    time: float | None
    said: str


def digest(*parts: Any) -> str:
    """What a result depends on, in sixteen digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _write_json(path: Path, value: Any) -> None:
    with written_whole(path, by=None) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def choose_moments(source: Path, work: Path, config: BuildConfig) -> list[Moment]:
    """The frames to tell of, from a video or a folder of frames; read from `work` where they were chosen before."""
    if not source.exists():
        raise UserError(f"{source} does not exist: give a video or a folder of frames")
    if not source.is_dir() and source.suffix.lower() not in VIDEOS:
        raise UserError(f"{source} is no folder and no video ({', '.join(VIDEOS)})")
    subtitles = find_subtitles(source)
    about = digest(
        [str(source.resolve()), _stamp(source), config.scene, config.least_gap, config.longest_gap, config.near],
        [str(subtitles), _stamp(subtitles)] if subtitles else None,
    )
    known = _read_json(work / "moments.json")
    if known and known["about"] == about and all(Path(m["picture"]).is_file() for m in known["moments"]):
        return [Moment(Path(m["picture"]), m["time"], m["said"]) for m in known["moments"]]
    if source.is_dir():
        frames = folder_frames(source)
    else:
        frames = extract_keyframes(
            source, work / "frames", scene=config.scene, least_gap=config.least_gap, longest_gap=config.longest_gap
        )
    kept = drop_near_duplicates(frames, distance=config.near)
    moments = _with_words(kept, subtitles)
    _write_json(
        work / "moments.json", {"about": about, "moments": [asdict(m) | {"picture": str(m.picture)} for m in moments]}
    )
    return moments


def _stamp(path: Path) -> list[Any]:
    if path.is_dir():
        files = [child for child in path.iterdir() if child.is_file()]  # no loop of links, nothing that is gone
        return sorted([child.name, child.stat().st_size, child.stat().st_mtime_ns] for child in files)
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _with_words(frames: Sequence[Frame], subtitles: Path | None) -> list[Moment]:
    cues = read_subtitles(subtitles) if subtitles else []
    moments = []
    for place, frame in enumerate(frames):
        said = ""
        if cues and frame.time is not None:
            later = [other.time for other in frames[place + 1 :] if other.time is not None]
            said = said_between(cues, 0.0 if place == 0 else frame.time, later[0] if later else float("inf"))
        moments.append(Moment(frame.path, frame.time, said))
    return moments


def groups_of(moments: Sequence[Moment], config: BuildConfig) -> list[list[Moment]]:
    """Runs of `group` frames; what is left over is a story if it has `least_group` or more."""
    runs = [list(moments[first : first + config.group]) for first in range(0, len(moments), config.group)]
    return [run for run in runs if len(run) >= config.least_group]


class Results:
    """Answers by what they depend on: a JSONL file that is appended to as soon as an answer is there."""

    def __init__(self, path: Path):
        self.path, self.known, self._lock = path, {}, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    record = json.loads(line)
                    self.known[record["key"]] = record["answer"]
                    whole.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # what was being written when a run stopped
            with written_whole(path, by=None) as file:
                file.write("".join(line + "\n" for line in whole))

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer."""
        with self._lock:
            self.known[key] = answer
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")


def answer_all(
    jobs: dict[str, Callable[[], Any]], results: Results, *, concurrency: int, name: str, progress: bool = True
) -> dict[str, str]:
    """Run the jobs whose key has no answer yet, a few at a time; why the ones that failed did, by key.

    A UserError (a wrong key, an unknown model) ends it at once: the others would fail alike.
    """
    todo = {key: job for key, job in jobs.items() if key not in results.known}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(concurrency)
    try:
        running = {pool.submit(job): key for key, job in todo.items()}
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=name, mininterval=1.0, disable=not progress)
        with bar:
            for future in as_completed(running):
                try:
                    results.add(running[future], future.result())
                except NoAnswer as error:
                    failed[running[future]] = str(error)
                bar.update()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return failed


@dataclass(frozen=True)
class Estimate:
    """What is still to be asked, in calls and (roughly) tokens."""

    frames: int
    stories: int
    describe_calls: int
    narrate_calls: int
    prompt_tokens: int
    answer_tokens: int

    def price(self, per_million_in: float | int, per_million_out: float | int) -> float:
        """What that costs."""
        return (self.prompt_tokens * per_million_in + self.answer_tokens * per_million_out) / 1e6


class Build:
    """One dataset in the making: `out/stories.jsonl`, `out/images/`, and all that led there in `out/work/`."""

    def __init__(self, sources: Sequence[Path], out: Path, config: BuildConfig, prompts: Prompts, model: str):
        self.sources, self.out, self.config, self.prompts, self.model = list(sources), out, config, prompts, model
        names = [source.name if source.is_dir() else source.stem for source in sources]
        doubles = {name for name in names if names.count(name) > 1}
        if doubles:
            raise UserError(f"two sources are called {sorted(doubles)[0]!r}, which names their stories: rename one")
        self.names = dict(zip(map(str, sources), names))
        outputs.claim(out / "stories.jsonl", by="build")
        self.descriptions = Results(out / "work" / "descriptions.jsonl")
        self.narratives = Results(out / "work" / "narratives.jsonl")

    def stories(self) -> list[tuple[str, list[Moment]]]:
        """(id, moments) of every story; runs the steps that ask nobody."""
        stories = []
        for source in tqdm(self.sources, desc="keyframes", disable=len(self.sources) < 2):
            name = self.names[str(source)]
            moments = choose_moments(source, self.out / "work" / folder_name(name), self.config)
            groups = groups_of(moments, self.config)
            stories += [(f"{name}-{number:03d}", group) for number, group in enumerate(groups)]
        return stories

    def _picture_key(self, moment: Moment) -> str:
        data = hashlib.sha256(moment.picture.read_bytes()).hexdigest()
        return digest("describe", self.model, self.prompts.describe, data)

    def estimate(self, stories: Sequence[tuple[str, list[Moment]]], *, image_tokens: int = 800) -> Estimate:
        """What is left to ask; four letters a token, 80 tokens a description, 45 a frame of narrative."""
        moments = [moment for _, group in stories for moment in group]
        describe_calls = len({key for key in map(self._picture_key, moments) if key not in self.descriptions.known})
        asked, words, answers = 0, 0, 80 * describe_calls
        for _, group in stories:
            keys = [self._picture_key(moment) for moment in group]
            known = [self.descriptions.known.get(key) for key in keys]
            said = [(text or "x" * 320, moment.said) for text, moment in zip(known, group)]
            if all(known) and self._story_key(said) in self.narratives.known:
                continue
            asked += 1
            words += len(narrate_question(self.prompts, said))
            answers += 45 * len(group)
        prompt = describe_calls * (len(self.prompts.describe) // 4 + image_tokens) + words // 4
        return Estimate(len(moments), len(stories), describe_calls, asked, prompt, answers)

    def _story_key(self, said: Sequence[tuple[str, str]]) -> str:
        return digest("narrate", self.model, narrate_question(self.prompts, said))

    def run(self, endpoint: ChatClient, *, progress: bool = True) -> tuple[int, dict[str, str]]:
        """Ask what has not been answered and write the dataset; (stories written, why others are missing).

        Raises UserError if there is nothing to tell of.
        """
        stories = self.stories()
        if not stories:
            raise UserError(
                f"no story: fewer than {self.config.least_group} different frames a source; "
                "lower --scene, --longest_gap, --near or --least_group"
            )
        failed: dict[str, str] = {}
        keys = {id(moment): self._picture_key(moment) for _, group in stories for moment in group}
        jobs = {
            keys[id(moment)]: lambda picture=moment.picture: describe(endpoint, self.prompts, picture)
            for _, group in stories
            for moment in group
        }
        faults = answer_all(
            jobs, self.descriptions, concurrency=self.config.concurrency, name="describe", progress=progress
        )
        asks, story_keys = {}, {}
        for name, group in stories:
            missing = [faults[keys[id(moment)]] for moment in group if keys[id(moment)] in faults]
            if missing:
                failed[name] = f"{len(missing)} frames have no description: {missing[0]}"
                continue
            said = [(self.descriptions.known[keys[id(moment)]], moment.said) for moment in group]
            story_keys[name] = self._story_key(said)
            asks[story_keys[name]] = lambda said=said: narrate(endpoint, self.prompts, said)
        faults = answer_all(
            asks, self.narratives, concurrency=self.config.concurrency, name="narrate", progress=progress
        )
        told = []
        for name, group in stories:
            if name in failed:
                continue
            if story_keys[name] in faults:
                failed[name] = faults[story_keys[name]]
            else:
                told.append((name, group, self.narratives.known[story_keys[name]]))
        return self._write(told), failed

    def write_captioned(self, captions: Sequence[str]) -> int:
        """Write the dataset of one folder of frames whose captions are there, a line a picture; stories written.

        Nothing is left out as a near-duplicate, and nobody is asked. Raises UserError if the numbers differ.
        """
        if len(self.sources) != 1 or not self.sources[0].is_dir():
            raise UserError("--captions goes with one folder of pictures: give its lines in the pictures' order")
        moments = [Moment(frame.path, frame.time, "") for frame in folder_frames(self.sources[0])]
        if len(moments) != len(captions):
            raise UserError(f"{self.sources[0]} has {len(moments)} pictures, --captions has {len(captions)} lines")
        name, told, first = self.names[str(self.sources[0])], [], 0
        for number, group in enumerate(groups_of(moments, self.config)):
            told.append((f"{name}-{number:03d}", group, list(captions[first : first + len(group)])))
            first += len(group)
        if not told:
            raise UserError(f"{len(moments)} pictures are no story: lower --least_group={self.config.least_group}")
        return self._write(told)

    def _write(self, told: Sequence[tuple[str, list[Moment], list[str]]]) -> int:
        records = []
        for name, group, texts in told:
            images = []
            for number, moment in enumerate(group):
                place = Path("images") / folder_name(name) / f"{number:03d}{moment.picture.suffix.lower()}"
                target = self.out / place
                with atomic_path(target) as beside:
                    shutil.copyfile(moment.picture, beside)
                images.append(place.as_posix())
            records.append({"id": name, "images": images, "captions": texts})
        return write_jsonl(self.out / "stories.jsonl", records, by="build")
