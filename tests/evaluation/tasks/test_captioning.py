"""Captioning with a real small captioner on scenes, and with captions of which the figures are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from transformers import BertTokenizerFast

from data_tools._scenes_options import ScenesOptions
from data_tools.scenes import write_scenes
from vlp.data.write import write_retrieval_set
from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import ModelOptions, build, save_openclip_directory
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation import caption_loss
from vlp.evaluation.caption_loss import of_true_captions, others
from vlp.evaluation.run import EvaluateOptions, find_task, format_table, open_tasks, run_tasks, write_results
from vlp.evaluation.tasks import retrieval
from vlp.evaluation.tasks.captioning import Captioned, CaptioningOptions, Task
from vlp.types import UserError

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "large", "left", "right", "of", "above", "below"),
    *("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart"),
    *("red", "green", "blue", "yellow", "purple", "cyan", "white", "black", "photo", "depicts"),
]
NUMBER = 12


@pytest.fixture(autouse=True)
def without_java(monkeypatch, tmp_path):
    """What starts for seconds is tried in test_caption_metrics.py."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "s"
    write_scenes(ScenesOptions(root, num_train=1, num_eval=NUMBER))
    return root / "eval" / "captions"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TwoTower:
    words = tmp_path_factory.mktemp("words")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(words)
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": len(WORDS),
            "width": 32,
            "heads": 2,
            "layers": 1,
            "hf_tokenizer_name": str(words),
        },
    }
    head = CaptionerOptions(layers=1, width=16, heads=2, queries=3)
    made = build(ModelOptions(config=config, captioner=head), seed=0)
    random = torch.Generator().manual_seed(1)
    path = made.caption_path()
    with torch.no_grad():  # captions have to differ between pictures and from place to place
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
        path.half.positional_embedding.mul_(30)
        path.decoder.cross_attn[0].attn.out_proj.weight.mul_(20)
        path.head_WV.normal_(std=0.3, generator=random)
    return made.eval()


def said(task: Task, captions: list[str]) -> Captioned:
    """A captioner of which only the captions are known; its judge sees each picture as its first true caption."""
    text_ND = F.normalize(torch.randn(len(task.texts), 8, generator=torch.Generator().manual_seed(0)), dim=1)
    image_ND = text_ND[[task.image_of_text.index(image) for image in range(len(task.images))]]
    caption_ND = text_ND[[task.texts.index(caption) for caption in captions]]
    return Captioned(image_ND, text_ND, 1.0, captions, caption_ND, caption_loss.TrueCaptions(0.5, 2.0, 0.75, 0.25))


# ---- Whole runs


