"""Patterns found in text: secrets, personal data, template tokens, refusals, placeholders.

One RE2 set scans a row once; a hit is then located and, where a check digit or entropy can tell,
verified. A finding is never shown whole. Names and addresses of persons are not covered.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import re2

SEPARATOR = "\x02"
"""Stands between prompt and answer in the text that is scanned."""


def luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [
        d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(digits[::-1])
    ]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """ISO 13616 check: mod 97 of the rearranged number is 1."""
    compact = text.replace(" ", "").upper()
    number = "".join(str(int(c, 36)) for c in compact[4:] + compact[:4])
    return 15 <= len(compact) <= 34 and int(number) % 97 == 1


def chinese_id(text: str) -> bool:
    """GB 11643-1999 check digit."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(w * int(c) for w, c in zip(weights, text[:17], strict=True))
    return "10X98765432"[total % 11] == text[17].upper()


def social_security(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def random_looking(text: str) -> bool:
    """Entropy over 3 bits per character, and both letters and digits: not a word or a variable."""
    value = text.rsplit("=", 1)[-1].rsplit(":", 1)[-1].strip(" \"'")
    counts = Counter(value)
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return entropy > 3.0 and any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def _always(_: str) -> bool:
    return True


@dataclass(frozen=True)
class Pattern:
    name: str
    code: str
    regex: str
    holds: Callable[[str], bool] = _always
    number: bool = False
    """Digits that are no part of a longer number, as 13812345678 is of 0.13812345678."""


PATTERNS = (
    Pattern("aws_key", "secret", r"\b(AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
    Pattern("github_token", "secret", r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})"),
    Pattern("gitlab_token", "secret", r"\bglpat-[\w-]{20,}"),
    Pattern("slack_token", "secret", r"\bxox[abeoprs]-[\w-]{10,}"),
    Pattern("google_key", "secret", r"\bAIza[\w-]{35}"),
    Pattern("stripe_key", "secret", r"\b[rs]k_(live|test)_[A-Za-z0-9]{16,}"),
    Pattern("api_key", "secret", r"\bsk-[\w-]{20,}", random_looking),
    Pattern("hub_token", "secret", r"\bhf_[A-Za-z0-9]{30,}"),
    Pattern("private_key", "secret", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    Pattern("jwt", "secret", r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    Pattern(
        "url_password", "secret", r"\b[a-z][a-z0-9+]{1,12}://[\w.%-]{1,64}:[^\s:@/]{4,64}@[\w.-]+"
    ),
    Pattern(
        "assigned_secret",
        "secret",
        r"(?i)\b(password|passwd|secret|api[_-]?key|access[_-]?token|auth[_-]?token)[\"']?\s{0,3}"
        r"[:=]\s{0,3}[\"']?[\w/+.=~-]{12,}",
        random_looking,
    ),
    Pattern(
        "email",
        "pii",
        r"\b[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b",
    ),
    Pattern("phone", "pii", r"\+\d{1,3}[ .-]?\(?\d{1,4}\)?([ .-]?\d{2,4}){2,4}\b"),
    Pattern("us_phone", "pii", r"(\(\d{3}\) ?|\b\d{3}-)\d{3}-\d{4}\b"),
    Pattern("card", "pii", r"\b[3-6]\d{3}([ -]?\d{4}){2}[ -]?\d{1,7}\b", luhn, number=True),
    Pattern("iban", "pii", r"\b[A-Z]{2}\d{2}( ?[A-Z0-9]{4}){2,7}( ?[A-Z0-9]{1,3})?\b", iban),
    Pattern("ssn", "pii", r"\b\d{3}-\d{2}-\d{4}\b", social_security),
    Pattern("cn_mobile", "pii", r"\b1[3-9]\d{9}\b", number=True),
    Pattern("cn_id", "pii", r"\b[1-9]\d{5}(19|20)\d{9}[\dXx]\b", chinese_id, number=True),
    Pattern("template_token", "special_tokens", r"<\|[A-Za-z_][\w]{1,30}\|>"),
    Pattern("turn_token", "special_tokens", r"<(start|end)_of_turn>|\[/?INST\]|<</?SYS>>"),
    Pattern(
        "refusal",
        "refusal",
        r"(?i)\x02\s*((i['\x{2019}]m|i am) (sorry|afraid|unable)\b.{0,40}"
        r"\b(can['\x{2019}]t|cannot|unable|not able)"
        r"|i (can['\x{2019}]t|cannot|won['\x{2019}]t) (help|assist|provide|comply|fulfill|do that)"
        r"|as an ai( language)? (model|assistant)"
        r"|(i['\x{2019}]m|i am) (unable|not able) to (help|assist|provide|comply|fulfill)"
        r"|(很)?抱歉\x{ff0c}我(无法|不能))",
    ),
    Pattern(
        "slur", "toxic", r"(?i)\b(n[i1]gg(er|a)s?|f[a4]gg?[o0]ts?|k[i1]kes?|sp[i1]cs|ch[i1]nks?)\b"
    ),
    Pattern(
        "curse",
        "toxic",
        r"(?i)\b(fuck(ing|er|ed|s)?|motherfuckers?|shit(ty|head)?s?|assholes?|bitch(es)?|cunts?"
        r"|bastards?|whores?)\b",
    ),
    Pattern(
        "threat",
        "toxic",
        r"(?i)\b(kill yourself|go die|i(['\x{2019}]ll| will| am going to) (kill|hurt|rape|find) you"
        r"|you (deserve|should) (to )?die)\b",
    ),
    Pattern("braces", "placeholder", r"\{\{ ?[A-Za-z_][\w .]{0,40} ?\}\}"),
    Pattern(
        "insert",
        "placeholder",
        r"(?i)\[(insert|your|enter|add|fill in|placeholder)\b[^\]\n]{0,40}\]"
        r"|<(insert|your) [^>\n]{1,40}>",
    ),
    Pattern("lorem", "placeholder", r"(?i)\blorem ipsum dolor\b"),
)


@dataclass(frozen=True)
class Finding:
    pattern: Pattern
    start: int
    """In characters of the text given."""
    end: int
    text: str

    @property
    def masked(self) -> str:
        """First four and last two characters at most, and never half of the finding."""
        shown = 6 if len(self.text) >= 16 else 2
        return f"{self.text[: shown - 2]}…{self.text[-2:] if shown == 6 else ''}"


def _alone(text: str, start: int, end: int) -> bool:
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    return not (
        (before[-1:] in (".", ",") and before[:1].isdigit())
        or (after[:1] in (".", ",") and after[1:].isdigit())
    )


class Patterns:
    """The patterns whose code is looked for, and a tokenizer's own special tokens."""

    def __init__(self, codes: Iterable[str], special: Sequence[str] = ()) -> None:
        codes = frozenset(codes)
        patterns = [p for p in PATTERNS if p.code in codes]
        if "special_tokens" in codes:
            literal = sorted({s for s in special if len(s) > 2 and s.strip()})
            patterns += [
                Pattern("special_token", "special_tokens", re2.escape(token)) for token in literal
            ]
        self.patterns = patterns
        self.regexes: list[Any] = [re2.compile(p.regex) for p in patterns]
        self.set: Any = re2.Set.SearchSet()
        for pattern in patterns:
            self.set.Add(pattern.regex)
        self.set.Compile()

    def find(self, text: str, codes: frozenset[str] | None = None) -> list[Finding]:
        """Verified findings in one text."""
        hits = self.set.Match(text)
        return self.locate(text, hits, codes) if hits else []

    def locate(
        self, text: str, hits: Iterable[int], codes: frozenset[str] | None = None
    ) -> list[Finding]:
        found = []
        for i in sorted(hits):
            pattern = self.patterns[i]
            if codes is not None and pattern.code not in codes:
                continue
            for match in self.regexes[i].finditer(text):
                whole = not pattern.number or _alone(text, match.start(), match.end())
                if whole and pattern.holds(match.group()):
                    found.append(Finding(pattern, match.start(), match.end(), match.group()))
        return found

    def redact(self, text: str, codes: frozenset[str]) -> tuple[str, Counter[str]]:
        """`text` with each finding replaced by its name in brackets, and how many of each."""
        counts: Counter[str] = Counter()
        made, at = "", 0
        for finding in sorted(self.find(text, codes), key=lambda f: (f.start, -f.end)):
            if finding.start < at:
                continue
            made += f"{text[at : finding.start]}[{finding.pattern.name.upper()}]"
            at = finding.end
            counts[finding.pattern.name] += 1
        return made + text[at:], counts
