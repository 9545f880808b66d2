"""``vlp data emoji`` on small packages in the real layout, and on the real ones where they are installed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools._emoji_captions import english, evaluation, spoken, translated, words
from data_tools._emoji_other_words import akin, other_captions, other_words, root, split_words, unheard
from data_tools._emoji_source import Emoji, find_packages, read_emoji
from data_tools._emoji_things import Thing, group_things, split_things
from data_tools._emoji_write import EmojiOptions, write_emoji
from vlp.types import UserError

TONE = {1: "1F3FB", 5: "1F3FF"}
NAME_OF_TONE = {1: "light skin tone", 5: "dark skin tone"}


def samples(shards: Iterable[Path]) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(shards):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                stream = tar.extractfile(member)
                assert stream is not None
                found.setdefault(key, {})[extension] = stream.read()
    return found


def training(out: Path) -> list[dict[str, Any]]:
    return [json.loads(s["json"]) for s in samples((out / "train").glob("*.tar")).values()]


def captions_of(directory: Path) -> list[list[str]]:
    found = samples((directory / "test").glob("*.tar")).values()
    return [s["txt"].decode().splitlines() for s in found]


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


class Packages:
    """Writes ``node_modules`` with few emoji, laid out as the npm packages are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources: list[dict[str, Any]] = []
        self.labels: list[dict[str, Any]] = []

    def add(self, code: str, label: str, tags: Iterable[str] = (), name: str = "", **more: Any) -> None:
        order = 10 * (len(self.labels) + 1)
        tones = more.pop("tones", ())
        picture = f"{code.lower()}.png"
        record = {"name": name or label.upper(), "unified": code, "image": picture}
        record["short_names"] = more.pop("short_names", [label.replace(" ", "_")])
        record["skin_variations"] = {
            TONE[t]: {"unified": f"{code}-{TONE[t]}", "image": f"{code.lower()}-{TONE[t].lower()}.png"} for t in tones
        }
        entry = {"label": label, "hexcode": code, "emoji": "x", "tags": list(tags), "order": order}
        entry |= {"group": 3, "subgroup": 34, **more}
        entry["skins"] = [
            entry
            | {
                "hexcode": f"{code}-{TONE[t]}",
                "label": f"{label}: {NAME_OF_TONE[t]}",
                "tone": t,
                "order": order + t,
            }
            for t in tones
        ]
        self.sources.append(record)
        self.labels.append(entry)

    def write(self, vendors: Iterable[str] = ("google", "twitter"), german: dict[str, str] | None = None) -> Path:
        for vendor in vendors:
            package = self.folder / f"emoji-datasource-{vendor}"
            pictures = package / "img" / vendor / "64"
            pictures.mkdir(parents=True)
            (package / "package.json").write_text('{"version": "16.0.0"}')
            (package / "emoji.json").write_text(json.dumps(self.sources))
            for record in self.sources:
                for one in [record, *record["skin_variations"].values()]:
                    colour = hashlib.sha256(f"{vendor}{one['unified']}".encode()).digest()
                    image = Image.new("RGBA", (64, 64))
                    image.paste((*colour[:3], 255), (16, 16, 48, 48))
                    image.save(pictures / one["image"])
        base = self.folder / "emojibase-data"
        (base / "meta").mkdir(parents=True)
        (base / "package.json").write_text('{"version": "17.0.0"}')
        groups = {"groups": {"1": "people-body", "2": "component", "3": "animals-nature"}}
        groups["subgroups"] = {"25": "person-role", "30": "family", "34": "animal-mammal"}
        (base / "meta" / "groups.json").write_text(json.dumps(groups))
        for language, texts in {"en": {}, "de": german or {}}.items():
            table = [e | {"label": texts.get(e["label"], e["label"])} for e in self.labels]
            (base / language).mkdir()
            (base / language / "data.json").write_text(json.dumps(table))
        return self.folder


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    made = Packages(tmp_path / "node_modules")
    made.add("1F9D1-200D-1F373", "cook", ["chef"], group=1, subgroup=25, tones=(1, 5))
    made.add("1F468-200D-1F373", "man cook", ["chef", "man"], group=1, subgroup=25, tones=(1, 5))
    made.add("1F469-200D-1F373", "woman cook", ["chef", "woman"], group=1, subgroup=25, tones=(1, 5))
    for n, animal in enumerate(("fox", "owl", "bee", "ant", "elk", "cod", "hen", "pug", "yak")):
        made.add(f"1F99{n}", animal, ["animal", "wild", "lol", "<3", "g2g"])
    return made


