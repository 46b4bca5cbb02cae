"""The two pages in a real Chromium, against a real server: what a person does there, with the mouse, the keyboard and a screen reader."""

import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.serving.page_service import put_up_pairs, served

pytestmark = pytest.mark.timeout(600)
CHROMIUM = shutil.which("chromium")
AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
LIMIT_MS = 120_000  # of anything that a test waits for
SHOTS = os.environ.get("OMR_RAY_SCREENSHOTS")  # a directory: screenshots go there

expect.set_options(timeout=LIMIT_MS)


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "the pages are tested in chromium; install it: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with served(tmp_path_factory.mktemp("pages"), size=512 if SHOTS else 96) as (url, key, config):
        put_up_pairs(config, 3, 512 if SHOTS else 96)
        yield url, key


@contextmanager
def visit(browser, url, key, path="/", **options):
    """A page that knows the key. When it is left, nothing was on its console but what the network said, and nothing was blocked."""
    context = browser.new_context(accept_downloads=True, reduced_motion="reduce", **options)
    context.set_default_timeout(LIMIT_MS)
    context.add_init_script(f"sessionStorage.getItem('omr_ray.key') ?? sessionStorage.setItem('omr_ray.key', {json.dumps(key)})")
    page, faults, hosts = context.new_page(), [], set()
    page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and hosts.add("/".join(request.url.split("/")[:3])))
    page.goto(url + path)
    expect(page.locator("body[data-ready]")).to_be_attached()
    try:
        yield page
        page.wait_for_timeout(100)
        # What Chromium itself says of a request that was refused; and a screenshot hides the caret by a style, against the policy.
        expected = ("Failed to load resource: the server responded with a status of 4", *(["Applying inline style"] if SHOTS else []))
        refused = [fault for fault in faults if not fault.startswith(expected)]
        assert refused == [] and hosts == {url}
    finally:
        context.close()


def shoot(page, name):
    if SHOTS:
        page.wait_for_timeout(500)
        page.screenshot(path=f"{SHOTS}/{name}.png")


def accessible(page):
    """No violation of WCAG that axe calls serious or critical, in light and in dark."""
    page.evaluate(AXE)
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_timeout(300)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
        told = [(rule["id"], node["target"], node["failureSummary"]) for rule in serious for node in rule["nodes"]]
        assert told == [], theme
    page.emulate_media(color_scheme="light")


def theirs(page):
    return page.locator("#thread .theirs")


def say(page, text):
    """One round to its end, by keyboard."""
    number = page.locator('[role="treeitem"]').count()  # with the beginning
    page.locator("#say textarea").fill(text)
    page.keyboard.press("Enter")
    ended(page, number)


def ended(page, number):
    expect(theirs(page).last).to_contain_text(f"Round {number}")
    expect(theirs(page).last).to_have_class(re.compile(r"\b(done|failed)\b"))


def node(page, id):
    return page.locator(f'[data-key="node-{id}"]')


def image_shown(page):
    expect(page.locator("#image")).to_be_visible()
    return page.locator("#image").get_attribute("data-address")


def test_a_key_is_asked_for_once_and_a_wrong_one_is_named(browser, service):
    url, key = service
    context = browser.new_context()
    context.set_default_timeout(LIMIT_MS)
    page = context.new_page()
    page.goto(url)
    field = page.locator("#key input")
    field.fill("omr_wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-fault")).to_contain_text("not known here")
    page.keyboard.press("Escape")
    expect(field).to_be_visible()
    field.fill(key)
    shoot(page, "key")
    page.keyboard.press("Enter")
    expect(page.locator("body[data-ready]")).to_be_attached()
    expect(field).to_be_hidden()
    page.reload()
    expect(page.locator("body[data-ready]")).to_be_attached()
    expect(field).to_be_hidden()
    page.get_by_role("button", name="Forget key").click()
    expect(field).to_be_visible()
    context.close()


