"""`durabill clients`: which clients are about to lose data, by what they say of themselves."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from durabill.deploy.commands.common import AS_JSON, with_settings
from durabill.deploy.terminal import emit, human_ms, shown, why_not
from durabill.schemas.errors import DurabillError

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings

TIMEOUT_S = 15.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024
_LINE_CHARS = 1_000
"""Rows are uncut: a terminal wraps them."""
_BAD = ("LOSING", "AT_RISK")


class GatewayUnknown(DurabillError):
    """A gateway can't be asked, or doesn't answer as one; exit code 2."""

    exit_code = 2


@with_settings("gateway_host", "gateway_port")
def clients(
    settings: "Settings",
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            help="A gateway's URL, once for each. Default: --gateway-host, --gateway-port."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with an API key of scope admin, where gateways ask for one."),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Show at most so many; 0 shows all.")] = 50,
    as_json: AS_JSON = False,
) -> None:
    """Show the clients that are about to lose data: what waits on their disks, what was refused.

    Clients say so with their uploads; each gateway keeps the latest word of each client that has
    spoken to it, since it was started. LOSING: segments were refused. AT_RISK: the oldest one has
    waited for more than half of the time in which it is taken. SILENT: segments waited when the
    client was heard last. Exit code 1 if one is LOSING or AT_RISK.

        durabill clients --gateway https://billing.example --token-file admin.key
    """
    urls = gateway or [_own_url(settings.gateway_host, settings.gateway_port)]
    token = "" if token_file is None else _token(token_file)
    answers = [_ask(each, token) for each in urls]
    found = sorted(
        (client for answer in answers for client in answer["clients"]),
        key=lambda each: (_order(each["risk"]), -each["oldest_ms"]),
    )
    count = sum(answer["client_count"] for answer in answers)
    if as_json:
        emit({"clients": found, "client_count": count, "gateways": urls})
    else:
        _show(found[: rows or None], count, answers)
    if any(each["risk"] in _BAD for each in found):
        raise typer.Exit(1)


def _own_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _order(risk: str) -> int:
    risks = ("LOSING", "AT_RISK", "SILENT", "OK")
    return risks.index(risk) if risk in risks else len(risks)


def _token(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GatewayUnknown(f"the token file {file} can't be read") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for this gateway alone."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _ask(url: str, token: str) -> dict[str, Any]:
    """Return what a gateway says of its clients. Raises GatewayUnknown."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/v1/clients", headers=headers)
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S) as reply:
            answer = json.loads(reply.read(ANSWER_BYTES_MAX))
        rows = [_checked(each) for each in answer["clients"]]
        return {
            "clients": rows,
            "client_count": int(answer["client_count"]),
            "since_ms": int(answer["since_ms"]),
            "server_timestamp_ms": int(answer["server_timestamp_ms"]),
        }
    except urllib.error.HTTPError as error:
        hint = "; --token-file gives a key of scope admin" if error.code in (401, 403) else ""
        raise GatewayUnknown(f"the gateway at {url} answers {error.code}{hint}") from error
    except (OSError, ValueError) as error:
        hint = "Is it running there? --gateway names another"
        why = why_not(error)
        raise GatewayUnknown(f"the gateway at {url} can't be asked: {why}. {hint}") from error
    except (LookupError, TypeError, RecursionError) as error:
        raise GatewayUnknown(f"what answers at {url} is no gateway of this version") from error


def _checked(client: Any) -> dict[str, Any]:
    """Return a client with the fields that are shown, all of their kinds."""
    texts = {name: str(client[name]) for name in ("tenant", "client", "name", "risk")}
    counts = {name: int(client[name]) for name in ("seen_ms", "pending", "oldest_ms", "suspends")}
    bound = client["clock_bound_ms"]
    refused = {str(reason): int(count) for reason, count in client["refused"].items()}
    return {
        **texts,
        **counts,
        "refused": refused,
        "clock_bound_ms": None if bound is None else float(bound),
    }


def _show(found: list[dict[str, Any]], count: int, answers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not found:
        since = human_ms(max(each["server_timestamp_ms"] - each["since_ms"] for each in answers))
        print(f"No client has said anything of itself for {since}.", flush=True)
        return
    now_ms = max(each["server_timestamp_ms"] for each in answers)
    table = Table(box=None, pad_edge=False)
    for name in ("", "client", "pending", "oldest", "refused", "clock", "suspends", "heard"):
        justify: Literal["left", "right"] = "left" if name in ("", "client", "refused") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for each in found:
        who = "/".join(filter(None, (each["tenant"], each["client"], each["name"])))
        refused = ", ".join(f"{reason} {times:,}" for reason, times in each["refused"].items())
        bound = each["clock_bound_ms"]
        table.add_row(
            each["risk"],
            shown(who),
            f"{each['pending']:,}",
            human_ms(each["oldest_ms"]) if each["pending"] else "",
            shown(refused) if refused else "",
            "" if bound is None else f"±{bound:,.0f} ms",
            f"{each['suspends']:,}",
            f"{human_ms(max(0, now_ms - each['seen_ms']))} ago",
        )
    width = max(Console().width, _LINE_CHARS)
    Console(width=width, markup=False, highlight=False).print(table)
    if count > len(found):
        print(f"... and {count - len(found):,} more", flush=True)