def emoji(label: str, **more: Any) -> Emoji:
    values: dict[str, Any] = {
        "hexcode": "1F600",
        "base": "1F600",
        "image": "1f600.png",
        "character": "x",
        "label": label,
        "base_label": label,
        "names": (label.upper(),),
        "tags": (),
        "group": "people-body",
        "subgroup": "person",
        "order": 1,
    }
    return Emoji(**values | more)


def test_unseen_things_are_in_no_training_sample_of_any_vendor_or_language(packages: Packages, tmp_path: Path) -> None:
    source = packages.write(german={"fox": "Fuchs"})
    out = tmp_path / "out"
    options = EmojiOptions(out, source=source, languages=("en", "de"), unseen_things=3, unseen_drawings=2)
    write_emoji(options)
    split = json.loads((out / "split.json").read_text())
    unseen = {code for thing in split["unseen_things"] for code in thing["hexcodes"]}
    trained = training(out)
    assert len(split["unseen_things"]) == 3
    assert {r["vendor"] for r in trained} == {"google", "twitter"}
    assert not unseen & {r["hexcode"] for r in trained}
    withheld_captions = {c for captions in captions_of(out / "eval" / "unseen_things") for c in captions}
    assert not withheld_captions & {c for r in trained for c in r["captions"] + r["captions_de"]}
    everything = unseen | {r["hexcode"] for r in trained}
    assert len(everything) == 18, "every emoji is on one side"


