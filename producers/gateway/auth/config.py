"""How a gateway is told who may ask it, and what is wrong with that. Pure but for `open_access`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from durabill.producers.gateway.auth.access import Access, AccessLimits, Clocks, TokenBook
from durabill.producers.gateway.auth.gcra import NS_PER_S
from durabill.producers.gateway.auth.issuer import KeyFile, KeySource, KeyUrl
from durabill.producers.gateway.auth.key_book import KeyBook
from durabill.producers.gateway.auth.tokens import TokenRules
from durabill.schemas.errors import SettingsError
from durabill.schemas.web import is_loopback

AuthMode = Literal["none", "keys", "jwt", "keys+jwt", "proxy"]
_SETTING = "DURABILL_GATEWAY_AUTH"
_WHAT_IT_IS = {
    "DURABILL_JWT_ISSUER": "the iss of the tokens that are taken",
    "DURABILL_JWT_AUDIENCE": "what their aud must name: this gateway",
}


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who may ask: see `DURABILL_GATEWAY_AUTH`.

    `keys_file` is for the modes with keys. Those with jwt need an issuer, an audience, and its JWK
    set at a URL or in a file.
    """

    mode: AuthMode = "none"
    keys_file: Path | None = None
    issuer: str = ""
    audience: str = ""
    tenant_claim: str = "tenant"
    jwks_url: str = ""
    jwks_file: Path | None = None
    limits: AccessLimits = field(default_factory=AccessLimits)

    @property
    def takes_keys(self) -> bool:
        """Whether API keys are taken."""
        return self.mode in ("keys", "keys+jwt")

    @property
    def takes_tokens(self) -> bool:
        """Whether an issuer's tokens are taken."""
        return self.mode in ("jwt", "keys+jwt")

    @property
    def knows_callers(self) -> bool:
        """Whether a caller has to show who it is."""
        return self.takes_keys or self.takes_tokens


def check_access(config: AccessConfig, host: str) -> None:
    """Raise SettingsError with all that is wrong, for a gateway that is to listen on `host`."""
    problems = [*_listening_problems(config, host), *_token_problems(config)]
    if config.takes_keys and config.keys_file is None:
        problems.append(f"{_SETTING}={config.mode} needs DURABILL_API_KEYS_FILE")
    if problems:
        raise SettingsError(problems)


def _listening_problems(config: AccessConfig, host: str) -> Iterator[str]:
    if config.mode == "none" and not is_loopback(host):
        yield (
            f"DURABILL_GATEWAY_HOST={host} lets others on the network bill under any order number:"
            f" set {_SETTING} to keys (`durabill keys create` makes one), to jwt or to keys+jwt; to"
            " proxy where a proxy in front of it lets in nobody else; or listen on 127.0.0.1"
        )


def _token_problems(config: AccessConfig) -> Iterator[str]:
    named = {
        "DURABILL_JWT_ISSUER": config.issuer,
        "DURABILL_JWT_AUDIENCE": config.audience,
        "DURABILL_JWKS_URL": config.jwks_url,
        "DURABILL_JWKS_FILE": config.jwks_file,
    }
    if not config.takes_tokens:
        for name, value in named.items():
            if value:
                yield f"{name} is set, but {_SETTING}={config.mode} takes no tokens"
        return
    for name, what in _WHAT_IT_IS.items():
        if not named[name]:
            yield f"{_SETTING}={config.mode} needs {name}: {what}"
    if not config.tenant_claim:
        yield "DURABILL_JWT_TENANT_CLAIM is empty: it names the claim that has a caller's tenant"
    if bool(config.jwks_url) == bool(config.jwks_file):
        yield (
            f"{_SETTING}={config.mode} needs one of DURABILL_JWKS_URL and DURABILL_JWKS_FILE: where"
            " the issuer's public keys are"
        )
    elif config.jwks_url:
        yield from _url_problems(config.jwks_url)


def _url_problems(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = None, None
    if parts is None or not host or parts.scheme not in ("http", "https"):
        yield "DURABILL_JWKS_URL is no URL: https://issuer.example/jwks.json"
    elif parts.username is not None or parts.password is not None:
        yield "DURABILL_JWKS_URL holds a user or a password: public keys need none"
    elif parts.scheme == "http" and not is_loopback(host):
        yield (
            "DURABILL_JWKS_URL is http: whoever is on the way could put keys of their own in, and"
            " make tokens for anybody. It must be https, but on this machine"
        )


def open_access(config: AccessConfig, clocks: Clocks | None = None) -> Access:
    """Return what lets callers in.

    Raises ApiKeyError or BadKeySet where a file of keys can't be used.
    """
    clocks = clocks or Clocks()
    keys = None
    if config.takes_keys:
        assert config.keys_file is not None
        keys = KeyBook(config.keys_file)
    tokens = None
    if config.takes_tokens:
        source: KeySource
        if config.jwks_file is None:
            monotonic_ns = clocks.monotonic_ns
            source = KeyUrl(config.jwks_url, clock_s=lambda: monotonic_ns() / NS_PER_S)
        else:
            source = KeyFile(config.jwks_file)
        rules = TokenRules(config.issuer, config.audience, config.tenant_claim)
        tokens = TokenBook(source, rules)
    return Access(keys, tokens, config.limits, clocks)
