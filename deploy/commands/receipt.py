"""`durabill receipt` and `durabill verify`: a total that anybody can check."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import AS_JSON, with_settings
from durabill.deploy.terminal import emit, human_ms, human_time, progress_bars, say, shown

if TYPE_CHECKING:
    from durabill.stream_processors.audit.seal.notes import PublicKey
    from durabill.stream_processors.audit.seal.receipt import Receipt, Verified
    from durabill.stream_processors.settings import Settings

PROOF_SUFFIX = ".tlog-proof"


@with_settings("totals_topic", "seal_dir", "data_dir")
def receipt(
    settings: "Settings",
    number: Annotated[str, typer.Argument(help="The service order number.")],
    revision: Annotated[
        int | None, typer.Option(min=1, help="This revision. Default: the latest that is sealed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"File to write. One that ends in {PROOF_SUFFIX} gets the proof alone."),
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Write an order's receipt: its total, the proof that it is sealed, the signed checkpoint.

    It is taken from the sealer's folder, or a copy of it; neither Kafka nor PostgreSQL is asked.
    Whoever gets it checks it with `durabill verify`, or with any tool for C2SP's tlog-proof format.
    Exit code 1 if the order isn't sealed.

        durabill receipt 01J9ZK3V5Q8W7N2M4R6T8Y0ABC --out receipt.txt
    """
    from durabill.stream_processors.audit.report_file import write_report_file
    from durabill.stream_processors.audit.seal.lookup import find_receipt

    with progress_bars(quiet=as_json) as progress:
        found = find_receipt(
            settings.seal_folder, settings.totals_topic, number, revision, progress
        )
    if found is None:
        which = "" if revision is None else f" revision {revision} of"
        say(f"There is no sealed total of{which} order {shown(number)}.")
        raise typer.Exit(1)
    if out is None and not as_json:
        print(found.text(), end="", flush=True)
        return
    if out is not None:
        text = found.proof_text() if out.suffix == PROOF_SUFFIX else found.text()
        write_report_file(out, text)
    if as_json:
        emit(_as_json(found, out))
    else:
        say(f"{out} has the receipt. To check it: durabill verify {out} --key PUBLIC-KEY")


def _as_json(found: "Receipt", out: Path | None) -> dict[str, Any]:
    from durabill.producers.fleet.truth_file import total_as_json
    from durabill.schemas import decode_total
    from durabill.stream_processors.audit.seal.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(found.note)
    return {
        "total": total_as_json(decode_total(found.value)),
        "index": found.index,
        "size": checkpoint.size,
        "origin": str(checkpoint.origin),
        "receipt": found.text(),
        "file": None if out is None else str(out),
    }


def verify(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The receipt; - is standard input.")],
    key: Annotated[
        str, typer.Option(help="The sealer's public key, or a file that has it.", metavar="PUB")
    ],
    order: Annotated[
        str | None, typer.Option(help="The order that the receipt must be of.", metavar="NUMBER")
    ] = None,
    hand_overs: Annotated[
        Path | None,
        typer.Option(help="File `hand-overs` of the sealer's folder: for a key that was changed."),
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Check a receipt without any server, and say what it proves.

    Get the public key from whoever bills you by another way than the receipt. Exit code 0 if the
    receipt is good, 1 if it doesn't prove what it says, 2 if it can't be read.

        durabill verify receipt.txt --key seal.pub
        durabill verify receipt.txt --key seal.pub --order 01J9ZK3V5Q8W7N2M4R6T8Y0ABC
    """
    from durabill.stream_processors.audit.seal.errors import NotVerified, Unreadable
    from durabill.stream_processors.audit.seal.receipt import read_receipt
    from durabill.stream_processors.audit.seal.receipt import verify as check

    keys = trusted_keys(key, hand_overs)
    try:
        found = read_receipt(_read(file))
        proven = check(found, keys, order)
    except (NotVerified, Unreadable) as error:
        if as_json:
            result = "unreadable" if isinstance(error, Unreadable) else "not verified"
            emit({"result": result, "error": str(error)})
        kind = "can't be read" if isinstance(error, Unreadable) else "is NOT verified"
        raise type(error)(f"{file} {kind}: {error}") from error
    if as_json:
        emit(_proven_as_json(proven))
        return
    print("\n".join(_in_words(proven)), flush=True)


def trusted_keys(key: str, hand_overs: Path | None) -> "tuple[PublicKey, ...]":
    """Return the key that is trusted, and those that hand-overs tie to it."""
    from durabill.stream_processors.audit.seal.keys import chain, read_public

    public = read_public(key)
    if hand_overs is None:
        return (public,)
    return chain(public, hand_overs.read_text(encoding="utf-8"))


def _read(file: str) -> bytes:
    from durabill.stream_processors.audit.seal.errors import Unreadable

    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise Unreadable(f"the file: {error.strerror}") from error


def _proven_as_json(proven: "Verified") -> dict[str, Any]:
    from durabill.producers.fleet.truth_file import total_as_json

    return {
        "result": "verified",
        "total": total_as_json(proven.total),
        "index": proven.index,
        "size": proven.checkpoint.size,
        "origin": str(proven.checkpoint.origin),
        "signed_by": str(proven.signer),
    }


def _in_words(proven: "Verified") -> list[str]:
    total, checkpoint = proven.total, proven.checkpoint
    origin = checkpoint.origin
    return [
        "VERIFIED",
        f"Order {shown(total.service_order_number)}, revision {total.revision}: {total.status},"
        f" {human_ms(total.duration_ms)} ({total.duration_ms:,} ms) are proven,",
        f"between {human_time(total.started_ms)} and {human_time(total.ended_ms)} UTC.",
        f"Evidence (SHA-256 of what was billed): {total.digest}",
        f"It is record {proven.index:,} of the {checkpoint.size:,} sealed of topic {origin.topic},"
        f" partition {origin.partition} (topic id {origin.topic_id}, cluster {origin.cluster}),",
        f"as {proven.signer.name}+{proven.signer.key_id.hex()} has signed.",
        "Not proven: that there is no later revision; and that others were shown the same log."
        " For that, keep this receipt: `durabill audit` holds the log to it.",
    ]
