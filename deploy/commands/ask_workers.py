"""Which workers there are, and what they say of an order: all of them are asked at once."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durabill.deploy.terminal import why_not

if TYPE_CHECKING:
    from durabill.schemas.order_state import OrderState
    from durabill.stream_processors.settings import Settings

TIMEOUT_S = 3.0
AT_ONCE_MAX = 64
ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""A worker's status has some 500 bytes a partition."""

_FAULTS = (OSError, ValueError, RecursionError, http.client.HTTPException)
"""What a server that is away, stuck or no worker brings about; HTTPError is one of them."""

NOT_KNOWN = "the worker does not know it: never seen, or settled long ago"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for the workers alone."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def known_workers(settings: "Settings") -> list[str]:
    """Return the workers' addresses: those that are set, else those in the data folder."""
    urls = [each.strip() for each in settings.worker_urls.split(",") if each.strip()]
    return urls or local_workers(settings)


def local_workers(settings: "Settings") -> list[str]:
    """Return the web addresses of this deployment's workers that run from the data folder.

    Another user's folder names none: whoever is asked is given the workers' token.
    """
    from durabill.deploy.local.stack import birth_mark

    folder = workers_dir(settings)
    urls = []
    for path in sorted(folder.glob("*.json")) if _is_ours(folder) else ():
        try:
            record = json.loads(path.read_text())
            url, pid, mark = str(record["url"]), int(record["pid"]), record["birth_mark"]
        except (OSError, ValueError, RecursionError, LookupError, TypeError):
            continue  # being written, gone by now, or no worker's word
        if birth_mark(pid) == mark:
            urls.append(url)
        else:
            path.unlink(missing_ok=True)  # it was killed
    return urls


def _is_ours(folder: Path) -> bool:
    try:
        return {each.stat().st_uid for each in (folder, folder.parent)} == {os.geteuid()}
    except OSError:
        return False


def workers_dir(settings: "Settings") -> Path:
    """Return the folder where this deployment's workers leave word of themselves."""
    return Path(settings.data_dir) / "workers" / settings.application_id


def ask_workers(urls: Sequence[str], token: str, number: str) -> "tuple[OrderState | None, str]":
    """Return the live state of an order from the worker that owns it, or None and why not."""
    if not urls:
        return None, "no worker is known (DURABILL_WORKER_URLS)"
    with ThreadPoolExecutor(min(len(urls), AT_ONCE_MAX)) as pool:
        answers = list(pool.map(lambda url: _ask(url, token, number), urls))
    states = [state for state, _ in answers if state is not None]
    if states:
        return max(states, key=lambda state: state.source_offset), ""
    reasons = [why for _, why in answers]
    return None, NOT_KNOWN if NOT_KNOWN in reasons else "; ".join(reasons)


def _ask(url: str, token: str, number: str) -> "tuple[OrderState | None, str]":
    import msgspec

    from durabill.producers.sdk.http_uplink import quote_order_number
    from durabill.schemas.order_state import OrderState
    from durabill.schemas.web import PAGE_MAX

    path = f"/orders/{quote_order_number(number)}?limit={PAGE_MAX}"
    until_s = time.monotonic() + TIMEOUT_S
    try:
        return msgspec.convert(_get(url, token, path, until_s), OrderState), ""
    except urllib.error.HTTPError as error:
        return None, _refusal(url, error, until_s)
    except msgspec.ValidationError as error:
        return None, f"{url}: no worker of this version: {error}"
    except _FAULTS as error:
        return None, f"{url}: {error}"


def ask_page(url: str, token: str, path: str, timeout_s: float = TIMEOUT_S) -> tuple[Any, str]:
    """Return the JSON of a worker's page, whether it says 200 or 503; or None and why not.

    Takes little more than `timeout_s`, and no answer of more than `ANSWER_BYTES_MAX`.
    """
    until_s = time.monotonic() + timeout_s
    try:
        try:
            found = _get(url, token, path, until_s)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return None, _refusal(url, error, until_s).removeprefix(f"{url}: ")
            found = _read_json(error, until_s)
        return found, "" if found is not None else "it answers with nothing: it is no worker"
    except _FAULTS as error:
        return None, why_not(error)


def _get(url: str, token: str, path: str, until_s: float) -> Any:
    """Return the JSON of a page; raise HTTPError for all but 200, and one of _FAULTS for no answer.

    Whoever catches the HTTPError has to read or to close it.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(_NoRedirects())
    request = urllib.request.Request(url.rstrip("/") + path, headers=headers)
    return _read_json(opener.open(request, timeout=until_s - time.monotonic()), until_s)


def _read_json(response: Any, until_s: float) -> Any:
    with response:
        return json.loads(_read(response, until_s))


def _read(response: Any, until_s: float) -> bytes:
    """Read a body to its end, unless that takes too long or it is too large."""
    body = b""
    while piece := response.read1(65_536):
        body += piece
        if len(body) > ANSWER_BYTES_MAX or time.monotonic() > until_s:
            raise ValueError("no end of its answer: it is no worker, or stuck")
    return body


def _refusal(url: str, error: urllib.error.HTTPError, until_s: float) -> str:
    try:
        told = _read_json(error, until_s)
        reason, detail = told["reason"], told["detail"]
    except (*_FAULTS, KeyError, TypeError):
        return f"{url}: status {error.code}"
    if error.code == 401:
        return f"{url}: it asks for its token (DURABILL_WORKER_TOKEN)"
    return NOT_KNOWN if reason == "UNKNOWN_ORDER" else f"{url}: {detail}"
