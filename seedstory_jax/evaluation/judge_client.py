"""The judge's calls: a cache of answers on disk, several at a time; each made by `chat_client`."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from seedstory_jax.chat_client import DEFAULT_URL, ChatClient, NoAnswer, Refused, check_address, read_key
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.judge import Question, estimated_tokens, read_answer


@dataclass(frozen=True)
class JudgeConfig:
    """Where the judge is and how it is asked.

    Attributes:
        model: its name at the endpoint.
        base_url: of the endpoint; "" is OpenAI's.
        concurrency: calls at a time.
        attempts: of one call, before it counts as failed (busy endpoints, cut connections, answers off the format).
        first_wait: seconds before the second attempt; doubled each time, up to `longest_wait`.
        timeout: of one attempt, seconds.
        max_tokens: of one answer.
        proxy: address of a proxy; "" uses none.
    """

    model: str
    base_url: str = ""
    concurrency: int = 4
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    timeout: float = 120.0
    max_tokens: int = 400
    proxy: str = ""

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
                    if isinstance(row["key"], str) and isinstance(row["answer"], str):
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

        Raises UserError without a key and when the endpoint refuses it or does not know the model.
        """
        client = self._client()
        done = 0
        lock = threading.Lock()
        refused = threading.Event()

        def one(question: Question) -> Answer:
            nonlocal done
            answer = Answer(question, None, "not asked: the endpoint refuses") if refused.is_set() else None
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

        with ThreadPoolExecutor(self.config.concurrency) as pool:
            return list(pool.map(one, questions))

    def _client(self) -> ChatClient:
        config = self.config
        url = config.base_url or DEFAULT_URL
        return ChatClient(
            url,
            config.model,
            key=read_key(check_address(url, "the judge's endpoint")),
            timeout=config.timeout,
            tries=config.attempts,
            first_wait=config.first_wait,
            longest_wait=config.longest_wait,
            proxy=config.proxy,
            wait=self._sleep,
        )

    def _one(self, client: ChatClient, question: Question) -> Answer:
        key = self.cache.key(self.config, question)
        known = self.cache.get(key)
        if known is not None:
            return Answer(question, read_answer(question, known))

        def fault_of(text: str) -> str | None:
            return f"off the format: {client.redacted(text)[:80]!r}" if read_answer(question, text) is None else None

        try:
            text = client.ask(question.messages, max_tokens=self.config.max_tokens, fault_of=fault_of)
        except Refused as error:
            if error.status == 400:  # this question, and perhaps no other
                return Answer(question, None, str(error))
            raise
        except NoAnswer as error:
            return Answer(question, None, str(error))
        self.cache.put(key, text)
        return Answer(question, read_answer(question, text))
