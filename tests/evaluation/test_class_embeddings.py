"""Embeddings of classes beside open_clip's and CLIP_benchmark's, and their cache on disk."""

import os

import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlp.encoders.openclip import ModelOptions, build
from vlp.evaluation import class_cache
from vlp.evaluation.class_embeddings import class_embeddings
from vlp.evaluation.team import Team

PROMPTS = [[f"a photo of a {name}.", f"{name}, drawn by a child.", f"{name}"] for name in ("cat", "big dog", "cow")]


@pytest.fixture
def model(tiny_model):
    return build(ModelOptions(config=tiny_model), seed=0).eval()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/class-embeddings"


@pytest.fixture
def passes(model, monkeypatch):
    """The texts that went through the text tower."""
    seen: list[int] = []
    encode = model.clip.encode_text

    def encode_text(text, **options):
        seen.append(len(text))
        return encode(text, **options)

    monkeypatch.setattr(model.clip, "encode_text", encode_text)
    return seen


def test_as_open_clip_and_clip_benchmark_compute_them(model):
    from open_clip import build_zero_shot_classifier

    names, templates = ["cat", "big dog", "cow"], ["a photo of a {c}.", "{c}, drawn by a child.", "{c}"]
    ours, _ = class_embeddings(model, PROMPTS, 4)
    theirs = build_zero_shot_classifier(
        model.clip, model.tokenizer, names, [template.replace("{c}", "{}") for template in templates]
    )
    torch.testing.assert_close(ours, theirs.T, atol=1e-6, rtol=0)
    evaluator = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    theirs = evaluator.zero_shot_classifier(model.clip, model.tokenizer, names, templates, "cpu", amp=False)
    torch.testing.assert_close(ours, theirs.T, atol=1e-6, rtol=0)


def test_the_mean_is_of_normalised_prompts_and_itself_normalised(encoder):
    found, _ = class_embeddings(encoder, [["#ff0000", "#00ff00"], ["#0000ff"]], 4)
    red, green, blue = F.normalize(torch.tensor([[255.0, 0, 0], [0, 255, 0], [0, 0, 255]]) - 127.5, dim=1)
    torch.testing.assert_close(found, torch.stack([F.normalize(red + green, dim=0), blue]))


def test_classes_may_have_prompts_of_different_numbers(model):
    found, _ = class_embeddings(model, [PROMPTS[0], PROMPTS[1][:1]], 4)
    torch.testing.assert_close(found[0], class_embeddings(model, PROMPTS, 4)[0][0])
    torch.testing.assert_close(found[1], class_embeddings(model, [PROMPTS[1][:1]], 4)[0][0])


def test_the_second_time_nothing_is_computed(model, passes, folder):
    first, notes = class_embeddings(model, PROMPTS, 4, cache=True)
    assert passes
    assert not notes
    passes.clear()
    second, notes = class_embeddings(model, PROMPTS, 4, cache=True)
    assert not passes
    assert not notes
    assert torch.equal(first, second)
    assert len(list(folder.iterdir())) == 1


def test_without_the_cache_nothing_is_read_or_written(model, passes, folder):
    class_embeddings(model, PROMPTS, 4)
    assert not folder.exists()
    class_embeddings(model, PROMPTS, 4, cache=True)
    passes.clear()
    class_embeddings(model, PROMPTS, 4)
    assert passes


def test_a_model_that_is_trained_or_none_of_open_clips_is_not_cached(model, encoder, folder):
    class_embeddings(model.train(), PROMPTS, 4, cache=True)
    class_embeddings(encoder, [["#ff0000"]], 4, cache=True)
    assert not folder.exists()


# ---- The key


def key(model, prompts=PROMPTS) -> str:
    found = class_cache.key_of(model, prompts)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "name", ["token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.bias", "text_projection", "ln_final.weight"]
)
def test_every_weight_of_the_text_tower_counts_to_its_last_bit(model, name):
    before, weight = key(model), model.clip.state_dict()[name]
    with torch.no_grad():
        last = weight.view(-1)[-1:]
        last.copy_(torch.nextafter(last, last + 1))
    assert key(model) != before


def test_the_image_tower_and_the_temperature_do_not_count(model):
    before = key(model)
    with torch.no_grad():
        model.clip.logit_scale.add_(1)
        for weight in model.clip.visual.parameters():
            weight.add_(1)
    assert key(model) == before


