"""Whose an order is, and who may see it. Pure.

An order that was opened is its opener's. One that nobody opened is the tenant's that its number
begins with, as in `acme:meter-7`, and else the default tenant's. What a caller may not see is to it
as if it were not there.
"""

import re

from durabill.producers.gateway.caller import ADMIN, DEFAULT_TENANT, Caller

TENANT_PATTERN = r"[A-Za-z0-9._-]{1,64}"
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


def may_see(caller: Caller, number: str, opened_by: str | None) -> bool:
    """Tell whether an order is the caller's own, or the caller may see everybody's."""
    return ADMIN in caller.scopes or caller.tenant == tenant_of(number, opened_by)
