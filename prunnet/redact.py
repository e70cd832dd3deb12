"""Credentials of URLs, masked wherever a URL is shown or kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

HIDDEN = "***"
Value = TypeVar("Value")

_NAMES = (
    r"[\w.-]*(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|signature|api[_-]?key|access[_-]?key(?:[_-]?id)?"
    r"|account[_-]?key|private[_-]?key)|user(?:name)?|sig|key|auth|sas|expires|policy|key-pair-id|x-(?:amz|goog)-[\w-]+"
)
"""Names of query parameters that hold a credential or that belong to one (a signature's time and policy)."""
_USERINFO = re.compile(
    r"(?<=[a-z0-9+.-]):(/{1,3})"  # one slash: a URL that went through pathlib
    r"(?:[^\s/?#]*@"  # user:password@, up to the last @ of the authority
    r"|[^\s/?#:@]*:(?!\d+(?:[/?#]|$))(?:(?!://)[^\s@])*@)",  # a password that holds a slash, and is no port
    re.IGNORECASE,
)
_PARAMETER = re.compile(rf"([?&;](?:{_NAMES})=)[^\s&;#'\"]*", re.IGNORECASE)
_AZURE = re.compile(r"([?&](?:se|st|sp|sv|sr|spr|skoid|sktid|skt|ske|sks|skv)=)[^\s&;#'\"]*", re.IGNORECASE)
_SAS = re.compile(r"[?&]sig=", re.IGNORECASE)
_PAIR = re.compile(
    r"((?<![\w/.-])(?:password|passwd|passphrase|pwd|aws_secret_access_key|secret_access_key|account_key|sas_token)"
    r"['\"]?\s*[=:]\s*['\"]?)(?!//)[^\s&;,'\"]+",
    re.IGNORECASE,
)
_AWS_ID = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")


def shown(value: Value) -> Value:
    """A text, path (as text) or JSON value as it may be printed, kept and hashed: users, passwords and tokens of URLs,
    and what names itself a password, are `***`. A value without any of them is returned unchanged."""
    if isinstance(value, str):
        return _shown(value)  # type: ignore[return-value]
    if hasattr(value, "joinpath"):  # pathlib's, or one of an object store, which is none of pathlib's
        return _shown(str(value))  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {shown(key): shown(item) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        return type(value)(shown(item) for item in value)
    return value


def _shown(text: str) -> str:
    if ":/" in text:
        text = _USERINFO.sub(rf":\g<1>{HIDDEN}@", text)
        if _SAS.search(text):
            text = _AZURE.sub(rf"\g<1>{HIDDEN}", text)
        text = _PARAMETER.sub(rf"\g<1>{HIDDEN}", text)
    text = _PAIR.sub(rf"\g<1>{HIDDEN}", text)
    return _AWS_ID.sub(HIDDEN, text)


def is_masked(text: str) -> bool:
    """Whether a URL holds a mask in the place of a credential."""
    return "://" in text and (f"://{HIDDEN}@" in text or f"={HIDDEN}" in text)


def restored(value: Any, known: Any) -> Any:
    """A value that `shown` masked, with the credentials of the texts in `known`, which it was made from."""
    secrets = {shown(text): text for text in _texts(known) if shown(text) != text}

    def put_back(item: Any) -> Any:
        if isinstance(item, str):
            return secrets.get(item, item)
        if isinstance(item, Mapping):
            return {key: put_back(below) for key, below in item.items()}
        if isinstance(item, (list, tuple)):
            return type(item)(put_back(below) for below in item)
        return item

    return put_back(value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return []
