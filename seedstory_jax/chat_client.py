"""A client of OpenAI-compatible chat endpoints, for the judge and for building datasets; the standard library alone.

The key goes to the host that was named and nowhere else: no redirect is followed, no proxy used unless one is named,
and in whatever an endpoint or an exception says the key is blotted out.
"""

import http.client
import ipaddress
import json
import os
import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any
from urllib.parse import quote, urlsplit

from seedstory_jax.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_URL = "https://api.openai.com/v1"
MAX_ANSWER = 4 * 1024 * 1024
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
JITTER = 0.1  # of a wait, so that calls that failed together do not come back together


class NoAnswer(RuntimeError):
    """A question got no usable answer in the tries it had; others may still."""


class Refused(UserError):
    """The endpoint said no, and would again: a wrong key, address or model. `status`: of HTTP."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def check_address(url: str, what: str) -> str:
    """The address as it is. Raises UserError for one that is none, or that holds a secret, which is not repeated."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UserError(f"{what} is no address: write it like http://localhost:8000/v1") from None
    if "@" in url or parts.query or parts.fragment:
        raise UserError(
            f"{what} holds a user, a password or a query, which would be seen by others: give the address alone; "
            f"the key comes from the environment ({KEY_VARIABLE})"
        )
    if parts.scheme not in ("http", "https") or not host or re.search(r"[^!-~]", url):
        raise UserError(f"{what}={url!r} is no address: write it like http://localhost:8000/v1, with http or https")
    return url


def is_local(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def read_key(url: str, variable: str = KEY_VARIABLE) -> str | None:
    """The endpoint's key from the environment; None for an endpoint of this machine, which needs none.

    Raises UserError, without the key, if it is not set or no HTTP header can carry it.
    """
    key = os.environ.get(variable)
    if not key:
        if is_local(url):
            return None
        raise UserError(f"the endpoint's key comes from the environment: set {variable} (any text if it needs none)")
    if re.search(r"[^!-~]", key):
        raise UserError(
            f"the key in {variable} holds a line break, a blank or another character that no key has: set it anew "
            "(files written on Windows end lines with a carriage return)"
        )
    return key


@dataclass
class ChatClient:
    """Asks `url`/chat/completions. Used by several threads at once.

    Attributes:
        url: of the endpoint, http or https.
        model: its name there.
        key: from `read_key`; None sends none.
        timeout: of one try, seconds.
        tries: of one question, before it counts as failed.
        first_wait: seconds before the second try; doubled each time, up to `longest_wait`, unless the endpoint says.
        proxy: address of a proxy; "" uses none, whatever the environment says.
        wait: what waits that many seconds, in place of `sleep`.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    proxy: str = ""
    wait: Callable[[float], None] | None = None
    prompt_tokens: int = field(default=0, init=False)
    answer_tokens: int = field(default=0, init=False)
    calls: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self):
        check_address(self.url, "the endpoint")
        proxies = {}
        if self.proxy:
            proxies = dict.fromkeys(("http", "https"), check_address(self.proxy, "the proxy"))
        if self.tries < 1:
            raise UserError(f"{self.tries} tries of a question: give at least 1")
        self._opener = urllib.request.OpenerDirector()
        for handler in (  # nothing follows redirects, opens files or asks the environment for proxies
            urllib.request.ProxyHandler(proxies),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
        ):
            self._opener.add_handler(handler)

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        fault_of: Callable[[str], str | None] = lambda text: None,
    ) -> str:
        """The answer's text; `fault_of` may say why one is of no use, so that the question is asked again.

        Busy and broken answers (429, 5xx, time-outs, cut connections, no JSON) are asked for again, waiting longer each
        time or as long as the endpoint says. Raises NoAnswer when the tries are used up, and Refused at once where
        asking again cannot help (400, 401, 403, 404, a redirect).
        """
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": temperature}
        data, reason = json.dumps(body).encode(), ""
        for attempt in range(self.tries):
            wait = min(self.first_wait * 2**attempt, self.longest_wait) * (1 + JITTER * random.random())
            try:
                text = self._once(data)
                reason = fault_of(text) or ""
                if not reason:
                    return text
            except urllib.error.HTTPError as error:
                reason, after = self._refusal(error)
                wait = wait if after is None else min(after, self.longest_wait)
            except (OSError, http.client.HTTPException) as error:
                reason = f"no connection: {self.redacted(f'{type(error).__name__}: {error}')}"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
                reason = f"malformed answer: {self.redacted(f'{type(error).__name__}: {error}')}"
            if attempt + 1 < self.tries:
                (self.wait or sleep)(wait)
        raise NoAnswer(f"no answer from {self.url} in {self.tries} tries; the last: {reason}")

    def redacted(self, text: str) -> str:
        """A text on one line of at most 200 printable letters, in which the key, also escaped, is blotted out."""
        for form in {self.key, quote(self.key or "", safe=""), json.dumps(self.key)[1:-1]} if self.key else ():
            text = text.replace(form, "[key]")
        return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))[:200]

    def _refusal(self, error: urllib.error.HTTPError) -> tuple[str, float | None]:
        """(reason, seconds that the endpoint asks to wait). Raises Refused where asking again cannot help."""
        with error:
            try:
                words = self.redacted(error.read(65536).decode("utf-8", "replace"))
            except (OSError, http.client.HTTPException):
                words = ""
        reason = f"HTTP {error.code}" + (f": {words}" if words else "")
        if 300 <= error.code < 400:
            host = self.redacted(urlsplit(error.headers.get("Location") or "").hostname or "nowhere")
            raise Refused(f"{self.url} sends on to {host}, which is not followed: name the right address", error.code)
        if error.code not in BUSY and error.code < 500:
            raise Refused(f"{self.url} refused: {reason}", error.code)
        after = error.headers.get("Retry-After") or ""
        return reason, float(after) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", after) else None

    def _once(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "User-Agent": "seedstory_jax"}
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", data=body, headers=headers)
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        end, data = monotonic() + self.timeout, b""
        with self._opener.open(request, timeout=self.timeout) as response:
            while chunk := response.read1(65536):
                data += chunk
                if len(data) > MAX_ANSWER:
                    raise ValueError("the answer is longer than 4 MiB")
                if monotonic() > end:  # a time-out of the socket's starts anew with every byte
                    raise TimeoutError(f"the answer was not whole after {self.timeout:g} s")
            if response.length:
                raise http.client.IncompleteRead(data, response.length)
        answer = json.loads(data)
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the answer holds no text")
        text.encode()  # half a surrogate pair could be written to no file
        usage = answer.get("usage")
        with self._lock:
            self.calls += 1
            self.prompt_tokens += _count(usage, "prompt_tokens")
            self.answer_tokens += _count(usage, "completion_tokens")
        return text.replace(self.key, "[key]") if self.key else text


def _count(usage: Any, name: str) -> int:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and 0 <= found < 2**40 else 0
