"""What is known of English words: numbers, colours, denials, places, words that say nothing.

Spatial words stand in lists as taggers take "left" in "left of" for a verb. Synonyms are in `synonyms`.
"""

from __future__ import annotations

import re


def word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _inverted(table: dict[str, str]) -> dict[str, frozenset[str]]:
    """Word -> the keys in whose line it stands."""
    found: dict[str, set[str]] = {}
    for key, line in table.items():
        for word in [key, *line.split()]:
            found.setdefault(word, set()).add(key)
    return {word: frozenset(keys) for word, keys in found.items()}


COLOURS = _inverted(
    {
        "red": "crimson scarlet ruby reddish vermilion maroon burgundy",
        "orange": "tangerine",
        "yellow": "golden yellowish amber blond blonde",
        "gold": "golden",
        "green": "emerald greenish jade",
        "blue": "azure navy cobalt sapphire bluish cerulean ultramarine",
        "cyan": "turquoise teal aqua aquamarine",
        "purple": "violet lilac lavender mauve purplish magenta indigo",
        "pink": "pinkish magenta fuchsia",
        "brown": "brownish tan beige bronze",
        "white": "ivory whitish",
        "black": "ebony blackish",
        "grey": "gray greyish grayish",
        "silver": "silvery",
    }
)
"""Word -> families; two words name the same colour if they share one."""

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_TENS = "ten twenty thirty forty fifty sixty seventy eighty ninety hundred"
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
NUMBERS = {
    **{word: str(value) for value, word in enumerate(f"{_ONES} seventeen eighteen nineteen".split())},
    **{word: str(10 * value) for value, word in enumerate(_TENS.split(), 1)},
    "thousand": "1000",
    "million": "1000000",
    "dozen": "12",
    **dict.fromkeys(word_set("pair pairs couple both twin twins twice double duo"), "2"),
    **dict.fromkeys(word_set("trio triple triplets thrice"), "3"),
    **dict.fromkeys(word_set("single lone solitary"), "1"),
    **{word: f"{value}th" for value, word in enumerate(_ORDINALS.split())},
}
"""Word -> value; ordinals are values of their own, such as 2th."""
SOFT_ONES = word_set("a an one single lone solitary another 1")
"""What says that there is one; but for the figure it may come where the caption has no number."""
PAIRED = word_set(
    "scissors pants trousers glasses sunglasses spectacles jeans shorts pliers tongs binoculars goggles tweezers "
    "shears shoes boots socks gloves mittens sandals slippers skis skates tights leggings headphones"
)
"""What comes in pairs, so that "a pair of" is no number."""
_DIGITS = re.compile(r"(\d[\d.,]*\d|\d)(st|nd|rd|th)?")


def digits(word: str) -> list[str]:
    """The values of the figures in a word: "1,000" -> 1000, "22nd" -> 22th, "6x7=42" -> 6, 7, 42."""
    found = []
    for figure, ordinal in _DIGITS.findall(word):
        whole = re.sub(r"[.,](?=\d{3}(?!\d))", "", figure)
        found.append((whole.lstrip("0") or "0") + ("th" if ordinal else ""))
    return found


DENIALS = word_set(
    "no not n't nt never without neither nor none nothing nobody nowhere cannot lack lacking missing absent "
    "forbid forbidden prohibit prohibited ban banned disallow disallowed"
)

