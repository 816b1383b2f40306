"""Whose an order is, by its opening and else by its number."""

import pytest

from durabill.schemas.tenants import is_tenant, tenant_of


@pytest.mark.parametrize(
    ("number", "opened_by", "owner"),
    [
        ("01JABC", None, "default"),
        ("01JABC", "acme", "acme"),
        ("acme:m1", None, "acme"),
        ("acme:m1", "other", "other"),
        ("acme:a:b", None, "acme"),
        (":m1", None, "default"),
        ("ac me:m1", None, "default"),
        ("é:m1", None, "default"),
        (f"{'t' * 64}:1", None, "t" * 64),
        (f"{'t' * 65}:1", None, "default"),
        ("acme", None, "default"),
    ],
)
def test_whose_an_order_is_by_number_and_opening(
    number: str, opened_by: str | None, owner: str
) -> None:
    assert tenant_of(number, opened_by) == owner


def test_names_of_tenants() -> None:
    assert all(map(is_tenant, ["a", "A.b_c-9", "t" * 64]))
    assert not any(map(is_tenant, ["", "a:b", "a b", "a\n", "é", "t" * 65, "\u0661"]))
