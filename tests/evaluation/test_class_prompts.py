"""Which templates and names classes get, and that results say so."""

import json
from pathlib import Path

import pytest
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from vlp.data.benchmark_sets import ClassificationSet
from vlp.evaluation.class_prompts import class_prompts
from vlp.types import UserError


def a_set(classnames, templates=("a {c}.",)) -> ClassificationSet:
    return ClassificationSet([], torch.tensor([]), list(classnames), list(templates))


def test_the_sets_own_come_first_and_openais_where_it_has_none():
    assert class_prompts(a_set(["cat"]), "pets", None, None).of_class == [["a cat."]]
    without = class_prompts(a_set(["cat"], []), "pets", None, None)
    assert without.of_class == [[template("cat") for template in OPENAI_IMAGENET_TEMPLATES]]
    assert without.notes == [
        "prompts: 80 templates of OpenAI's for ImageNet (openai)",
        "class names: 1 of the set (classnames.txt)",
    ]
    assert class_prompts(a_set(["cat"]), "pets", "openai", None).of_class == without.of_class
    assert len(class_prompts(a_set(["cat"]), "pets", "openai-simple", None).of_class[0]) == 7
    with pytest.raises(UserError, match="pets brings no templates: choose openai"):
        class_prompts(a_set(["cat"], []), "pets", "set", None)


def test_a_file_of_templates(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("one {c}\ntwo {c} {c}\n")
    found = class_prompts(a_set(["cat"]), "pets", str(file), None)
    assert found.of_class == [["one cat", "two cat cat"]]
    assert found.notes[0] == f"prompts: 2 templates of {file}"
    file.write_text("one {}\n")
    with pytest.raises(UserError, match=r"'one \{\}' in .* lacks \{c\}"):
        class_prompts(a_set(["cat"]), "pets", str(file), None)
    with pytest.raises(UserError, match="templates opnai are unknown: choose set"):
        class_prompts(a_set(["cat"]), "pets", "opnai", None)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("wds_vtab-pets_test", "pet cat"),
        ("vtab-pets", "pet cat"),
        ("pets", "pet cat"),
        ("cars", "car cat"),
        ("other", "thing cat"),
    ],
)
def test_clip_benchmarks_file_of_templates_by_sets(tmp_path, name, prompt):
    file = tmp_path / "templates.json"
    file.write_text(json.dumps({"vtab/pets": ["pet {c}"], "wds/cars": ["car {c}"], "imagenet1k": ["thing {c}"]}))
    assert class_prompts(a_set(["cat"]), name, str(file), None).of_class == [[prompt]]


def test_prompts_of_each_class_its_own(tmp_path):
    file = tmp_path / "prompts.json"
    content = {"cat": ["it purrs", "it has whiskers"], "dog": ["it barks"]}
    for stored in (content, {"pets": content}):
        file.write_text(json.dumps(stored))
        assert class_prompts(a_set(["dog", "cat"]), "pets", str(file), None).of_class == [
            ["it barks"],
            ["it purrs", "it has whiskers"],
        ]
    with pytest.raises(UserError, match="no prompts for the class 'cow'"):
        class_prompts(a_set(["cow"]), "pets", str(file), None)


def test_names_of_a_file(tmp_path):
    text, table = tmp_path / "names.txt", tmp_path / "names.json"
    text.write_text("tabby\nhound\n")
    table.write_text(json.dumps({"pets": ["tabby", "hound"]}))
    for file in (text, table):
        found = class_prompts(a_set(["cat", "dog"]), "pets", None, str(file))
        assert found.classnames == ["tabby", "hound"]
        assert found.of_class == [["a tabby."], ["a hound."]]
        assert found.notes[1] == f"class names: {file}"
        with pytest.raises(UserError, match="has 2 class names, but pets has 3 classes"):
            class_prompts(a_set(["a", "b", "c"]), "pets", None, str(file))
    with pytest.raises(UserError, match="nothing for the set 'cars'"):
        class_prompts(a_set(["a", "b"]), "cars", None, str(table))


def test_wordnet_ids_become_imagenets_names_in_any_subset():
    found = class_prompts(a_set(["n01440764", "n02123045", "n15075141"]), "imagenet-a", None, None)
    assert found.classnames == ["tench", "tabby cat", "toilet paper"]  # the first, the 282nd and the last
    assert found.notes[1] == "class names: 3 of open_clip's 1,000 of ImageNet, by their WordNet ids"
    with pytest.raises(UserError, match="n00000001 is none of ImageNet's 1,000"):
        class_prompts(a_set(["n00000001"]), "x", None, None)


def test_a_file_of_a_thousand_names_is_read_by_wordnet_ids(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(f"name {row}" for row in range(1000)))
    assert class_prompts(a_set(["n02123045"]), "imagenet-r", None, str(file)).classnames == ["name 281"]


def test_folders_of_imagenet_v2_are_numbers():
    found = class_prompts(a_set(map(str, range(1000))), "imagenetv2", None, None)
    assert found.classnames == list(IMAGENET_CLASSNAMES)
    assert class_prompts(a_set(map(str, range(10))), "digits", None, None).classnames == [*"0123456789"]


def test_classes_told_in_the_same_words_are_named():
    found = class_prompts(a_set(["missile", "cat", "missile", "missile"]), "x", None, None)
    assert found.first_of_class == [0, 1, 0, 0]
    assert found.notes[2] == "classes of the same prompts as one before them are never told: 'missile', 'missile'"
    of_imagenet = class_prompts(a_set(map(str, range(1000))), "imagenetv2", None, None)
    assert of_imagenet.notes[2].endswith("never told: 'missile', 'sunglasses'")


def test_clip_benchmarks_own_files():
    datasets = Path(pytest.importorskip("clip_benchmark").__file__).parent / "datasets"
    templates, names, cupl = (
        str(datasets / f"{name}.json")
        for name in ("en_zeroshot_classification_templates", "en_classnames", "cupl_prompts")
    )
    of_eurosat = class_prompts(a_set(map(str, range(10))), "wds_vtab-eurosat_test", templates, names)
    assert of_eurosat.of_class[0][0] == "a centered satellite photo of annual crop land."
    assert len(class_prompts(a_set(["cat"]), "stamps", templates, None).of_class[0]) == 80, "as of ImageNet"
    of_tench = class_prompts(a_set(["n01440764"]), "imagenet1k", cupl, names).of_class[0]
    assert of_tench[0] == "A tench is a freshwater fish of the carp family."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pets": {"cat": "a cat"}}, "no prompts for the class 'cat'"),  # which would be five prompts of a letter each
        ({"pets": {"cat": [5]}}, "no prompts for the class 'cat'"),
        ({"pets": 5}, "holds no list of templates for pets"),
        ({"pets": []}, "holds no list of templates for pets"),
    ],
)
def test_prompts_are_lists_of_texts(tmp_path, content, message):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        class_prompts(a_set(["cat"]), "pets", str(file), None)


def test_names_of_ones_own_are_for_ids_that_imagenet_lacks_too(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("tench\nother\n")
    found = class_prompts(a_set(["n01440764", "n99999999"]), "tiny-imagenet", None, str(file))
    assert found.classnames == ["tench", "other"]
