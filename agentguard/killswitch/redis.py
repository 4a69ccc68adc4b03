"""The control log on a Redis or Valkey server: a list, and an empty message for each record appended.

{prefix}:kills          list of entries, as lines of a control log file
{prefix}:kills:hosts    hash: host id to "<seconds of the server's clock> <report>"
{prefix}:kills          also the channel; what is told there is not believed, and the list is read
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from agentguard._optional import require
from agentguard._secrets.urls import public_url, url_parts, with_options
from agentguard.errors import KillSwitchUnavailableError
from agentguard.events.codec import Stored
from agentguard.killswitch.control import format_entry, parse_entry
from agentguard.killswitch.remote import REPORT_KEPT, HostReport, holds, parse_report

#: Seconds that the server is given for a connection, and for an answer.
TIMEOUT = 2.0

#: The entry is appended if it follows the newest one, and told to every relay: a user who may not publish has
#: the relays find it when they read.  What the hosts have reported comes with it: the server may be flushed
#: before it is asked for.
_APPEND = """
if redis.call('LLEN', KEYS[1]) ~= tonumber(ARGV[1]) then return nil end
local newest = redis.call('LINDEX', KEYS[1], -1)
if newest and string.sub(newest, 10, 73) ~= ARGV[3] then return nil end
redis.call('RPUSH', KEYS[1], ARGV[2])
redis.pcall('PUBLISH', KEYS[1], '')
return {redis.call('TIME')[1], redis.call('HGETALL', KEYS[2])}
"""
_REPORT = """
redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])
"""
_PRUNE = """
local oldest = redis.call('TIME')[1] - ARGV[1]
local fields = redis.call('HGETALL', KEYS[1])
for number = 1, #fields, 2 do
    if (tonumber(string.match(fields[number + 1], '^%d+')) or 0) < oldest then
        redis.call('HDEL', KEYS[1], fields[number])
    end
