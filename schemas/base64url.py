"""base64url without padding (RFC 4648, section 5), as JOSE writes it."""

import base64


def encode64(data: bytes) -> str:
    """Return bytes in base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
