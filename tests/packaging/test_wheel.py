"""What a user gets: the wheel built from the sdist, as an installer would see it."""

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = {".py", ".typed", ".sql", ".lua", ".html", ".css", ".js"}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Build the sdist and the wheel from it, with the hatchling that is installed here."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(archive.namelist())


def packages() -> list[Path]:
    integrations = (ROOT / "integrations").iterdir()
    return [ROOT / "agentguard", *sorted(p for p in integrations if (p / "__init__.py").exists())]


def shipped_files(package: Path) -> Iterator[str]:
    for path in package.rglob("*"):
        if path.is_file() and path.suffix in SHIPPED:
            yield path.relative_to(package.parent).as_posix()


def test_top_level_holds_only_our_packages(wheel_names: frozenset[str]) -> None:
    top_level = {PurePosixPath(name).parts[0] for name in wheel_names}
    dist_info = {name for name in top_level if name.endswith(".dist-info")}
    assert len(dist_info) == 1
    assert top_level - dist_info == {package.name for package in packages()}


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.name)
def test_wheel_holds_every_file_of_the_tree(package: Path, wheel_names: frozenset[str]) -> None:
    assert set(shipped_files(package)) - wheel_names == set()


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.name)
def test_package_says_that_it_is_typed(package: Path, wheel_names: frozenset[str]) -> None:
    assert f"{package.name}/py.typed" in wheel_names


def test_license_is_in_the_wheel(wheel_names: frozenset[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)


def test_integrations_folder_holds_nothing_loose() -> None:
    """A loose module in integrations/ would land at the root of site-packages."""
    loose = {path.name for path in (ROOT / "integrations").iterdir() if path.is_file()}
    assert loose == {"README.md"}


def test_import_rules_cover_every_package() -> None:
    """A package that import-linter is not told about is checked by nothing."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(config["tool"]["importlinter"]["root_packages"]) == {p.name for p in packages()}
