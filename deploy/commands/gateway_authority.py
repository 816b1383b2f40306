"""What the gateway signs leases and receipts with, from the settings; checked before it starts."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durabill.producers.gateway.authority import AuthorityConfig
    from durabill.stream_processors.settings import Settings


def authority_of(settings: "Settings", *, are_leases_required: bool) -> "AuthorityConfig":
    """Return what a gateway signs with; keys that nobody has named are made in the data folder.

    Raises SigningKeyError for a file that can't be used.
    """
    from durabill.deploy.files import data_folder
    from durabill.producers.gateway.authority import AuthorityConfig
    from durabill.producers.gateway.key_files import ensure_keys, read_keys
    from durabill.producers.gateway.key_sets import Kind

    for kind, file, is_named in (
        (Kind.LEASE, settings.lease_keys, settings.lease_keys_file),
        (Kind.RECEIPT, settings.receipt_keys, settings.receipt_key_file),
    ):
        if not is_named:
            data_folder(Path(settings.data_dir))
            ensure_keys(file, kind)
        read_keys(file, kind)  # what is wrong with it is told before anything else
    return AuthorityConfig(
        lease_keys_file=settings.lease_keys,
        receipt_keys_file=settings.receipt_keys,
        lease_ms=round(settings.lease_s * 1000),
        are_leases_required=are_leases_required,
    )
