"""What a captioner said, in the report: the worst first, beside the true captions, from the file of its evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from data_tools._scenes_options import ScenesOptions
from data_tools.scenes import write_scenes
from vlp import recipe
from vlp.data import write
from vlp.evaluation.report import caption_gallery, curves, write_report
from vlp.evaluation.report.gather import RunContents, SetResult, read_run
from vlp.evaluation.tasks.captioning import Task

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def lines(task: Task, records: list[dict]) -> str:
    whole = [{"image": "x", "true": true, **record} for true, record in zip(task.references, records, strict=True)]
    return "".join(json.dumps(record) + "\n" for record in whole)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scenes") / "s"
    write_scenes(ScenesOptions(directory, num_train=20, num_eval=40))
    return directory


@pytest.fixture
def run(scenes: Path, tmp_path: Path) -> Path:
    """A run without a checkpoint, whose captions of scenes are all there; the nth is worse than those before it."""
    tree = {
        "name": "told",
        "run_dir": str(tmp_path),
        "data": {"train": str(scenes / "train"), "workers": 0},
        "model": {"config": MODEL},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": 40, "global_batch_size": 8, "warmup": 2},
        "evaluate": {"sets": [f"captioning:{scenes / 'eval/captions'}"]},
    }
    directory = tmp_path / "run"
    (directory / "evaluation").mkdir(parents=True)
    (directory / "recipe.yaml").write_text(recipe.validate(tree, "test").to_yaml())
    task = Task(scenes / "eval/captions")
    records = []
    for n, text in enumerate(task.texts):
        good = {"caption": text, "slots": 1.0, "wrong": [], "CIDEr": 10.0}
        records.append(good if n < 8 else {**good, "caption": f"{text} {n}", "slots": 1 - n / 40, "wrong": ["count"]})
    records[39]["caption"] = " "
    records[38]["caption"] = task.texts[38].replace("a ", "<b>", 1)
    (directory / "evaluation/captions_captioning.captions.jsonl").write_text(lines(task, records))
    result = {
        "dataset": "captions_captioning",
        "task": "captioning",
        "num_images": 40,
        "num_texts": 40,
        "step": 40,
        "metrics": {"slot_acc": 0.8, "CIDEr": 6.25, "Bleu_4": 1e-9},
        "chance": {"slot_acc": 0.4, "CIDEr": 0.3, "Bleu_4": 0.1},
        "intervals": {"CIDEr": [5.0, 7.0]},
        "labels": {"slot_acc": "slots right, mean of 5", "Bleu_4": "BLEU-4"},
        "figures": {"caption_loss": 0.125, "caption_loss_shuffled": None, "words": 9.5},
        "notes": ["left out: SPICE: it is <missing>"],
    }
    (directory / "evaluation/captions_captioning.json").write_text(json.dumps(result))
    return directory


def test_the_worst_captions_stand_first(run):
    (view,) = caption_gallery.views(read_run(run))
    assert (view.name, view.number, view.num_wrong) == ("captions_captioning", 40, 32)
    assert view.about == "of the checkpoint at step 40"
    assert len(view.worst) == caption_gallery.NUM_WORST
    assert [item.score for item in view.worst[:2]] == ["3 % of slots", "5 % of slots"]
    assert view.worst[0].caption == "<i>nothing</i>"
    assert "&lt;b&gt;" in view.worst[1].caption
    assert view.worst[2].caption.endswith("<mark>37</mark>")
    assert (view.worst[2].wrong, view.others[0].wrong) == ("count", "")
    assert len(view.others) == caption_gallery.NUM_OTHERS
    assert all("<mark>" not in item.caption and item.score == "100 % of slots" for item in view.others)
    assert {figure.name: figure.value for figure in view.figures} == {
        "caption loss": "0.125",
        "caption loss shuffled": "–",
        "words": "9.5",
    }


def test_the_page_shows_captions_beside_pictures(run):
    page = write_report(run).read_text(encoding="utf-8")
    section = page[page.index('<section id="captions">') : page.index('<section id="space">')]
    assert "32 of 40 captions with something wrong" in section
    assert section.count("<img") == caption_gallery.NUM_WORST + caption_gallery.NUM_OTHERS
    assert "Left out: SPICE: it is &lt;missing&gt;." in section
    assert "<b>" not in section.replace("<b>0.125</b>", "").replace("<b>–</b>", "").replace("<b>9.5</b>", "")
    assert '<a href="#captions">' in page
    table = page[page.index('<table class="results">') : page.index("</table>")]
    assert "<b>625.0 %</b>" in table
    assert 'style="width:100.00%"' in table  # a full bar, and no more
    assert 'style="left:100.00%;width:0.00%"' in table
    assert "<b>0.0 %</b>" in table  # BLEU adds to a zero what nobody wants to read
    assert "captions of pictures · 40 pictures · 40 texts · at step 40" in table
    assert '<dd class="note">chance 40.0 %</dd>' in page


def test_without_captions_the_report_says_so_and_writes_none(run):
    file = run / "evaluation/captions_captioning.captions.jsonl"
    text = file.read_text()
    file.unlink()
    assert "No captions of captions_captioning have been written yet" in write_report(run).read_text(encoding="utf-8")
    assert not file.exists()
    for broken in (text[:-20], text.splitlines()[0] + "\n", text.replace('"true": ["a ', '"true": ["the ', 1)):
        file.write_text(broken)
        found = read_run(run)
        assert found.captioned == []
        assert "is damaged or of another set" in found.missing["captions"][0]


def test_runs_without_captions_have_no_section(run):
    tree = (run / "recipe.yaml").read_text().replace("captioning:", "")
    (run / "recipe.yaml").write_text(tree)
    page = write_report(run).read_text(encoding="utf-8")
    assert 'id="captions"' not in page
    assert "#captions" not in page


def test_without_slots_captions_are_only_better_and_worse(tmp_path):
    items = [
        (write.encode_image(Image.new("RGB", (8, 8), (n, 0, 0))), "png", [f"number {n}", "a dark picture"])
        for n in range(40)
    ]
    write.write_retrieval_set(tmp_path / "set", items)
    task = Task(tmp_path / "set")
    records = [{"caption": f"number {40 - n}", "CIDEr": n % 40 / 10, "CLIPScore": 0.5} for n in range(3, 43)]
    found = RunContents(tmp_path, "x")
    found.results = [SetResult({"dataset": "set_captioning"}, {})]
    parsed = [json.loads(line) for line in lines(task, records).splitlines()]
    found.captioned = [caption_gallery.CaptionedSet(task, parsed)]
    (view,) = caption_gallery.views(found)
    assert (view.score, view.is_judged, view.about) == ("CIDEr", False, "of the last evaluation")
    assert [item.score for item in view.worst[:2]] == ["CIDEr 0.0", "CIDEr 10.0"]
    assert view.worst[0].true == ['<span dir="auto">number 37</span>', '<span dir="auto">a dark picture</span>']
    assert "<mark>" not in view.worst[0].caption  # against which of them?
    assert float(view.others[0].score.split()[1]) >= float(view.worst[-1].score.split()[1])


def test_curves_of_captions():
    names = ("slot_acc", "slot_acc_colour", "slot_acc_all", "parses", "CIDEr", "caption_loss", "caption_loss_shuffled")
    rows = [{"step": step, **{f"val/x_captioning/{name}": 0.1 * step for name in names}} for step in (1, 2)]
    found = {chart.title: [series.name for series in chart.series] for chart in curves.charts(rows, [])}
    assert found == {
        "Right in captions: x_captioning": ["mean of slots", "colour", "captions without a fault", "sentences"],
        "CIDEr: x_captioning": ["CIDEr"],
        "Loss of true captions: x_captioning": ["with its picture", "with another's picture"],
    }
