"""The languages that Whisper has, what else their codes are written as, and how their texts are.

Not every model knows all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Whisper's code, and after it ISO 639's others: two letters where those differ, withdrawn ones,
# three letters (639-2, in both forms), and the main language of a group (639-3).
_ROWS = """
af afr, am amh, ar ara arb, as asm, az aze azj, ba bak, be bel, bg bul, bn ben, bo bod tib, br bre,
bs bos, ca cat, cs ces cze, cy cym wel, da dan, de deu ger, el ell gre, en eng, es spa,
et est ekk, eu eus baq, fa fas per pes, fi fin, fo fao, fr fra fre, gl glg, gu guj, ha hau, haw,
he heb iw, hi hin, hr hrv, ht hat, hu hun, hy hye arm, id ind in, is isl ice, it ita, ja jpn,
jw jav jv, ka kat geo, kk kaz, km khm, kn kan, ko kor, la lat, lb ltz, ln lin, lo lao, lt lit,
lv lav lvs, mg mlg plt, mi mri mao, mk mkd mac, ml mal, mn mon khk, mr mar, ms msa may zsm, mt mlt,
my mya bur, ne nep npi, nl nld dut, nn nno, no nor nb nob, oc oci, pa pan, pl pol, ps pus, pt por,
ro ron rum mo mol, ru rus, sa san, sd snd, si sin, sk slk slo, sl slv, sn sna, so som, sq sqi alb,
sr srp, su sun, sv swe, sw swa swh, ta tam, te tel, tg tgk, th tha, tk tuk, tl tgl fil, tr tur,
tt tat, uk ukr, ur urd, uz uzb uzn, vi vie, yi yid ydd ji, yo yor, yue, zh zho chi cmn
"""
_WHISPER = {code: row.split()[0] for row in _ROWS.split(",") for code in row.split()}
LANGUAGES = frozenset(_WHISPER.values())


def whisper_code(tag: str) -> str | None:
    """Whisper's code of a language tag such as `pt`, `pt-BR`, `zh_Hant` or `nob`; None: none.

    Case does not matter, and neither does what comes after the language: Whisper has no regions.
    """
    return _WHISPER.get(tag.strip().lower().replace("_", "-").partition("-")[0])


def allowed() -> str:
    """Whisper's codes, for a message."""
    return ", ".join(sorted(LANGUAGES))


# Scripts written without spaces: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
UNSPACED = re.compile(
    "[\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Where one of these meets anything, no space stands between sentences either: CJK punctuation,
# kana, Han, full-width forms. (Thai and its neighbours do put one between phrases.)
_CLOSE = re.compile(
    "[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)


def join_texts(texts: Iterable[str]) -> str:
    """Pieces of one text, in order, with a space between them where the script has one."""
    joined = ""
    for text in filter(None, texts):
        apart = joined and not _CLOSE.match(joined[-1]) and not _CLOSE.match(text[0])
        joined += f" {text}" if apart else text
    return joined