end
"""

_ONE_SERVER = (
    "Redis Sentinel and Redis Cluster are not supported: name one server, by an address that follows a "
    "failover (a proxy, a virtual address), or use postgresql://"
)
#: What a node of a cluster, a sentinel or a replica says to a client that takes it for the server.
_ELSEWHERE = re.compile(
    r"\b(MOVED|ASK|CLUSTERDOWN|Hash slot not served)\b|unknown command|read only replica", re.IGNORECASE
)


class RedisLog:
    """A `RemoteLog` on Redis (6.2 or newer) or Valkey.

    It is as durable as the server: give it `appendonly yes` and `appendfsync always`.

    Args:
        url: as redis-py takes it, with one more option: `prefix=`, what the keys begin with
            ("agentguard").

    Raises:
        MissingExtraError: redis-py is not installed.
        ValueError: the URL is none.
    """

    def __init__(self, url: str) -> None:
        self._redis: Any = require("redis", extra="redis", feature="a kill switch on Redis")
        parts = url_parts(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        prefix = options.pop("prefix", "agentguard")
        if "," in parts.netloc:
            raise ValueError(f"{public_url(url)}: {_ONE_SERVER}")
        if not prefix or set(prefix) & set("{}") or not prefix.isprintable():
            raise ValueError(f"{public_url(url)}: prefix must be printable, not empty, and without braces")
        if "decode_responses" in options:
            raise ValueError(f"{public_url(url)}: the option decode_responses is not yours to set")
        if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
            raise ValueError(f"{public_url(url)}: behind the host stands the number of a database, as in /0")
        self.url = public_url(url)
        # One hash tag, so that a cluster keeps both keys together.
        self._key = f"{{{prefix}}}:kills"
        self._hosts = f"{{{prefix}}}:kills:hosts"
        #: The last record that was appended, and the reports of that moment.
        self._told: tuple[int, Sequence[HostReport]] = 0, ()
        self._server = with_options(parts, options.items())
        self._connect()

    def _connect(self) -> None:
        retry = require("redis.retry", extra="redis", feature="a kill switch on Redis")
        backoff = require("redis.backoff", extra="redis", feature="a kill switch on Redis")
        # What is sent again, and how it is told that it was recorded the first time, is `append`'s.
        options = {
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
            "retry": retry.Retry(backoff.NoBackoff(), 0),
        }
        try:
            self._client: Any = self._redis.Redis.from_url(self._server, **options)
            pool = self._client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # which connects nowhere yet
        except (TypeError, ValueError, self._redis.RedisError) as error:
            raise ValueError(f"{self.url}: redis-py takes no such URL: {error}") from error
        self._append = self._client.register_script(_APPEND)
        self._report = self._client.register_script(_REPORT)
        self._prune = self._client.register_script(_PRUNE)
        self._messages: Any = None

    def read(self, after: int = 0) -> Sequence[Stored]:
        """The entries above `after`."""
        with self._answering():
            entries: list[bytes] = self._client.lrange(self._key, after, -1)
        return [parse_entry(entry, after + number) for number, entry in enumerate(entries, 1)]

    def append(self, stored: Stored, previous: bytes) -> bool:
        """Append an entry if the list has as many as come before it, and ends with the one it follows."""
        arguments = [stored.seq - 1, format_entry(stored), previous.hex()]
        keys = [self._key, self._hosts]
        with self._answering():
            try:
                answer = self._append(keys=keys, args=arguments)
            except (self._redis.ConnectionError, self._redis.TimeoutError):
                self._client.connection_pool.disconnect(inuse_connections=False)  # others may be cut, too
                answer = self._append(keys=keys, args=arguments)
        if answer is None:
            return holds(self, stored)
        now, told = answer
        if stored.seq != self._told[0]:  # else it was lost, and is given back
            self._told = stored.seq, _parsed(int(now), dict(zip(told[::2], told[1::2], strict=True)))
        return True

    def told_with(self, generation: int) -> Sequence[HostReport]:
        """Return what came with the record that this process has appended last."""
        seq, reports = self._told
        return reports if seq == generation else ()

    def wait(self, seconds: float) -> bool:
        """Wait for a message, whatever it says."""
        with self._answering():
            if self._messages is None:
                self._messages = self._client.pubsub(ignore_subscribe_messages=True)
                self._messages.subscribe(self._key)
            return self._messages.get_message(timeout=seconds) is not None

    def report(self, report: HostReport) -> None:
        """Put a report beside the server's time."""
        with self._answering():
            self._report(keys=[self._hosts], args=[report.host, msgspec.json.encode(report)])

    def reports(self) -> Sequence[HostReport]:
        """Return the reports, with their age by the server's clock."""
        with self._answering():
            pipeline = self._client.pipeline(transaction=False)
            (now, _), reports = pipeline.time().hgetall(self._hosts).execute()
        return _parsed(now, reports)

    def knows(self, host: str) -> bool:
        """Return whether there is a report of this host: another client may have flushed the server."""
        with self._answering():
            return bool(self._client.hexists(self._hosts, host))

    def prune(self) -> None:
        """Remove reports that are old by the server's clock."""
        with self._answering():
            self._prune(keys=[self._hosts], args=[int(REPORT_KEPT)])

    def after_fork(self) -> None:
        """In a forked child: make connections of its own."""
        self._connect()

    def close(self) -> None:
        """Close every connection; the next use opens one."""
        messages, self._messages = self._messages, None
        with suppress(self._redis.RedisError, OSError):
            if messages is not None:
                messages.close()
            self._client.close()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (self._redis.RedisError, OSError) as error:
            hint = f"; {_ONE_SERVER}" if _ELSEWHERE.search(str(error)) else ""
            raise KillSwitchUnavailableError(
                f"the control log at {self.url} cannot be read or written "
                f"({type(error).__name__}: {error}){hint}"
            ) from error


def _parsed(now: int, reports: Mapping[bytes, bytes]) -> list[HostReport]:
    """Return reports as they lie on the server, by its time in seconds."""
    split = ((host, *report.partition(b" ")) for host, report in reports.items())
    return [
        parse_report(host.decode("utf-8", "replace"), report, now - int(at) if at.isdigit() else 0.0)
        for host, at, _, report in split
    ]
