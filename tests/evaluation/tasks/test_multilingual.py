"""Crossmodal-3600's file and those that CLIP_benchmark makes of it, made small."""

import json
from itertools import chain
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

from vlp.evaluation.multilingual_options import MultilingualOptions
from vlp.evaluation.run import EvaluateOptions, evaluate, find_task, open_tasks
from vlp.evaluation.tasks.base import SetEmbeddings
from vlp.evaluation.tasks.multilingual import Task
from vlp.evaluation.tasks.retrieval import Task as Retrieval
from vlp.types import UserError

COLOURS = [f"#{25 * i:02x}{250 - 25 * i:02x}80" for i in range(8)]
KEYS = [f"{number:016x}" for number in range(8)]
CAPTIONS = {  # two languages of two and one captions a picture, and one that has another picture's captions
    "de": [[f"{colour} eins", f"{colour} zwei"] for colour in COLOURS],
    "quz": [[f"{colour} huk"] for colour in COLOURS],
    "en": [[f"{colour} one"] for colour in [COLOURS[1], COLOURS[0], *COLOURS[2:]]],
}


def xm3600(directory, captions=CAPTIONS):
    rows = [
        {
            "image/key": key,
            "image/locale": "de",
            **{name: {"caption": texts[i], "caption/tokenized": texts[i]} for name, texts in captions.items()},
        }
        for i, key in enumerate(KEYS)
    ]
    (directory / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def clip_benchmark(directory, name="crossmodal3600_captions", languages=tuple(CAPTIONS)):
    """As its script writes them: the paths of its machine, the first caption."""
    for language in languages:
        content = {
            "image_paths": [f"root/xm3600/images/{key}.jpg" for key in KEYS],
            "annotations": [texts[0] for texts in CAPTIONS[language]],
            "indicies": list(range(8)),
        }
        (directory / f"{name}-{language}.json").write_text(json.dumps(content))


@pytest.fixture
def directory(tmp_path, picture):
    (tmp_path / "xm3600" / "images").mkdir(parents=True)
    for key, colour in zip(KEYS, COLOURS, strict=True):
        (tmp_path / "xm3600" / "images" / f"{key}.jpg").write_bytes(picture(colour))
    return tmp_path / "xm3600"


def test_all_captions_of_all_languages_are_read(directory):
    xm3600(directory)
    task = find_task(directory)
    assert type(task) is Task
    assert task.texts == [text for name in ("de", "en", "quz") for texts in CAPTIONS[name] for text in texts]
    assert task.image_of_text == [*sorted([*range(8)] * 2), *range(8), *range(8)]
    assert task.rows == {"de": range(16), "en": range(16, 24), "quz": range(24, 32)}
    assert [image.path.stem for image in task.images] == KEYS


def test_figures_are_means_over_languages(directory, encoder):
    xm3600(directory)
    (result,) = evaluate(encoder, [directory], 8, "tiny", "none")
    scores = result.scores
    # By hand: in English two of the eight pictures have each other's captions.
    assert scores.metrics["text_retrieval_recall@1"] == scores.metrics["image_retrieval_recall@1"]
    assert scores.metrics["text_retrieval_recall@1"] == pytest.approx((1 + 1 + 6 / 8) / 3)
    assert scores.metrics["text_retrieval_recall@5"] == 1
    assert scores.chance["text_retrieval_recall@1"] == pytest.approx(1 / 8)  # 2 of 16, 1 of 8, 1 of 8
    assert result.to_json()["language"] == "mean"
    rows = {(row.table, row.name): row for row in scores.categories}
    assert {name for _, name in rows} == {"de", "en", "quz"}
    assert rows["image -> text R@1 by language", "en"].score == 6 / 8
    assert rows["text -> image R@1 by language", "de"].number == 16
    assert scores.notes[1] == "figures are means over 3 languages: de, en, quz"
    assert scores.metrics.keys() == scores.chance.keys() == scores.labels.keys() == scores.intervals.keys()
    low, high = scores.intervals["text_retrieval_recall@1"]
    assert low < scores.metrics["text_retrieval_recall@1"] < high
    assert scores.log["xm3600/image_to_text_R@1"] == scores.metrics["text_retrieval_recall@1"]
    assert len(scores.details["text_to_image_rank"]) == 32


def test_every_language_is_what_it_is_alone(directory):
    """Against the ordinary task on each language, with features of no meaning."""
    xm3600(directory)
    generator = torch.Generator().manual_seed(0)

    def unit(rows):
        return F.normalize(torch.randn(rows, 6, generator=generator), dim=1)

    task = find_task(directory)
    embeddings = SetEmbeddings(unit(8), unit(32), 10.0)
    found = task.score(embeddings)
    alone = []
    for language, rows in task.rows.items():
        one = Task(directory, MultilingualOptions(languages=[language]))
        texts = [task.texts.index(text) for text in one.texts]
        assert texts == list(rows)
        alone.append(Retrieval.score(one, SetEmbeddings(embeddings.image_ND, embeddings.text_ND[texts], 10.0)))
    for name, value in found.metrics.items():
        assert value == pytest.approx(fmean(scores.metrics[name] for scores in alone))
    assert found.tie_rate == pytest.approx(fmean(scores.tie_rate for scores in alone))
    assert found.figures["rsum"] == pytest.approx(fmean(scores.figures["rsum"] for scores in alone))


def test_languages_can_be_chosen(directory, encoder):
    xm3600(directory)

    def chosen(*languages):
        options = EvaluateOptions(sets=[str(directory)], multilingual={"languages": languages})
        return open_tasks(options)[0]

    assert list(chosen("quz", "de").rows) == ["quz", "de"]
    one = chosen("de")
    assert one.language == "de"
    scores = one.run(encoder, 8)
    assert (scores.num_texts, scores.categories) == (16, [])
    assert scores.metrics["text_retrieval_recall@1"] == 1
    with pytest.raises(UserError, match=r"has no captions in 'deu', did you mean 'de'\?; it has de, en, quz"):
        chosen("deu")


def test_an_option_without_effect_is_refused(tmp_path, picture):
    from vlp.data.write import write_retrieval_set

    write_retrieval_set(tmp_path / "set", [(picture("#ff0000"), "png", ["#ff0000"])])
    with pytest.raises(UserError, match=r"options of multilingual have no effect, as no .* several languages"):
        open_tasks(EvaluateOptions(sets=[str(tmp_path / "set")], multilingual={"languages": ["de"]}))


@pytest.mark.parametrize("name", ["crossmodal3600_captions", "multilingual_mscoco_captions", "xtd10", "flickr30k_200"])
def test_clip_benchmark_s_files_are_read(directory, encoder, name):
    clip_benchmark(directory, name)
    task = find_task(directory)
    assert list(task.rows) == ["de", "en", "quz"]
    assert task.texts == list(chain.from_iterable([texts[0] for texts in CAPTIONS[n]] for n in ("de", "en", "quz")))
    assert len(task.images) == 8
    (result,) = evaluate(encoder, [directory / f"{name}-en.json"], 8, "tiny", "none")
    assert (result.to_json()["language"], result.dataset) == ("en", f"{name}-en")
    assert result.scores.metrics["text_retrieval_recall@1"] == 6 / 8


def fails(path, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        find_task(path)
    assert "\n" not in str(error.value)


def test_a_set_must_be_whole(directory):
    xm3600(directory, {**CAPTIONS, "en": [*CAPTIONS["en"][:7], []]})
    fails(directory, rf"captions\.jsonl has no caption for the picture {KEYS[7]}\.jpg: add one")
    (directory / "images" / f"{KEYS[2]}.jpg").unlink()
    fails(directory, rf"captions\.jsonl names the picture {KEYS[2]}\.jpg, which is not in \S+xm3600/images")
    (directory / "captions.jsonl").write_text('{"image/key": "a", "de": {"caption": ["ein"\n')
    fails(directory, r"captions\.jsonl is damaged or not Crossmodal-3600's")


def test_two_sets_in_one_directory_are_refused(directory):
    clip_benchmark(directory)
    clip_benchmark(directory, "xtd10", ["en"])
    fails(directory, r"holds several sets \(crossmodal3600_captions, xtd10\): name a file")
    (directory / "xtd10-en.json").write_text('{"image_paths": ["a.jpg"], "annotations": []}')
    fails(directory / "xtd10-en.json", r"xtd10-en\.json is damaged or not CLIP_benchmark's")


def test_a_line_ends_at_its_end_only(directory):
    row = {"image/key": KEYS[0], "de": {"caption": ["eins\u2028zwei\x85drei"]}}
    (directory / "captions.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert find_task(directory).texts == ["eins zwei drei"]


@pytest.mark.parametrize("caption", ["eins", [5], None])
def test_captions_are_a_list_of_texts(directory, caption):
    (directory / "captions.jsonl").write_text(json.dumps({"image/key": KEYS[0], "de": {"caption": caption}}))
    with pytest.raises(UserError, match="has no list of captions in words for the picture"):
        find_task(directory)


def test_two_layouts_in_one_directory_are_refused(directory):
    xm3600(directory)
    clip_benchmark(directory, "xtd10")
    with pytest.raises(UserError, match=r"holds captions.jsonl and other captions"):
        find_task(directory)
