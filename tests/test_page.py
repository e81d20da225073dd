"""The report's page, of real runs, in a real browser: what it shows, plays and loads; what it says of what is gone."""

import json
import re
import shutil

import pytest

from helpers.desk import CLASSES, SHORT, Desk, write_sounds
from utils.report import main
from utils.results.page.sounds import encode_clips
from utils.results.page.write import LARGEST

SCRIPT = "<script>alert(1)</script>"
FLAGS = ("--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --mute-audio "
         "--disable-component-update --disable-sync").split()  # fmt: skip
POINTS = "[...document.querySelectorAll('[open] .map .point')].map(p => p.getAttribute('transform'))"
# Whether the map's clip is heard within 5 s
HEARD = """() => {
  const audio = document.querySelector("[open] .map audio");
  window.heard = new Promise(resolve => {
    audio.addEventListener("timeupdate", () => audio.currentTime > 0 && resolve(true));
    setTimeout(resolve, 5000, false);
  });
}"""
# The least contrast of a text with what is behind it, as WCAG 2.1 defines it: 4.5 is its level AA
CONTRAST = """() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    const colour = parts(getComputedStyle(element).backgroundColor);
    return colour[3] === 0 && element.parentElement ? behind(element.parentElement) : colour;
  };
  const texts = "h1, p, a, th, td, li, small, summary span, output, .xtick text, .legend text";
  const found = [...document.querySelectorAll(texts)]
    .filter(element => element.textContent.trim() && element.checkVisibility()).map(element => {
      const style = getComputedStyle(element), svg = element instanceof SVGElement;
      const [a, b] = [light(parts(svg ? style.fill : style.color)), light(behind(element))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    });
  return [found.length, Math.min(...found)];
}"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A desk with encoders of three tasks, judged by two protocols and as two methods; a class's name is a script."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    write_sounds(desk.sounds)
    table = desk.sounds / "metadata/UrbanSound8K.csv"
    table.write_text(table.read_text().replace(CLASSES[1], SCRIPT))
    assert desk.run(desk.train_args("--number_of_epochs=2")).code == 0
    for name, kind, *more in (("full", "full"), ("seen", "seen"), ("zebra", "full", "--method=zebra")):
        done = desk.run(desk.probe_args(*SHORT, f"--linclf_train_type={kind}", f"--experiment_name={name}", *more))
        assert done.code == 0, done.said
    return desk


@pytest.fixture(scope="module")
def report(desk):
    assert main([*map(str, sorted((desk.folder / "judged").iterdir())), f"--output={desk.folder / 'report'}"]) == 0
    return desk.folder / "report/report.html"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="no driver of a browser: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium here, such as Debian's package chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """The page open in a browser, with what went wrong."""

    def __init__(self, browser, file, **options):
        self.page, self.problems = browser.new_page(**options), []
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        self.page.on("request", self._request)
        self.page.goto(file.as_uri())
        for place in self.page.locator("[open] [data-figure]").all():
            place.scroll_into_view_if_needed()
            place.locator(".main-svg").first.wait_for()

    def _request(self, request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.problems.append(f"request {request.url}")


def test_the_page_in_a_browser(browser, report):
    """Nothing is loaded and no error logged; a map of four classes that the slider moves; a click plays a clip; a click
    on a title sorts; a class named as a script is text."""
    visit = Visit(browser, report, viewport={"width": 1200, "height": 900})
    page = visit.page
    before = page.evaluate(POINTS)
    assert len(before) == len(CLASSES)  # one test clip of each
    page.locator("[open] input[type=range]").fill("0")
    page.wait_for_timeout(900)
    after = page.evaluate(POINTS)
    assert len(after) == len(before) and after != before
    assert page.locator("[open] output").inner_text().startswith("random weights (")

    page.locator("[open] .map .point").first.scroll_into_view_if_needed()
    box = page.locator("[open] .map .point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator(".hoverlayer .hovertext").wait_for()
    assert ".wav" in page.locator(".hoverlayer .hovertext").first.text_content()
    page.evaluate(HEARD)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.evaluate("() => window.heard")
    assert ".wav" in page.locator("[open] .playing").inner_text()

    rows = page.locator("#comparison tbody th")
    assert [name.split()[0] for name in rows.all_inner_texts()] == ["supclr", "zebra"]
    page.locator("#comparison").get_by_role("button", name="Method", exact=True).click(click_count=2)
    assert [name.split()[0] for name in rows.all_inner_texts()] == ["zebra", "supclr"]
    page.get_by_role("button", name="Full", exact=True).click()
    assert page.locator("#comparison th[aria-sort=descending]").inner_text().startswith("Full")
    legend = page.locator("[open] .map .legendtext").all_text_contents()
    assert set(legend) == {CLASSES[0], SCRIPT, *CLASSES[2:], "task 0", "task 1", "task 2"}
    assert SCRIPT in page.locator("table.plain").first.inner_text()
    assert page.locator(".map svg script").count() == 0 and visit.problems == []


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_the_page_is_readable(browser, report, width, scheme):
    visit = Visit(browser, report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    count, least = visit.page.evaluate(CONTRAST)
    assert count > 60 and least >= 4.5 and visit.problems == []
    background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background))) < 60) == (scheme == "dark")


def test_what_is_on_the_page(desk, report, tmp_path):
    """Also without a browser: it is small, says what was trained on what, and has the clips unless told otherwise."""
    text = report.read_text()
    assert len(text) < LARGEST and len(json.loads(script_of(text, "sounds"))[0]) == len(CLASSES)
    for words in ("supclr_train.py trained pann_tiny with the loss", "on 3 tasks, one after the other, 2 epochs each",
                  "the training clips of all tasks (32 clips in the end)", "&lt;script&gt;alert(1)"):  # fmt: skip
        assert words in text, words
    judged = [str(desk.folder / "judged/full+seed_2022")]
    assert main([*judged, "--no_audio", f"--output={tmp_path}"]) == 0
    silent = (tmp_path / "report.html").read_text()
    assert script_of(silent, "sounds") == "[]" and "Click a point" not in silent and "Click a point" in text


def script_of(text, name):
    return re.search(f'id="{name}">(.*?)</script>', text, re.DOTALL)[1]


def test_what_is_gone_is_said_in_a_line(desk, tmp_path):
    """Damaged or missing embeddings, training, predictions, tables and clips each cost their part of the page alone."""
    shutil.copytree(desk.folder, tmp_path / "all")
    run, judged = tmp_path / "all/runs/supclr+seed_2022", tmp_path / "all/judged/full+seed_2022"

    def page():
        assert main([str(judged), f"--output={tmp_path}"]) == 0
        return (tmp_path / "report.html").read_text()

    assert '"kind": "map"' in page()  # both folders have moved together
    damaged = next((run / "embeddings").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-300])
    assert "is damaged" in page()
    shutil.rmtree(run / "embeddings")
    (judged / "confusion_matrix.csv").unlink()
    assert "the embeddings of supclr+seed_2022 are gone. linclf_train.py makes them again" in page()
    shutil.rmtree(judged / "save")
    assert "full+seed_2022/save is gone. linclf_train.py makes it again" in page()
    shutil.rmtree(run)
    (judged / "accuracy_table.csv").unlink()
    (judged / "predictions.csv").unlink()
    text = page()
    for words in ("so how it was trained is not known", "No map: ", "No confusion matrix: ", "is no accuracy table"):
        assert words in text, words
    assert str(tmp_path) not in text  # a page may be passed on


def test_clips_that_are_gone_or_too_many_are_left_out(desk):
    paths = [f"audio/fold10/10-{label}.wav" for label in range(3)]
    whole = encode_clips(str(desk.sounds), [*paths, "audio/none.wav"], 10**6)
    assert [text is None for text in whole] == [False, False, False, True]
    fitting = encode_clips(str(desk.sounds), paths, len(whole[0]) + 1)
    assert [text is None for text in fitting] == [False, True, True]
