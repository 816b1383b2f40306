"""base64url without padding (RFC 4648, section 5), as JOSE writes it."""

import base64
import binascii


def encode64(data: bytes) -> str:
    """Return bytes in base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode64(text: str) -> bytes:
    """Return the bytes of such a text; raise ValueError for others, and where it has another form.

    So no two texts stand for the same: what is signed can't be written otherwise.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("no base64url") from error
    if encode64(data) != text:
        raise ValueError("no base64url in the one form that it has")
    return data
