"""Secrets are taken out of what is captured, before it is stored, digested or compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, SecretBytes, SecretStr

from agentguard import Guard, ReplayDivergenceError, guarded_step
from agentguard._secrets import MASK
from agentguard._secrets.masking import mask_text
from agentguard._secrets.names import SECRET_NAMES, Names
from agentguard._secrets.search import Pure
from agentguard._secrets.shapes import SHAPES
from agentguard.steps.redaction import BUILT_IN, Redactor, redactor

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/\nIBAAK=\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9"
#: Secrets by what they are, in the order of `SHAPES`: a text, and the part that must not be kept.
SECRETS = {
    "openai": ("key sk-proj-Ab12Cd34Ef56 used", "sk-proj-Ab12Cd34Ef56"),
    "long and without a digit": ("sk-" + "a" * 24, "a" * 24),
    "bearer": ("Authorization: Bearer abc.DEF_123456", "abc.DEF_123456"),
    "bearer in lower case": ("with bearer tok3n-tok3n now", "tok3n-tok3n"),
    "aws": ("id=AKIAIOSFODNN7EXAMPLE;", "AKIAIOSFODNN7EXAMPLE"),
    "aws session": ("ASIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"),
    "github": ("clone with ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_0123456789abcdefghijABCDEFGHIJ"),
    "github fine-grained": ("github_pat_11ABCDEFG0abcdefghijkl_mnop", "11ABCDEFG0abcdefghijkl_mnop"),
    "gitlab": ("glpat-abcdef0123456789ABCD", "abcdef0123456789ABCD"),
    "slack": ("xoxb-123456789012-abcdef", "123456789012"),
    "google": ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "SyA1234567890"),
    "hugging face": ("hf_abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz"),
    "stripe": ("sk_live_abcdefghij0123", "abcdefghij0123"),
    "npm": ("npm_abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijklmnopqrstuvwxyz"),
    "jwt": (f"got {JWT}.", "dozjgNryP4J3jVmNHl0w5N"),
    "pem": (f"read\n{PEM}\nend", "MIIEow"),
    "pem cut off": (PEM[:50], "MIIEow"),
    "url": ("no route to postgres://ann:hunter2@db:5432/app", "hunter2"),
    "url without a user": ("redis://:hunter2@cache/0", "hunter2"),
    "query": ("GET https://api.example.org/v1?user=ann&api_key=hunter2&page=3", "hunter2"),
    "json in a string": ('call({"user": "ann", "password": "hunter2"})', "hunter2"),
    "dict in a string": ("headers={'X-Api-Key': 'hunter2'}", "hunter2"),
    "json in json in a string": (r"{\"password\": \"hunter2\"}", "hunter2"),
    "groq": ("gsk_abcdefghijklmnopqrstuvwxyz0123", "abcdefghijklmnop"),
    "xai": ("xai-abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnop"),
    "langsmith": ("lsv2_pt_" + "0a" * 16 + "_0123456789", "0a0a0a0a"),
    "basic": ("Authorization: Basic YW5uOmh1bnRlcjI=", "YW5uOmh1bnRlcjI"),
    "azure blob": ("https://x.blob.core.windows.net/c?sv=1&sig=abcdefghijklmnop%3D&se=2", "abcdefghijklmnop"),
    "s3": ("https://b.s3.amazonaws.com/k?X-Amz-Signature=" + "0a" * 32, "0a0a0a0a"),
    "azure client secret": ("abc8Q~" + "a" * 34, "a" * 34),
    "azure storage": ("AccountName=x;AccountKey=Zm9vYmFy+/==;EndpointSuffix=core", "Zm9vYmFy"),
    "slack app": ("xapp-1-A0123456789-abcdef", "A0123456789"),
    "slack webhook": ("https://hooks.slack.com/services/T0000/B0000/XXXXXXXXXXXXXXXXXXXX", "XXXXXXXX"),
    "discord webhook": ("https://discord.com/api/webhooks/1234567890/abcdefghijklmnop", "abcdefghijklmnop"),
    "google oauth": ("GOCSPX-abcdefghijklmnopqrstuv", "abcdefghijklmnop"),
    "stripe webhook": ("whsec_abcdefghijklmnopqrstuv", "abcdefghijklmnop"),
    "sendgrid": ("SG.abcdefghijklmnopqrst.abcdefghijklmnopqrst", "abcdefghijklmnop"),
    "pypi": ("pypi-AgEIcHlwaS5vcmc" + "a" * 60, "aaaaaaaa"),
    "vault": ("hvs.abcdefghijklmnopqrstuvwx", "abcdefghijklmnop"),
    "twilio": ("SK" + "0a" * 16, "0a0a0a0a"),
    "telegram": ("123456789:AA" + "b" * 33, "bbbbbbbb"),
    "pgp": ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQOYB\n-----END PGP PRIVATE KEY BLOCK-----", "lQOYB"),
    "url with a hard password": ("postgres://ann:p@ss!w0rd@db/app", "p@ss!w0rd"),
    "env": ("# settings\nDB_PASSWORD=hunter2\nDEBUG=1", "hunter2"),
    "env with export": ("export GITHUB_TOKEN='a b c d'", "a b c d"),
    "env of words": ("MYSQL_PWD=swordfish", "swordfish"),
    "properties": ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
    "yaml": ("db:\n  user: ann\n  password: swordfish\n  port: 5", "swordfish"),
    "connection string": ("Server=db;User Id=ann;Password=Sword!Fish;Encrypt=yes", "Sword!Fish"),
    "connection string of words": ("Server=db;Pwd=swordfish;Encrypt=yes", "swordfish"),
    "header in a command": ("curl -H 'X-Api-Key: abc123def' https://example.org", "abc123def"),
    "cookies": ("GET / HTTP/1.1\nCookie: session=abc; theme=dark\n", "session=abc"),
    "option": ("mysql -u ann --password hunter2 app", "hunter2"),
    "option with a sign": ("deploy --api-key=hunter2", "hunter2"),
    "xml": ("<user>ann</user><password>hunter2</password>", "hunter2"),
    "code": ('client = Client(api_key="abc def")', "abc def"),
}
HARMLESS = [
    "risk-assessment-for-everyone-2024",
    "ask-me-anything-1234567890",
    "sk-learn",
    "the bearer of responsibilities",
    "max_tokens=500&next_page_token=abc",
    '{"max_tokens": "many", "keyword": "x", "record": "y"}',
    "https://example.org/a:b/c@d",
    "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
    "a password is needed; the token: see below",
    "eyJust a word",
    "basic knowledge of things",
    "login(password=password, token=get_token(), key=keys[0])",
    "token = tokens[0]; if token == other: pass",
    "def f(token: str, password: str | None = None) -> None: ...",
    "API_KEY=${API_KEY}\nTOKEN=<your token>\nSECRET=%s",
    "Set password: minimum eight characters.",
    "a merge key-value pair, a 24-7 service, and SKATE",
    "| a | b |\n|---|---|\n--- and --- lines",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_a_secret_is_masked_by_its_shape_wherever_it_stands(text: str, secret: str) -> None:
    assert secret in text
    masked = mask_text(text)
    assert secret not in masked
    assert MASK in masked
    payload = json.dumps({"note": [text, 1]}, separators=(",", ":")).encode()
    assert json.loads(BUILT_IN.value(payload)) == {"note": [masked, 1]}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert mask_text(text) is text
    payload = json.dumps({"note": text}).encode()
    assert BUILT_IN.value(payload) is payload


def test_every_shape_is_tried() -> None:
    for name, shape in SHAPES.items():
        assert any(re.search(shape.pattern, text, re.DOTALL) for text, _ in SECRETS.values()), name


SPELLINGS = ("{}", "my_{}", "X-{}", "main.{}", "the {}")


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_secret_name_is_known_in_every_spelling(name: str) -> None:
    joined = {name.replace(" ", between) for between in ("_", "-", " ", ".", "")}
    camel = "".join(word.title() for word in name.split())
    for spelt in {form for spelling in joined for form in (spelling, spelling.upper())} | {camel}:
        for pattern in SPELLINGS:
            key = pattern.format(spelt)
            payload = json.dumps({"a": [{key: "hunter2"}]}, separators=(",", ":")).encode()
            assert json.loads(BUILT_IN.value(payload)) == {"a": [{key: MASK}]}, key


@pytest.mark.parametrize(
    "value",
    [
        {"token": "ETH", "usd": 1},
        {"token": "BTC-USD"},
        {"token": " world"},
        {"token": "0xdAC17F958D2ee523a2206206994597C13D831ec7"},
        {"logprobs": {"content": [{"token": "Hello2you", "logprob": -0.1, "top_logprobs": []}]}},
        {"pagination_token": "b26zg5j9iy8m0v7", "nextToken": "AAAAxyz123456789012345678901"},
        {"NextContinuationToken": "1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM="},
        {"cursor": "eyJpZCI6MTIzNDU2Nzg5MH0="},
    ],
    ids=str,
)
def test_a_token_that_is_no_credential_stays(value: Any) -> None:
    payload = json.dumps(value, separators=(",", ":")).encode()
    assert BUILT_IN.value(payload) is payload


@pytest.mark.parametrize("value", ["hunter2", "a" * 20, "tok3n-abc", 123456, ["x"]])
def test_a_token_that_looks_like_a_credential_is_masked(value: Any) -> None:
    assert json.loads(BUILT_IN.value(json.dumps({"token": value}).encode())) == {"token": MASK}


OTHER_NAMES = """
    tokens max_tokens input_tokens token_count tokenizer next_page_token nextToken eos_token
    password_hint_shown authorization_url cookie_policy keyword key record secretary compass monkey
