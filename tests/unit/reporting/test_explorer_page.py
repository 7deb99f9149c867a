"""The trace explorer in a real browser: what is shown, by mouse and by keyboard, and that no text
of a run becomes anything but text.
"""

import re
import shutil

import pytest

from abscot.reporting import report
from abscot.reporting.blocks import to_html
from kit.explored import HOSTILE, KEY, STATES, answer, data_of, told

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install -e .[test]"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt install chromium"),
]
RUN = ("abstract_swapped", "final", "world")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """data -> (its report in a tab, what went wrong or out of it: a list that grows)."""

    def open_(data):
        path, heard = tmp_path / "index.html", []
        path.write_text(to_html("x", report.blocks(data, {}), tmp_path), encoding="utf-8")
        page = browser.new_page()
        page.set_default_timeout(5000)
        page.on("request", lambda r: r.url == path.as_uri() or heard.append(r.url))
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: heard.append(dialog.message) or dialog.dismiss())
        page.goto(path.as_uri())
        return page, heard

    yield open_
    for context in browser.contexts:
        context.close()


def world(root):
    """30 answers, of which 25 are right; h0's wrong one says B, B for A, B."""
    rows = [answer(f"h{i % 4}", told(STATES[f"h{i % 4}"]), sample=i // 4) for i in range(25)]
    rows += [answer("h0", told("BB"), right=False, sample=7 + i, prediction="B") for i in range(5)]
    swapped = [answer("h0", told("CA"), right=False, trace_of="world/h2"), answer("h2", told("AB"))]
    return data_of(root, {KEY: rows, RUN: swapped, ("abstract", "base", "gsm8k"): rows[:3]})


def test_answers_are_filtered_and_counted(opened, tmp_path):
    page, heard = opened(world(tmp_path))
    cards, status = page.locator("article"), page.get_by_role("status")
    assert status.inner_text() == "Shown: 10 of 30 answers." and cards.count() == 10
    page.get_by_text("✗ Wrong 5").click()
    assert status.inner_text() == "Shown: 5 of 5 wrong answers."
    assert cards.locator(".verdict").all_inner_texts() == ["✗ Wrong"] * 5
    page.get_by_text("✓ Right 25").click()
    assert set(cards.locator(".verdict").all_inner_texts()) == {"✓ Right"}
    page.get_by_role("button", name="Show 10 more").click()
    assert status.inner_text() == "Shown: 20 of 25 right answers." and cards.count() == 20
    page.get_by_label("Search").fill("world/H2")
    assert status.inner_text() == "Shown: 6 of 6 right answers with the searched text."
    assert {text.split(",")[0] for text in cards.locator("h3").all_inner_texts()} == {"world/h2"}
    assert "All 30 answers of results/abstract_final_world.jsonl" in page.inner_text("#explorer")
    page.get_by_label("Search").fill("")
    page.get_by_label("Benchmark").select_option("gsm8k")
    assert page.get_by_label("Model").input_value() == "base"
    assert status.inner_text() == "Shown: 3 of 3 right answers."
    assert page.locator(".legend, .under, [data-step]").count() == 0  # no state is known there
    assert heard == []


def test_tokens_say_their_step_and_the_state_after_it(opened, tmp_path):
    page, heard = opened(world(tmp_path))
    page.get_by_text("✗ Wrong 5").click()
    card = page.locator("article").first
    assert card.locator(".under").all_inner_texts() == ["1 · A", "2 · B"]
    first, second = card.locator(".token").all()
    # It begins at the token that says another state than that of its step.
    assert "odd" in first.get_attribute("class") and "odd" not in second.get_attribute("class")
    assert card.locator(".told").inner_text() == (
        "1: X and A swap → ball under A\n"
        "Token B, 1 of 2, mostly stands for ball under B (30 of 35 times), not for this state."
    )
    second.hover()
    assert card.locator(".told").inner_text().startswith("2: X and B swap → ball under B\n")
    assert card.locator("[data-step].pointed").all_inner_texts() == ["2: X and B swap."]
    page.get_by_label("Mode", exact=True).select_option("abstract_swapped")
    card = page.locator("article").first
    assert "Trace taken from world/h2" in card.inner_text()
    assert card.locator(".under").all_inner_texts() == ["1 · C", "2 · A"]
    assert heard == []


def test_all_of_it_works_without_a_mouse(opened, tmp_path):
    page, heard = opened(world(tmp_path))
    page.get_by_role("radio", name="All").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("status").inner_text() == "Shown: 5 of 5 wrong answers."
    page.keyboard.press("Tab")
    page.keyboard.type("boxed")
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert focused.get_attribute("aria-label").startswith("1: X and A swap → ball under A. Token B")
    page.keyboard.press("ArrowRight")
    assert focused.get_attribute("aria-label").startswith("2: X and B swap → ball under B. Token B")
    assert page.locator("article .told").first.inner_text().startswith("2: X and B swap")
    unnamed = "#explorer :is(select, input, button)"
    names = page.locator(unnamed).evaluate_all(
        "all => all.map(e => e.ariaLabel || e.innerText || (e.labels && e.labels[0].innerText))"
    )
    assert len(names) > 8 and all(names)
    assert heard == []


def pictured(text: str) -> str:
    """Control characters as the page shows them."""
    text = re.sub(r"[\0-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), text)
    return text.replace("\x7f", "\u2421")


def test_hostile_texts_are_shown_and_run_nothing(opened, tmp_path):
    rows = [
        answer(
            text,
            [f"<TOKEN_{text}>", "<TOKEN_A>"],
            right=number % 2 == 0,
            **dict.fromkeys(("problem", "response", "gold", "prediction", "reasoning"), text),
        )
        for number, text in enumerate(HOSTILE)
    ]
    keys = [(mode, text, text) for text in HOSTILE[:3] for mode in (text, "abstract")]
    page, heard = opened(data_of(tmp_path, dict.fromkeys(keys, rows)))
    cards = page.locator("article").all()
    assert len(cards) == len(HOSTILE)
    for card, text in zip(cards, HOSTILE, strict=True):
        card.locator("summary").click()
        cut = ["xxx … (98,00", " characters left out) … xxx"]
        shown = [pictured(text)] if len(text) < 2000 else cut
        places = ("h3", ".chip >> nth=0", ".asked .text", "details .text", ".said > .text", ".read")
        for place in (*places, "dd >> nth=-1"):
            found = card.locator(place).text_content()
            assert all(part in found for part in shown), place
    options = page.locator("#explorer-model option").all_text_contents()
    assert options == HOSTILE[:3]
    page.get_by_label("Model").select_option(HOSTILE[1])
    page.get_by_label("Search").fill(HOSTILE[0])
    assert page.get_by_role("status").inner_text().startswith("Shown: 1 of 1")
    assert page.locator("#explorer").locator("img, script, iframe, svg, link, style").count() == 0
    assert page.evaluate("[window.hit, document.scripts.length]") == [None, 2]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert heard == []
