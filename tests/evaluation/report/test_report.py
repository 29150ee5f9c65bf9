import copy
import math
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote

import pytest
from small_evaluation import evaluate
from video_files import moving_frames

from diffusion.data.transforms import to_float
from diffusion.evaluation.report import charts
from diffusion.evaluation.report.media import Budget
from diffusion.evaluation.report.report import shown_frames, write_report
from diffusion.evaluation.report.result_table import number

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&.mp4"
EXTERNAL = ("src", "href", "poster", "data", "action", "srcset")


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    videos = {f"{i}.mp4": to_float(moving_frames(4, 64, 96, seed=i)) for i in range(2)}
    return evaluate(folder, videos), folder


@pytest.fixture
def results(evaluation):
    return copy.deepcopy(evaluation[0])


@pytest.fixture
def folder(evaluation):
    return evaluation[1]


def page_of(results, folder, **budgets) -> Page:
    return Page(write_report(results, folder, **budgets).read_text())


def rename(results, old, new):
    for model in results["models"].values():
        model["videos"][new] = model["videos"].pop(old)
    results["originals"][new] = results["originals"].pop(old)


def test_nothing_is_fetched(results, folder):
    page = page_of(results, folder)
    for _, attributes in page.tags:
        for name in EXTERNAL:
            assert attributes.get(name, "#").startswith(("data:", "#")), attributes
    assert not page.all("link")
    assert "url(" not in page.text
    assert "@import" not in page.text
    assert len(page.all("img")) == 2 + 2 * 4 * 3  # the slider's two; videos, models, frames
    assert len(page.all("video")) == 2 * 4


def test_the_same_results_give_the_same_page(results, folder):
    first = write_report(results, folder).read_bytes()
    assert write_report(results, folder).read_bytes() == first


def test_names_stay_text(results, folder):
    plain = page_of(results, folder)
    rename(results, "0.mp4", HOSTILE)
    results["models"][HOSTILE] = results["models"].pop("linear")
    results["metrics"]["psnr"]["label"] = results["metrics"]["lpips_alex"]["missing"] = HOSTILE
    results["published"][0] |= {"name": HOSTILE, "note": HOSTILE}
    results["protocol"][HOSTILE] = results["environment"][HOSTILE] = HOSTILE
    results["bad_videos"][HOSTILE] = HOSTILE
    page = page_of(results, folder)
    assert len(page.all("script")) == len(plain.all("script")) == 1
    assert len(page.all("img")) == len(plain.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) > 15


def test_large_videos_are_links_beside_the_page(results, folder):
    name = "videos/original/a #1%?.mp4"
    (folder / name).write_bytes((folder / results["originals"]["0.mp4"]).read_bytes())
    results["originals"]["0.mp4"] = name
    sources = [video["src"] for video in page_of(results, folder, video_bytes=0).all("video")]
    assert len(sources) == 8
    assert all((folder / unquote(source)).is_file() for source in sources)
    assert any("a%20%231%25%3F.mp4" in source for source in sources)


def test_the_page_keeps_to_its_budgets(results, folder):
    small = write_report(results, folder, picture_bytes=0, video_bytes=0)
    assert small.stat().st_size < 100_000
    assert "no pictures" in small.read_text()
    budget = Budget(10)
    assert budget.take(6)
    assert not budget.take(6)
    assert budget.take(4)


@pytest.mark.parametrize("outside", ["../secret.mp4", "/etc/hostname", "videos/../../secret.mp4"])
def test_only_files_of_the_folder_are_shown(results, folder, outside):
    (folder.parent / "secret.mp4").write_bytes(b"secret")
    results["originals"]["0.mp4"] = outside
    assert len(page_of(results, folder).all("video")) == 7


def test_a_missing_or_broken_reconstruction_leaves_the_rest(results, folder):
    (folder / "broken.mp4").write_bytes(b"not a video")
    results["models"]["linear"]["videos"]["0.mp4"]["reconstruction"] = "broken.mp4"
    results["models"]["h264"]["videos"]["0.mp4"]["reconstruction"] = "gone.mp4"
    del results["models"]["bicubic"]["videos"]["1.mp4"]["reconstruction"]
    page = page_of(results, folder)
    assert len(page.all("img")) == 2 + (2 + 3) * 3
    assert "no file beside this page" in page.text