def test_prompts_count_and_what_belongs_to_which_class(model):
    keys = [
        key(model),
        key(model, PROMPTS[::-1]),
        key(model, PROMPTS[:2]),
        key(model, [[*PROMPTS[0], PROMPTS[1][0]], PROMPTS[1][1:], PROMPTS[2]]),  # the same texts, cut elsewhere
        key(model, [["a photo of a cap.", *PROMPTS[0][1:]], *PROMPTS[1:]]),
    ]
    assert len(set(keys)) == len(keys)


def test_the_tokenizer_and_its_length_count(model, monkeypatch):
    before, tokenizer = key(model), model.tokenizer
    model.tokenizer = lambda texts: tokenizer(texts, context_length=5)
    assert key(model) != before
    model.tokenizer = lambda texts: tokenizer([text + " x" for text in texts])
    assert key(model) != before
    model.tokenizer = tokenizer
    assert key(model) == before


def test_what_weights_do_not_show_counts(model, tiny_model, monkeypatch):
    before = key(model)
    config = {**tiny_model, "text_cfg": {**tiny_model["text_cfg"], "heads": 1}}
    other = build(ModelOptions(config=config), seed=0).eval()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert key(other) != before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert key(model) != before
    monkeypatch.setattr(class_cache, "VERSION", "0")
    assert key(model) != before


def test_precision_of_the_weights_counts(model):
    before = key(model)
    assert key(model.bfloat16()) != before


# ---- The files


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "other classes", "text"])
def test_a_damaged_or_foreign_file_is_computed_anew_and_said_so(model, folder, damage):
    expected, _ = class_embeddings(model, PROMPTS, 4, cache=True)
    (file,) = folder.iterdir()
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-40])
    elif damage == "flipped":
        file.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    elif damage == "foreign":
        save_file({"class_CD": torch.ones(3, 32)}, file)
    elif damage == "other classes":
        class_embeddings(model, PROMPTS[:2], 4, cache=True)
        (other,) = set(folder.iterdir()) - {file}
        os.replace(other, file)
    else:
        file.write_text("hello")
    found, notes = class_embeddings(model, PROMPTS, 4, cache=True)
    assert torch.equal(found, expected)
    (note,) = notes
    assert str(file) in note
    assert note.endswith("the class embeddings were computed anew")
    assert class_embeddings(model, PROMPTS, 4, cache=True)[1] == []


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(model, folder):
    folder.parent.mkdir()
    folder.write_text("in the way")
    found, (note,) = class_embeddings(model, PROMPTS, 4, cache=True)
    assert len(found) == 3
    assert note.startswith(f"class embeddings could not be kept in {folder}")


def test_the_oldest_go_when_there_are_too_many(model, folder, monkeypatch):
    class_embeddings(model, PROMPTS, 4, cache=True)
    (first,) = folder.iterdir()
    class_embeddings(model, PROMPTS[::-1], 4, cache=True)
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    class_embeddings(model, PROMPTS, 4, cache=True)  # asked for again, so it is the other that is old
    monkeypatch.setattr(class_cache, "LIMIT", 2.5 * first.stat().st_size)
    class_embeddings(model, [PROMPTS[2], *PROMPTS[:2]], 4, cache=True)
    assert first.exists()
    assert len(list(folder.iterdir())) == 2


def test_a_kept_file_holds_one_tensor_and_what_it_is(model, folder):
    found, _ = class_embeddings(model, PROMPTS, 4, cache=True)
    (file,) = folder.iterdir()
    assert file.stem == key(model)
    assert torch.equal(load_file(file)["class_CD"], found)


def _on_a_rank(rank, world, model):
    team = Team(rank, world)
    first, _ = class_embeddings(model, PROMPTS, 4, team, cache=True)
    second, notes = class_embeddings(model, PROMPTS, 4, team, cache=True)
    return first, second, notes


def test_processes_share_the_prompts_and_the_file(run_ranks, model, folder):
    results = run_ranks(_on_a_rank, 2, model)
    alone, _ = class_embeddings(model, PROMPTS, 4)
    for first, second, notes in results:
        torch.testing.assert_close(first, alone, atol=1e-6, rtol=0)
        assert torch.equal(first, second)
        assert notes == []
    assert len(list(folder.iterdir())) == 1


def test_a_full_disk_is_no_reason_to_stop(model, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(class_cache, "save_file", full)
    _, notes = class_embeddings(model, PROMPTS, 4, cache=True)
    assert "could not be kept" in notes[0]
    assert "No space left" in notes[0]


def test_a_file_of_somebody_else_is_read(model, passes, monkeypatch):
    class_embeddings(model, PROMPTS, 4, cache=True)
    passes.clear()

    def denied(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", denied)
    _, notes = class_embeddings(model, PROMPTS, 4, cache=True)
    assert (passes, notes) == ([], [])
