"""Texts on which tokenizers disagree: a fixed list, and random strings of awkward characters."""

from __future__ import annotations

import random
import unicodedata

FIXED = [
    "ನಮಸ್ಕಾರ, ಹೇಗಿದ್ದೀರಿ? ಕನ್ನಡ ೧೨೩೪೫",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🧑🏿‍⚕️",
    "zero\u200bwidth\u200d\u200cjoin\ufeffbom\u2060",
    "a  b   c    d     \t\t e \n\n\n f   ",
    "1 12 123 1234 12345 1234567890 3.14 1,000,000 ½ ² Ⅷ ٣४",
    "I'll you've he's it'S WE'RE don'T 'tis ''s 'd'd o'clock I’m",
    "<|eot_id|> <|eot_id <|start_header_id|>user<|end_header_id|> <|im_end|> </s> <s> [INST] <0x0A> <|endoftext|>",
    "line\r\nline\r\n\r\nline\rline\n\r\n",
    "caf\u00e9 cafe\u0301 \u212b \u0041\u030a \uac00 \u1100\u1161",
    "\u00a0nbsp\u2003em\u3000ideo \u0085 nel \u2028 ls \u1680",
    "ｆｕｌｌ　ｗｉｄｔｈ 漢字かな交じり文 한국어 العربية עברית ไทย हिन्दी",
    "\x01\x07\x1b[0m\x7f",
    "ﬁ ǅ ŉ İ ı ẞ ß Σσς",
    "__init__(self, *args) -> None: # TODO !!!???...---===",
    *["", "   ", "\n", " a", " \n a", "\t", "''''"],
    "ÀÉÎ ÑANDÚ Ünder a\u0300\u0301\u0302b",
    "𝕳𝖊𝖑𝖑𝖔 𐍈 \ue000",
]
_POOLS = [
    "abcdefghij",
    "ABCDEF",
    "0123456789",
    "     ",
    "\n\r\t ",
    "'",
    "'s't're've'm'll'd",
    '!?.,;:-_()[]{}<>|/\\"`~@#$%^&*+=',
    "ನಮಸಕರಹಗದಾಿೀುೂೆೇೈೊೋೌ್ಂಃ೧೨೩",
    "\u200b\u200c\u200d\ufe0f",
    "👍👨👩👧🏽😀",
    "éèüñçøåßÀÉ",
    "\u0301\u0308\u0323",
    "漢字かなカナ한글",
    "عربيةעברית",
    "\u00a0\u2003\u3000\u0085\u2028",
    "½²Ⅷ٣४",
]
_LOOK_ALIKES = ["<|eot_id|>", "<|im_end|>", "<|eot_id", "</s>", "<s>", "<think>"]


def random_strings(count: int, seed: int = 1) -> list[str]:
    """Of all of Unicode that this Python knows, and of characters that pre-tokenizers treat apart."""
    draw = random.Random(seed)
    known = [chr(c) for c in range(1, 0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    made = []
    for number in range(count):
        if number % 10 == 0:
            text = "".join(draw.choices(known[:12000], k=draw.randint(1, 30)))
        elif number % 10 == 1:
            text = "".join(draw.choices(known, k=draw.randint(1, 15)))
        else:
            pools = draw.choices(_POOLS, k=draw.randint(1, 5))
            text = "".join(draw.choice(draw.choice(pools)) for _ in range(draw.randint(1, 60)))
        if number % 7 == 0:
            text += draw.choice(_LOOK_ALIKES) + text[:5]
        made.append(text)
    return made
