"""What secrets look like, wherever they stand: own expressions for the formats that issuers document.

Which formats there are was taken from the rules of gitleaks (github.com/gitleaks/gitleaks, MIT licence) and
from GitHub's list of supported secret scanning patterns; none of their expressions is copied.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Shape(NamedTuple):
    """One kind of secret: how it looks, and what of it can be searched for fast, without lookaround."""

    pattern: str
    traces: tuple[str, ...]


#: No letter and no digit before: the beginning of a word.
_W: Final = r"(?<![A-Za-z0-9])"
#: Twenty characters or more, or eight or more with a digit among them.
_RUN: Final = r"(?:[A-Za-z0-9._~+/=-]{20,}|(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{8,})"


def _prefixed(*kinds: tuple[str, str]) -> Shape:
    """Return a shape of keys that begin in one of these ways and go on with such characters."""
    patterns = (re.escape(prefix) + rest for prefix, rest in kinds)
    return Shape(f"{_W}(?:{'|'.join(patterns)})", tuple(re.escape(prefix) for prefix, _ in kinds))


_WORD, _HEX, _URLSAFE = "[A-Za-z0-9]", "[0-9a-f]", "[A-Za-z0-9_-]"

SHAPES: Final[dict[str, Shape]] = {
    "sk- keys (OpenAI, Anthropic and others)": Shape(
        _W + r"sk-(?:[A-Za-z0-9_-]{20,}|(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{8,})", ("sk-",)
    ),
    "keys of model providers": _prefixed(
        ("gsk_", f"{_WORD}{{20,}}"),
        ("xai-", f"{_WORD}{{20,}}"),
        ("pplx-", f"{_WORD}{{20,}}"),
        ("nvapi-", f"{_URLSAFE}{{20,}}"),
        ("r8_", f"{_WORD}{{20,}}"),
        ("tgp_v1_", f"{_URLSAFE}{{20,}}"),
        ("tvly-", f"{_URLSAFE}{{16,}}"),
        ("lsv2_", f"(?:pt|sk)_{_HEX}{{32}}_{_HEX}{{10}}"),
    ),
    "bearer tokens": Shape(rf"(?:(?<=[Bb]earer )|(?<=BEARER )){_RUN}", ("earer ", "EARER ")),
    "basic credentials": Shape(
        r"(?:(?<=[Bb]asic )|(?<=BASIC ))(?P<basic>[A-Za-z0-9+/]{8,}={0,2})(?![A-Za-z0-9+/=])",
        ("(?:asic|ASIC) [A-Za-z0-9+/]{8}",),
    ),
    "AWS access key ids": Shape(
        _W + r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}(?![A-Za-z0-9])", ("AKIA", "ASIA", "ABIA", "ACCA")
    ),
    "signed URLs of clouds": Shape(
        r"(?<=[?&])(?P<field>(?:sig|X-Amz-Signature|X-Amz-Security-Token|X-Goog-Signature)=)[A-Za-z0-9%+/=_-]{16,}",
        ("sig=", "X-Amz-S", "X-Goog-S"),
    ),
    "Azure client secrets": Shape(
        r"(?<![A-Za-z0-9_~.-])[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}", ("Q~",)
    ),
    "GitHub tokens": Shape(
        _W + rf"(?:gh[pousr]_{_WORD}{{20,}}|github_pat_[A-Za-z0-9_]{{20,}})",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    ),
    "GitLab tokens": Shape(
        _W + rf"gl(?:pat|dt|rt|ptt|soat|ft|imt|cbt|agent|oas)-{_URLSAFE}{{16,}}",
        tuple(
            f"gl{kind}-" for kind in ("pat", "dt", "rt", "ptt", "soat", "ft", "imt", "cbt", "agent", "oas")
        ),
    ),
    "Slack tokens": Shape(
        _W + r"(?:xox[abdeoprs]-(?:[0-9]-)?|xapp-[0-9]-)[A-Za-z0-9-]{10,}",
        (*(f"xox{kind}-" for kind in "abdeoprs"), "xapp-"),
    ),
    "webhooks": Shape(
        r"(?P<hook>hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/webhooks/)"
        r"[A-Za-z0-9/_+-]{20,}",
        (r"hooks\.slack\.com/", "/api/webhooks/"),
    ),
    "Google API keys": Shape(
        _W + rf"(?:(?:AIza|1//0){_URLSAFE}{{30,}}|(?:GOCSPX-|ya29\.){_URLSAFE}{{20,}})",
        ("AIza", "GOCSPX-", r"ya29\.", "1//0"),
    ),
    "Hugging Face tokens": _prefixed(("hf_", f"{_WORD}{{20,}}"), ("api_org_", f"{_WORD}{{20,}}")),
    "Stripe keys": Shape(
        _W + rf"(?:[srp]k_(?:live|test)_{_WORD}{{10,}}|whsec_[A-Za-z0-9+/=]{{20,}})",
        ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "pk_live_", "pk_test_", "whsec_"),
    ),
    "npm tokens": _prefixed(("npm_", f"{_WORD}{{30,}}")),
    "keys of services": _prefixed(
        ("pypi-", f"{_URLSAFE}{{50,}}"),
        ("rubygems_", f"{_HEX}{{40,}}"),
        ("dckr_pat_", f"{_URLSAFE}{{20,}}"),
        ("dop_v1_", f"{_HEX}{{40,}}"),
        ("doo_v1_", f"{_HEX}{{40,}}"),
        ("dor_v1_", f"{_HEX}{{40,}}"),
        ("SG.", r"[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
        ("key-", f"{_HEX}{{32}}(?![A-Za-z0-9])"),
        ("shpat_", f"{_HEX}{{32}}"),
        ("shpss_", f"{_HEX}{{32}}"),
        ("shpca_", f"{_HEX}{{32}}"),
        ("shppa_", f"{_HEX}{{32}}"),
        ("sq0atp-", f"{_URLSAFE}{{22,}}"),
        ("sq0csp-", f"{_URLSAFE}{{22,}}"),
        ("ATATT3", "[A-Za-z0-9_=-]{20,}"),
        ("lin_api_", f"{_WORD}{{20,}}"),
        ("figd_", f"{_URLSAFE}{{20,}}"),
        ("PMAK-", f"{_HEX}{{24}}-{_HEX}{{34}}"),
        ("NRAK-", "[A-Z0-9]{27}"),
        ("glsa_", f"{_WORD}{{32}}_[A-Fa-f0-9]{{8}}"),
        ("sntrys_", "[A-Za-z0-9+/=_-]{20,}"),
        ("sntryu_", f"{_HEX}{{40,}}"),
        ("hvs.", f"{_URLSAFE}{{20,}}"),
        ("hvb.", f"{_URLSAFE}{{20,}}"),
        ("dp.pt.", f"{_WORD}{{40,}}"),
        ("dp.st.", r"(?:[a-z0-9_-]+\.)?[A-Za-z0-9]{40,}"),
        ("ops_eyJ", "[A-Za-z0-9+/=_-]{50,}"),
        ("sbp_", f"{_HEX}{{40}}"),
        ("pscale_", r"(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{30,}"),
        ("AGE-SECRET-KEY-1", "[A-Z0-9]{50,}"),
    ),
    "Twilio keys": Shape(_W + rf"SK{_HEX}{{32}}(?![A-Za-z0-9])", ("SK[0-9a-f]{8}",)),
    "Telegram bot tokens": Shape(_W + rf"[0-9]{{8,10}}:AA{_URLSAFE}{{33}}", (":AA",)),
    "JSON web tokens": Shape(_W + r"eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*", ("eyJ",)),
    "private keys in PEM": Shape(
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.*?"
        r"(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
        ("-----BEGIN ",),
    ),
    "passwords in URLs": Shape(r"(?<=://)(?P<user>[^\s/:@\"'<>]*:)[^\s/\"'<>]+(?=@)", ("://[^ /:@]*:",)),
}

ANY: Final = re.compile("|".join(shape.pattern for shape in SHAPES.values()), re.DOTALL)
