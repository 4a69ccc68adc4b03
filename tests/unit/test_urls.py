"""URLs of servers: what people see of them, and passwords that are not percent-encoded."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agentguard import Guard, config
from agentguard._secrets.urls import public_url, url_parts, with_options
from agentguard.killswitch.network import folder_of, open_log, split_url
from agentguard.publishing.kafka import parse_target

#: Passwords that no URL can have as they are, for one reader or another.
RAW = [
    "se#cret",
    "se/cret",
    "se?cret",
    "se@cr/et",
    "se@cret",
    "cret%zz",
    "12?cret",
    "12/cret",
    "12#cret",
    "[cret",
]
RAW += ["＠cret", "se cret", "a=b?cret", "a/b?c=cret"]


@pytest.mark.parametrize("password", RAW)
def test_a_password_that_is_not_percent_encoded_is_refused_and_shown_to_nobody(password: str) -> None:
    for url, takes in (
        (f"postgresql://ann:{password}@db.example:5432/agents?sslmode=require", config.postgres_options),
        (f"postgresql://ann:{password}@db.example:5432/agents?sslmode=require", Guard.open),
        (f"redis://:{password}@db.example:6379/0?prefix=ours", split_url),
        (f"redis://:{password}@db.example:6379/0?prefix=ours", config.check_switch),
        (f"kafka://ann:{password}@db.example:9092/agents", parse_target),
    ):
        with pytest.raises(ValueError, match=r"(?i)password") as refused:
            takes(url)
        for shown in (str(refused.value), public_url(url)):
            assert "cret" not in shown
            assert "db.example" in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:se%2Fcret@db.example/agents", "postgresql://db.example/agents"),
        ("postgresql://ann@a:1,b:2/agents?target_session_attrs=any", "postgresql://a:1,b:2/agents"),
        ("postgresql://db.example:5432/agents?application_name=a@b", "postgresql://db.example:5432/agents"),
        ("postgresql:///agents?host=/run/a&password=secret", "postgresql:///agents?host=%2Frun%2Fa"),
        ("postgresql://?service=agents", "postgresql://?service=agents"),
        ("redis://:sécret@[::1]:6379/0?prefix=ours", "redis://[::1]:6379/0?prefix=ours"),
        ("unix:///run/a@b.sock?db=2&password=secret", "unix:///run/a@b.sock?db=2"),
        ("sqlite:////home/a@b:c/agents.db?store_timeout=3", "sqlite:////home/a@b:c/agents.db"),
        ("https://hooks.example:443/T/@B/token", "https://hooks.example:443/T/@B/token"),
        ("https://hooks.example/services/T/B", "https://hooks.example/services/T/B"),
        ("page", "page"),
        ("/home/a@b:c", "/home/a@b:c"),
    ],
)
def test_a_url_is_shown_without_what_is_secret_in_it(url: str, shown: str) -> None:
    assert public_url(url) == shown
    assert url_parts(url) == urlsplit(url)


@pytest.mark.parametrize(
    "url", ["postgresql:///agents", "postgresql://", "redis://h/0", "unix:///run/a.sock"]
)
def test_a_url_keeps_its_slashes_when_its_options_are_others(url: str) -> None:
    assert with_options(url_parts(f"{url}?a=1"), [("host", "/run/a")]) == f"{url}?host=%2Frun%2Fa"
    assert with_options(url_parts(f"{url}?a=1"), []) == url
    assert split_url(f"{url}?host=/run/a&max_staleness=3") == (f"{url}?host=%2Frun%2Fa", 3.0)


def test_servers_that_are_told_apart_by_an_option_have_a_page_each(tmp_path: Path) -> None:
    urls = ["postgresql:///agents", "postgresql://?service=a", "postgresql://?service=b"]
    urls += [f"postgresql:///agents?host={host}" for host in ("/run/a", "/run/b")]
    urls += [f"redis://localhost?db={number}" for number in (1, 2)]
    assert len({folder_of(url, tmp_path) for url in urls}) == len(urls)
    assert folder_of("redis://ann:a@h/0", tmp_path) == folder_of(
        "redis://bob:b@h/0?socket_timeout=1", tmp_path
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://localhost/agents", "number of a database"),
        ("redis://localhost/0?bogus=1", "redis://localhost/0: .*bogus"),
        ("redis://localhost/0?socket_timeout=soon", "redis://localhost/0: .*socket_timeout"),
        ("rediss://localhost/0?ssl_cert_reqs=bogus", "rediss://localhost/0: .*bogus"),
        ("redis://localhost:99999/0", "redis://localhost:99999/0: .*Port"),
        ("redis://localhost/0?decode_responses=yes", "decode_responses is not yours to set"),
    ],
)
def test_a_redis_url_that_cannot_be_meant_is_refused_before_it_is_used(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_log(url)


def test_an_empty_tenant_in_a_url_does_not_mean_all_of_them() -> None:
    for tenant in ("", "x" * 201, "%0A"):
        with pytest.raises(ValueError, match="tenant must have"):
            Guard.open(f"postgresql://ann@db.example/agents?tenant={tenant}")
