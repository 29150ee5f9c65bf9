"""The page in a real browser; skipped where there is none (needs playwright and Chromium)."""

import shutil

import pytest
from small_evaluation import evaluate
from test_report import HOSTILE, rename
from video_files import moving_frames

from diffusion.data.transforms import to_float
from diffusion.evaluation.report.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

FLAGS = ["--no-sandbox", "--disable-gpu"]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A page whose first video has a hostile name."""
    folder = tmp_path_factory.mktemp("evaluation")
    videos = {f"{i}.mp4": to_float(moving_frames(4, 64, 96, seed=i)) for i in range(2)}
    results = evaluate(folder, videos)
    rename(results, "0.mp4", HOSTILE)
    return write_report(results, folder).as_uri()


@pytest.fixture
def page(browser, url):
    """Opened offline; whatever it complains about or asks the network for fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 800})
    page = context.new_page()
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url[:99]))
    page.goto(url)
    yield page
    context.close()
    assert not complaints
    assert not [address for address in asked if not address.startswith(("file:", "data:"))]


def covered(page) -> str:
    return page.locator(".stage").evaluate("stage => stage.style.getPropertyValue('--split')")


def test_the_slider_follows_the_keyboard(page):
    slider = page.locator(".split")
    slider.focus()
    assert covered(page) == "50%"
    slider.press("ArrowRight")
    assert covered(page) == "50.5%"
    slider.press("Home")
    assert covered(page) == "0%"
    slider.press("End")
    assert covered(page) == "100%"


def test_the_slider_follows_the_pointer(page):
    page.locator(".stage").scroll_into_view_if_needed()
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    page.mouse.up()
    assert covered(page) == "25%"
    assert page.locator(".split").input_value() == "25"


def test_choices_change_the_pictures(page):
    over = page.locator(".over")
    first = over.get_attribute("src")
    page.locator("select.right").select_option("bicubic")
    second = over.get_attribute("src")
    page.locator("select.frame").select_option("0")
    third = over.get_attribute("src")
    page.locator("select.video").select_option("1")
    assert len({first, second, third, over.get_attribute("src")}) == 4
    assert page.locator("select.right").input_value() == "bicubic"  # kept across videos
    assert page.locator("select.left").input_value() == "original"
    page.locator("select.zoom").select_option("4")
    assert page.locator(".stage").bounding_box()["width"] == 4 * 96


def test_pictures_and_videos_are_shown(page):
    decoded = "image => image.decode().then(() => image.naturalWidth)"
    for place in (".under", ".over"):
        assert page.locator(place).evaluate(decoded) == 96
    video = page.locator("video").first
    assert video.get_attribute("poster").startswith("data:image/webp")
    page.locator(".together").first.click()
    # Not by wait_for_function, which the page's own rules forbid where it has to wait.
    for _ in range(200):
        if video.evaluate("video => video.currentTime") > 0:
            break
        page.wait_for_timeout(50)
    assert video.evaluate("video => video.currentTime") > 0
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [96, 64]


def test_a_column_sorts_better_first_and_missing_last(page):
    psnr, lpips = (page.locator("#table thead button").nth(i) for i in (0, 2))
    column = "#table tbody td:nth-child(2)"
    values = "cells => cells.map(cell => parseFloat(cell.dataset.value))"
    psnr.click()
    better_first = page.eval_on_selector_all(column, values)
    assert better_first == sorted(better_first, reverse=True)
    psnr.press("Enter")
    assert page.eval_on_selector_all(column, values) == better_first[::-1]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    lpips.click()
    assert page.locator("th[aria-sort]").count() == 1


def test_a_narrow_window_does_not_scroll_sideways(page):
    for width in (1000, 360):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    # Long names of settings leave room for their values.
    widths = page.eval_on_selector_all("dd", "values => values.map(value => value.clientWidth)")
    assert min(widths) > 120


def test_light_and_dark(page):
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
