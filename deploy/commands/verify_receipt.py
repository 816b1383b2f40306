"""`durabill verify-receipt`: are the segments in the log that a gateway says it has stored?"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from durabill.deploy.commands.common import AS_JSON, CONNECTION, located, with_settings
from durabill.deploy.terminal import emit, human_time, say, shown, why_not

if TYPE_CHECKING:
    from durabill.schemas.upload_receipt import ReceiptUpload, UploadReceipt
    from durabill.stream_processors.audit.upload_proof import Proof
    from durabill.stream_processors.settings import Settings

KEYS_BYTES_MAX = 1024 * 1024
KEYS_PATH = "/v1/receipt-keys"
_TIMEOUT_S = 15.0


@with_settings(*CONNECTION, "archive_dir")
def verify_receipt(
    settings: "Settings",
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The receipt, or an answer that has it; - is standard input."
        ),
    ],
    keys: Annotated[
        str, typer.Option(help="The gateway's public keys: a file, or where it is.", metavar="KEYS")
    ],
    archive: Annotated[
        Path | None,
        typer.Option(help="An archive, for what Kafka has deleted. Default: --archive-dir."),
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Prove a receipt of an upload against the log: that Kafka has these very segments.

    The signature is checked with the keys; get them from whoever bills you. Then the records at
    the receipt's offsets are read, from Kafka or from an archive, and compared with it: order,
    numbers, and the digest of their bytes. Without Kafka's address the archive is all there is.
    Exit code 0 if it is proven, 1 if it isn't, 2 if nobody can tell.

        durabill verify-receipt receipt.txt --keys https://billing.example/v1/receipt-keys
        durabill verify-receipt receipt.txt --keys keys.json --archive /srv/archive --json
    """
    from durabill.schemas.errors import DurabillError
    from durabill.schemas.upload_receipt import NotSigned, read_public_keys, read_upload_receipt
    from durabill.stream_processors.audit.upload_proof import CannotTell, Log, NotThere, prove

    archive = archive or (Path(settings.archive_dir) if settings.archive_dir else None)
    try:
        trusted = read_public_keys(_keys(keys))
        receipt = read_upload_receipt(_token(_read(file)), trusted)
        log = Log(located(settings), receipt.topic, archive)
        proofs = [prove(log, each) for each in receipt.uploads]
    except (NotSigned, NotThere) as error:
        _tell({"result": "not proven", "error": str(error)}, as_json)
        raise
    except DurabillError as error:
        _tell({"result": "unknown", "error": str(error)}, as_json)
        raise CannotTell(f"nobody can tell: {error}") from error
    _show(receipt, proofs, as_json)
    if not all(not each.why_not for each in proofs) or not proofs:
        raise typer.Exit(1)


def _tell(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(value)


def _show(receipt: "UploadReceipt", proofs: "list[Proof]", as_json: bool) -> None:
    is_proven = bool(proofs) and not any(each.why_not for each in proofs)
    if as_json:
        emit(
            {
                "result": "proven" if is_proven else "not proven",
                "signed_ms": receipt.iat_ms,
                "tenant": receipt.ten,
                "client": receipt.cli,
                "topic": receipt.topic,
                "uploads": [_as_json(each) for each in proofs],
            }
        )
        return
    who = shown(f"{receipt.ten}/{receipt.cli}" if receipt.cli else receipt.ten)
    lines = [
        "PROVEN" if is_proven else "NOT PROVEN",
        f"Signed {human_time(receipt.iat_ms)} UTC for {who}, topic {shown(receipt.topic)}.",
        *map(_in_words, proofs),
    ]
    if is_proven:
        lines.append("Not proven: what they are billed as. `durabill order NUMBER` tells it.")
    print("\n".join(lines), flush=True)
    if not proofs:
        say("It is a receipt of nothing.")


def _as_json(proof: "Proof") -> dict[str, Any]:
    upload = proof.upload
    return {
        "service_order_number": upload.ord,
        "partition": upload.par,
        "offsets": list(upload.off),
        "numbers": [list(each) for each in upload.num],
        "records": upload.count,
        "sha256": upload.sha256,
        "result": "not proven" if proof.why_not else "proven",
        "source": proof.source,
        "why_not": proof.why_not or None,
    }


def _in_words(proof: "Proof") -> str:
    upload = proof.upload
    what = f"order {shown(upload.ord)}, {_numbers(upload)}"
    where = f"partition {upload.par}, offsets {upload.off[0]} to {upload.off[1]}"
    if proof.why_not:
        return f"  NOT there: {what}, {where}: {proof.why_not}"
    return f"  in {proof.source}: {what}, {where}"


def _numbers(upload: "ReceiptUpload") -> str:
    ranges = [
        f"{first}" if first == last else f"{first} to {last}" for first, last in upload.num[:5]
    ]
    more = " and more" if len(upload.num) > len(ranges) else ""
    word = "segment" if upload.count == 1 else "segments"
    return f"{word} {', '.join(ranges)}{more}"


def _read(file: str) -> bytes:
    from durabill.schemas.upload_receipt import NoReceipt

    if file == "-":
        return sys.stdin.buffer.read(16 * KEYS_BYTES_MAX)
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise NoReceipt(f"{file} can't be read: {error.strerror}") from error


def _token(content: bytes) -> str:
    """Return the receipt in a file: the file itself, or the field `receipt` of an answer."""
    from durabill.schemas.upload_receipt import NoReceipt

    try:
        text = content.decode().strip()
        found = json.loads(text) if text.startswith("{") else {"receipt": text}
        token = found["receipt"]
    except (ValueError, KeyError, RecursionError) as error:
        raise NoReceipt("it is no receipt of an upload, nor an answer that has one") from error
    if not isinstance(token, str):
        raise NoReceipt("the answer has no receipt")
    return token


def _keys(where: str) -> bytes:
    """Return the content of a file, or of what a gateway's address gives."""
    from durabill.schemas.upload_receipt import NoReceipt

    if not where.startswith(("http://", "https://")):
        try:
            return Path(where).read_bytes()
        except OSError as error:
            raise NoReceipt(f"the keys {where} can't be read: {error.strerror}") from error
    import urllib.request

    parts = urlsplit(where)
    url = where if parts.path not in ("", "/") else where.rstrip("/") + KEYS_PATH
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            content: bytes = answer.read(KEYS_BYTES_MAX)
    except (OSError, ValueError) as error:
        raise NoReceipt(f"the keys can't be had from {parts.hostname}: {why_not(error)}") from error
    return content
