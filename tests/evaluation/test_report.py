"""The report of small real runs: what it shows, what it says is missing, that it stands alone in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from vlp import recipe
from vlp.data import write
from vlp.encoders.openclip import build, save_openclip_directory
from vlp.evaluation import geometry
from vlp.evaluation import run as evaluation
from vlp.evaluation.report import write_report
from vlp.evaluation.report.gather import read_run
from vlp.evaluation.report.pictures import img
from vlp.types import UserError

SECTIONS = [
    *("Evaluation", "Curves", "Training data", "Retrieval"),
    *("Composition", "Common space", "Skipped samples", "Recipe"),
]
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NAMES = ["red", "green", "blue", "yellow"]
COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (200, 200, 20)]
NASTY = 'a <b>bold</b> & "quoted" picture'


def picture(number: int, size: int = 16) -> bytes:
    image = Image.new("RGB", (size, size), COLOURS[number % 4])
    image.putpixel((number % size, number // size), (255, 255, 255))
    return write.encode_image(image)


def write_data(root: Path) -> dict[str, Path]:
    """Shards, and one evaluation set of each kind."""
    with write.ShardWriter(root / "train", 20) as shards:
        for n in range(24):
            shards.write(picture(n), "png", NASTY if n % 3 else f"picture {n} is {NAMES[n % 4]}")
    items = [(picture(n), "png", [f"number {n} in {NAMES[n % 4]}", f"{n} again"]) for n in range(12)]
    write.write_retrieval_set(root / "found", items)
    labelled = [(picture(n), "png", n % 4) for n in range(8)]
    write.write_classification_set(root / "colours", labelled, NAMES, ["a {c} picture"])
    pairs = [
        write.CaptionPair(picture(n), "png", f"a {NAMES[n % 4]} dot", f"a {NAMES[(n + 1) % 4]} dot") for n in range(8)
    ]
    write.write_pairs(root / "swaps", {"swap_colour": pairs})
    return {name: root / name for name in ("train", "found", "colours", "swaps")}


def write_recipe(directory: Path, data: dict[str, Path], sets: list[str]) -> recipe.Recipe:
    directory.mkdir(parents=True)
    tree = {
        "name": "tiny",
        "run_dir": str(directory),
        "data": {"train": str(data["train"]), "workers": 0},
        "model": {"config": MODEL},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": 40, "global_batch_size": 8, "warmup": 2},
        "evaluate": {"sets": [str(data[name]) for name in sets]},
    }
    made = recipe.validate(tree, "test")
    (directory / "recipe.yaml").write_text(made.to_yaml())
    return made


def write_checkpoint(directory: Path, made: recipe.Recipe, step: int) -> None:
    checkpoint = directory / "checkpoints" / f"step-{step:07d}"
    save_openclip_directory(build(made.model, 0), checkpoint)
    bad = {"kinds": {"undecodable picture": 3}, "examples": {"undecodable picture": "00001.tar: 7"}, "seen": 320}
    (checkpoint / "state.json").write_text(json.dumps({"step": step, "bad_samples": bad}))
    (directory / "checkpoints" / "latest").symlink_to(checkpoint.name)


def write_metrics(directory: Path, last: int) -> None:
    rows = [{"step": n, "samples": 8 * n, "train/loss": 2 / n, "train/lr": 1e-3} for n in range(1, last + 1)]
    rows.append({"step": last, "samples": 8 * last, "val/found/image_to_text_R@1": 0.25})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "cut')


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose trainer has left the figures of one set."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    made = write_recipe(directory, data, ["found", "colours", "swaps"])
    write_checkpoint(directory, made, 40)
    write_metrics(directory, 40)
    task = evaluation.find_task(data["found"])
    result = evaluation.Result("found", task.kind, "tiny", "run", task.run(build(made.model, 0).eval(), 64), 40)
    result.scores.metrics["text_retrieval_recall@1"] = 0.4321
    evaluation.write_results([result], directory / "evaluation" / "found.json")
    return directory


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Start tags with their attributes, and the text inside each kind of tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        self.texts.setdefault(tag, [])

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            self.texts[self._open].append(data.strip())


# ---- The page


def test_the_page_has_its_sections_in_order(page):
    assert Elements(page).texts["h2"] == SECTIONS


def test_the_page_stands_alone(page):
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert "@font-face" not in page
    references = [
        a[key] for _, a in Elements(page).tags for key in ("src", "href", "srcset", "data", "action") if key in a
    ]
    assert len(references) > 20
    assert [r for r in references if not r.startswith(("data:", "#"))] == []
    assert [u for u in re.findall(r"url\(([^)]*)\)", page) if not u.startswith("data:")] == []
    assert len(page) < 1_000_000


def test_the_same_run_gives_the_same_bytes(run, page, tmp_path):
    assert write_report(run, tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_the_table_has_chance_and_both_names(page):
    rows = re.findall(r"<tr>\n<th scope=\"row\">(.*?)</th><td><code>(.*?)</code></td>\n(.*?)</tr>", page, re.DOTALL)
    shown = {name: (label, *re.findall(r"[\d.]+ %", cells)[:2]) for label, name, cells in rows}
    assert shown["text_retrieval_recall@1"] == ("image → text R@1", "43.2 %", "8.3 %")  # 2 of 24 texts are right
    assert shown["image_retrieval_recall@10"][0] == "text → image R@10"
    assert shown["acc1"][2] == "25.0 %"
    assert shown["text_acc_swap_colour"][::2] == ("swap colour", "50.0 %")
    assert all(len(cells) == 3 for cells in shown.values())
    assert "12 pictures · 24 texts · ties " in page
    assert page.count("computed for this report") == 2


def test_the_figures_of_the_space_stand_with_their_meaning(page):
    space = page[page.index('<section id="space">') : page.index('<section id="skipped">')]
    rows = dict(re.findall(r'<th scope="row">(.*?)</th><td class="number"><b>(.*?)</b>', space))
    assert rows.keys() == {name.replace("_", " ") for name in geometry.FIGURES}
    assert 0 < float(rows["modality gap"]) < 2
    assert 1 < float(rows["text effective rank"]) <= 16
    assert rows["image knn accuracy"] == "–"  # eight pictures have no ten others
    assert all(str(escape(figure.meaning)) in space for figure in geometry.FIGURES.values())


def test_pictures_and_captions_of_training_are_shown_as_text(page):
    sheet = page[page.index('<div class="sheet">') : page.index('<section id="retrieval">')]
    assert sheet.count("<img") == 16
    assert "a &lt;b&gt;bold&lt;/b&gt; &amp; &#34;quoted&#34; picture" in sheet
    assert "<b>bold" not in page


def test_skipped_samples_are_counted_and_named(page):
    skipped = page[page.index('<section id="skipped">') :]
    assert re.search(r"undecodable picture</th><td class=\"number\">3</td>.*00001.tar: 7", skipped)


def test_the_recipe_is_in_the_page(run, page):
    assert "global_batch_size: 8" in page
    assert "40" in Elements(page).texts["dd"]


# ---- Sets that ask to choose


def section(page: str, name: str) -> str:
    return page[page.index(f'<section id="{name}">') :].split("</section>")[0]


def rows_of(table: str) -> dict[str, list[str]]:
    """Scores and intervals of each row, one after the other, by its label."""
    rows = re.findall(r'<tr><th scope="row" dir="auto">(.*?)</th>(.*?)</tr>', table, re.DOTALL)
    return {label: re.findall(r"<b>(.*?)</b>|(?<=<div>)([\d.]+–[\d.]+)", cells) for label, cells in rows}


def stored(run: Path, name: str, scores: dict[str, float], width: float = 0.05) -> None:
    """A result such as the trainer leaves, of a set that lies nowhere."""
    rows = [
        {"table": "kind", "name": kind, "number": 9, "score": s, "interval": [s - width, s + width], "chance": 0.5}
        for kind, s in scores.items()
    ]
    mean = sum(scores.values()) / len(scores)
    interval = [mean - width, mean + width]
    content = {"dataset": name, "task": "image_caption_selection", "num_images": 9, "num_texts": 18, "tie_rate": 0.0}
    content |= {"metrics": {"text_acc": mean}, "chance": {"text_acc": 0.5}, "intervals": {"text_acc": interval}}
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / f"{name}.json").write_text(json.dumps(content | {"categories": rows}))


def test_choices_show_intervals_and_the_worst_failures(page):
    assert re.search(r"<b>[\d.]+ %</b></div></td>\n<td class=\"number interval\"><div>[\d.]+–[\d.]+</div>", page)
    shown = section(page, "composition")
    assert "<h3>swaps</h3>" in shown
    assert re.search(r"swap colour: \d of 8 choices wrong", shown)
    assert "<table" not in shown  # one suite: the table above says it


def test_bars_come_from_stored_results_too(tmp_path):
    write_metrics(tmp_path, 3)
    stored(tmp_path, "far", {"<b>one</b>": 0.75, "two": 0.25})
    shown = section(write_report(tmp_path).read_text(), "composition")
    assert list(rows_of(shown)) == ["two", "&lt;b&gt;one&lt;/b&gt;"]
    assert [part for cell in rows_of(shown)["two"] for part in cell if part] == ["25.0 %", "20.0–30.0"]
    assert 'class="whisker" style="left:20.00%;width:10.00%"' in shown
    assert 'class="tickmark" style="left:50.00%"' in shown


def test_many_categories_are_folded(tmp_path):
    write_metrics(tmp_path, 3)
    stored(tmp_path, "far", {f"kind {n}": (n + 1) / 40 for n in range(30)}, width=0.01)
    shown = section(write_report(tmp_path).read_text(), "composition")
    open_rows, folded = shown.split("<summary>5 more</summary>")
    assert list(rows_of(open_rows)) == [f"kind {n}" for n in range(25)]
    assert list(rows_of(folded)) == [f"kind {n}" for n in range(25, 30)]


def test_two_runs_stand_side_by_side(tmp_path):
    for name, scores in (("first", {"one": 0.3, "two": 0.5}), ("second", {"one": 0.6, "two": 0.52})):
        (tmp_path / name).mkdir()
        write_metrics(tmp_path / name, 3)
        stored(tmp_path / name, "far", scores)
    stored(tmp_path / "second", "only", {"one": 0.5, "two": 0.5})
    page = write_report(tmp_path / "first", tmp_path / "both.html", [tmp_path / "second"]).read_text()
    shown = section(page, "composition")
    rows = rows_of(shown.split("<h3>only</h3>")[0])
    assert [value for value, _ in rows["one"] if value] == ["30.0 %", "60.0 %"]
    assert shown.count("▲") == 1
    assert "higher than first: the intervals do not overlap" in shown
    assert "second: </span>" in shown
    assert "<h3>only</h3>" in shown
    evaluation_part = section(page, "evaluation")
    assert evaluation_part.count("<b>40.0 %</b>") == 1
    assert evaluation_part.count("<b>56.0 %</b>") == 1
    assert "do not" in evaluation_part


# ---- Runs that are not whole


def test_a_run_in_the_middle_says_how_far_it_is(data, tmp_path):
    made = write_recipe(tmp_path / "run", data, ["found"])
    write_checkpoint(tmp_path / "run", made, 10)
    write_metrics(tmp_path / "run", 15)
    page = write_report(tmp_path / "run").read_text()
    assert "It stands at step 15 of 40" in page
    assert "of the checkpoint at step 10" in page
    assert "No set that asks to choose" in page


def test_sets_are_asked_as_the_recipe_asks_them(data, tmp_path):
    made = write_recipe(tmp_path / "run", data, ["colours"])
    options = evaluation.EvaluateOptions(sets=made.evaluate.sets, classification={"templates": "openai-simple"})
    made = made.model_copy(update={"evaluate": options})
    (tmp_path / "run" / "recipe.yaml").write_text(made.to_yaml())
    write_checkpoint(tmp_path / "run", made, 1)
    (shown,) = read_run(tmp_path / "run").sets
    assert shown.scores.notes[0] == "prompts: 7 templates of OpenAI's for ImageNet (openai-simple)"


def test_a_run_before_its_first_checkpoint_shows_its_data(data, tmp_path):
    write_recipe(tmp_path / "run", data, [])
    page = write_report(tmp_path / "run").read_text()
    assert page.count("<img") == 16
    for sentence in (
        "No checkpoint",
        "No metrics",
        "names no evaluation sets",
        "No retrieval set",
        "need a checkpoint",
    ):
        assert sentence in page


def test_what_has_gone_since_is_named(run, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    text = (
        (copy / "recipe.yaml")
        .read_text()
        .replace(str(data["train"]), "gone/train")
        .replace(str(data["found"]), "gone/x")
    )
    (copy / "recipe.yaml").write_text(text)
    (copy / "evaluation" / "broken.json").write_text("{")
    page = write_report(copy).read_text()
    assert "gone/train" in page
    assert "gone/x" in page
    assert "broken.json is no result" in page
    assert "43.2 %" in page  # the figures are still there, though the set is not


def test_metrics_alone_give_curves(tmp_path):
    write_metrics(tmp_path, 40)
    page = write_report(tmp_path).read_text()
    assert "no recipe.yaml" in page
    assert 'aria-label="Loss: ' in page


def test_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*vlp train"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither recipe\.yaml"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="name a file"):
        write_report(tmp_path, tmp_path)


# ---- Pictures


@pytest.mark.parametrize(("size", "shown"), [(16, 96), (32, 96), (64, 64), (80, 80), (96, 96), (400, 96)])
def test_pictures_keep_their_pixels_when_they_have_few(size, shown):
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    tag = img(Image.fromarray(noise), 'say "hi"')
    assert f'width="{shown}" height="{shown}"' in tag
    assert ('class="tiny"' in tag) == (size <= 64)
    assert 'alt="say &#34;hi&#34;"' in tag
    decoded = Image.open(io.BytesIO(base64.b64decode(tag.split("base64,")[1].split('"')[0])))
    assert max(decoded.size) == min(size, 192)
    if size <= 96:
        assert np.array_equal(np.array(decoded.convert("RGB")), noise)


# ---- In a browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOVER = """<script>
const chart = document.querySelector("svg[data-hover]"), box = chart.getBoundingClientRect();
chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 20, clientY: box.top + 40}));
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to look with: apt-get install chromium")
def test_a_browser_shows_the_page_without_complaint(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", HOVER + "</body>"), encoding="utf-8")
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --disable-dev-shm-usage"
    command = [BROWSER, "--headless", *quiet.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    dom = Elements(done.stdout)
    assert dom.texts["h2"] == SECTIONS
    tip = re.search(r'<div id="tip"([^>]*)>(.*?)</div></div>', done.stdout, re.DOTALL)
    assert "hidden" not in tip[1]
    assert re.search(r"step \d+", tip[2])
