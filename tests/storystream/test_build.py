"""A build from end to end: videos of the toy world by ffmpeg, and a server here that answers as the API does."""

import base64
import io
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.chat_client import ChatClient, NoAnswer
from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.__main__ import main
from seedstory_jax.storystream.build.keyframes import (
    difference_hash,
    drop_near_duplicates,
    extract_keyframes,
    folder_frames,
)
from seedstory_jax.storystream.build.narrate import BadNarrative, narrate, read_narrative, read_prompts
from seedstory_jax.storystream.validate import validate
from seedstory_jax.toy.world import make_story, render_frame

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


class Api:
    """A chat endpoint; `faults` is a list of what goes wrong, one a call, before it answers well."""

    def __init__(self):
        self.faults: list = []
        self.calls: list[dict] = []
        self.kinds: Counter = Counter()
        self.headers: list[dict] = []
        self.running = self.most_running = 0
        self.narrative = None  # another way to answer for a story
        self.lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                with api.lock:
                    api.running += 1
                    api.most_running = max(api.most_running, api.running)
                try:
                    api.handle(self)
                finally:
                    with api.lock:
                        api.running -= 1

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def handle(self, request):
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.calls.append(body)
            self.headers.append(dict(request.headers))
            fault = self.faults.pop(0) if self.faults else None
        assert request.path == "/v1/chat/completions"
        if isinstance(fault, int):
            return self.send(request, fault, b'{"error": {"message": "not now"}}', {"Retry-After": "0"})
        if fault == "hang":
            time.sleep(1.0)
            return None
        if fault == "reset":
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            request.connection.close()
            return None
        if fault == "cut":
            request.send_response(200)
            request.send_header("Content-Length", "1000")
            request.end_headers()
            request.wfile.write(b'{"choices": [')
            return None
        if isinstance(fault, bytes):
            return self.send(request, 200, fault)
        text = fault if isinstance(fault, str) else self.answer(body)
        answer = {
            "choices": [{"message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        }
        return self.send(request, 200, json.dumps(answer).encode())

    def send(self, request, status, data, headers=()):
        request.send_response(status)
        for name, value in dict(headers).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def answer(self, body):
        content = body["messages"][0]["content"]
        if isinstance(content, list):  # a picture
            self.kinds["describe"] += 1
            data = base64.b64decode(content[1]["image_url"]["url"].partition(",")[2])
            pixel = Image.open(io.BytesIO(data)).convert("RGB").resize((1, 1)).getpixel((0, 0))
            return f"A picture with the mean colour\n {pixel}."
        self.kinds["narrate"] += 1
        if self.narrative:
            return self.narrative(body)
        count = int(re.search(r"Below are (\d+)", content)[1])
        return json.dumps([{"frame": n, "text": f"Then moment {n} came."} for n in range(1, count + 1)])


@pytest.fixture
def api():
    server = Api()
    yield server
    server.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twelve frames of a toy story, each three seconds, with subtitles."""
    folder = tmp_path_factory.mktemp("video")
    story = make_story(np.random.default_rng(4), "sunny")[:12]
    frames = b"".join(render_frame(facts).repeat(3, 0).repeat(3, 1).tobytes() for facts in story)
    path = folder / "episode one.mp4"
    command = ["ffmpeg", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "192x192", "-r", "1/3"]
    command += ["-i", "-", "-r", "5", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=frames, check=True)
    cues = [f"{n}\n00:00:{3 * n:02d},500 --> 00:00:{3 * n + 2:02d},000\n<i>Line</i> {n}\n" for n in range(12)]
    (folder / "episode one.srt").write_text("\ufeff" + "\n".join(cues))
    return path


@pytest.fixture
def frames(tmp_path):
    """A folder of 7 pictures, two of them nearly alike, one too small, one damaged; times in their names."""
    folder = tmp_path / "comic"
    folder.mkdir()
    story = make_story(np.random.default_rng(8), "sunny")
    pictures = [render_frame(facts).repeat(2, 0).repeat(2, 1) for facts in story[::5]]
    for number, picture in enumerate([*pictures[:4], pictures[3], *pictures[4:6]]):
        Image.fromarray(picture).save(folder / f"keyframe_0-0-{2 * number}-{number}.png")
    Image.new("RGB", (50, 50)).save(folder / "keyframe_0-1-0-0.png")
    (folder / "keyframe_0-1-1-0.png").write_bytes(b"no")
    (tmp_path / "comic.vtt").write_text(
        "WEBVTT\n\n00:00.500 --> 00:01.500\nHello &amp; welcome\n\nNOTE\n\nbroken --> x\n"
    )
    return folder


def build(api, *sources, out, more=()):
    flags = [f"--out={out}", f"--endpoint={api.url}", "--model=toy", "--tries=11", "--timeout=0.5"]
    return main(["build", *map(str, sources), *flags, "--near=3", "--least_group=3", *more])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("seedstory_jax.chat_client.sleep", lambda seconds: None)


@needs_ffmpeg
@pytest.mark.walk
def test_video_to_dataset(api, video, tmp_path, capsys):
    out = tmp_path / "set"
    more = ["--scene=0.01", "--group=6", "--title=Toy", "--background=A monkey lives here."]
    assert build(api, video, out=out, more=more) == 0
    data = StoryDataset(out)
    assert [story.id for story in data] == ["episode one-000", "episode one-001"]
    assert [len(story) for story in data] == [6, 6] and data[1].captions[2] == "Then moment 3 came."
    summary = validate(out, clean=tmp_path / "c", rejects=tmp_path / "r", progress=False)
    assert (summary.clean, summary.rejected, summary.warned) == (2, 0, 0)
    assert api.kinds == {"describe": 12, "narrate": 2} and api.most_running <= 4
    asked = api.calls[-1]["messages"][0]["content"] + api.calls[-2]["messages"][0]["content"]
    assert '(Said: "Line 0")' in asked and '(Said: "Line 11")' in asked  # subtitles go with their frames
    assert "A monkey lives here." in asked and "mean colour (" in asked
    capsys.readouterr()
    calls = len(api.calls)
    assert build(api, video, out=out, more=more) == 0  # all is known: nobody is asked again
    assert len(api.calls) == calls
    assert "2 stories" in capsys.readouterr().out


def test_frames_to_dataset_with_failures_on_the_way(api, frames, tmp_path):
    api.faults = [429, "hang", 500, "reset", b"<html>", "cut", b"{}", b'{"choices": []}', " ", 503]
    assert build(api, frames, out=tmp_path / "set") == 0
    data = StoryDataset(tmp_path / "set")
    assert len(data) == 1 and len(data[0]) == 6 and data[0].images[0] == "images/comic-000/000.png"
    assert api.kinds == {"describe": 6, "narrate": 1}
    assert 'Said: "Hello & welcome"' in api.calls[-1]["messages"][0]["content"]


def test_narratives_that_cannot_be_used_are_sent_back(api, frames, tmp_path):
    good = [{"frame": n, "text": f"Text {n}."} for n in range(1, 7)]
    answers = [good[:5], [good[1], good[0], *good[2:]], good]
    api.narrative = lambda body: "Here:\n```json\n" + json.dumps(answers.pop(0)) + "\n```"
    assert build(api, frames, out=tmp_path / "set") == 0
    assert StoryDataset(tmp_path / "set")[0].captions[5] == "Text 6."
    complaints = [call["messages"][2]["content"] for call in api.calls if len(call["messages"]) == 3]
    assert "missing: 6" in complaints[0] and "order is wrong" in complaints[1]


def test_what_fails_is_named_and_asked_again_next_time(api, frames, tmp_path, capsys):
    api.narrative = lambda body: "I would rather not."
    assert build(api, frames, out=tmp_path / "set") == 1
    out = capsys.readouterr().out
    assert "missing: comic-000: no usable narrative in 3 answers" in out and "give the command again" in out
    assert (tmp_path / "set" / "stories.jsonl").read_text() == ""
    api.narrative = None
    described = api.kinds["describe"]
    assert build(api, frames, out=tmp_path / "set") == 0
    assert api.kinds["describe"] == described and len(StoryDataset(tmp_path / "set")) == 1


def test_a_frame_without_a_description_leaves_its_story_out(api, frames, tmp_path, capsys):
    api.faults = [500] * 11
    assert build(api, frames, out=tmp_path / "set", more=["--concurrency=1", "--group=3"]) == 1
    assert "1 frames have no description" in capsys.readouterr().out
    assert [story.id for story in StoryDataset(tmp_path / "set")] == ["comic-001"]


def test_a_refusal_ends_it_with_one_line(api, frames, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_KEY", "abc")
    api.faults = [401] * 20
    with pytest.raises(UserError, match=r"refused: HTTP 401.*not now"):
        build(api, frames, out=tmp_path / "set", more=["--api_key_env=TOY_KEY"])
    assert api.headers[0]["Authorization"] == "Bearer abc"
    assert not list((tmp_path / "set").glob("*.jsonl"))
    api.faults = []
    assert build(api, frames, out=tmp_path / "set") == 0


def test_interrupted_while_describing_it_goes_on(api, frames, tmp_path, monkeypatch):
    from seedstory_jax.storystream.build import pipeline

    real, seen = pipeline.describe, []

    def stops(*args):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(args[-1])
        return real(*args)

    monkeypatch.setattr(pipeline, "describe", stops)
    with pytest.raises(KeyboardInterrupt):
        build(api, frames, out=tmp_path / "set", more=["--concurrency=1"])
    monkeypatch.undo()
    monkeypatch.setattr("seedstory_jax.chat_client.sleep", lambda seconds: None)
    with (tmp_path / "set/work/descriptions.jsonl").open("a") as file:
        file.write('{"key": "half')
    assert build(api, frames, out=tmp_path / "set") == 0
    assert api.kinds["describe"] == 6


def test_dry_run_asks_nobody(api, frames, tmp_path, capsys):
    flags = ["build", str(frames), f"--out={tmp_path / 'set'}", "--dry_run", "--near=3", "--least_group=3"]
    assert main([*flags, "--price_in=10", "--price_out=30"]) == 0
    out = capsys.readouterr().out
    assert "1 stories of 6 frames; to ask: 6 descriptions and 1 narratives" in out
    assert re.search(r"about 0\.\d\d at the prices given", out)
    assert not api.calls
    assert build(api, frames, out=tmp_path / "set") == 0
    assert main([*flags, "--model=toy"]) == 0
    assert "to ask: 0 descriptions and 0 narratives, about 0 tokens" in capsys.readouterr().out


def test_prompts_can_be_edited(api, frames, tmp_path):
    prompts = tmp_path / "prompts"
    flags = ["build", str(frames), f"--out={tmp_path / 'set'}", "--near=3", "--least_group=3", f"--prompts={prompts}"]
    assert main([*flags, "--dry_run"]) == 0
    assert sorted(path.name for path in prompts.iterdir()) == ["describe.txt", "narrate.txt"]
    (prompts / "describe.txt").write_text("Just say $title, costs 5 $.")
    assert build(api, frames, out=tmp_path / "set", more=[f"--prompts={prompts}", "--title=Toy"]) == 0
    assert api.calls[0]["messages"][0]["content"][0]["text"] == "Just say Toy, costs 5 $."
    (prompts / "narrate.txt").write_text("Tell it.")
    with pytest.raises(UserError, match=r"lacks \$count"):
        build(api, frames, out=tmp_path / "set", more=[f"--prompts={prompts}"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.mp4", "--dry_run"], "does not exist"),
        (["comic"], "--endpoint and --model"),
        (["comic", "--endpoint=ftp://x", "--model=m"], "is no address"),
        (["comic", "--group=1", "--dry_run"], "groups of"),
        (["comic", "comic", "--dry_run"], "two sources are called 'comic'"),
        (["comic.vtt", "--dry_run"], "no folder and no video"),
        (["empty", "--dry_run"], "holds no picture"),
        (["broken.mp4", "--dry_run"], "cannot be read as a video"),
        (["comic", "--background=@none.txt", "--dry_run"], "does not exist"),
        (["comic", "--concurrency=0", "--dry_run"], "give 1 or more"),
    ],
)
def test_wrong_use_is_one_line(frames, tmp_path, monkeypatch, arguments, words):
    if "broken.mp4" in arguments and not shutil.which("ffmpeg"):
        words = "ffmpeg is not installed"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(UserError, match=words) as error:
        main(["build", *arguments, "--out=set"])
    assert "\n" not in str(error.value)


def test_without_enough_frames_there_is_no_story(api, frames, tmp_path):
    with pytest.raises(UserError, match="fewer than 20 different frames"):
        build(api, frames, out=tmp_path / "set", more=["--least_group=20"])


def test_pictures_with_captions_of_ones_own(frames, tmp_path):
    flags = ["build", str(frames), f"--out={tmp_path / 'set'}", "--group=5", "--least_group=4"]
    (tmp_path / "lines.txt").write_text("".join(f"Line {n}.\n\n" for n in range(9)))
    assert main([*flags, f"--captions={tmp_path / 'lines.txt'}"]) == 0
    stories = StoryDataset(tmp_path / "set").stories
    assert [list(story.captions) for story in stories] == [
        [f"Line {n}." for n in range(5)],
        [f"Line {n}." for n in range(5, 9)],
    ]
    (tmp_path / "lines.txt").write_text("One.\n")
    with pytest.raises(UserError, match="has 9 pictures, --captions has 1 lines"):
        main([*flags, f"--captions={tmp_path / 'lines.txt'}"])
    with pytest.raises(UserError, match="one folder of pictures"):
        main(["build", str(tmp_path), *flags[1:], f"--captions={tmp_path / 'lines.txt'}"])


@needs_ffmpeg
@pytest.mark.walk
def test_keyframes(video, tmp_path):
    found = extract_keyframes(video, tmp_path / "f", scene=0.01)
    assert [round(frame.time) for frame in found] == list(range(0, 36, 3))
    assert len(extract_keyframes(video, tmp_path / "f", scene=1.0, longest_gap=10)) == 4
    assert len(extract_keyframes(video, tmp_path / "f", scene=0.0, least_gap=6, longest_gap=99)) == 6


def test_videos_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr("seedstory_jax.storystream.build.keyframes.shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"ffmpeg is not installed.*give a folder of frames"):
        extract_keyframes(tmp_path / "a.mp4", tmp_path / "f")


def test_an_answer_without_end_is_not_read_to_its_end(api):
    api.faults = [b" " * (5 * 2**20), "good"]
    assert ChatClient(api.url, "toy").ask([{"role": "user", "content": "x"}]) == "good"


def test_near_duplicates(frames):
    found = folder_frames(frames)
    assert [frame.time for frame in found][:3] == [0.0, 2.001, 4.002]
    kept = drop_near_duplicates(found, distance=3)
    assert len(kept) == 6 and found[4] not in kept
    picture = Image.open(found[0].path).convert("RGB")
    assert (difference_hash(picture) != difference_hash(picture.resize((300, 300)))).sum() < 12


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "no JSON list"),
        ("[1, 2]", "no JSON list"),
        ('[{"frame": 1, "text": "a"}]', "missing: 2"),
        ('[{"frame": 1, "text": "a"}, {"frame": 1, "text": "b"}, {"frame": 2, "text": "c"}]', "more than once: 1"),
        ('[{"frame": 1, "text": "a"}, {"frame": 2, "text": "b"}, {"frame": 3, "text": "b"}]', "not asked for: 3"),
        ('[{"frame": 2, "text": "a"}, {"frame": 1, "text": "b"}]', "order is wrong"),
        ('[{"frame": 1, "text": " "}, {"frame": 2, "text": "b"}]', "frame 1 is empty"),
        ('[{"frame": 1, "text": "a"}, {"frame": 2, "text": "<img>"}]', "holds markup"),
        ('[{"frame": 1.5, "text": "a"}, {"frame": 2, "text": "b"}]', "every entry must be"),
        ('[{"text": "a"}, {"text": "b"}]', "every entry must be"),
    ],
)
def test_faulty_narratives(answer, fault):
    with pytest.raises(BadNarrative, match=fault):
        read_narrative(answer, 2)


@pytest.mark.parametrize(
    "answer",
    [
        '[{"frame": 1, "text": "One."}, {"frame": 2, "text": "Two\\n lines."}]',
        'Sure [as asked]:\n```json\n[{"frame": "1", "text": "One."}, {"frame": 2, "text": "Two lines."}]\n```\nDone.',
        "[1] One.\n[2] Two lines.",
        "1. One.\n2. Two  lines.\n",
    ],
)
def test_narratives_in_many_clothes(answer):
    assert read_narrative(answer, 2) == ["One.", "Two lines."]


def test_waiting_grows_and_listens_to_the_server(api, monkeypatch):
    waits = []
    monkeypatch.setattr("seedstory_jax.chat_client.sleep", waits.append)
    endpoint = ChatClient(api.url, "toy", tries=6, timeout=1.0, first_wait=1.0, longest_wait=5.0)
    api.faults = [b"x"] * 5
    endpoint.ask([{"role": "user", "content": "Below are 2"}])
    assert all(least <= wait <= 1.1 * least for wait, least in zip(waits, [1, 2, 4, 5, 5], strict=True))
    waits.clear()
    api.faults = [429] * 6
    with pytest.raises(NoAnswer, match=r"no answer .* in 6 tries; the last: HTTP 429"):
        endpoint.ask([{"role": "user", "content": "Below are 2"}])
    assert waits == [0] * 5


def test_a_server_that_is_not_there():
    endpoint = ChatClient("http://127.0.0.1:9/v1", "toy", tries=2)
    with pytest.raises(NoAnswer, match="in 2 tries"):
        endpoint.ask([])


def test_asking_stops_after_some_faulty_answers(api):
    api.narrative = lambda body: "no"
    prompts = read_prompts(None, title="Toy", background="")
    with pytest.raises(NoAnswer, match="no usable narrative in 3 answers"):
        narrate(ChatClient(api.url, "toy"), prompts, [("a", ""), ("b", "")])
    assert len(api.calls) == 3
