"""What leaves this machine, and what is printed of it: the key goes to the host that was named, and nowhere else."""

import http.server
import json
import threading
from contextlib import contextmanager

import pytest

from seedstory_jax.chat_client import KEY_VARIABLE, ChatClient, NoAnswer, Refused, check_address, read_key
from seedstory_jax.errors import UserError
from seedstory_jax.evaluate import main as evaluate
from seedstory_jax.storystream.__main__ import main as storystream

SECRET = "sk-TOPSECRET/0123+456"
QUESTION = [{"role": "user", "content": "?"}]


@contextmanager
def server(answer, host="127.0.0.1"):
    """`answer(handler)` answers every request; gives (address, what was asked: method, path, key)."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append((self.command, self.path, self.headers.get("Authorization")))
            answer(self)

        do_GET = do_POST = do_CONNECT = handle_any

        def log_message(self, *_):
            pass

    one = http.server.ThreadingHTTPServer((host, 0), Handler)
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://{host}:{one.server_port}/v1", seen
    finally:
        one.shutdown()
        one.server_close()
        thread.join()


def says(status, data=b"", **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def chat(text, **more):
    return json.dumps({"choices": [{"message": {"content": text}}], **more}).encode()


def test_an_answer_with_its_key_and_its_count():
    usage = {"prompt_tokens": 7, "completion_tokens": "many"}
    with server(says(200, chat("yes", usage=usage))) as (url, seen):
        client = ChatClient(url, "m", SECRET)
        assert client.ask(QUESTION) == "yes"
        assert seen == [("POST", "/v1/chat/completions", f"Bearer {SECRET}")]
        assert (client.calls, client.prompt_tokens, client.answer_tokens) == (1, 7, 0)
        assert SECRET not in repr(client)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    with (
        server(says(200, chat("stolen")), "127.0.0.2") as (elsewhere, thief),
        server(says(status, Location=f"{elsewhere}/{SECRET}")) as (url, _),
        pytest.raises(Refused, match=r"sends on to 127\.0\.0\.2, which is not followed") as error,
    ):
        ChatClient(url, "m", SECRET).ask(QUESTION)
    assert not thief and SECRET not in str(error.value)


def test_the_environments_proxies_are_not_used_and_a_named_one_is(monkeypatch):
    with server(says(200, chat("by proxy"))) as (proxy, asked), server(says(200, chat("direct"))) as (url, _):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        assert ChatClient(url, "m", SECRET).ask(QUESTION) == "direct" and not asked
        assert ChatClient(url, "m", SECRET, proxy=proxy.removesuffix("/v1")).ask(QUESTION) == "by proxy"


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_is_echoed_is_blotted_out(status):
    words = f"Incorrect API key provided: {SECRET} or sk-TOPSECRET%2F0123%2B456\x1b[2J"
    data = chat(words) if status == 200 else json.dumps({"error": words}).encode()
    with server(says(status, data)) as (url, _):
        client = ChatClient(url, "m", SECRET, tries=1)
        try:
            text = client.ask(QUESTION)
        except (UserError, NoAnswer) as error:
            text = str(error)
            assert "\x1b" not in text and "sk-TOP" not in text
    assert "[key]" in text and SECRET not in text


@pytest.mark.parametrize("key", [f"{SECRET}\r", f"{SECRET}\n", f" {SECRET}", "schlüssel-" + SECRET, SECRET + "\x7f"])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(UserError, match=KEY_VARIABLE) as error:
        read_key("https://api.example.com/v1")
    assert SECRET not in str(error.value)


def test_only_endpoints_of_this_machine_need_no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for url in ("http://localhost:8000/v1", "http://127.0.0.7/v1", "http://[::1]:8000/v1"):
        assert read_key(url) is None
    for url in ("https://api.example.com/v1", "http://localhost.example.com/v1", "http://10.0.0.1/v1"):
        with pytest.raises(UserError, match=f"set {KEY_VARIABLE}"):
            read_key(url)


ADDRESSES = [
    "file:///etc/passwd",
    "ftp://x/v1",
    "localhost:8000",
    "//x/v1",
    "http://",
    "http://x:y/v1",
    "http://x/\r\nHost: evil",
    "data:text/plain,x",
    f"http://user:{SECRET}@127.0.0.1:1/v1",
    f"http://{SECRET}@127.0.0.1:1/v1",
    f"http://127.0.0.1:1/v1?key={SECRET}",
]


@pytest.mark.parametrize("url", ADDRESSES)
def test_other_addresses_are_refused_at_the_door(url, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    (tmp_path / "a" / "s").mkdir(parents=True)
    (tmp_path / "a" / "s" / "captions.txt").write_text("one")
    judge = ["judge", f"a={tmp_path / 'a'}", "--model=m", f"--out={tmp_path / 'j'}"]
    doors = [
        lambda: check_address(url, "it"),
        lambda: ChatClient(url, "m"),
        lambda: evaluate([*judge, f"--base_url={url}"]),
        lambda: evaluate([*judge, f"--proxy={url}"]),
        lambda: storystream(["build", str(tmp_path), f"--out={tmp_path / 'o'}", f"--endpoint={url}", "--model=m"]),
    ]
    for door in doors:
        with pytest.raises(UserError, match=r"address|holds a user, a password") as error:
            door()
        assert SECRET not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"null", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b" " * 2**23),
        *map(chat, (None, 7, "  ", "\ud800")),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_answers_that_are_none(data):
    with server(says(200, data)) as (url, seen):
        waits = []
        with pytest.raises(NoAnswer, match="in 3 tries; the last: malformed answer"):
            ChatClient(url, "m", tries=3, wait=waits.append).ask(QUESTION)
        assert len(seen) == 3 and len(waits) == 2


def test_an_answer_that_drips_ends_at_the_time_out():
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            threading.Event().wait(0.05)

    with server(drip) as (url, _), pytest.raises(NoAnswer, match=r"not whole after 0\.3 s"):
        ChatClient(url, "m", tries=1, timeout=0.3).ask(QUESTION)
