"""A local HTTP server that answers as OpenAI's and Anthropic's APIs do, by their documented shapes."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass
class Reply:
    """An answer: JSON, or a stream of server-sent events, some of which may wait."""

    body: Json | None = None
    events: list[Any] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Pause:
    """In a stream: nothing is sent until the test lets it go on, or the client is gone."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()


class Break:
    """In a stream, or in place of an answer: the connection breaks here."""


@dataclass
class Providers:
    """The server: what it was asked, how it answers, and which clients left early."""

    url: str = ""
    #: Whether answers are as long as they may be.
    uses_all: bool = False
    #: Seconds that a model takes to answer.
    answers_after: float = 0
    requests: list[Json] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    #: Answers to the next requests, in order; afterwards the usual ones.
    next: list[Reply | Break | Pause] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)

    @property
    def last(self) -> Json:
        return self.requests[-1]

    def usual(self, path: str, body: Json) -> Reply:
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        if self.uses_all and most and path.endswith("/chat/completions"):
            return chat(body, usage=openai_usage(completion=most))
        for end, answer in _ANSWERS.items():
            if path.endswith(end):
                return answer(body)
        return Reply({"error": {"message": f"no such path: {path}", "type": "not_found"}}, status=404)


# --- the answers ---------------------------------------------------------------------------------

TEXT = ("The ", "answer ", "is ", "42.")