def test_the_whole_dialogue(browser, service, tmp_path):
    with visit(browser, *service, viewport={"width": 1440, "height": 900}) as page:
        expect(page.get_by_role("heading", name="Say what you want to see.")).to_be_visible()
        accessible(page)
        shoot(page, "empty")
        page.get_by_role("button", name="a blue striped coat in the snow").click()  # slow: it is cancelled
        expect(page.locator("#preview")).to_be_visible()
        expect(page.locator("#preview")).to_have_attribute("src", re.compile("^data:image/png"))
        expect(page.locator("#making-what")).to_contain_text(re.compile(r"step \d+ of \d+"))
        shoot(page, "forming")
        page.get_by_role("button", name="Cancel").click()
        expect(theirs(page)).to_have_text("Round 1Cancelled.")

        say(page, "a red striped dress")
        first = image_shown(page)
        expect(page.locator("#image")).to_have_attribute("alt", "a red striped dress")
        expect(page.locator(".aspect")).to_have_count(7)
        expect(page.locator(".aspect", has_text="style")).to_contain_text("0.40")
        expect(page.locator(".aspect", has_text="color")).to_contain_text("1.00")
        expect(page.locator("#spoken")).to_contain_text("Round 2 is done.")
        accessible(page)
        shoot(page, "question")

        chip = page.locator(".question .chip").first
        answer = chip.inner_text()
        chip.click()
        ended(page, 3)
        expect(page.locator(".mine").last).to_have_text(answer)
        assert image_shown(page) != first

        page.get_by_role("button", name="Skip", exact=True).click()
        expect(page.locator(".question").last).to_contain_text("Skipped.")
        expect(page.locator("#say")).to_be_focused()
        say(page, "what color is it")
        expect(theirs(page).last).to_contain_text("red")

        say(page, "a hat")
        expect(theirs(page).last).to_contain_text("this painter has no hats; ask for another garment")
        page.get_by_role("button", name="Try again").click()
        ended(page, 6)
        expect(page.locator('[role="treeitem"]')).to_have_count(7)

        node(page, 2).click()
        expect(page.locator("#follows")).to_have_text("What you say next branches off from round 2.")
        assert image_shown(page) == first
        page.get_by_label("Your own answer").fill("seen from the left")
        page.keyboard.press("Enter")
        ended(page, 7)
        say(page, "green, on a beach")
        expect(page.locator(".mine")).to_have_text(["a red striped dress", "seen from the left", "green, on a beach"])
        shoot(page, "dialogue")
        page.emulate_media(color_scheme="dark")
        shoot(page, "dialogue-dark")
        page.emulate_media(color_scheme="light")
        page.get_by_role("button", name="Undo").click()
        expect(node(page, 7)).to_have_attribute("aria-selected", "true")
        page.reload()
        expect(node(page, 7)).to_have_attribute("aria-selected", "true")
        node(page, 7).focus()
        page.keyboard.press("ArrowLeft")
        expect(node(page, 2)).to_be_focused()
        page.keyboard.press("Enter")
        expect(node(page, 2)).to_have_attribute("aria-selected", "true")
        page.keyboard.press("ArrowRight")
        expect(node(page, 3)).to_be_focused()


