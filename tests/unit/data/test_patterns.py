import pytest

from trainyard.data.patterns import PATTERNS, Patterns

ALL = Patterns({p.code for p in PATTERNS})


def names(text: str) -> list[str]:
    return [finding.pattern.name for finding in ALL.find(text)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("key AKIAQ7ZP2MX4KD8WN3VB.", "aws_key"),
        ("ghp_" + "a1B2" * 9, "github_token"),
        ("glpat-" + "x1Y2" * 5, "gitlab_token"),
        ("xoxb-123456789012-abc", "slack_token"),
        ("AIza" + "aB3_d" * 7, "google_key"),
        ("sk_live_" + "aB3d" * 5, "stripe_key"),
        ("hf_" + "aBcDe" * 7, "hub_token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private_key"),
        ("postgres://ann:hunter22@db.internal/x", "url_password"),
        ('api_key = "q8Zr4Lw0Xc7Vb2Nm"', "assigned_secret"),
        ("to ann.b@mail.example.org now", "email"),
        ("call +49 30 1234 5678", "phone"),
        ("call (212) 555-0123", "us_phone"),
        ("card 4111 1111 1111 1111", "card"),
        ("IBAN DE89 3704 0044 0532 0130 00", "iban"),
        ("SSN 123-45-6789", "ssn"),
        ("电话13812345678邮箱", "cn_mobile"),  # no word boundary in Unicode's sense
        ("身份证11010519491231002X", "cn_id"),
        ("Shut up, you bastard.", "curse"),
        ("I'll kill you.", "threat"),
    ],
)
def test_each_kind_is_found(text: str, name: str) -> None:
    assert name in names(text)


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112",  # Luhn
        "IBAN DE88 3704 0044 0532 0130 00",  # mod 97
        "身份证110105194912310021",  # check digit
        "SSN 666-45-6789",
        "password: correct-horse-battery",  # words, not a secret
        "order TY-3486 of 2024-11-20, 3.14159265358979",
        "f(x) = {y: [1, 2, 3]} and a | b <tag>",
        "sk-learn-is-a-python-library-name",
        "a probability of 0.13812345678 or 4.4111111111111111",
    ],
)
def test_what_only_looks_alike_is_left_alone(text: str) -> None:
    assert names(text) == []


def test_a_finding_is_never_shown_whole() -> None:
    for finding in ALL.find("AKIAQ7ZP2MX4KD8WN3VB ann@example.org 4111 1111 1111 1111"):
        shown = finding.masked.replace("…", "")
        assert len(shown) < len(finding.text) / 2


def test_special_tokens_of_the_tokenizer_are_looked_for() -> None:
    assert not ALL.find("a </s> b")
    assert Patterns(["special_tokens"], ["</s>"]).find("a </s> b")
