"""`durabill keys create`, `list`, `revoke`, and `rotate` of an API key: who may ask the gateway."""

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.api_key_file import change_key_file, read_key_file
from durabill.deploy.commands.common import AS_JSON, with_settings
from durabill.deploy.terminal import answer, emit, say
from durabill.schemas.errors import SettingsError

if TYPE_CHECKING:
    from durabill.producers.gateway.auth.api_keys import ApiKey, ScopeName
    from durabill.stream_processors.settings import Settings

_MS_PER_DAY = 86_400_000
_DAYS_MAX = 36_500.0
_LINE_CHARS = 160
GRACE_DAYS = 7.0
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id: what follows dbk_.")]
GraceDays = Annotated[
    float,
    typer.Option(
        min=0,
        max=_DAYS_MAX,
        metavar="DAYS",
        help="Of an API key: how long the old one goes on beside the new one.",
    ),
]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@with_settings("api_keys_file", "data_dir")
def create(
    settings: "Settings",
    tenant: Annotated[str, typer.Option(help="Whose orders it is for: letters, digits, . _ -")],
    client: Annotated[str, typer.Option(help="Who of them will have it: for people to read.")],
    scopes: Annotated[
        str, typer.Option(help="What it is for: report, read, admin; several with commas.")
    ] = "report,read",
    expires_days: Annotated[
        float | None,
        typer.Option(min=0, max=_DAYS_MAX, metavar="DAYS", help="When it ends. Default: never."),
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Make an API key, and print it. It is shown this once: only its hash is kept.

    report starts orders and uploads segments, read shows what the tenant's orders come to, admin
    sees every tenant's. A gateway with DURABILL_GATEWAY_AUTH=keys takes it a second later.

        durabill keys create --tenant acme --client meters-berlin --scopes report,read
    """
    from durabill.producers.gateway.auth.key_changes import create as created

    names = _checked(tenant, client, scopes)
    now_ms = _now_ms()
    expires_ms = None if expires_days is None else now_ms + round(expires_days * _MS_PER_DAY)

    def change(file: Any) -> Any:
        new, shown, kept = created(
            file,
            tenant,
            client,
            names,
            now_ms=now_ms,
            expires_ms=expires_ms,
            entropy=os.urandom,
        )
        return new, (shown, kept)

    shown, kept = change_key_file(settings.api_keys_path, change)
    say(f"{settings.api_keys_path} has its hash. The key, which is shown this once:")
    answer({"key": shown, **_told(kept, now_ms)}, shown, as_json)


def rotate_api_key(settings: "Settings", key_id: str, grace_days: float, *, as_json: bool) -> None:
    """Make a key in place of another one, and print it; the other ends after the grace."""
    from durabill.producers.gateway.auth.key_changes import rotate as rotated

    key_id, now_ms = _id(key_id), _now_ms()

    def change(file: Any) -> Any:
        new, shown, kept = rotated(
            file,
            key_id,
            now_ms=now_ms,
            grace_ms=round(grace_days * _MS_PER_DAY),
            entropy=os.urandom,
        )
        return new, (shown, kept)

    shown, kept = change_key_file(settings.api_keys_path, change)
    say(
        f"key {key_id} ends in {grace_days:g} days; until then both are live. The new one, which is"
        " shown this once:"
    )
    answer({"key": shown, **_told(kept, now_ms), "replaces": key_id}, shown, as_json)


@with_settings("api_keys_file", "data_dir")
def revoke(settings: "Settings", key_id: KeyId, as_json: AS_JSON = False) -> None:
    """End an API key now: a gateway takes it for a second more, and never again.

    durabill keys revoke 3k9w…
    """
    from durabill.producers.gateway.auth.key_changes import revoke as revoked

    key_id, now_ms = _id(key_id), _now_ms()
    kept = change_key_file(settings.api_keys_path, lambda file: revoked(file, key_id, now_ms))
    told = f"key {key_id} of {kept.client} ({kept.tenant}) opens nothing any more"
    answer(_told(kept, now_ms), told, as_json)


@with_settings("api_keys_file", "data_dir")
def list_keys(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Show all API keys: whose they are, what they are for, until when. None shows a secret.

    durabill keys list
    """
    now_ms = _now_ms()
    keys = [_told(each, now_ms) for each in read_key_file(settings.api_keys_path).keys]
    if as_json:
        emit({"file": str(settings.api_keys_path), "keys": keys})
        return
    if not keys:
        say(f"there is no key in {settings.api_keys_path}; `durabill keys create` makes one")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="API keys", title_justify="left", box=None)
    for name in ("id", "tenant", "client", "scopes", "state", "made", "ends"):
        table.add_column(name, no_wrap=True)
    for each in keys:
        ends_ms = each["revoked_ms"] or each["expires_ms"]
        scopes, times = ", ".join(each["scopes"]), (each["created_ms"], ends_ms)
        names = (each["id"], each["tenant"], each["client"])
        table.add_row(*names, scopes, each["state"], *map(_day, times))
    Console(width=max(Console().width, _LINE_CHARS)).print(table)


def _told(key: "ApiKey", now_ms: int) -> dict[str, Any]:
    """Return what may be shown of a key: all but its hash."""
    if key.revoked_ms is not None:
        state = "revoked"
    elif not key.is_live(now_ms):
        state = "expired"
    else:
        state = "live" if key.replaced_by is None else f"replaced by {key.replaced_by}"
    return {
        "id": key.id,
        "tenant": key.tenant,
        "client": key.client,
        "scopes": list(key.scopes),
        "state": state,
        "created_ms": key.created_ms,
        "expires_ms": key.expires_ms,
        "revoked_ms": key.revoked_ms,
        "replaced_by": key.replaced_by,
    }


def _day(time_ms: int | None) -> str:
    if time_ms is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_ms / 1000))


def _id(text: str) -> str:
    from durabill.producers.gateway.auth.api_keys import PREFIX, is_key_id, looks_secret

    if looks_secret(text):
        raise SettingsError(
            [
                "that is a key, not its id, and every user of this machine can read a command line:"
                " say the 12 characters between dbk_ and the next _, and revoke the key if others"
                " may have seen it"
            ]
        )
    key_id = text.removeprefix(PREFIX)
    if not is_key_id(key_id):
        raise SettingsError([f"{text!r} is no id of an API key; `durabill keys list` shows them"])
    return key_id


def _checked(tenant: str, client: str, scopes: str) -> "tuple[ScopeName, ...]":
    """Return the scopes; raise SettingsError with all that is wrong."""
    from durabill.producers.gateway.auth.api_keys import SCOPE_NAMES, is_client
    from durabill.schemas.tenants import is_tenant

    problems = []
    if not is_tenant(tenant):
        problems.append(f"--tenant {tenant!r}: 1 to 64 letters, digits, dots, _ and - are allowed")
    if not client or not is_client(client):
        problems.append(f"--client {client!r}: 1 to 64 letters, digits, dots, _ and - are allowed")
    wanted = {each.strip() for each in scopes.split(",") if each.strip()}
    if not wanted or not wanted <= set(SCOPE_NAMES):
        problems.append(f"--scopes {scopes!r}: one or more of {', '.join(SCOPE_NAMES)}")
    if problems:
        raise SettingsError(problems)
    return tuple(each for each in SCOPE_NAMES if each in wanted)
