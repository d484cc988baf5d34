"""The judge's calls: any OpenAI-compatible endpoint, a cache on disk, retries with back-off, bounded concurrency.

The key comes from the environment and goes nowhere else: not into the cache, a message or an exception.
"""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.judge import Question, estimated_tokens, read_answer

KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class JudgeConfig:
    """Where the judge is and how it is asked.

    Attributes:
        model: its name at the endpoint.
        base_url: of the endpoint; "" is the client's default.
        concurrency: calls at a time.
        attempts: of one call, before it counts as failed (busy endpoints, cut connections, answers off the format).
        first_wait: seconds before the second attempt; doubled each time, up to `longest_wait`.
        timeout: of one attempt, seconds.
        max_tokens: of one answer.
    """

    model: str
    base_url: str = ""
    concurrency: int = 4
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    timeout: float = 120.0
    max_tokens: int = 400

    def __post_init__(self):
        if self.concurrency < 1 or self.attempts < 1:
            raise UserError(f"concurrency={self.concurrency}, attempts={self.attempts}: both must be at least 1")


@dataclass(frozen=True)
class Answer:
    """A question's verdict (see `read_answer`); None where `fault` says why there is none."""

    question: Question
    verdict: str | float | None
    fault: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run would cost."""

    calls: int
    cached: int
    tokens: int


class AnswerCache:
    """Answers by a hash of what was asked, one JSON line each; a line that a kill tore is ignored."""

    def __init__(self, path: Path | None):
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = row["answer"]
                except (ValueError, KeyError, TypeError):
                    continue

    def key(self, config: JudgeConfig, question: Question) -> str:
        """The hash of model, endpoint and messages."""
        asked = [config.model, config.base_url, config.max_tokens, list(question.messages)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        """The answer that was given before."""
        return self._known.get(key)

    def put(self, key: str, answer: str) -> None:
        """Keeps an answer, on disk at once."""
        with self._lock:
            self._known[key] = answer
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                torn = self.path.is_file() and self.path.stat().st_size and not self._ends_with_newline()
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(("\n" if torn else "") + json.dumps({"key": key, "answer": answer}) + "\n")

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


class Judge:
    """Asks questions. `sleep` is replaced in tests."""

    def __init__(self, config: JudgeConfig, cache: Path | None = None, *, sleep: Callable[[float], None] = time.sleep):
        self.config = config
        self.cache = AnswerCache(cache)
        self._sleep = sleep

    def plan(self, questions: Sequence[Question]) -> Plan:
        """Calls that `ask` would make, at their first attempt, and about how many tokens they would send."""
        new = [q for q in questions if self.cache.get(self.cache.key(self.config, q)) is None]
        return Plan(len(new), len(questions) - len(new), sum(estimated_tokens(q) for q in new))

    def ask(
        self, questions: Sequence[Question], progress: Callable[[int, int], None] = lambda done, of: None
    ) -> list[Answer]:
        """Answers in the order of the questions; one that fails for good has a fault and stops none of the others.

        Raises UserError without a key, without the openai package, and when the endpoint refuses the key.
        """
        client = self._client()
        done = 0
        lock = threading.Lock()
        refused = threading.Event()

        def one(question: Question) -> Answer:
            nonlocal done
            answer = Answer(question, None, "not asked: the endpoint refused the key") if refused.is_set() else None
            if answer is None:
                try:
                    answer = self._one(client, question)
                except UserError:
                    refused.set()
                    raise
            with lock:
                done += 1
                progress(done, len(questions))
            return answer

        with client, ThreadPoolExecutor(self.config.concurrency) as pool:
            return list(pool.map(one, questions))

    def _client(self):
        try:
            import openai
        except ImportError:
            raise UserError("the judge needs the openai package: pip install 'seedstory_jax[judge]'") from None
        key = os.environ.get(KEY_VARIABLE)
        if not key:
            raise UserError(
                f"the judge's key comes from the environment: set {KEY_VARIABLE} (any text for a local endpoint)"
            )
        url = self.config.base_url or None
        return openai.OpenAI(api_key=key, base_url=url, timeout=self.config.timeout, max_retries=0)

    def _one(self, client, question: Question) -> Answer:
        key = self.cache.key(self.config, question)
        known = self.cache.get(key)
        if known is not None:
            return Answer(question, read_answer(question, known))
        fault, wait = "", self.config.first_wait
        for attempt in range(self.config.attempts):
            if attempt:
                self._sleep(wait)
                wait = min(2 * wait, self.config.longest_wait)
            text, fault, after = self._call(client, question)
            if text is not None and read_answer(question, text) is not None:
                self.cache.put(key, text)
                return Answer(question, read_answer(question, text))
            if text is not None:
                fault = f"off the format: {text[:80]!r}"
            if after is not None:
                wait = max(wait, min(after, self.config.longest_wait))
            if fault.startswith("refused"):
                break
            wait *= 1 + 0.1 * random.random()  # so that calls that failed together do not come back together
        return Answer(question, None, fault)

    def _call(self, client, question: Question) -> tuple[str | None, str, float | None]:
        """(answer, "", None), or (None, fault, seconds the endpoint asks to wait); a fault "refused ..." is final."""
        import openai

        try:
            found = client.chat.completions.create(
                model=self.config.model,
                messages=list(question.messages),
                temperature=0,
                max_tokens=self.config.max_tokens,
            )
            text = found.choices[0].message.content
            return (text, "", None) if isinstance(text, str) else (None, "malformed answer: no text", None)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"the endpoint refused the key in {KEY_VARIABLE} (HTTP {error.status_code})") from None
        except openai.APIStatusError as error:
            after = error.response.headers.get("retry-after", "")
            seconds = float(after) if after.replace(".", "", 1).isdigit() else None
            busy = error.status_code in (408, 409, 429) or error.status_code >= 500
            return None, f"{'busy' if busy else 'refused'}: HTTP {error.status_code}", seconds
        except openai.APIConnectionError as error:
            return None, f"no connection: {type(error).__name__}", None
        except (openai.OpenAIError, ValueError, AttributeError, IndexError, TypeError, KeyError) as error:
            return None, f"malformed answer: {type(error).__name__}", None
