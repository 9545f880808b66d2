"""Recipes: inheritance, overrides, and errors that name the key and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vlp import recipe, resolve
from vlp.types import UserError

MINIMAL = """
name: tiny
data: {train: shards}
model: {config: {embed_dim: 8, vision_cfg: {image_size: 32}, text_cfg: {}}}
objectives: [{name: infonce}]
train: {steps: 10, global_batch_size: 8}
"""


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str = MINIMAL, name: str = "recipe.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_minimal_recipe_has_defaults_and_a_run_directory(written):
    loaded = recipe.load(written())
    assert loaded.run_dir == "runs/tiny"
    assert loaded.train.precision == "fp32"
    assert loaded.objectives[0].name == "infonce"


def test_the_resolved_recipe_reads_back_as_itself(written, tmp_path):
    loaded = recipe.load(written(), ["train.lr=2e-3"])
    (tmp_path / "resolved.yaml").write_text(loaded.to_yaml())
    assert recipe.load(str(tmp_path / "resolved.yaml")) == loaded
    assert recipe.difference(tmp_path / "resolved.yaml", recipe.load(written()).to_yaml()) == ["train.lr"]


def test_a_stored_recipe_of_an_earlier_version_differs_in_what_it_says_alone(written, tmp_path):
    """Options that came later have their defaults; where they were given now, they differ."""
    tree = yaml.safe_load(recipe.load(written()).to_yaml())
    del tree["train"]["ema_decay"], tree["objectives"][0]["label_smoothing"], tree["track"]
    stored = tmp_path / "stored.yaml"
    stored.write_text(yaml.safe_dump(tree))
    assert recipe.difference(stored, recipe.load(written()).to_yaml()) == []
    now = recipe.load(written(), ["train.ema_decay=0.9", "objectives.0.label_smoothing=0.1"])
    assert recipe.difference(stored, now.to_yaml()) == ["objectives.0.label_smoothing", "train.ema_decay"]


def test_a_stored_recipe_that_this_version_cannot_read_is_named_as_such(written, tmp_path):
    stored = tmp_path / "stored.yaml"
    stored.write_text(recipe.load(written()).to_yaml().replace("precision: fp32", "precision: int8"))
    with pytest.raises(UserError, match=r"stored\.yaml: train\.precision.*does not fit this version of vlp") as raised:
        recipe.difference(stored, recipe.load(written()).to_yaml())
    assert "\n" not in str(raised.value)


def test_base_is_merged_below(written):
    written(name="parent.yaml")
    child = written("base: parent.yaml\nname: child\ntrain: {steps: null, epochs: 2}\n", "child.yaml")
    loaded = recipe.load(child)
    assert (loaded.name, loaded.train.epochs, loaded.train.global_batch_size) == ("child", 2, 8)


def test_a_circle_of_bases_is_refused(written):
    written("base: b.yaml\n", "a.yaml")
    with pytest.raises(UserError, match="leads back to itself"):
        recipe.load(written("base: a.yaml\n", "b.yaml"))


def test_overrides_reach_into_lists_and_profiles_merge(written):
    path = written(MINIMAL + "profiles: {smoke: {train: {steps: 2}}}\n")
    assert recipe.load(path, ["train.steps=3", "profile=smoke"]).train.steps == 3
    loaded = recipe.load(path, ["profile=smoke", "objectives.0.weight=0.5", "data.augment.crop_scale=[0.5, 1]"])
    assert loaded.train.steps == 2
    assert loaded.objectives[0].weight == 0.5
    assert loaded.data.augment.crop_scale == (0.5, 1.0)


def test_yaml_words_and_numbers_mean_what_they_say(written):
    loaded = recipe.load(written(), ["name=on", "train.lr=1e-3", "train.min_lr=0"])
    assert loaded.name == "on"
    assert loaded.train.lr == 1e-3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.stesp=5", r"unknown key 'train\.stesp', did you mean 'steps'"),
        ("modle.name=x", r"unknown key 'modle', did you mean 'model'"),
        ("data.augment.flp=1", r"unknown key 'data\.augment\.flp', did you mean 'flip'"),
        ("objectives.0.wieght=1", r"unknown key 'wieght', did you mean 'weight'"),
        ("objectives.0.name=infonse", r"unknown objective 'infonse', did you mean 'infonce'"),
        ("objectives.3.name=infonce", r"'3' is no position in a list of 1"),
        ("train.steps=-1", r"train\.steps: .*greater than 0"),
        ("train.precision=int3", r"train\.precision"),
        ("train.epochs=1", r"exactly one of steps, samples and epochs"),
        ("name.x=1", r"name is a single value"),
        ("nonsense", r"is no override: write key=value"),
        ("profile=smoke", r"no profile 'smoke'"),
        ("profile=[a]", r"no profile"),
        ("train.steps=[1]", r"train\.steps: must be an integer"),
        ("train.epochs=.inf", r"train\.epochs: must be a finite number"),
        ("data.train=5", r"data\.train: must be text .* or a list, such as \[a, b\] \(got 5\)"),
        ("evaluate.sets=a", r"evaluate\.sets: must be a list, such as \[a, b\] \(got 'a'\)"),
        ("evaluate=5", r"evaluate: must be a mapping"),
        ("data.captions=[{source: x}]", r"data\.captions\.0\.source: must be text of the form"),
        ("model.lock_image=0", r"model\.lock_image: must be true or false or greater"),
        ("model.picture.std=[0, 1, 1]", r"model\.picture\.std\.0: must be greater than 0"),
        ("objectives={}", r"objectives: must be a list, such as \[\{name: infonce\}\]"),
        ("objectives=[]", r"objectives: must be a list of at least one entry"),
        ("objectives=[infonce]", r"yaml: objectives: each entry needs a name"),
        ("objectives.0.name=os.path", r"no class Objective"),
        ("train.cooldown=5", r"cooldown has no effect with the schedule cosine"),
        ("train.lr=.inf", r"train\.lr: must be a finite number"),
        ("seed=99999999999999999999", r"seed: must be less than"),
        ("train.steps=[", r"not valid YAML"),
        ("objectives=[{name: triple, queue_size: 12}]", r"yaml: objectives: queue_size 12 is no multiple .*: write 8"),
        ("model.captioner={layers: 2}", r"model\.captioner has no effect without an objective that uses it"),
        ("model.captioner={width: 30}", r"model\.captioner: width 30 is no multiple of heads 4"),
        (
            "objectives=[{name: captioning, label_smoothing: 0.1}, {name: captioning}]",
            r"captioning has label_smoothing 0\.1, captioning has 0\.0: give both the same",
        ),
        (
            "objectives=[{name: distill, teacher: a}, {name: distill, teacher: b}]",
            r"distill has teacher a, distill has b: give",
        ),
    ],
)
def test_mistakes_are_named(written, override, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        recipe.load(written(), [override])
    assert "\n" not in str(raised.value)


def test_a_start_of_the_scale_has_no_effect_where_the_temperature_is_given(written):
    recipe.load(written(), ["train.temperature=0.1"])
    recipe.load(written(), ["model.init_logit_scale=1"])
    with pytest.raises(UserError, match=r"yaml: model\.init_logit_scale has no effect with train\.temperature"):
        recipe.load(written(), ["model.init_logit_scale=0", "train.temperature={start: 1, end: 0.1, over: 5}"])


@pytest.mark.parametrize("profiles", ["5", "{smoke: 5}"])
def test_profiles_that_are_none_are_named(written, profiles):
    with pytest.raises(UserError, match="profiles must be a mapping"):
        recipe.load(written(MINIMAL + f"profiles: {profiles}\n"))


def test_a_key_given_twice_is_refused(written):
    with pytest.raises(UserError, match="the key 'seed' is there twice"):
        recipe.load(written(MINIMAL + "seed: 1\nseed: 2\n"))


def test_a_missing_key_is_named(written):
    with pytest.raises(UserError, match="'train' is missing"):
        recipe.load(written(MINIMAL.replace("train: {steps: 10, global_batch_size: 8}", "")))


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        recipe.load("quickstrat")


def test_a_file_that_is_no_mapping(written):
    with pytest.raises(UserError, match="a recipe is a mapping"):
        recipe.load(written("- 1\n"))


def test_length_in_samples_and_epochs(written):
    def steps(*overrides: str) -> int:
        return recipe.load(written(), ["train.steps=null", "train.warmup=0", *overrides]).span(100).total_steps

    assert steps("train.epochs=2") == 25
    assert steps("train.samples=81") == 11


def test_a_warmup_longer_than_the_run_is_refused(written):
    with pytest.raises(UserError, match=r"train\.warmup"):
        recipe.load(written(), ["train.warmup=11"]).span(100)


def test_a_cooldown_that_does_not_fit_is_refused(written):
    wsd = ["train.schedule=wsd", "train.warmup=5", "train.steps=10"]
    assert recipe.load(written(), [*wsd, "train.cooldown=5"]).span(100).total_steps == 10
    for cooldown, sentence in (("6", "longer than the run of 10 steps"), ("soon", r"train\.cooldown: 'soon'")):
        with pytest.raises(UserError, match=sentence):
            recipe.load(written(), [*wsd, f"train.cooldown={cooldown}"]).span(100)


def test_siglip_brings_its_start_values_and_what_it_needs(written):
    loaded = recipe.load(written(), ["objectives.0.name=siglip"])
    assert loaded.starts() == {"logit_scale": pytest.approx(2.302585), "logit_bias": -10}
    assert "logit_bias" in loaded.provides()
    assert "logit_bias" not in recipe.load(written()).provides()


def test_every_recipe_validates_and_says_its_command_cost_and_result():
    for path in resolve.recipes().values():
        recipe.load(str(path))
        recipe.load(str(path), ["profile=smoke"])
        head = path.read_text().split("\nname:")[0]
        for word in ("Command:", "Cost:", "Expected:"):
            assert word in head, f"{path.name} does not say {word}"
        assert "TODO" not in head, path.name
        assert yaml.safe_load(path.read_text())
