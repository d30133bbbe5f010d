"""What the documents promise exists: the two commands, the files they link to, and recipes that load."""

import re

import pytest

from crescendo.common.config import check_mapping, read_mapping
from tests.unit.repo.tree import ROOT, text_of, tracked_files

LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
TARGET = re.compile(r"^([a-z0-9-]+):", re.MULTILINE)
DOCUMENTS = [name for name in tracked_files() if name.endswith(".md")]
RECIPES = [name for name in tracked_files() if re.fullmatch(r"recipes/.*/(recipe|twin)\.yaml", name)]


def test_the_readme_shows_the_two_commands() -> None:
    readme = text_of("README.md")
    assert "make demo" in readme
    assert "make test" in readme


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    links = [link for link in LINK.findall(text_of(name)) if "://" not in link and not link.startswith("mailto:")]
    broken = [link for link in links if not ((ROOT / name).parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_documents_show_exist(name: str) -> None:
    targets = set(TARGET.findall(text_of("Makefile")))
    shown = set(re.findall(r"`make ([a-z0-9-]+)", text_of(name)))
    shown |= set(re.findall(r"^make ([a-z0-9-]+)", text_of(name), re.MULTILINE))
    assert shown <= targets


def test_make_help_lists_every_target() -> None:
    makefile = text_of("Makefile")
    phony = re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)
    assert phony is not None
    public = set(phony.group(1).split()) - {"python"}
    assert {"demo", "setup", "test", "lint", "bench"} <= public
    assert public == set(re.findall(r"^([a-z0-9-]+):[^=\n]*## ", makefile, re.MULTILINE))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_load(name: str) -> None:
    assert check_mapping(read_mapping(ROOT / name), name).run.name


def test_the_ci_script_can_run() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