def openai_usage(prompt: int = 20, completion: int = 10, cached: int = 0, reasoning: int = 0) -> Json:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat(body: Json, usage: Json | None = None, message: Json | None = None) -> Reply:
    usage = usage or openai_usage()
    shared = {"id": "chatcmpl-1", "created": 1764000000, "model": body.get("model", "gpt-4o-mini")}
    shared |= {"service_tier": "default", "system_fingerprint": "fp_1"}
    if body.get("stream"):
        return Reply(events=_chat_events(body, shared, usage))
    content = '{"value": 42}' if "response_format" in body else "".join(TEXT)
    said = message or {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": said, "logprobs": None}
    choice["finish_reason"] = "tool_calls" if said.get("tool_calls") else "stop"
    return Reply({**shared, "object": "chat.completion", "choices": [choice], "usage": usage})


def _chat_events(body: Json, shared: Json, usage: Json) -> list[Any]:
    asked = (body.get("stream_options") or {}).get("include_usage")
    unused = {"usage": None} if asked else {}
    texts = ['{"val', 'ue": ', "4", "2}"] if "response_format" in body else TEXT
    deltas: list[Json] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    chunk = {**shared, "object": "chat.completion.chunk", **unused}
    events: list[Any] = [
        {**chunk, "choices": [{"index": 0, "delta": d, "logprobs": None, "finish_reason": None}]}
        for d in deltas
    ]
    events.append({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if asked:
        events.append({**chunk, "choices": [], "usage": usage})
    return [*events, "[DONE]"]


def response(body: Json) -> Reply:
    model = body.get("model", "gpt-4o-mini")
    text = '{"value": 42}' if (body.get("text") or {}).get("format") else "".join(TEXT)
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    whole: Json = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1764000000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": model,
        "output": [item],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "metadata": {},
        "usage": {
            "input_tokens": 20,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 10,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 30,
        },
    }
    if not body.get("stream"):
        return Reply(whole)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    empty = {**part, "text": ""}
    events: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **at, "part": empty},
        *({"type": "response.output_text.delta", **at, "delta": d, "logprobs": []} for d in _pieces(text)),
        {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return Reply(events=[{**event, "sequence_number": n} for n, event in enumerate(events)])


def compacted(body: Json) -> Reply:
    """The user's messages and what stands for the rest."""
    said = [item for item in body.get("input") or [] if item.get("role") == "user"]
    messages = [
        {
            "id": f"msg_user_{n}",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_text", "text": item["content"]}],
        }
        for n, item in enumerate(said)
        if isinstance(item["content"], str)
    ]
    kept = [item for item in said if not isinstance(item["content"], str)]
    usage: Any = (response({"model": "any"}).body or {})["usage"]
    item = {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAAA"}
    whole = {"id": "resp_cmp_1", "object": "response.compaction", "created_at": 1764000000}
    return Reply({**whole, "output": [*kept, *messages, item], "usage": usage})


def _pieces(text: str) -> list[str]:
    return [text[n : n + 5] for n in range(0, len(text), 5)]


def embeddings(body: Json) -> Reply:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data: list[Json] = [
        {"object": "embedding", "index": n, "embedding": [0.5, -0.25]} for n in range(len(texts))
    ]
    if body.get("encoding_format") == "base64":
        for each in data:
            each["embedding"] = "AAAAPwAAgL4="
    return Reply(
        {
            "object": "list",
            "data": data,
            "model": body["model"],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        }
    )


def completion(body: Json) -> Reply:
    choice = {"text": "42", "index": 0, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    shared = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
    return Reply({**shared, "choices": [choice], "usage": usage})


def anthropic_usage(**counts: Any) -> Json:
    return {
        "input_tokens": 20,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 10,
        "service_tier": "standard",
        **counts,
    }


def message(body: Json, usage: Json | None = None, content: list[Json] | None = None) -> Reply:
    usage = usage or anthropic_usage()
    structured = (body.get("output_config") or {}).get("format") or body.get("output_format")
    text = '{"value": 42}' if structured else "".join(TEXT)
    content = content or [{"type": "text", "text": text, "citations": None}]
    uses_tool = any(block["type"] == "tool_use" for block in content)
    whole: Json = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "claude-sonnet-4-5"),
        "content": content,
        "stop_reason": "tool_use" if uses_tool else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    if not body.get("stream"):
        return Reply(whole, headers={"request-id": "req_1"})
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    events: list[Json] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in _pieces(text)
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": delta,
            "usage": {
                "output_tokens": usage["output_tokens"],
                "input_tokens": None,
                "cache_creation_input_tokens": None,
            },
        },
        {"type": "message_stop"},
    ]
    return Reply(events=events)


def error(status: int, text: str, headers: dict[str, str] | None = None) -> Reply:
    body = {"type": "error", "error": {"message": text, "type": "error", "param": None, "code": None}}
    return Reply(body, status=status, headers={"retry-after-ms": "1", **(headers or {})})


def _list(_: Json) -> Reply:
    model = {"id": "gpt-4o-mini", "object": "model", "created": 1, "owned_by": "system"}
    return Reply({"object": "list", "data": [model]})


_ANSWERS: dict[str, Callable[[Json], Reply]] = {
    "/chat/completions": chat,
    "/responses": response,
    "/responses/compact": compacted,
    "/embeddings": embeddings,
    "/completions": completion,
    "/messages": message,
    "/count_tokens": lambda _: Reply({"input_tokens": 14}),
    "/models": _list,
    "/moderations": lambda body: Reply({"id": "modr-1", "model": "omni-moderation-latest", "results": []}),
    "/images/generations": lambda _: Reply({"created": 1, "data": [{"url": "https://example.org/1.png"}]}),
    "/messages/batches": lambda _: Reply({"id": "batch_1", "type": "message_batch"}),
}


# --- the server ----------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: else the client's delayed ACK adds 40 ms
    providers: Providers

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self.providers.usual(self.path.partition("?")[0], {}))

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        form = self.headers.get("content-type", "").startswith("multipart/")
        body = {} if form else json.loads(raw or b"{}")
        path = self.path.partition("?")[0]
        providers = self.providers
        providers.requests.append(body)
        providers.raw.append(raw)
        providers.headers.append({k.lower(): v for k, v in self.headers.items()})
        providers.paths.append(path)
        time.sleep(providers.answers_after)
        reply = providers.next.pop(0) if providers.next else providers.usual(path, body)
        if isinstance(reply, Pause):
            if self._waits(reply):
                return
            reply = providers.usual(path, body)
        if isinstance(reply, Break):
            self._hang_up()
            return
        try:
            self._answer(reply)
        except OSError:
            self._left()

    def _answer(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.events:
            self._stream(reply.events)
            return
        data = json.dumps(reply.body).encode()
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: list[Any]) -> None:
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for event in events:
            if isinstance(event, Break):
                self._hang_up()
                return
            if isinstance(event, Pause):
                if self._waits(event):
                    return
                continue
            name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
            data = event if isinstance(event, str) else json.dumps(event)
            self._chunk(f"{name}data: {data}\n\n".encode())
        self._chunk(b"")
        self.providers.finished.set()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _waits(self, pause: Pause) -> bool:
        """Wait for the test; return whether the client has left meanwhile."""
        pause.reached.set()
        while not pause.go_on.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.01)
            if readable and self.connection.recv(1, socket.MSG_PEEK) == b"":
                self._left()
                return True
        return False

    def _left(self) -> None:
        self.close_connection = True
        self.providers.gone.set()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve(*, uses_all: bool = False, answers_after: float = 0) -> Iterator[Providers]:
    """Serve until the block is left."""
    providers = Providers(uses_all=uses_all, answers_after=answers_after)
    handler = type("Handler", (_Handler,), {"providers": providers})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        providers.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield providers
        finally:
            server.shutdown()
            thread.join()