def test_a_run_says_something_of_every_picture(directory, model):
    task = Task(directory, CaptioningOptions(beams=1, max_length=8))
    model.train()
    scores = task.run(model, batch_size=5)
    assert model.training
    assert (scores.num_images, scores.num_texts) == (NUMBER, NUMBER)
    assert [record["true"] for record in scores.records] == [[text] for text in task.texts]
    assert [record["image"] for record in scores.records] == [image.name for image in task.images]
    captions = [record["caption"] for record in scores.records]
    assert max(len(caption.split()) for caption in captions) == 6
    assert len(set(captions)) > 1
    slot_names = {f"slot_acc{name}" for name in ("", "_colour", "_shape", "_size", "_relation", "_count", "_all")}
    words = {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    assert scores.metrics.keys() == slot_names | words | {"parses", "CLIPScore", "RefCLIPScore", "token_acc"}
    assert scores.metrics.keys() == scores.chance.keys() == scores.labels.keys()
    assert scores.intervals.keys() <= scores.metrics.keys()
    assert scores.figures.keys() == {"caption_loss", "caption_loss_shuffled", "words", "distinct", "repeats"}
    assert all(math.isfinite(value) for value in [*scores.metrics.values(), *scores.figures.values()])
    assert scores.log == {f"captions_captioning/{k}": v for k, v in {**scores.metrics, **scores.figures}.items()}
    assert [note.split(":")[0] for note in scores.notes] == [
        "left out",
        "words by a stand-in for Stanford's PTBTokenizer, which needs Java (Java is not installed",
    ]
    assert "METEOR, SPICE" in scores.notes[0]

    other = task.run(model, batch_size=NUMBER)
    assert [record["caption"] for record in other.records] == captions
    assert other.metrics == pytest.approx(scores.metrics)
    assert other.figures == pytest.approx(scores.figures)


def test_the_judge_may_be_another_model(directory, model, tmp_path):
    judge = build(ModelOptions(config=model.openclip_config["model_cfg"]), seed=3)
    save_openclip_directory(judge, tmp_path / "judge")
    own = Task(directory).run(model, 8)
    other = Task(directory, CaptioningOptions(scorer=str(tmp_path / "judge"))).run(model, 8)
    assert own.labels["CLIPScore"] == "CLIPScore (own)"
    assert other.labels["RefCLIPScore"] == "RefCLIPScore (judge)"
    assert other.metrics["CLIPScore"] != pytest.approx(own.metrics["CLIPScore"])
    assert other.metrics["CIDEr"] == own.metrics["CIDEr"]


def test_a_model_that_tells_no_captions_is_refused(directory, model):
    silent = build(ModelOptions(config=model.openclip_config["model_cfg"]), seed=0)
    with pytest.raises(UserError, match="tells no captions"):
        Task(directory).run(silent, 8)


# ---- Figures


def test_the_true_captions_score_full_marks(directory):
    task = Task(directory)
    scores = task.score(said(task, list(task.texts)))
    of_slots = {name: value for name, value in scores.metrics.items() if name.startswith("slot_acc")}
    assert set(of_slots.values()) == {1.0}
    assert scores.metrics["parses"] == scores.chance["parses"] == 1
    assert scores.metrics["ROUGE_L"] == 1
    assert scores.metrics["CLIPScore"] == pytest.approx(2.5)
    assert scores.metrics["RefCLIPScore"] == pytest.approx(2 / (1 / 2.5 + 1))
    assert (scores.metrics["token_acc"], scores.chance["token_acc"]) == (0.75, 0.25)
    assert (scores.figures["caption_loss"], scores.figures["caption_loss_shuffled"]) == (0.5, 2)
    assert scores.figures["distinct"] == 1
    assert all(record["slots"] == 1 and record["wrong"] == [] for record in scores.records)
    assert all(scores.chance[f"slot_acc_{name}"] < 0.7 for name in ("colour", "shape", "size", "relation", "all"))


def test_chance_is_what_captions_of_other_pictures_score(directory):
    task = Task(directory)
    of_others = [task.texts[other] for other in others(NUMBER)]
    scores = task.score(said(task, of_others))
    for name in ("CIDEr", "ROUGE_L", "Bleu_4", "CLIPScore", "RefCLIPScore"):
        assert scores.metrics[name] == scores.chance[name]
        assert 0 < scores.chance[name] < 2.5
    assert scores.metrics["slot_acc_all"] == 0
    assert all(record["wrong"] for record in scores.records)


def test_the_one_picture_of_a_set_has_no_other(tmp_path, picture):
    write_retrieval_set(tmp_path / "one", [(picture("#ff0000"), "png", ["a red square", "a square"])])
    task = Task(tmp_path / "one")
    scores = task.score(said(task, ["a square"]))
    assert scores.metrics["ROUGE_L"] == 1
    assert all(math.isnan(chance) for chance in scores.chance.values())
    assert "CIDEr" not in scores.metrics
    assert not any("slot" in name for name in scores.metrics)
    assert any("CIDEr" in note for note in scores.notes)


def test_others_are_other_pictures_each_once():
    for number in (2, 3, 10, 101):
        found = others(number)
        assert sorted(found) == list(range(number))
        assert all(other != picture for picture, other in enumerate(found))
    assert others(10) == others(10) != [(picture - 1) % 10 for picture in range(10)]


def test_the_loss_of_true_captions_is_that_of_training(directory, model):
    """Picture by picture, with its own and with another's, from the same forward pass as in training."""
    task = Task(directory)
    found = of_true_captions(model, task.images, task.texts, task.image_of_text, batch_size=5)
    pixels = [model.eval_transform(image.load()) for image in task.images]

    def loss(picture_of: list[int]) -> float:
        total = number = 0.0
        for text, picture in enumerate(picture_of):
            ids_1L = model.tokenizer([task.texts[text]])
            path, told = model.caption_path(), int(model.special_tokens.told(ids_1L).sum())
            with torch.no_grad():
                states = path.states(ids_1L[:, :told], model.caption_memory(pixels[picture][None]))[0]
                log_p = (states @ path.head_WV).log_softmax(1)
            total -= float(log_p.gather(1, ids_1L[0, 1 : told + 1, None]).sum())
            number += told
        return total / number

    assert found.loss == pytest.approx(loss(list(range(NUMBER))), rel=1e-5)
    assert found.loss_shuffled == pytest.approx(loss(others(NUMBER)), rel=1e-5)
    assert found.loss != pytest.approx(found.loss_shuffled, rel=1e-3)
    ids = [i for text in task.texts for i in model.tokenizer([text])[0].tolist()[1:] if i]
    assert found.most_frequent == max(ids.count(i) for i in set(ids)) / len(ids)


def test_several_captions_of_a_picture_and_batches_of_one(tmp_path, picture, model):
    items = [(picture("#ff0000"), "png", ["a red square", "red"]), (picture("#00ff00"), "png", ["a green circle of a"])]
    write_retrieval_set(tmp_path / "two", items)
    task = Task(tmp_path / "two")
    whole, alone = (of_true_captions(model, task.images, task.texts, task.image_of_text, size) for size in (8, 1))
    assert whole.loss == pytest.approx(alone.loss)
    assert whole.loss_shuffled == pytest.approx(alone.loss_shuffled)
    assert whole.token_accuracy == alone.token_accuracy


# ---- How it is asked for


def test_a_set_is_asked_for_captions_by_name(directory):
    options = EvaluateOptions(
        sets=[str(directory), f"captioning:{directory}"], captioning=CaptioningOptions(beams=2, prompt="a photo of")
    )
    plain, named = open_tasks(options)
    assert isinstance(plain, retrieval.Task)
    assert (plain.name, named.name) == ("captions", "captions_captioning")
    assert isinstance(named, Task)
    assert (named.options.beams, named.options.prompt) == (2, "a photo of")
    assert find_task(f"retrieval:{directory}").kind == "zeroshot_retrieval"
    with pytest.raises(UserError, match="two evaluation sets are named 'captions_captioning'"):
        open_tasks(EvaluateOptions(sets=[f"captioning:{directory}"] * 2))


def test_names_of_tasks_that_are_none(directory, tmp_path):
    with pytest.raises(UserError, match="unknown evaluation task 'captionin', did you mean 'captioning'"):
        find_task(f"captionin:{directory}")
    with pytest.raises(UserError, match="evaluation set captioning:nowhere does not exist"):
        find_task("captioning:nowhere")
    with pytest.raises(UserError, match="is no set of captions"):
        find_task(f"captioning:{tmp_path}")
    odd = tmp_path / "odd:name"
    odd.symlink_to(directory)
    assert find_task(odd).kind == "zeroshot_retrieval"


def test_options_without_effect_are_refused(directory):
    with pytest.raises(ValidationError, match="no set asks for captions: write one as captioning:DIR"):
        EvaluateOptions(sets=[str(directory)], captioning=CaptioningOptions())
    with pytest.raises(UserError, match="no model 'nowhere'"):
        open_tasks(EvaluateOptions(sets=[f"captioning:{directory}"], captioning=CaptioningOptions(scorer="nowhere")))


# ---- What is written and shown


def test_results_captions_and_table(directory, model, tmp_path):
    options = EvaluateOptions(sets=[str(directory), f"captioning:{directory}"])
    results = run_tasks(model, open_tasks(options), 8, "tiny", "none")
    write_results(results, tmp_path / "out" / "{dataset}.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "captions.json",
        "captions_captioning.captions.jsonl",
        "captions_captioning.json",
    ]
    content = json.loads((tmp_path / "out/captions_captioning.json").read_text())
    assert content["task"] == "captioning"
    assert content["figures"]["caption_loss"] == results[1].scores.figures["caption_loss"]
    assert content["notes"] == results[1].scores.notes
    assert "tie_rate" not in content
    lines = [
        json.loads(line) for line in (tmp_path / "out/captions_captioning.captions.jsonl").read_text().splitlines()
    ]
    assert lines == [{"dataset": "captions_captioning", **record} for record in results[1].scores.records]
    assert lines[0].keys() == {
        *("dataset", "image", "caption", "true", "slots", "wrong", "CIDEr", "CLIPScore", "RefCLIPScore")
    }
    write_results(results, tmp_path / "all.json")
    assert len((tmp_path / "all.captions.jsonl").read_text().splitlines()) == NUMBER

    table = format_table(results)
    assert max(map(len, table.splitlines())) <= 120
    assert "slots right, mean of 5" in table
    assert "caption loss shuffled" in table
    assert "captions_captioning: left out: METEOR, SPICE: Java is not installed" in " ".join(table.split())
    assert table.count("ties") == 1  # of retrieval