_SIDES = (
    *("to the {} of", "to the {} side of", "on the {} side of", "on the {} of", "at the {} of", "in the {} of"),
    *("{} of", "{} to"),
)
_ITS_SIDES = ("to {its} {side}", "on {its} {side} side", "on {its} {side}", "at {its} {side}")
RELATIONS: dict[str, tuple[str, bool]] = {
    **{phrase.format(side): (side, False) for side in ("left", "right") for phrase in _SIDES},
    **dict.fromkeys(("above", "over", "on top of", "on the top of", "at the top of", "atop"), ("above", False)),
    **dict.fromkeys(("below", "under", "beneath", "underneath", "at the bottom of"), ("below", False)),
    "in front of": ("front", False),
    **dict.fromkeys(("behind", "in back of", "at the back of"), ("behind", False)),
    **dict.fromkeys(("on", "onto"), ("on", False)),
    **dict.fromkeys(("in", "inside", "inside of", "into", "within"), ("in", False)),
    **dict.fromkeys(("near", "next to", "beside", "close to", "alongside", "adjacent to"), ("near", False)),
    **dict.fromkeys(("far from", "far away from", "away from"), ("far", False)),
    **dict.fromkeys(("outside", "outside of"), ("outside", False)),
    **{
        phrase.format(its=its, side=side): (side, True)
        for side in ("left", "right")
        for its in ("its", "his", "her", "their")
        for phrase in _ITS_SIDES
    },
    **dict.fromkeys(("on top", "on its top", "at its top"), ("above", True)),
    "at its bottom": ("below", True),
}
"""Phrase -> (where the first thing is, seen from the second; whether the second is not named after it)."""
INVERSES = {"right": "left", "below": "above", "behind": "front"}
PLACES = frozenset({"left", "above", "front", "far", "outside"})
"""Relations that must stay and may not come."""
LOOSE_PLACES = frozenset({"on", "in", "near"})
"""Relations that verbs say as well (a vase holds flowers): they may go and come, but not become another place."""
SYMMETRICAL = frozenset({"near", "far"})
ENDS_IN_NOUN = frozenset({"inside", "outside"})
"""Relations only if a thing follows: "a man inside"."""
PRONOUNS = word_set("it them him her itself themselves himself herself")

PLAIN = word_set(
    # pictures of things, kinds and amounts of things
    "picture image photo photograph photography drawing illustration painting icon emoji symbol cartoon view scene "
    "shot depiction graphic sight example kind type sort form piece group bunch set number lot thing object item "
    "something "
    "colour color colored coloured shade hue tone side part way shape style look appearance version whole "
    # articles, pronouns, auxiliaries, particles and the like that taggers take for content
    "a an the this that these those it its itself they them their he him his she her hers we our us who whom whose "
    "which what there here be is are was were been being am do does did have has had having can could will would may "
    "might must shall should and or but nor so as at by for from in into of off on onto out to toward towards "
    "upon with via than then when while where how also too very quite rather really just only even still some any "
    "all each every other another such own same certain various several many much few more most less least "
    "let get 's s ' t "
    # verbs that say no more than that something is there
    "show see look depict display feature portray represent illustrate call name know make sit lie stand rest contain "
    "hold wear consist include place position locate find seem appear become give take put use come go keep fill "
    # praise
    "nice beautiful lovely pretty good great amazing wonderful cute simple typical common special visible "
    "away back along around about near next close beside alongside adjacent like"
)
"""Words that may come and go: they name nothing in a picture that is not named otherwise."""

PERMISSIONS = word_set("allow permit")
"""What may come with a denial: no smoking, smoking is not allowed."""

KEPT = word_set("between inside outside up down")
"""Small words that must stay, though they may come: "standing" is "standing up"."""

ADJECTIVES = word_set("big small large tiny huge little medium dark")
"""What the tagger takes for a noun at times, as in "the big emerald box" and "medium skin tone"."""

HUMANS = word_set("woman man girl boy person lady child kid female male baby people")
"""Before another noun these say what it is, too: a woman artist is a woman."""

OPPOSITES = frozenset(
    frozenset(pair.split("/"))
    for pair in word_set(
        "male/female man/woman boy/girl left/right leftward/rightward leftwards/rightwards light/dark up/down "
        "upward/downward upwards/downwards open/closed open/close upper/lower north/south east/west northern/southern "
        "eastern/western top/bottom front/back front/rear big/small large/small large/tiny hot/cold day/night "
        "happy/sad young/old husband/wife son/daughter uncle/aunt brother/sister king/queen prince/princess "
        "actor/actress waiter/waitress monarch/queen mother/father grandmother/grandfather push/pull before/after "
        "plus/minus summer/winter snow/winter clockwise/counterclockwise mermaid/merman"
    )
)
"""Words that embeddings hold for near and that mean something else."""
