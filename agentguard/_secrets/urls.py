"""The URLs of servers: where their user and password end, and what of them people may see."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

#: Options that say which place is meant, and are nobody's secret.
_SHOWN: Final = ("prefix", "db", "host", "hostaddr", "port", "dbname", "service")
_SCHEME: Final = r"([A-Za-z][\w+.-]*):(?://)?"
#: Hosts with their ports, as they stand behind user and password.
_HOSTS: Final = r"(\[[^][@]*\]|[^][:@]*)(:\d*)?"
#: User and password of which every reader says that they end at the same place.
_ENCODED: Final = r"([^]/?#@%\s[]|%[0-9A-Fa-f]{2})*"


def url_parts(url: str) -> SplitResult:
    """Return the parts of a server's URL.

    Raises:
        ValueError: it is no URL, or user and password are not percent-encoded, so that one reader takes a
            part of the password for the host and another does not.
    """
    userinfo, _ = _cut(url)
    try:
        parts = urlsplit(url)
    except ValueError:  # which may quote the password
        parts = None
    if not re.fullmatch(_ENCODED, userinfo) or (parts is None and userinfo):
        raise ValueError(
            f"{public_url(url)!r}: user and password must be percent-encoded, as %40 for '@', %2F for '/', "
            "%23 for '#', %3F for '?' and %25 for '%'"
        )
    if parts is None:
        raise ValueError(f"{public_url(url)!r} is no URL")
    return parts


def public_url(url: str) -> str:
    """Return a URL without user, password and options, but for those that say which place is meant.

    It says too little, and not too much, of one whose password is not percent-encoded.

    Example:
        >>> public_url("postgresql://ann:secret@db.example/agents?sslmode=require")
        'postgresql://db.example/agents'
        >>> public_url("postgresql://ann:se/cret@db.example/agents")
        'postgresql://db.example/agents'
    """
    scheme = re.match(_SCHEME, url)
    if scheme is None:
        return url
    _, place = _cut(url)
    place, _, query = place.partition("#")[0].partition("?")
    if place.count("[") != place.count("]"):  # of which nobody can tell what it was meant to be
        place = "..."
    options = urlencode([pair for pair in parse_qsl(query) if pair[0] in _SHOWN])
    shown = f"{scheme[1].lower()}://{place}"
    return f"{shown}?{options}" if options else shown


def with_options(parts: SplitResult, options: Iterable[tuple[str, str]]) -> str:
    """Return the URL of these parts with other options; `urlunsplit` drops slashes where there is no host."""
    query = urlencode(list(options))
    url = f"{parts.scheme}://{parts.netloc}{parts.path}"
    return f"{url}?{query}" if query else url


def _cut(url: str) -> tuple[str, str]:
    """Return what comes before the '@' that ends user and password, and what comes after it."""
    scheme = re.match(_SCHEME, url)
    rest = url if scheme is None else url[scheme.end() :]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    userinfo, at, hosts = authority.rpartition("@")
    beyond = rest[len(authority) :]
    if ":" in authority and "@" in beyond and not url.lower().startswith("http"):
        path, _, query = beyond.partition("#")[0].partition("?")
        # An '@' where none can be meant: the '/', '?' or '#' before it belongs to a password.
        astray = "@" in path + query.partition("=")[0] + beyond.partition("#")[2]
        if astray or not all(re.fullmatch(_HOSTS, host) for host in hosts.split(",")):
            userinfo, at, place = rest.rpartition("@")
            return userinfo, place
    return userinfo, rest[len(userinfo) + len(at) :]