"""


@pytest.mark.parametrize("name", OTHER_NAMES.split())
def test_other_names_are_no_secret(name: str) -> None:
    payload = json.dumps({name: "value"}).encode()
    assert BUILT_IN.value(payload) is payload
    assert not Names().match(name)


def test_only_what_can_be_a_secret_is_masked() -> None:
    payload = b'{"token":null,"secret":true,"cookie":"","password":1234,"credentials":{"user":"ann"}}'
    assert json.loads(BUILT_IN.value(payload)) == {
        "token": None,
        "secret": True,
        "cookie": "",
        "password": MASK,
        "credentials": MASK,
    }


def test_a_secret_that_is_a_key_is_masked_too() -> None:
    assert BUILT_IN.value(b'{"sk-abcdef0123456789":1}') == b'{"**********":1}'


def test_arguments_are_masked_by_the_names_of_their_parameters() -> None:
    payload = b'[["ann","hunter2","rest"],{"api_key":"k","n":1}]'
    expected = b'[["ann","**********","rest"],{"api_key":"**********","n":1}]'
    assert BUILT_IN.call(payload, ("user", "password")) == expected
    assert BUILT_IN.call(b'[["ann"],{}]', ("user", "password")) == b'[["ann"],{}]'


def test_numbers_and_order_come_back_as_they_were() -> None:
    payload = b'{"z":1e-9,"password":"x","a":[12345678901234567890,-0.0],"b":"\xc3\xa9"}'
    assert BUILT_IN.value(payload) == payload.replace(b'"x"', b'"**********"')


def test_bytes_that_are_no_json_are_masked_as_text() -> None:
    assert BUILT_IN.value(b"\xff\x00 sk-abcdef0123456789 \xfe") == b"\xff\x00 ********** \xfe"


def test_what_is_nested_too_deeply_to_be_looked_through_is_masked_whole() -> None:
    deep = b"[" * 100_000 + b'{"password":1}' + b"]" * 100_000
    assert BUILT_IN.value(deep) == b'"**********"'
    assert BUILT_IN.call(deep, ()) == b'[["**********"],{}]'


def test_nothing_is_decoded_where_nothing_is_found() -> None:
    search = Pure(Names())
    assert not search(b'[["what is the weather"],{"limit":10,"max_tokens":5,"unit":"C"}]')


# --- own rules -----------------------------------------------------------------------------------


def test_own_names_are_added_to_the_built_in_ones() -> None:
    own = redactor(["ssn", "cardNumber", "größe", "id"])
    assert isinstance(own, Redactor)
    payload = '{"SSN":1,"card-number":"4","größe":7,"user_id":"u","password":"p","x":1}'.encode()
    masked = json.loads(own.value(payload))
    assert masked == {
        "SSN": MASK,
        "card-number": MASK,
        "größe": MASK,
        "user_id": MASK,
        "password": MASK,
        "x": 1,
    }
    assert redactor("ssn") is redactor(["ssn"])


def test_own_names_may_be_short() -> None:
    own = redactor(["a", "b c"])
    assert isinstance(own, Redactor)
    assert own.value(b'{"a":1}') == b'{"a":"**********"}'
    assert own.value(b'[{"b_c":[1]}]') == b'[{"b_c":"**********"}]'
    payload = b'{"abc":1,"c":2}'
    assert own.value(payload) is payload
    assert redactor([]) is not None


def test_a_rule_sees_every_value_with_its_name_from_the_outside_in() -> None:
    seen: list[tuple[str, Any]] = []

    def rule(name: str, value: Any) -> Any:
        seen.append((name, value))
        return "gone" if name == "email" else value

    own = Redactor(rule=rule)
    assert own.call(b'[[1,["x"]],{"to":{"email":"a@b"}}]', ("n", "names")) == (
        b'[[1,["x"]],{"to":{"email":"gone"}}]'
    )
    assert seen == [
        ("n", 1),
        ("names", ["x"]),
        ("names", "x"),
        ("to", {"email": "a@b"}),
        ("email", "a@b"),
    ]
    assert own.value(b"3") == b"3"
    assert seen[-1] == ("", 3)


@pytest.mark.parametrize(
    "rule", [lambda name, value: 1 / 0, lambda name, value: object()], ids=["raises", "opaque"]
)
def test_a_rule_that_fails_lets_nothing_through_and_harms_nobody(
    rule: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert Redactor(rule=rule).value(b'{"a":"hunter2"}') == b'"**********"'
    assert "redact=" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("wrong", [5, [1], ["_"], object()])
def test_a_redact_that_means_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="redact"):
        Guard.in_memory(redact=wrong)
    with pytest.raises(TypeError, match="fetch: redact"):
        guarded_step(name="fetch", redact=wrong)(lambda: None)


# --- in a run ------------------------------------------------------------------------------------


@dataclass
class Login:
    user: str
    password: str


class Settings(BaseModel):
    name: str
    key: SecretStr


class Vault:
    """Nothing that could be encoded; its name says what it is."""


class SecretHandle:
    """The same, and a secret."""


@guarded_step
def use(*values: Any, **named: Any) -> Any:
    return values[0] if values else None


@guarded_step
def log_in(user: str, password: str) -> str:
    return f"in as {user}"


def payloads(guard: Guard, run_id: str) -> list[Any]:
    stored = guard.components.store.read(run_id)
    return [json.loads(event.payload) for event in stored if event.payload is not None]


@pytest.fixture
def everything(guard: Guard) -> Iterator[list[str]]:
    """Texts that must be nowhere in the store afterwards."""
    secrets: list[str] = []
    yield secrets
    kept = [stored for _, stored in guard.components.store.tail(limit=10_000)]
    assert kept
    rows = repr(guard.components.store.rows())
    for secret in secrets:
        assert secret not in rows
        for stored in kept:
            assert secret.encode() not in stored.body + (stored.payload or b"")


def tagged(name: str, /, **fields: Any) -> dict[str, Any]:
    return {"agentguard:object": f"{__name__}.{name}", "fields": fields}


def test_secrets_are_not_stored(guard: Guard, everything: list[str]) -> None:
    everything += ["hunter2", "sk-abcdef0123456789", "swordfish", "openses4me"]
    with guard.run("r", inputs={"api_key": "hunter2"}, metadata={"token": "hunter2", "team": "a"}) as run:
        log_in("ann", "hunter2")
        use(Login("ann", "hunter2"), note="sk-abcdef0123456789")
        use(SecretStr("swordfish"), SecretBytes(b"swordfish"), Settings(name="n", key=SecretStr("swordfish")))
        run.record("token", lambda: {"secret": "openses4me"})
    assert payloads(guard, run.id) == [
        {"api_key": MASK},
        [["ann", MASK], {}],
        "in as ann",
        [[tagged("Login", user="ann", password=MASK)], {"note": MASK}],
        tagged("Login", user="ann", password=MASK),
        [[MASK, MASK, tagged("Settings", name="n", key=MASK)], {}],
        MASK,
        {"secret": MASK},
    ]
    assert guard.summary(run.id).metadata == {"token": MASK, "team": "a"}
    assert guard.verify(run.id)


def test_what_cannot_be_encoded_is_kept_by_type_and_a_secret_not_even_so(guard: Guard) -> None:
    with guard.run("r") as run:
        use(Vault(), SecretHandle())
    (args, _), *_ = payloads(guard, run.id)
    assert args == [{"agentguard:unencodable": f"{__name__}.Vault"}, MASK]


def test_messages_of_exceptions_are_masked(guard: Guard, everything: list[str]) -> None:
    everything += ["hunter2", "sk-abcdef0123456789"]

    class RefusedError(Exception):
        def __init__(self) -> None:
            super().__init__("postgres://ann:hunter2@db refused", 7)
            self.api_key = "hunter2"
            self.status = 401

    @guarded_step
    def connect() -> None:
        raise RefusedError

    def agent() -> None:
        with pytest.raises(RefusedError):
            connect()
        raise RuntimeError("no: sk-abcdef0123456789")

    with pytest.raises(RuntimeError, match="sk-abcdef0123456789"), guard.run("r") as run:
        agent()
    failed = next(event for event in guard.history(run.id) if event.type == "step_failed")
    error = failed.data["error"]
    assert error["message"] == "('postgres://ann:**********@db refused', 7)"
    assert error["args"] == ["postgres://ann:**********@db refused", 7]
    assert error["facts"] == {"api_key": MASK, "status": 401}
    termination = guard.summary(run.id).termination
    assert termination is not None
    assert termination["message"] == f"no: {MASK}"


def test_arguments_are_compared_after_redaction(guard: Guard) -> None:
    """A rotated key is no difference; another user is."""
    with guard.run("r") as run:
        log_in("ann", "old")
    with guard.replay(run.id):
        assert log_in("ann", "new") == "in as ann"
    with pytest.raises(ReplayDivergenceError) as caught, guard.replay(run.id):
        log_in("bob", "old")
    assert caught.value.kind == "arguments"


def test_a_redacted_result_is_not_replayable_and_says_so(guard: Guard) -> None:
    with guard.run("r") as run:
        assert use({"password": "abc"}) == {"password": "abc"}
    completed = next(event for event in guard.history(run.id) if event.type == "step_completed")
    assert completed.data["unreplayable"] == "redacted"
    with pytest.raises(ReplayDivergenceError, match="redacted") as caught, guard.replay(run.id):
        use({"password": "abc"})
    assert caught.value.kind == "not_replayable"


def test_redact_false_switches_it_off_for_a_step_or_a_guard() -> None:
    raw = guarded_step(name="raw", redact=False)(lambda password: password)
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("r") as run:
            raw("hunter2")
            log_in("ann", "hunter2")
        assert payloads(guard, run.id)[:3] == [[["hunter2"], {}], "hunter2", [["ann", MASK], {}]]
    with Guard.in_memory(telemetry=False, redact=False) as off:

        def agent() -> None:
            log_in("ann", "hunter2")
            guarded_step(name="on", redact=True)(lambda password: None)("hunter2")
            raise RuntimeError("sk-abcdef0123456789")

        options = {"inputs": {"token": "t"}, "metadata": {"token": "t"}}
        with pytest.raises(RuntimeError), off.run("r", **options) as run:
            agent()
        assert payloads(off, run.id) == [
            {"token": "t"},
            [["ann", "hunter2"], {}],
            "in as ann",
            [[MASK], {}],
            None,
        ]
        summary = off.summary(run.id)
        assert summary.metadata == {"token": "t"}
        assert summary.termination is not None
        assert summary.termination["message"] == "sk-abcdef0123456789"


def test_a_guards_rules_hold_for_every_step_that_has_none_of_its_own() -> None:
    own = guarded_step(name="own", redact=["iban"])(lambda ssn, iban: None)
    plain = guarded_step(name="plain")(lambda ssn, iban: None)
    with Guard.in_memory(telemetry=False, redact=["ssn"]) as guard:
        with guard.run("r") as run:
            plain("1", "2")
            own("1", "2")
        calls = [payload for payload in payloads(guard, run.id) if payload is not None]
        assert calls == [[[MASK, "2"], {}], [["1", MASK], {}]]


def test_items_of_a_generator_are_redacted(guard: Guard) -> None:
    @guarded_step
    def keys() -> Iterator[dict[str, str]]:
        yield {"name": "a"}
        yield {"secret": "hunter2"}

    with guard.run("r") as run:
        assert list(keys())[1] == {"secret": "hunter2"}
    assert payloads(guard, run.id) == [[{"name": "a"}, {"secret": MASK}]]
    completed = next(event for event in guard.history(run.id) if event.type == "step_completed")
    assert completed.data["unreplayable"] == "redacted"
