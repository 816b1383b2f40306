"""`durabill keys`: the keys that sign the sealed log."""

from pathlib import Path
from typing import Annotated

import typer

from durabill.deploy.commands.common import AS_JSON
from durabill.deploy.terminal import answer, say

keys_app = typer.Typer(
    no_args_is_help=True, help="Make and change the key that `durabill seal` signs with."
)

Made = Annotated[Path, typer.Argument(metavar="FILE", help="File that is made, with mode 600.")]
KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A key file.")]


@keys_app.command("make")
def make(
    file: Made,
    name: Annotated[
        str, typer.Option(help="The key's name: who signs, such as billing.example.")
    ] = "durabill-seal",
    as_json: AS_JSON = False,
) -> None:
    """Make a key file, and print the public key, which whoever verifies needs.

    The file is for its owner alone, and is never overwritten. Keep a copy where nobody else gets
    at it; hand the public key out, by another way than the receipts.

        durabill keys make seal.key --name billing.example
    """
    from durabill.stream_processors.audit.seal.keys import make_key_file

    public = make_key_file(file, name)
    say(f"{file} has the private key. The public key:")
    answer({"key_file": str(file), "public_key": str(public)}, str(public), as_json)


@keys_app.command("public")
def public(file: KeyFile, as_json: AS_JSON = False) -> None:
    """Print the public key of a key file.

    durabill keys public seal.key > seal.pub
    """
    from durabill.stream_processors.audit.seal.keys import read_key_file

    found = read_key_file(file)
    key = str(found.key.public)
    before = [str(each) for each in found.trusted[1:]]
    answer({"public_key": key, "earlier_public_keys": before}, key, as_json)


@keys_app.command("rotate")
def rotate(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The key file that has signed.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="File that is made, with mode 600.")],
    as_json: AS_JSON = False,
) -> None:
    """Make a new key, to which the old one hands over, and print the new public key.

    Both keys sign the hand-over, which goes into the new file; a sealer publishes it. So whoever
    has one of the two public keys can check what the other signs. Start the sealer with the new
    file, and keep the old one in a safe place, or destroy it.

        durabill keys rotate seal.key seal-2.key
    """
    from durabill.stream_processors.audit.seal.keys import rotate_key_file

    key = rotate_key_file(old, new)
    say(f"{new} has the new private key, and the hand-over. The new public key:")
    answer({"key_file": str(new), "public_key": str(key)}, str(key), as_json)