def test_a_missing_metric_is_named_and_never_a_number(results, folder):
    page = page_of(results, folder)
    cells = [cell for cell in page.all("td") if cell.get("title")]
    assert [cell["data-value"] for cell in cells] == [""] * 3
    assert "pip install lpips" in page.text


def test_best_follows_the_direction(results, folder):
    for metric, value in (("lpips_alex", 0.3), ("flicker", 1.0)):
        for i, model in enumerate(results["models"].values()):
            model["means"][metric] = value + i / 10
    results["metrics"]["lpips_alex"]["missing"] = None
    results["metrics"]["flicker"] = {"label": "flicker", "higher_is_better": None, "missing": None}
    bold = write_report(results, folder).read_text().split("<tbody>")[1].split("</tbody>")[0]
    assert "<strong>0.3000</strong>" in bold  # lower is better
    best = max(model["means"]["psnr"] for model in results["models"].values())
    assert f"<strong>{number(best)}</strong>" in bold
    assert bold.count("<strong>") == 3  # none where neither direction is better


def test_published_rows_are_marked(results, folder):
    text = page_of(results, folder).text
    remark = "published for inter4k-200, not measured here"
    assert text.count(remark) == len(results["published"])
    assert "23.73" in text
    assert "inter4k-200; from the paper's table" in text


def test_columns_that_only_published_rows_have_need_the_same_protocol(results, folder):
    assert "VBench aesthetic quality" not in page_of(results, folder).text
    results["protocol"]["name"] = results["published"][0]["protocol"]
    assert "VBench aesthetic quality" in page_of(results, folder).text


def test_what_failed_is_named(results, folder):
    del results["models"]["linear"]["videos"]["0.mp4"]
    results["models"]["linear"]["failed"] = {"0.mp4": "sides must be multiples of 8"}
    text = page_of(results, folder).text
    assert "0.mp4, linear" in text
    assert "sides must be multiples of 8" in text
    assert "1 of 2 videos" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_values_that_are_no_numbers(results, folder, value):
    entry = results["models"]["linear"]["videos"]["0.mp4"]["metrics"]["psnr"]
    entry["per_frame"][1] = entry["mean"] = results["models"]["linear"]["means"]["psnr"] = value
    points = [line["points"] for line in page_of(results, folder).all("polyline")]
    assert len(points) == 7  # one line of six has a gap
    assert not any("nan" in p or "inf" in p for p in points)


def test_a_model_that_lacks_videos(results, folder):
    results["models"]["linear"]["videos"] = {}
    results["models"]["linear"]["means"] = {}
    assert len(page_of(results, folder).all("video")) == 2 * 3


def test_nothing_measured_yet(results, folder):
    results["models"] = {}
    assert "0 models on 0 videos" in page_of(results, folder).text


def test_shown_frames_are_spread_and_in_the_video():
    assert shown_frames(1) == [0]
    assert shown_frames(3) == [0, 1, 2]
    assert shown_frames(30) == [5, 15, 25]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (23.1, 23.2), (-3, 1e6), (0.001, 0.002)])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_ticks_lie_on_the_axis(low, high, logarithmic):
    low = max(low, 0.05) if logarithmic else low
    high = max(high, 3 * low) if logarithmic else high
    axis = charts.Axis(low, high, 10, 110, logarithmic)
    assert axis(low) == 10
    assert axis(high) == 110
    ticks = axis.ticks()
    assert ticks == sorted(ticks)
    assert len(ticks) >= (2 if logarithmic else 3)
    assert all(10 <= axis(tick) <= 110 for tick in ticks)


def test_names_of_dots_do_not_cover_one_another():
    dots = {str(i): (i, 0.5, 20 + i / 100) for i in range(5)} | {"far": (5, 0.01, 30)}
    column = sorted(mark.name_y for mark in charts.scatter(dots, "", "", "").marks)
    gaps = [b - a for a, b in pairwise(column)]
    assert min(gaps) > charts.NAME_HEIGHT - 0.01
    assert max(column) <= charts.HEIGHT - charts.BOTTOM  # not over the axis' own numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [(27.7, "27.70"), (0.8, "0.8000"), (12, "12"), (0.0, "0"), (456.0, "456.0"), (1234.5, "1,234")]
    + [(None, "–"), (math.nan, "–"), (math.inf, "∞")],
)
def test_numbers(value, shown):
    assert number(value) == shown
