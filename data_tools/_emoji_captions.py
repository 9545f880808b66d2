"""Captions of an emoji: its label, its names and its tags, kept to what reads as words."""

from __future__ import annotations

import re
import unicodedata

from data_tools._emoji_source import TONES, Emoji

MAX_TAGS = 8  # tags come in alphabetical order, so more of them add length, not meaning

# Chat shorthand and function words among the tags: nothing of them can be seen in a picture.
_NOISE_TEXT = """
    aha ahh and anything ask awk aww awws bae bestie bffs bro bruh btw bye cya dude duh dunno eek
    everybody everyone ew facts feels for from gbsct gbwls got gotcha hbd hey hmm huh i'm idc idgaf
    idk ikr ily ish its jel jk let's lit lmao lmk lol luv meh mkay mmm nah not nvm obvi obvs omg omw
    outtie rad rofl same sus tbh the tmi totally totes try ugh uhh umm uwu what whatever when who
    why with wow xoxo yas yay yeah yep yolo you your yum yup
"""
NOISE = frozenset(_NOISE_TEXT.split())
SHORT_WORDS = frozenset({"ox", "tv", "pc", "up", "dj", "ok", "cd"})
VULGAR = frozenset({"shit", "fu", "ass"})


def english(emoji: Emoji) -> list[str]:
    """English captions, the label first, none twice."""
    plain = _toned(spoken(emoji.base_label), emoji)
    captions = [emoji.label, plain, *(_toned(name, emoji) for name in names(emoji))]
    if tags := words(emoji.tags, known=emoji.base_label):
        captions.append(", ".join([plain, *tags]))
    return _distinct(captions)


def translated(emoji: Emoji, language: str) -> list[str]:
    """Captions in another language: the label, alone and with its tags; empty where emojibase has none."""
    if language not in emoji.translations:
        return []
    label, tags = emoji.translations[language]
    kept = [
        t
        for t in tags
        if t.casefold() not in label.casefold()
        and not re.search(r"[\d\W_]", t.replace(" ", ""))
        and not (len(t) == 2 and t.isascii() and t.isupper())  # country codes
    ]
    return _distinct([label, ", ".join([label, *kept[:MAX_TAGS]])])


def evaluation(emoji: Emoji) -> list[str]:
    """Captions to be found by: the label and the Unicode name, but no tags (they fit many pictures)."""
    return _distinct([spoken(emoji.label), *names(emoji, short=False)])


def names(emoji: Emoji, short: bool = True) -> list[str]:
    """The published names as words, label not included; those that are no words are left out."""
    if emoji.subgroup in {"country-flag", "subdivision-flag"}:
        return []  # "flag-de" is a code, and "Germany Flag" is the label again
    label = emoji.base_label.casefold()
    kept: list[str] = []
    unicode_name, *short_names = emoji.names
    # Unicode's WHITE, BLACK, HEAVY and NEGATIVE speak of type: outlined, filled, bold, inverted.
    bare = [
        w for w in unicode_name.casefold().split() if w in label or w not in {"white", "black", "heavy", "negative"}
    ]
    if not re.search(r"\d", unicode_name):  # numbered names are code points, or keycaps as in the label
        kept.append(" ".join(bare).replace(" oclock", " o’clock"))
    if short:
        vocabulary = set(re.findall(r"[^\W\d_]+", " ".join([label, unicode_name.casefold(), *emoji.tags])))
        for name in short_names:
            parts = re.split(r"[_-]", name)
            if all(p in vocabulary for p in parts) and not VULGAR & set(parts):
                kept.append(" ".join(parts))
    return [n for n in _distinct(kept) if n and n not in {label, spoken(emoji.base_label).casefold()}]


def spoken(label: str) -> str:
    """``flag: Chad`` -> ``flag of Chad``, ``man: beard`` -> ``man with beard``."""
    head, colon, rest = label.partition(": ")
    if not colon:
        return label
    if rest == "bald":
        return f"bald {head}"
    if head == "keycap" or rest.startswith("facing"):
        return f"{head} {rest}"
    if head in {"flag", "family", "kiss", "couple with heart"}:
        return f"{head} of {' and '.join(rest.rsplit(', ', 1))}"
    return f"{head} with {rest}"


def words(tags: tuple[str, ...], known: str) -> list[str]:
    """The tags that are real words and say something that ``known`` does not."""
    said = set(re.findall(r"[^\W\d_]+", known.casefold()))
    kept = [tag for tag in tags if is_word(tag) and not said.issuperset(re.split(r"[ -]", tag))]
    return kept[:MAX_TAGS]


def is_word(tag: str) -> bool:
    """Whether a tag reads as words: no code, number, chat shorthand or abbreviation."""
    spelt = re.fullmatch(r"[^\W\d_]+(?:['’ -][^\W\d_]+)*", tag) and tag == tag.lower()
    if not spelt or tag.replace("’", "'") in NOISE | VULGAR:
        return False
    return tag in SHORT_WORDS or (len(tag) > 2 and bool(re.search(r"[aeiouyáéíóúāōī]", tag)))


def _toned(caption: str, emoji: Emoji) -> str:
    """``caption`` with its skin tones: ``cook with dark skin tone``, ``man with beard, dark skin tone``."""
    if not emoji.tones:
        return caption
    tones = " and ".join(f"{TONES[t]} skin tone" for t in dict.fromkeys(emoji.tones))
    return f"{caption}, {tones}" if " with " in caption else f"{caption} with {tones}"


def _distinct(captions: list[str]) -> list[str]:
    """Without empty ones and those that repeat an earlier one but for case, accents and hyphens."""
    kept: dict[str, str] = {}
    for caption in captions:
        letters = unicodedata.normalize("NFKD", caption.casefold())
        key = " ".join(re.findall(r"\w+", "".join(c for c in letters if not unicodedata.combining(c))))
        if caption:
            kept.setdefault(key or caption, caption)
    return list(kept.values())