def test_compare_vote_download_and_restore(browser, service, tmp_path):
    url, key = service
    with visit(browser, url, key, viewport={"width": 1440, "height": 900}) as page:
        say(page, "a yellow skirt")
        page.get_by_role("button", name="Settings").click()
        page.locator("#settings wa-input input").fill("42")
        page.locator("#settings wa-radio", has_text="Edit the last").click()
        shoot(page, "settings")
        say(page, "purple, at night")
        expect(page.locator("#recipe")).to_contain_text("edited at 0.80 · seed 42")
        with page.expect_download() as saved:
            page.get_by_role("button", name="Download").click()
        png = tmp_path / saved.value.suggested_filename
        saved.value.save_as(png)
        assert b"omr_ray" in png.read_bytes()

        page.get_by_role("button", name="Compare").click()
        divider = page.get_by_label("Divider between both pictures")
        left, right = page.locator(".compare-view").bounding_box(), divider.bounding_box()
        assert abs(left["x"] + left["width"] / 2 - right["x"] - right["width"] / 2) < 2
        divider.focus()
        page.keyboard.press("End")
        expect(divider).to_have_attribute("aria-valuenow", "100")
        expect(page.locator(".changes")).to_contain_text("a yellow skirt")
        expect(page.locator(".changes tr", has_text="Seed")).to_contain_text("42")
        page.keyboard.press("Shift+ArrowLeft")
        accessible(page)
        shoot(page, "compare")
        page.get_by_role("radio", name="Side by side").click()
        expect(page.locator(".both img")).to_have_count(2)
        page.get_by_role("button", name="Right is better").click()
        expect(page.locator("#notices")).to_contain_text("Vote saved: right is better. That is the first in this session.")
        id = page.url.split("#")[1]
        votes = httpx2.get(f"{url}/v1/sessions/{id}/votes", headers={"authorization": f"Bearer {key}"}).json()["data"]
        assert [(vote["left"], vote["right"], vote["choice"]) for vote in votes] == [(1, 2, "right")]
        page.keyboard.press("Escape")

        page.get_by_role("button", name="New session").click()
        expect(page.locator("#session-title")).to_have_text("New session")
        drop(page, png)
        expect(page.locator("#session-title")).to_have_text("a yellow skirt")
        expect(node(page, 2)).to_have_attribute("aria-selected", "true")
        expect(page.locator("#settings-summary")).to_contain_text("seed 42")
        other = tmp_path / "other.png"
        shutil.copy(Path("tests/data/clothing/dress/009b3c31-fb62-45c0-be9a-37a5c238cb88.jpg"), other)
        page.locator("#file").set_input_files(other)
        expect(page.locator("#notices")).to_contain_text("the image carries no recipe")

        page.locator(".session", has_text="a yellow skirt").hover()
        page.get_by_role("button", name="Delete a yellow skirt").click()
        page.get_by_role("button", name="Delete", exact=True).click()
        expect(page.locator(".session", has_text="a yellow skirt")).to_have_count(0)
        drop(page, png)
        expect(page.locator("#say textarea")).to_have_value("a purple skirt at night")


def drop(page, file):
    """As if the file came from the desktop."""
    page.locator("#file").set_input_files([])
    moved = page.evaluate_handle(
        """(bytes) => {
            const moved = new DataTransfer();
            moved.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            return moved;
        }""",
        list(file.read_bytes()),
    )
    for kind in ("dragenter", "dragover", "drop"):
        page.locator("body").dispatch_event(kind, {"dataTransfer": moved})
    expect(page.locator("#drop")).to_be_hidden()


def test_what_others_write_is_text(browser, service):
    url, key = service
    with visit(browser, url, key) as page:
        say(page, "a <img src=x onerror=alert(1)><b>blue</b> dress")
        expect(page.locator(".mine")).to_contain_text("<img src=x")
        assert page.locator(".mine img, .mine b, #session-title b, #sessions b").count() == 0


