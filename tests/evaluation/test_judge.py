import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.chat_client import KEY_VARIABLE
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.judge import comparison_questions, pick_segments, read_answer, score_questions
from seedstory_jax.evaluation.judge_client import Answer, Judge, JudgeConfig
from seedstory_jax.evaluation.judge_tables import duels, duels_markdown, mean_scores, scores_markdown
from seedstory_jax.evaluation.stories import StoryFolder

SECRET = "sk-secret-key-for-tests"


def stories(system: str, count: int = 2, length: int = 12, image: Path | None = None) -> list[StoryFolder]:
    return [
        StoryFolder(f"s{n}", tuple(f"{system} {n} says {i}" for i in range(length)), (image,) * length)
        for n in range(count)
    ]


def two_systems(**options) -> dict:
    return {"ours": stories("ours", **options), "theirs": stories("theirs", **options)}


class Endpoint:
    """A chat endpoint on loopback. `script(number, body)` gives what the number-th call gets (see `_Handler`)."""

    def __init__(self, script):
        self.script, self.bodies, self.keys = script, [], []
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def _handler(endpoint):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with endpoint.lock:
                    number = len(endpoint.bodies)
                    endpoint.bodies.append(body)
                    endpoint.keys.append(self.headers["authorization"])
                    endpoint.active += 1
                    endpoint.most_active = max(endpoint.most_active, endpoint.active)
                try:
                    self.answer(endpoint.script(number, body))
                finally:
                    with endpoint.lock:
                        endpoint.active -= 1

            def answer(self, what):
                if what == "cut":
                    self.send_response(200)
                    self.send_header("content-length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.wfile.flush()
                    self.connection.close()
                    self.close_connection = True
                    return
                status, headers, data = 200, {}, what
                if isinstance(what, tuple):
                    status, headers, data = what
                if isinstance(data, str) and status == 200 and not data.startswith("raw:"):
                    message = {"role": "assistant", "content": data}
                    data = json.dumps({"id": "1", "object": "chat.completion", "choices": [{"message": message}]})
                data = data.removeprefix("raw:").encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)


def judge(endpoint: Endpoint, cache: Path | None = None, waits: list | None = None, **options) -> Judge:
    config = JudgeConfig("any-judge", endpoint.url, timeout=5.0, **options)
    return Judge(config, cache, sleep=(waits if waits is not None else []).append)


