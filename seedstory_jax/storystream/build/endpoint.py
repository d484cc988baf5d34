"""A client for any OpenAI-compatible chat endpoint: retries, bounded patience, tokens counted."""

import base64
import http.client
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

from PIL import Image

from seedstory_jax.data.images import open_image
from seedstory_jax.errors import UserError

MAX_ANSWER = 4 * 1024 * 1024
TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class AskFailed(RuntimeError):
    """A question got no usable answer in the tries it had; others may still."""


@dataclass
class Endpoint:
    """Where to ask: POST {url}/chat/completions. Used by several threads at once."""

    url: str
    model: str
    api_key: str | None = None
    timeout: float = 120.0
    tries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"--endpoint={self.url} is no address: expected like https://api.example.com/v1")

    def ask(self, messages: Sequence[dict[str, Any]], *, max_tokens: int = 1024, temperature: float = 0.0) -> str:
        """The answer's text.

        Busy and broken answers (429, 5xx, time-outs, cut connections, no JSON) are asked for again, waiting longer
        each time or as long as the server says. Raises AskFailed when the tries are used up, and UserError at once
        where asking again cannot help (400, 401, 403, 404).
        """
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        reason = ""
        for attempt in range(self.tries):
            wait = min(self.first_wait * 2**attempt, self.longest_wait)
            try:
                return self._once(json.dumps(body).encode())
            except urllib.error.HTTPError as error:
                with error:
                    words = error.read(2000).decode("utf-8", "replace").strip()
                reason = f"HTTP {error.code}: {' '.join(words.split())[:200]}"
                if error.code not in TRY_AGAIN:
                    raise UserError(f"{self.url} refused: {reason}") from None
                after = error.headers.get("Retry-After", "")
                if after.replace(".", "", 1).isdigit():
                    wait = min(float(after), self.longest_wait)
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt + 1 < self.tries:
                sleep(wait)
        raise AskFailed(f"no answer from {self.url} in {self.tries} tries; the last: {reason}")

    def _once(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            data = response.read(MAX_ANSWER + 1)
        if len(data) > MAX_ANSWER:
            raise ValueError("the answer is longer than 4 MiB")
        answer = json.loads(data)
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the answer is empty")
        usage = answer.get("usage") or {}
        with self._lock:
            self.calls += 1
            self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.answer_tokens += int(usage.get("completion_tokens") or 0)
        return text


def picture_message(text: str, path: Path, *, longest_side: int = 768) -> dict[str, Any]:
    """A user message of a text and a picture, scaled down and sent inside."""
    image = open_image(path)
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    address = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": address}}]
    return {"role": "user", "content": content}
