"""`durabill keys`: API keys, and the keys that sign the sealed log, leases and receipts."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from durabill.deploy.commands.api_keys import (
    GRACE_DAYS,
    GraceDays,
    create,
    list_keys,
    revoke,
    rotate_api_key,
)
from durabill.deploy.commands.common import AS_JSON, with_settings
from durabill.deploy.commands.signing_keys import KeyKind, make_file, public_of, rotate_file
from durabill.deploy.terminal import answer, say

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings

keys_app = typer.Typer(
    no_args_is_help=True,
    help="API keys, by which the gateway knows who asks (`durabill keys create`), and the keys that"
    " sign seal, receipts and leases (`durabill keys make`).",
)
keys_app.command("create")(create)
keys_app.command("list")(list_keys)

Made = Annotated[Path, typer.Argument(metavar="FILE", help="File that is made, with mode 600.")]
KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A key file.")]


@keys_app.command("make")
def make(
    file: Made,
    kind: Annotated[
        KeyKind, typer.Option(help="What the key is to sign: the sealed log, receipts, leases.")
    ] = KeyKind.SEAL,
    name: Annotated[
        str, typer.Option(help="A seal's name: who signs, such as billing.example.")
    ] = "durabill-seal",
    as_json: AS_JSON = False,
) -> None:
    """Make a key file, and print the public key, which whoever verifies needs.

    The file is for its owner alone, and is never overwritten. Keep a copy where nobody else gets
    at it; hand the public key out, by another way than the receipts. A key of leases has no public
    half: gateways alone read leases, and all of one deployment need the same file.

        durabill keys make seal.key --name billing.example
        durabill keys make leases.json --kind lease
    """
    made = make_file(file, kind, name)
    say(f"{file} has the private key." + (" The public key:" if made.public else ""))
    answer(made.fields, made.public or f"key {made.fields['kids'][0]}", as_json)


@keys_app.command("public")
def public(file: KeyFile, as_json: AS_JSON = False) -> None:
    """Print the public key of a key file; of receipts all of them, as a JWK set.

    durabill keys public seal.key > seal.pub
    """
    found = public_of(file)
    answer(found.fields, found.public, as_json)


@keys_app.command("rotate")
@with_settings("lease_s", "api_keys_file", "data_dir")
def rotate(
    settings: "Settings",
    old: Annotated[
        Path,
        typer.Argument(metavar="OLD", help="A key file that has signed; or an API key's id."),
    ],
    new: Annotated[
        Path | None,
        typer.Argument(metavar="NEW", help="For the seal: file that is made, with mode 600."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Drop a key of leases though leases of it still hold.")
    ] = False,
    grace_days: GraceDays = GRACE_DAYS,
    as_json: AS_JSON = False,
) -> None:
    """Make a new key, which takes over from the old one, and print what is public of it.

    The seal's goes into a new file: both keys sign the hand-over, which a sealer publishes, so
    whoever has one of the two public keys can check what the other signs. Start the sealer with
    the new file, and keep the old one in a safe place, or destroy it.

    Keys of leases and receipts are changed in their own file, while gateways run: these read it
    within two seconds, and the new key signs a minute later, so that all of them know it by then.
    Bring copies of the file to other machines within that minute. Old keys of receipts stay
    public; of leases the two newest hold.

    An API key is named by its id. The new one is for the same, and is shown this once; both are
    live until the grace is over.

        durabill keys rotate seal.key seal-2.key
        durabill keys rotate leases.json
        durabill keys rotate 3k9w5m2x7q4t --grace-days 7
    """
    if new is None and not old.exists() and os.sep not in str(old):
        rotate_api_key(settings, str(old), grace_days, as_json=as_json)
        return
    told = rotate_file(old, new, lease_s=settings.lease_s, force=force)
    where = told.fields["key_file"]
    if new is not None:
        say(f"{where} has the new private key, and the hand-over. The new public key:")
    else:
        say(f"{where} has a new key; it signs in a minute.")
    answer(told.fields, told.public or f"key {told.fields['kids'][0]}", as_json)


keys_app.command("revoke")(revoke)
