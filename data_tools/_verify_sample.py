"""One sample by the loader's own rules: everything in it is decoded, and every defect has the loader's kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vlp.data.captions import SampleTexts
from vlp.data.pictures import Picture
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample, decode_text


@dataclass
class SampleCheck:
    """What a sample holds. ``defects`` are (kind, detail); ``image`` is the picture the loader takes, if it can."""

    extension: str
    image: Image.Image | None = None
    captions: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    defects: list[tuple[str, str]] = field(default_factory=list)


def check_sample(members: Mapping[str, bytes], sources: Sequence[str]) -> SampleCheck:
    """Decode all pictures, the text, the JSON and the captions of ``sources`` (``txt``, ``json.FIELD``)."""
    pictures = [extension for extension in IMAGE_EXTENSIONS if extension in members]
    check = SampleCheck(pictures[0])
    for extension in pictures:
        try:
            image = Image.fromarray(Picture(members[extension]).pixels()[0])
        except BadSample as bad:
            check.defects.append((bad.kind, f"{extension}: {bad.detail}"))
        else:
            check.image = image if extension == check.extension else check.image
    _check_texts(check, members, sources)
    return check


def _check_texts(check: SampleCheck, members: Mapping[str, bytes], sources: Sequence[str]) -> None:
    texts = SampleTexts(members)
    try:
        check.record = texts.record()
    except BadSample as bad:
        check.defects.append((bad.kind, bad.detail))
    text, unreadable = "", False
    try:
        text = decode_text(members.get("txt", b""))
    except BadSample as bad:
        check.defects.append((bad.kind, bad.detail))
        unreadable = True
    for source in sources:
        try:
            check.captions += texts.of(source)
        except BadSample:  # noted above
            unreadable = True
    # As the loader does: what is empty falls back to the .txt, and only without that the sample is of no use.
    if not text and not unreadable and not (check.captions and all(check.captions)):
        check.defects.append(("empty caption" if check.captions or "txt" in members else "no caption", ""))
    check.captions = [caption for caption in check.captions or [text] if caption]
