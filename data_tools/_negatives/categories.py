"""Words of one category that exclude each other, by lemmas; only of these one is put for another."""

from __future__ import annotations

from data_tools._english.words import word_set


def _groups(*lines: str) -> dict[str, tuple[str, ...]]:
    """Word -> the words that may stand for it: those of its line in another member; "a=b" are one member."""
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        members = [member.split("=") for member in line.split()]
        for member in members:
            others = tuple(other[0] for other in members if other is not member)
            found |= {word: found.get(word, ()) + others for word in member}
    return found


COLOURS = {
    **dict.fromkeys(("white", "black"), 4),
    **dict.fromkeys(("red", "blue", "green"), 3),
    **dict.fromkeys(("brown", "yellow"), 2),
    **dict.fromkeys(("orange", "pink", "purple", "grey"), 1),
}
"""Weights, about as often as captions name them: colours that are rare in captions would give the change away."""

SIZES = _groups(
    "big=large=huge=giant=enormous=massive=gigantic small=little=tiny=mini=miniature",
    "tall short",
    "long short",
    "wide=broad narrow",
    "thick thin",
    "fat thin=slim=skinny",
    "high low",
    "deep shallow",
    "larger=bigger smaller",
    "largest=biggest smallest",
    "taller shorter",
    "longer shorter",
)

_COMMON_MATERIALS = ("wooden", "metal", "plastic", "glass", "stone")
MATERIALS = {
    word: tuple(other for other in _COMMON_MATERIALS if other != own)
    for own, words in {
        **dict.fromkeys(("wooden", "plastic", "glass"), ""),
        "metal": "metallic steel",
        "stone": "brick concrete marble",
        "": "leather paper rubber ceramic cardboard",
    }.items()
    for word in word_set(f"{own} {words}")
}

TIMES = _groups(
    "morning=evening afternoon",
    "sunny rainy foggy",
    "rainy sunny",
    "cloudless=clear cloudy=overcast",
    "summer winter",
    "spring autumn=fall",
    "monday tuesday wednesday thursday friday saturday sunday",
    "january april july october december",
    "breakfast dinner=supper lunch",
    "midnight noon=midday",
    "daytime nighttime",
)

NOUN_OPPOSITES = _groups(
    "man=guy=gentleman woman=lady",
    "boy girl",
    "husband wife",
    "king queen",
    "prince princess",
    "mother=mom=mum father=dad",
    "grandmother=grandma grandfather=grandpa",
    "son daughter",
    "brother sister",
    "uncle aunt",
    "actor actress",
    "bride groom",
    "waiter waitress",
    "male female",
    "adult child",
    "bull cow",
    "rooster=cock hen",
    "angel devil",
    "entrance exit",
    "floor ceiling",
    "winner loser",
    "mermaid merman",
)

ADJECTIVE_OPPOSITES = {"bright": ("dark", "dim"), "heavy": ("light",)} | _groups(
    "male female",
    "young=teenage elderly=old",
    "new=modern=recent ancient=old=antique=vintage",
    "open=opened closed=shut",
    "hot=warm=heated cold=chilly=icy",
    "wet=damp dry",
    "clean=spotless dirty=muddy=filthy",
    "full empty",
    "happy=smiling=cheerful=laughing sad=crying=frowning angry",
    "light dark",
    "hard soft=fluffy",
    "rough smooth",
    "fast slow",
    "rich poor",
    "strong weak",
    "indoor outdoor",
    "sharp blunt",
    "asleep=sleeping awake",
    "alive=living dead",
    "upper lower",
    "front rear",
    "northern southern",
    "eastern western",
    "ripe unripe",
    "raw cooked=roasted=grilled=fried=baked",
    "broken intact",
    "busy=crowded deserted",
    "tidy=neat messy=untidy",
    "locked unlocked",
    "solid hollow",
    "round square",
    "bald bearded=hairy",
    "beautiful=pretty ugly",
    "good bad",
    "safe dangerous",
    "sweet sour",
    "horizontal vertical",
)
OF_LIVING, OF_THINGS = word_set("young elderly"), word_set("new ancient")
"""Which of them are said of what lives alone, and which of nothing that does."""

VERB_OPPOSITES = _groups(
    "sit stand lie",
    "walk run",
    "run walk stand",
    "smile=grin frown=cry=weep",
    "laugh cry",
    "open close=shut",
    "push pull",
    "enter exit=leave",
    "climb descend",
    "throw catch",
    "float sink",
    "buy sell",
    "win lose",
    "arrive=come depart=leave",
    "build destroy=demolish",
    "accept refuse",
    "love hate",
    "appear disappear",
)
BODILY = word_set("sit stand lie jump run walk")
"""Not of what does not live: a bowl that sits on a table stands there."""

RELATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("above", "over"), ("below", "under")),
    **dict.fromkeys(("on top of", "atop"), ("under", "behind")),
    "below": ("above",),
    **dict.fromkeys(("under", "underneath", "beneath"), ("on top of", "above")),
    "in front of": ("behind",),
    **dict.fromkeys(("behind", "in back of"), ("in front of",)),
    "on": ("under", "behind", "in front of"),
    "in": ("outside", "behind", "in front of"),
    **dict.fromkeys(("inside", "within", "inside of"), ("outside",)),
    **dict.fromkeys(("outside", "outside of"), ("inside",)),
    "into": ("out of",),
    "onto": ("off",),
    **dict.fromkeys(
        ("near", "next to", "beside", "close to", "alongside", "adjacent to"), ("far from", "under", "on top of")
    ),
    **dict.fromkeys(("far from", "far away from", "away from"), ("near", "next to")),
    "out of": ("into",),
    "off": ("onto",),
    **dict.fromkeys(("toward", "towards"), ("away from",)),
    "up": ("down",),
    "down": ("up",),
    "without": ("with",),
}
"""Phrase -> what cannot be true with it. Not "without" for "with": models would learn that denials are always false."""

SET_PHRASES = word_set(
    "day night morning evening afternoon noon background foreground distance middle center centre air front side top "
    "bottom back corner edge end way time weekend sunset sunrise dusk dawn rest variety "
    "silhouette position pose formation motion progress bloom flight pieces direction directions massage haircut"
)
"""Nouns after prepositions for which no others stand: "on a sunny day", "in the background"."""
LOOSE_PLACES = SET_PHRASES | word_set(
    "shirt t-shirt suit hat cap jacket coat dress skirt jeans pants trousers shorts uniform helmet sweater hoodie "
    "vest boots shoes gloves scarf tie costume outfit glasses sunglasses robe apron bikini swimsuit wetsuit gown "
    "blouse tuxedo hood mask crown kimono sari turban veil overalls pajamas pyjamas clothes clothing attire gear "
    "fire tv television phone cellphone computer internet display sale vacation trip tour duty foot hand mouth sky sun "
    "rain snow wind dark shade world city country line row rows circle style half system "
    "love mirror picture photo image hands arms color colour"
)
"""Nouns before which "in" and "on" tell no place that can be turned."""