@pytest.mark.parametrize(
    "answer, verdict",
    [
        ("[[A]]", "ours"),
        ("At first I thought [[A]], but no: [[ B ]]", "theirs"),
        ("[[C]]", "tie"),
        ("A is better", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_verdicts(answer, verdict):
    question = comparison_questions(two_systems())[0]
    assert read_answer(question, answer) == verdict
    swapped = comparison_questions(two_systems())[1]
    other = {"ours": "theirs", "theirs": "ours"}
    assert read_answer(swapped, answer) == other.get(verdict, verdict)


@pytest.mark.parametrize(
    "answer, score",
    [("[[7]]", 7.0), ("[[7.5]]", 7.5), ("[[8/10]]", 8.0), ("[[11]]", None), ("7", None), ("[[-1]]", None)],
)
def test_scores(answer, score):
    assert read_answer(score_questions(two_systems())[0], answer) == score


def test_questions_cover_orders_aspects_and_stories():
    questions = comparison_questions({**two_systems(), "third": stories("third")})
    assert len(questions) == 3 * 2 * 3 * 2
    assert (
        Counter(q.systems for q in questions)["ours", "theirs"]
        == Counter(q.systems for q in questions)["theirs", "ours"]
    )
    assert len(score_questions(two_systems())) == 2 * 2 * 3
    text = questions[0].messages[1]["content"]
    assert text.index("ours 0 says 0") < text.index("theirs 0 says 0") and text.count("ours 0 says") == 5
    with pytest.raises(UserError, match="two systems"):
        comparison_questions({"ours": stories("ours")})
    with pytest.raises(UserError, match="unknown aspect"):
        score_questions(two_systems(), aspects=["beauty"])


def test_five_segments_from_first_to_last():
    story = stories("a", 1, 30)[0]
    assert pick_segments(story, 5) == [0, 7, 14, 22, 29]
    assert pick_segments(story, 1) == [0] and pick_segments(story, 99) == list(range(30))


def test_pictures_are_sent_small(tmp_path):
    Image.fromarray(np.zeros((64, 1024, 3), np.uint8)).save(tmp_path / "a.png")
    parts = score_questions({"a": stories("a", 1, image=tmp_path / "a.png")})[0].messages[1]["content"]
    assert sum(part["type"] == "image_url" for part in parts) == 5
    assert parts[1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert isinstance(score_questions({"a": stories("a", 1)}, pictures=False)[0].messages[1]["content"], str)


def test_win_rates_and_position_bias(key, tmp_path):
    def script(number, body):
        # Style: ours is better, wherever it stands. Engagement: always the first. Coherence: neither.
        text = body["messages"][1]["content"]
        if "Compare the style" in text:
            return "[[A]]" if text.index("ours") < text.index("theirs") else "[[B]]"
        return "[[A]]" if "Compare the engagement" in text else "[[C]]"

    with Endpoint(script) as endpoint:
        asked = judge(endpoint, tmp_path / "cache.jsonl", concurrency=3)
        questions = comparison_questions(two_systems(count=4))
        found = {duel.aspect: duel for duel in duels(asked.ask(questions))}
        assert endpoint.most_active <= 3 and len(endpoint.bodies) == len(questions) == 24
        assert set(endpoint.keys) == {f"Bearer {SECRET}"}
    assert found["style"].wins == (4, 0) and found["style"].first_chosen.mean == 0.5
    assert found["engagement"].wins == (0, 0) and found["engagement"].ties == 4
    assert found["engagement"].first_chosen.mean == 1.0 and found["engagement"].disagreed.mean == 1.0
    assert found["coherence"].ties == 4 and found["coherence"].first_chosen.mean is None
    assert found["coherence"].disagreed.mean == 0.0
    assert "| ours against theirs | style | 4 | 0 | 0 | 1 [1, 1] |" in duels_markdown(list(found.values()))
    assert SECRET not in (tmp_path / "cache.jsonl").read_text()


def test_cache_asks_nothing_twice_and_survives_a_torn_line(key, tmp_path):
    path = tmp_path / "deep" / "cache.jsonl"
    with Endpoint(lambda number, body: "fine [[6]]") as endpoint:
        questions = score_questions(two_systems())
        first = judge(endpoint, path).ask(questions[:8])
        with path.open("a") as file:
            file.write('{"key": "torn')
        again = judge(endpoint, path)
        plan = again.plan(questions)
        assert (plan.calls, plan.cached) == (4, 8) and plan.tokens > 4 * 100
        answers = again.ask(questions)
        assert len(endpoint.bodies) == 12 and [a.verdict for a in answers] == [6.0] * 12
        assert [a.verdict for a in first] == [6.0] * 8
        assert judge(endpoint, path).plan(questions).calls == 0
    assert mean_scores(answers)["ours"]["style"].mean == 6.0
    assert "| ours | 6 [6, 6] |" in scores_markdown(mean_scores(answers))


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {}, '{"error": {"message": "slow down"}}'),
        (503, {}, "raw:<html>busy</html>"),
        "cut",
        "raw:this is no JSON",
        'raw:{"choices": []}',
        'raw:{"choices": [{"message": {"content": null}}]}',
        "raw:[]",
        "I like both.",
    ],
    ids=["429", "503", "cut", "no-json", "no-choice", "no-text", "list", "off-format"],
)
def test_trouble_is_tried_again(key, trouble):
    waits: list = []
    with Endpoint(lambda number, body: trouble if number < 2 else "[[9]]") as endpoint:
        (answer,) = judge(endpoint, waits=waits, first_wait=0.5).ask(score_questions(two_systems())[:1])
        assert answer.verdict == 9.0 and len(endpoint.bodies) == 3
    assert 0.5 <= waits[0] < waits[1] < 1.3


def test_the_endpoint_says_how_long_to_wait(key):
    waits: list = []
    with Endpoint(lambda number, body: (429, {"retry-after": "7"}, "{}") if number == 0 else "[[1]]") as endpoint:
        judge(endpoint, waits=waits).ask(score_questions(two_systems())[:1])
    assert 7 <= waits[0] < 7.8


def test_one_question_that_fails_for_good_stops_no_other(key, tmp_path):
    def script(number, body):
        return "nonsense" if "ours 1" in body["messages"][1]["content"] else "[[4]]"

    with Endpoint(script) as endpoint:
        asked = judge(endpoint, tmp_path / "c.jsonl", attempts=3)
        answers = asked.ask(score_questions(two_systems()))
        assert len(endpoint.bodies) == 9 + 3 * 3
    failed = [answer for answer in answers if answer.verdict is None]
    assert len(failed) == 3 and all("off the format: 'nonsense'" in answer.fault for answer in failed)
    assert "nonsense" not in (tmp_path / "c.jsonl").read_text()
    assert mean_scores(answers)["ours"]["style"].count == 1


def test_bad_requests_are_not_repeated_and_a_refused_key_ends_all(key):
    with Endpoint(lambda number, body: (400, {}, '{"error": {"message": "no such model"}}')) as endpoint:
        (answer,) = judge(endpoint).ask(score_questions(two_systems())[:1])
        assert "refused: HTTP 400" in answer.fault and len(endpoint.bodies) == 1
    with Endpoint(lambda number, body: (401, {}, json.dumps({"error": {"message": f"bad key {SECRET}"}}))) as endpoint:
        with pytest.raises(UserError, match="refused: HTTP 401") as caught:
            judge(endpoint, concurrency=1).ask(score_questions(two_systems()))
        assert SECRET not in str(caught.value) and len(endpoint.bodies) == 1


def test_a_slow_endpoint_times_out(key):
    def script(number, body):
        if number == 0:
            time.sleep(1.0)
        return "[[2]]"

    with Endpoint(script) as endpoint:
        config = JudgeConfig("any", endpoint.url, timeout=0.3)
        (answer,) = Judge(config, sleep=lambda s: None).ask(score_questions(two_systems())[:1])
        assert answer.verdict == 2.0


def test_no_endpoint_and_no_key(key, monkeypatch):
    config = JudgeConfig("any", "http://127.0.0.1:9/v1", attempts=2)
    (answer,) = Judge(config, sleep=lambda s: None).ask(score_questions(two_systems())[:1])
    assert answer.verdict is None and "no connection" in answer.fault
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(UserError, match=KEY_VARIABLE):
        Judge(JudgeConfig("any", "https://judge.invalid/v1")).ask(score_questions(two_systems())[:1])


def test_unread_answers_count_nowhere():
    questions = comparison_questions(two_systems(count=2), aspects=["style"])
    verdicts = ["ours", "ours", "ours", None]
    (duel,) = duels([Answer(q, v, "") for q, v in zip(questions, verdicts)])
    assert duel.wins == (1, 0) and duel.unread == 1 and duel.rates[0].count == 1
