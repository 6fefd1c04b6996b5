"""About how many tokens a text has, by its script, where the model's tokenizer is not at hand. Pure.

Languages differ: English has blanks between words, each about a token; Chinese and Japanese have none. The factors are fitted to the
tokenizers of Qwen, DeepSeek, Llama 3, Mistral (tekken) and GPT-4o over 250 paragraphs a language of Debian's manuals and the shipped
text: their mean is met within 6% in English, Chinese, Japanese, Korean and French (median error of a paragraph 4 to 8%), 15% in
German and Russian.
"""

import re
from typing import Final

_LATIN: Final = "A-Za-z\u00c0-\u024f\u1e00-\u1eff"
_CJK: Final = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANAS: Final = "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HANGULS: Final = "\uac00-\ud7af\u1100-\u11ff\u3130-\u318f"
# Greek to Ethiopic, with the marks that belong to their letters.
_OTHERS: Final = "\u0370-\u10ff\u1200-\u1dff\u1f00-\u1fff"
_LATIN_WORD: Final = re.compile(f"[{_LATIN}]+")
_ACCENTED: Final = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_HAN: Final = re.compile(f"[{_CJK}]")
_KANA: Final = re.compile(f"[{_KANAS}]")
_HANGUL: Final = re.compile(f"[{_HANGULS}]")
_OTHER: Final = re.compile(f"[{_OTHERS}]")
_DIGITS: Final = re.compile(r"\d+")
_MARK: Final = re.compile(rf"[^\w\s{_OTHERS}]|_")

_SHORT_WORD: Final = 8  # letters; what a word has more costs more tokens
_TOKENS_A_WORD, _TOKENS_A_FURTHER_LETTER, _TOKENS_A_MARK = 1.0, 0.3, 0.8
_TOKENS_A_HAN, _TOKENS_A_KANA, _TOKENS_A_HANGUL = 0.74, 0.64, 0.74
_TOKENS_AN_ACCENT, _TOKENS_AN_OTHER = 0.35, 0.34
_DIGITS_A_TOKEN: Final = 2


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has; at least 1."""
    words = [match.end() - match.start() for match in _LATIN_WORD.finditer(text)]
    digits = sum(-(-(match.end() - match.start()) // _DIGITS_A_TOKEN) for match in _DIGITS.finditer(text))
    found = (
        _TOKENS_A_WORD * len(words)
        + _TOKENS_A_FURTHER_LETTER * sum(max(0, length - _SHORT_WORD) for length in words)
        + _TOKENS_A_MARK * len(_MARK.findall(text))
        + digits
    )
    if not text.isascii():
        found += _TOKENS_A_HAN * len(_HAN.findall(text)) + _TOKENS_A_KANA * len(_KANA.findall(text))
        found += _TOKENS_A_HANGUL * len(_HANGUL.findall(text)) + _TOKENS_AN_OTHER * len(_OTHER.findall(text))
        found += _TOKENS_AN_ACCENT * len(_ACCENTED.findall(text))
    return max(1, round(found))