def test_on_a_phone(browser, service):
    with visit(browser, *service, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        shoot(page, "phone-empty")
        page.emulate_media(color_scheme="dark")
        shoot(page, "phone-empty-dark")
        page.emulate_media(color_scheme="light")
        page.get_by_role("button", name="a small yellow hat on a beach").tap()
        expect(page.locator(".theirs.failed")).to_be_visible()
        say(page, "a pink checked dress")
        say(page, "on a beach")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        accessible(page)
        shoot(page, "phone")
        page.get_by_role("button", name="Aspects").tap()
        expect(page.locator("#aspects")).to_be_visible()
        expect(page.locator("#thread")).to_be_hidden()
        shoot(page, "phone-aspects")
        page.get_by_role("button", name="History").tap()
        node(page, 2).tap()
        expect(node(page, 2)).to_have_attribute("aria-selected", "true")
        shoot(page, "phone-history")
        page.get_by_role("button", name="Compare").tap()
        expect(page.locator("wa-comparison")).to_be_visible()
        shoot(page, "phone-compare")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Dark theme").tap()
        expect(page.locator("html")).to_have_class(re.compile("wa-dark"))
        page.get_by_role("button", name="Dialogue").tap()
        shoot(page, "phone-dark")
        page.get_by_role("button", name="Sessions").tap()
        expect(page.locator(".session").first).to_be_visible()
        shoot(page, "phone-sessions")


def test_pairs_are_annotated_by_keyboard_only(browser, service):
    url, key = service
    with visit(browser, url, key, "/annotate", viewport={"width": 1440, "height": 900}) as page:
        expect(page.locator("#progress-text")).to_have_text("0 of 3 judged")
        prompt = page.locator("#prompt").inner_text()
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="How to judge")).to_be_visible()
        shoot(page, "annotate-help")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog", name="How to judge")).to_be_hidden()
        page.locator('[data-side="left"] .tag').first.focus()
        page.keyboard.press("Space")
        page.locator('[data-side="left"] textarea').focus()
        page.keyboard.type("tb: no belt")
        page.keyboard.press("Escape")
        expect(page.locator("#judgement")).to_be_focused()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("radio", name="Right")).to_be_checked()
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("radio", name="Left")).to_be_checked()
        accessible(page)
        shoot(page, "annotate")
        page.emulate_media(color_scheme="dark")
        shoot(page, "annotate-dark")
        page.emulate_media(color_scheme="light")
        page.keyboard.press("Enter")
        expect(page.locator("#progress-text")).to_have_text("1 of 3 judged")
        page.keyboard.press("t")
        page.keyboard.press("Enter")
        expect(page.locator("#progress-text")).to_have_text("2 of 3 judged")
        page.keyboard.press("l")
        expect(page.get_by_role("radio", name="Tie")).to_be_checked()
        page.keyboard.press("l")
        expect(page.locator("#prompt")).to_have_text(prompt)
        expect(page.locator('[data-side="left"] textarea')).to_have_value("tb: no belt")
        page.keyboard.press("n")
        expect(page.locator('[data-side="left"] textarea')).to_have_value("")
        page.keyboard.press("b")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="All pairs are judged")).to_be_visible()
        expect(page.locator("#progress-text")).to_have_text("3 of 3 judged")
        accessible(page)
        page.set_viewport_size({"width": 390, "height": 844})
        page.keyboard.press("l")
        expect(page.get_by_role("radio", name="Both bad")).to_be_checked()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        save = page.locator("#save").bounding_box()
        assert save["x"] + save["width"] < 390 - 12
        shoot(page, "annotate-phone")
    told = httpx2.get(f"{url}/v1/annotations/mine", headers={"authorization": f"Bearer {key}"}).json()["data"]
    assert [said["choice"] for said in told] == ["left", "tie", "both_bad"] and all(0 < said["seconds"] < 600 for said in told)
    assert told[0]["notes"]["left"] == {"description": "tb: no belt", "tags": ["content"]}


def test_the_policy_and_no_page_within_a_page(service):
    url, _ = service
    for path in ("/", "/annotate", "/pages/script/dialogue.js"):
        headers = httpx2.get(url + path).headers
        assert "default-src 'self'; img-src 'self' blob: data:" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
    tag = httpx2.get(f"{url}/pages/library/webawesome.js").headers["etag"]
    again = httpx2.get(f"{url}/pages/library/webawesome.js", headers={"if-none-match": tag})
    assert again.status_code == 304 and "content-security-policy" in again.headers
    assert httpx2.get(f"{url}/pages/../api.py").status_code == httpx2.get(f"{url}/pages/%2e%2e/pages.py").status_code == 404


def test_what_is_shipped_is_small_and_names_its_licences():
    library = Path("omr_ray/serving/pages/static/library")
    assert sum(file.stat().st_size for file in library.iterdir()) < 600_000
    assert {"Web Awesome", "Lit", "Lucide", "Floating UI"} <= set(
        re.findall(r"^## ([A-Z][\w ]*?)(?= \()", (library / "LICENSES.md").read_text(), re.M)
    )
