"""Whose an order is. Pure.

An order that was opened is its opener's. One that nobody opened is the tenant's that its number
begins with, as in `acme:meter-7`, and else the default tenant's. Gateway and worker both go by
this: what is another tenant's is to a caller as if it were not there.
"""

import re

from durabill.schemas.limits import TENANT_BYTES_MAX
from durabill.schemas.order_opened import DEFAULT_TENANT

TENANT_PATTERN = rf"[A-Za-z0-9._-]{{1,{TENANT_BYTES_MAX}}}"
_TENANT = re.compile(TENANT_PATTERN, re.ASCII)
_SEPARATOR = ":"


def is_tenant(name: str) -> bool:
    """Tell whether a text can be a tenant's name."""
    return _TENANT.fullmatch(name) is not None


def tenant_of(number: str, opened_by: str | None) -> str:
    """Return whose an order is; `opened_by` is the tenant that opened it, None if nobody has."""
    if opened_by is not None:
        return opened_by
    prefix, separator, _ = number.partition(_SEPARATOR)
    return prefix if separator and is_tenant(prefix) else DEFAULT_TENANT
