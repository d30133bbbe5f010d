"""The console in a real browser, over a scripted controller: what a person sees, what the buttons do, what is refused.

Needs Chromium (Debian: apt-get install chromium). Without it the tests are skipped, in CI they fail.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from crescendo.common.runfolder import RunFolder

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FAKES = Path(__file__).parents[1] / "fakes"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
CONFIG = """
run: {name: try}
model: {source: scratch, scratch: {vocabulary: "0123456789.$", max_positions: 256}}
data: {train: {name: task, path: t}, validation: {name: task, path: t}, max_prompt_tokens: 32}
rewards: {chains: {math: [{scorer: exact_match}]}}
steps:
  - kind: rl
    rl:
      stages:
        - {name: short, max_response_tokens: 32}
        - {name: medium, max_response_tokens: 64}
        - {name: long, max_response_tokens: 96}
"""


@dataclass
class Served:
    """A scripted run with its console, each a process."""

    folder: RunFolder
    controller: "subprocess.Popen[bytes]"
    console: "subprocess.Popen[bytes]"
    link: str
    complaints: list[str] = field(default_factory=list)

    def verbs(self) -> list[str]:
        text = (self.folder.root / "verbs.jsonl").read_text()
        return [json.loads(line)["verb"] for line in text.splitlines()]

    def open(self, browser: Browser, *, javascript: bool = True) -> Page:
        page = browser.new_context(java_script_enabled=javascript).new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._note_request)
        page.goto(self.link)
        return page

    def _note_request(self, request: object) -> None:
        url = str(getattr(request, "url", ""))
        if not url.startswith((self.link.partition("?")[0], "data:")):
            self.complaints.append(f"request to {url}")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is missing: install Chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = RunFolder.create(tmp_path / "try", "try")
    folder.config.write_text(CONFIG)
    ready = tmp_path / "ready"
    environment = {
        **os.environ, "PYTHONPATH": str(FAKES), "CRESCENDO_FAKE": "endless", "CRESCENDO_FAKE_TICK_S": "0.4",
    }  # fmt: skip
    run = ["--run-folder", str(folder.root)]
    controller = subprocess.Popen([sys.executable, "-m", "fake_controller", *run], env=environment)
    console = subprocess.Popen(
        [sys.executable, "-m", "crescendo.console", *run, "--ready-file", str(ready)], env=environment
    )
    try:
        wait_for(ready.exists)
        wait_for(folder.metrics.exists)
        yield Served(folder, controller, console, ready.read_text())
    finally:
        for process in (controller, console):
            process.kill()
            process.wait(10)
        orphan = folder.root / "orphan.pid"
        if orphan.exists() and psutil.pid_exists(int(orphan.read_text())):
            psutil.Process(int(orphan.read_text())).kill()


def test_a_person_watches_and_steers_a_run(browser: Browser, served: Served) -> None:
    page = served.open(browser)
    assert "token" not in page.url
    expect(page.get_by_role("heading", name="try", level=1)).to_be_visible()
    stages = page.locator("ol.track > li")
    expect(stages).to_have_count(3)
    expect(stages.nth(0)).to_contain_text("short")
    expect(stages.nth(0)).to_have_attribute("aria-current", "step")
    expect(stages.nth(0)).to_contain_text("clip_ratio 0.043")
    expect(page.locator("#workers tbody tr").filter(has_text="rollout-0")).to_contain_text("attested")
    expect(page.locator("#chart-reward svg.main-svg").first).to_be_visible()
    expect(page.locator("#samples")).to_contain_text('<script>document.title="hacked"</script>')
    assert page.title() == "try · Crescendo"

    shown = page.locator("#head b").first.inner_text()
    expect(page.locator("#head b").first).not_to_have_text(shown)

    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#said")).to_have_text("The run pauses at its next safe point.")
    expect(page.locator("#head .pill")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.get_by_role("button", name="Promote to medium").click()
    expect(stages.nth(1)).to_have_attribute("aria-current", "step")
    expect(page.locator("#events")).to_contain_text("short left by manual for medium")
    assert served.verbs() == ["pause", "resume", "promote"]
    assert served.complaints == [], "no policy violation, no script error, no request to another server"


def test_without_javascript_the_page_is_whole(browser: Browser, served: Served) -> None:
    wait_for(lambda: served.folder.metrics.read_text().count("\n") > 3)
    page = served.open(browser, javascript=False)
    expect(page.locator("ol.track > li")).to_have_count(3)
    page.get_by_text("Newest iterations as a table").click()
    assert page.locator("#recent tbody tr").count() >= 3
    expect(page.locator("svg.spans rect").first).to_be_attached()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#head .pill")).to_have_text("paused")
    assert served.verbs() == ["pause"]


def test_a_run_that_ends_stays_on_the_page(browser: Browser, served: Served) -> None:
    page = served.open(browser)
    expect(page.locator("#samples article").first).to_be_visible()
    served.controller.kill()
    served.controller.wait(10)
    expect(page.locator("#head .pill")).to_have_text("stopped")
    expect(page.get_by_role("button")).to_have_count(0)
    expect(page.locator("#samples article").first).to_be_visible()
    # The event stream may break off with the controller; the page connects again, and the browser notes the break.
    assert [text for text in served.complaints if "ERR_INCOMPLETE_CHUNKED_ENCODING" not in text] == []


def test_the_page_fits_small_and_dark_screens(browser: Browser, served: Served) -> None:
    page = served.open(browser)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.set_viewport_size({"width": 360, "height": 700})
    page.wait_for_function("document.documentElement.scrollWidth <= 360")


def test_strangers_are_refused(browser: Browser, served: Served) -> None:
    address = served.link.partition("/?")[0]
    with httpx.Client(base_url=address, trust_env=False) as stranger:
        assert stranger.get("/").status_code == 403
        assert stranger.get("/", params={"token": "wrong"}).status_code == 403
        assert stranger.get("/", headers={"Host": "evil.example"}).status_code == 400
        assert stranger.post("/verbs/pause", headers={"Origin": address}).status_code == 403
    page = served.open(browser)
    again = browser.new_context().new_page().goto(served.link)
    assert again is not None
    assert again.status == 403, "the link works once"
    forged = page.context.request.post(f"{address}/verbs/pause", headers={"Origin": "http://evil.example"})
    assert forged.status == 403
    assert served.verbs() == []