def test_unseen_drawings_lack_one_vendor_and_keep_the_other(packages: Packages, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = EmojiOptions(out, source=packages.write(), unseen_things=1, unseen_drawings=4, unseen_vendor="google")
    write_emoji(options)
    split = json.loads((out / "split.json").read_text())
    withheld = {code for thing in split["unseen_drawings"]["things"] for code in thing["hexcodes"]}
    trained = {(r["vendor"], r["hexcode"]) for r in training(out)}
    assert all(("google", code) not in trained and ("twitter", code) in trained for code in withheld)
    assert len(captions_of(out / "eval" / "unseen_drawings")) == 4


def test_a_thing_is_never_divided(packages: Packages, tmp_path: Path) -> None:
    source = packages.write()
    cook = {r["unified"] for r in packages.sources[:3]}
    for seed in range(12):
        out = tmp_path / f"out{seed}"
        write_emoji(EmojiOptions(out, source=source, unseen_things=4, unseen_drawings=0, seed=seed))
        trained = {r["hexcode"] for r in training(out)}
        assert cook <= trained or not cook & trained
        evaluated = [c for captions in captions_of(out / "eval" / "unseen_things") for c in captions]
        assert len([c for c in evaluated if "cook" in c]) in {0, 1}


def test_same_options_give_the_same_bytes_and_another_seed_does_not(packages: Packages, tmp_path: Path) -> None:
    source = packages.write()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = EmojiOptions(tmp_path / name, source=source, unseen_things=3, unseen_drawings=2, seed=seed)
        write_emoji(options)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_pictures_keep_alpha_in_training_and_stand_on_white_in_evaluation(packages: Packages, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_emoji(EmojiOptions(out, source=packages.write(), unseen_things=1, unseen_drawings=1, image_size=32))
    trained = next(iter(samples((out / "train").glob("*.tar")).values()))["png"]
    image = Image.open(io.BytesIO(trained))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGBA", (32, 32), (0, 0, 0, 0))
    shown = next(iter(samples((out / "eval" / "unseen_things" / "test").glob("*.tar")).values()))["png"]
    assert Image.open(io.BytesIO(shown)).getpixel((0, 0)) == (255, 255, 255)


def test_skin_tones_can_be_left_out(packages: Packages, tmp_path: Path) -> None:
    source = packages.write()
    for name, keep in (("with", True), ("without", False)):
        options = EmojiOptions(tmp_path / name, source=source, unseen_things=0, unseen_drawings=0, skin_tones=keep)
        write_emoji(options)
    assert len(training(tmp_path / "with")) == 2 * 18
    kept = training(tmp_path / "without")
    assert len(kept) == 2 * 12
    assert all(r["skin"] == [] for r in kept)


def test_one_vendor_writes_no_unseen_drawings(packages: Packages, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_emoji(EmojiOptions(out, vendors=("twitter",), source=packages.write(["twitter"]), unseen_things=2))
    assert {p.name for p in (out / "eval").iterdir()} == {"unseen_things"}


def test_a_broken_drawing_is_counted_and_named(packages: Packages, tmp_path: Path) -> None:
    source = packages.write()
    (source / "emoji-datasource-google/img/google/64/1f990.png").write_bytes(b"no picture")
    (source / "emoji-datasource-google/img/google/64/1f991.png").unlink()
    summary = write_emoji(EmojiOptions(tmp_path / "out", source=source, unseen_things=1, unseen_drawings=1))
    skipped = summary.skipped_by_kind()
    assert (skipped["undecodable drawing"], skipped["no drawing"]) == (1, 1)
    assert "google/1f990.png (fox)" in (tmp_path / "out" / "skipped.tsv").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vendors": ("apple",)}, "apple is refused"),
        ({"vendors": ("gogle",)}, "did you mean 'google'"),
        ({"vendors": ("google", "google")}, "twice"),
        ({"languages": ("en", "dee")}, "did you mean 'de'"),
        ({"unseen_vendor": "openmoji"}, "not among the vendors"),
        ({"unseen_things": 9, "unseen_drawings": 2}, "leave nothing to train on"),
        ({"image_size": 128}, "8 to 64"),
        ({"source": Path("/nowhere")}, "lacks emoji-datasource-google"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    packages: Packages, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    options = {"out": tmp_path / "out", "source": packages.write(), "unseen_things": 2, "unseen_drawings": 2}
    with pytest.raises(UserError, match=message) as raised:
        write_emoji(EmojiOptions(**options | change))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_without_packages_and_npm_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm install emoji-datasource-google@.*--source"):
        find_packages(None, ["google"])


def test_captions_say_the_tone_and_only_real_words() -> None:
    one = emoji(
        "cook: dark skin tone",
        base_label="cook",
        names=("COOK",),
        tones=(5,),
        tags=("chef", "gtg", "+1", "lol", "cook"),
    )
    assert english(one) == [
        "cook: dark skin tone",
        "cook with dark skin tone",
        "cook with dark skin tone, chef",
    ]
    assert words(("tv", "bff", "pop corn", "10:30", "DE", "I’m", "yum"), known="") == ["tv", "pop corn"]


def test_names_are_read_as_words() -> None:
    one = emoji("check mark", names=("WHITE HEAVY CHECK MARK", "white_check_mark", "ok1"), group="symbols")
    assert english(one) == ["check mark", "white check mark"]
    assert evaluation(emoji("poo", names=("PILE OF POO", "poop", "shit"))) == ["poo", "pile of poo"]
    assert spoken("flag: Chad") == "flag of Chad"
    assert spoken("woman walking: facing right") == "woman walking facing right"
    assert spoken("person: bald") == "bald person"
    assert spoken("family: man, woman, boy") == "family of man, woman and boy"


def test_other_languages_give_label_and_tags() -> None:
    one = emoji("fox", translations={"de": ("Fuchs", ("fuchs", "wald", "1a"))})
    assert translated(one, "de") == ["Fuchs", "Fuchs, wald"]
    assert translated(one, "fr") == []


def thing(label: str, *tags: str, **more: Any) -> Thing:
    return Thing((emoji(label, tags=tags, **more),))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("smiling", "smiles"),
        ("cherries", "cherry"),
        ("geese", "goose"),
        ("sleepy", "sleep"),
        ("running", "run"),
        ("snow", "snowboard"),
        ("tie", "necktie"),
        ("chef's", "chef"),
        ("liar", "lying"),
    ],
)
def test_forms_and_parts_of_a_word_are_akin(a: str, b: str) -> None:
    assert akin(a, b)
    assert akin(b, a)


def test_words_of_their_own_are_not_akin() -> None:
    for a, b in (("chef", "cook"), ("house", "home"), ("ox", "fox"), ("king", "crown"), ("sea", "beach")):
        assert not akin(a, b)
    assert {root(w) for w in ("sing", "king", "bed", "bus")} == {"sing", "king", "bed", "bus"}
    assert split_words("e-mail crêpe o’clock") == ["e", "mail", "crepe", "o'clock"]


def test_other_words_avoid_the_labels_of_every_variant_and_say_nothing_twice() -> None:
    cook = emoji("cook", tags=("chef", "cooking", "cookery", "lol", "+1", "man", "sign", "chefs", "kitchen"))
    assert other_words(Thing((cook,))) == ["chef", "man", "kitchen"]
    assert other_words(Thing((cook, emoji("man cook")))) == ["chef", "kitchen"]
    toned = emoji("cook: dark skin tone", tones=(5,))
    assert other_words(thing("night", "dark", "moon")) == ["dark", "moon"]
    assert other_words(Thing((emoji("cook", tags=("dark", "moon")), toned))) == ["moon"]
    assert other_words(thing("hot dog", "dogs", "e-mail", "hotdog", "sausage")) == ["e-mail", "sausage"]
    named = thing("poo", "comic", names=("PILE OF POO", "poop"))
    assert other_words(named) == ["comic", "pile"]
    many = ("bowl", "desk", "farm", "gong", "hulk", "junk", "lamp", "mint", "noon", "oven")
    assert other_words(thing("x", *many)) == list(many[:8])


def test_other_words_must_be_two_and_tell_a_thing_from_the_rest() -> None:
    things = [
        thing("wolf", "animal", "wild"),
        thing("wild fox", "animal", "forest"),
        thing("hen", "animal"),
        thing("owl", "animals", "wise"),
        thing("yak"),
    ]
    found = other_captions(things)
    assert [(t.base.label, kept) for t, kept in found.captions] == [
        ("wild fox", ["animal", "forest"]),
        ("owl", ["animals", "wise"]),
    ]
    assert [(t.base.label, kept) for t, kept in found.ambiguous] == [("wolf", ["animal", "wild"])], (
        "true of the fox too"
    )
    assert [(t.base.label, kept) for t, kept in found.vague] == [("hen", ["animal"]), ("yak", [])]
    twins = other_captions([thing("bug", "insect", "garden"), thing("ant", "insects", "garden")])
    assert not twins.captions
    assert len(twins.ambiguous) == 2


def test_unheard_words_are_counted_by_root() -> None:
    assert unheard([["chefs", "e-mail", "wise"], ["wise"]], ["chef", "mail"]) == 3
    assert unheard([["e-mail"]], ["e mail"]) == 0


def test_sets_of_other_words_show_the_same_pictures_and_name_those_left_out(packages: Packages, tmp_path: Path) -> None:
    for n, animal in enumerate(("cat", "dog", "pig", "rat", "emu")):
        packages.add(f"1F98{n}", animal, ["animal", f"{animal}ty", f"of{'abcde'[n]}ka", "beast"])
    out = tmp_path / "out"
    summary = write_emoji(EmojiOptions(out, source=packages.write(), unseen_things=8, unseen_drawings=5))
    left_out = (out / "skipped.tsv").read_text()
    for name, wanted in (("unseen_things", 8), ("unseen_drawings", 5)):
        shown = samples((out / "eval" / name / "test").glob("*.tar")).values()
        labels = {s["png"]: s["txt"].decode().splitlines()[0] for s in shown}
        others = samples((out / "eval" / f"{name}_other_words" / "test").glob("*.tar")).values()
        assert 0 < len(others) < wanted == len(shown)
        assert summary.counts[f"eval/{name}_other_words pictures"] == len(others)
        assert summary.counts[f"eval/{name}_other_words words"] == 3 * len(others)
        for sample in others:
            n = ["cat", "dog", "pig", "rat", "emu"].index(labels.pop(sample["png"]))
            assert sample["txt"].decode() == f"animal, of{'abcde'[n]}ka, beast"
        for label in labels.values():
            assert re.search(rf"for {name}_other_words\t{label} \(", left_out)
    assert (
        summary.counts["eval/unseen_things_other_words words in no training label"]
        == summary.counts["eval/unseen_things_other_words words"]
    )


def test_what_counts_as_one_thing() -> None:
    same = [
        emoji("man walking: facing right", hexcode="1F6B6-200D-2642-FE0F-200D-27A1-FE0F"),
        emoji("person walking", hexcode="1F6B6"),
        emoji("prince", hexcode="1F934"),
        emoji("person with crown", hexcode="1FAC5"),
        emoji("cat", hexcode="1F408", group="animals-nature"),
        emoji("cat face", hexcode="1F431", group="animals-nature"),
        emoji("kiss", hexcode="1F48F", subgroup="family"),
        emoji("family: man, boy", hexcode="1F468-200D-1F466", subgroup="family"),
        emoji("flag: Norway", hexcode="1F1F3-1F1F4", group="flags"),
        emoji("flag: Bouvet Island", hexcode="1F1E7-1F1FB", group="flags"),
        emoji("person frowning", hexcode="1F64D"),
        emoji("frowning face", hexcode="2639", group="smileys-emotion"),
    ]
    drawings = [frozenset({f"d{i}"}) for i in range(len(same))]
    drawings[8] = drawings[9] = frozenset({"norwegian cross"})
    things = group_things(same, drawings)
    grouped = {frozenset(e.label for e in thing.members) for thing in things}
    pairs = {frozenset(e.label for e in same[i : i + 2]) for i in range(0, 10, 2)}
    assert grouped == pairs | {frozenset({"person frowning"}), frozenset({"frowning face"})}


def test_the_split_of_old_emoji_survives_new_ones() -> None:
    def things(count: int) -> list[Any]:
        made = [emoji(f"animal {i}", hexcode=f"1F{i:03X}", order=i, group="animals-nature") for i in range(count)]
        return group_things(made, [frozenset()] * count)

    small = {t.base.label for t in split_things(things(50), 20, 0, 0).unseen}
    large = {t.base.label for t in split_things(things(55), 20, 0, 0).unseen}
    assert len(small & large) >= 15


def real_packages() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlp" / "emoji" / "node_modules"
    for folder in (Path("node_modules"), cache):
        if all(
            (folder / p).is_dir() for p in ("emoji-datasource-google", "emoji-datasource-twitter", "emojibase-data")
        ):
            return folder
    pytest.skip("the emoji packages are not here: 'vlp data emoji DIR' fetches them into the cache")


def test_real_packages_split_cleanly(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = write_emoji(EmojiOptions(out, source=real_packages(), languages=("en", "de")))
    assert not {"undecodable drawing", "no drawing"} & set(summary.skipped_by_kind())
    split = json.loads((out / "split.json").read_text())
    trained = training(out)
    assert len(trained) == summary.counts["training drawings"] > 6000
    unseen = {code for thing in split["unseen_things"] for code in thing["hexcodes"]}
    assert not unseen & {r["hexcode"] for r in trained}
    shown = captions_of(out / "eval" / "unseen_things")
    assert len(shown) == len({captions[0] for captions in shown}) == 200
    labels = {code: r["captions"][0] for r in trained for code in [r["hexcode"]]}
    for thing in split["unseen_drawings"]["things"]:
        thing["said"] = {root(w) for code in thing["hexcodes"] for w in split_words(labels[code])}
    others = captions_of(out / "eval" / "unseen_drawings_other_words")
    assert 100 < len(others) == len({captions[0] for captions in others}) < 200
    assert 100 < len(captions_of(out / "eval" / "unseen_things_other_words")) < 200
    pictures = samples((out / "eval" / "unseen_drawings" / "test").glob("*.tar")).values()
    things = {s["png"]: t for s, t in zip(pictures, split["unseen_drawings"]["things"], strict=True)}
    for sample in samples((out / "eval" / "unseen_drawings_other_words" / "test").glob("*.tar")).values():
        kept = split_words(sample["txt"].decode())
        assert not things[sample["png"]]["said"] & {root(w) for w in kept}
    said = {c.casefold() for r in trained for c in r["captions"]}
    leaked = [c for captions in shown for c in captions if c.casefold() in said]
    assert not leaked


def test_real_labels_are_complete() -> None:
    every = read_emoji(real_packages(), "google", ["en", "ja"])
    assert len(every) >= 3786
    assert sum(not e.tones for e in every) >= 1911
    assert all(english(e) and evaluation(e) for e in every)
    assert sum(bool(translated(e, "ja")) for e in every) > 3000
