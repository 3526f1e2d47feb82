"""Look at the live page in headless Chromium, as a person would; says what it saw, step by step.

    build/browser-venv/bin/python tests/browser/look.py CHROMIUM URL FOLDER

Before each step it prints the step's name and waits for a line on stdin, in which its caller has
time to change what the page shows. Ends with 1 and a traceback when something is not seen. It
imports Playwright and nothing of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

TIMEOUT_MS = 30_000
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1200, "height": 900}
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")


def step(name: str) -> None:
    """Say what comes next, and wait for the word."""
    print(name, flush=True)
    assert sys.stdin.readline(), "the caller has gone"


def expect_figure(page: Page, name: str, text: str) -> None:
    row = page.locator("#figures div").filter(has=page.locator(f"dt:text-is('{name}')"))
    expect(row.locator("dd")).to_have_text(text)


def look_at_the_backlog(page: Page) -> None:
    """Records wait, and no daemon is there."""
    expect_figure(page, "lag", "30")
    expect_figure(page, "members of the group", "0")
    expect(page.locator("#partitions tr")).to_have_count(3)


def look_at_the_results(page: Page) -> None:
    """The daemon has worked all of it off; images have come, and one dead letter."""
    expect_figure(page, "lag", "0")
    expect_figure(page, "predictions", "29")
    expect_figure(page, "members of the group", "1")
    tile = page.locator("#results .tile").first
    expect(tile.locator(".label")).to_have_text("Ankle boot")
    width = "image => image.complete && image.naturalWidth"
    expect(tile.locator("img")).to_be_visible()
    assert tile.locator("img").evaluate(width) == 28
    dead = page.locator("#dead li")
    expect(dead).to_have_count(1)
    expect(dead.locator(".reason")).to_have_text("not_an_image")
    expect(page.locator("#reasons li")).to_have_text("1 not_an_image")


def look_at_the_hostile(page: Page) -> None:
    """Markup in labels, keys and headers is text, and no script has run."""
    label = page.locator("#results .label").filter(has_text="<img src=x")
    expect(label.first).to_contain_text("<img src=x onerror=")
    expect(page.locator("#dead .reason").first).to_contain_text("<script>")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#results img[src='x'], #dead script, main script").count() == 0


def use_the_keyboard(page: Page) -> None:
    """Pause, open an image, leave it, go on: without a mouse."""
    page.locator("#pause").focus()
    page.keyboard.press("Space")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#state")).to_have_text("paused")
    page.locator("#results .tile").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).not_to_be_visible()
    assert page.evaluate("document.activeElement.className") == "tile"
    page.locator("#pause").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("live")
    page.keyboard.press("Home")


def take_pictures(page: Page, folder: Path) -> None:
    """In light and dark, wide and narrow; nothing sticks out of a phone's width."""
    for scheme in ("light", "dark"):
        for name, size in (("desk", DESK), ("phone", PHONE)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size(size)
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], name
            page.screenshot(path=folder / f"{name}-{scheme}.png", full_page=True)


def main(chromium: str, url: str, folder: str) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport=DESK)
        expect.set_options(timeout=TIMEOUT_MS)
        faults: list[str] = []
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda one: faults.append(f"{one.url} {one.failure}"))
        asked: set[str] = set()
        page.on("request", lambda one: asked.add(one.url))
        page.goto(url)
        step("backlog")
        look_at_the_backlog(page)
        step("results")
        look_at_the_results(page)
        step("hostile")
        look_at_the_hostile(page)
        use_the_keyboard(page)
        take_pictures(page, Path(folder))
        assert faults == [], faults
        assert all(one.startswith(url) for one in asked), asked
        browser.close()
    print("seen", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
