"""Who may enter: by a link, with a password of their own, as long as nobody closes the account."""

from __future__ import annotations

import pytest

from burnish.data.store import LabelStore
from burnish.errors import DataError
from burnish.web.accounts import INVITATION, SESSION, Accounts, Denied

GOOD = "correct horse 9"


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(store: LabelStore, clock: Clock) -> Accounts:
    return Accounts(store, clock)


def test_nobody_is_in_to_begin_with_and_a_link_makes_one_account(accounts: Accounts) -> None:
    assert accounts.everybody() == []
    assert not accounts.has_admin()
    token = accounts.invite("admin", "the command line")
    assert accounts.invited(token) == "admin"
    assert accounts.join(token, " Ada ", GOOD).name == "Ada"
    assert accounts.has_admin()
    assert accounts.invited(token) is None
    with pytest.raises(Denied, match="is not valid"):
        accounts.join(token, "Bob", GOOD)


def test_a_link_for_several_holds_for_so_many_and_so_long(accounts: Accounts, clock: Clock) -> None:
    token = accounts.invite("annotator", "Ada", uses=2)
    accounts.join(token, "one", GOOD)
    clock.now += INVITATION + 1
    assert accounts.invited(token) is None
    with pytest.raises(Denied):
        accounts.join(token, "two", GOOD)


@pytest.mark.parametrize(
    ("name", "password", "told"),
    [
        ("", GOOD, "1 to 40"),
        ("a:b", GOOD, "colon"),
        ("a\u202eb", GOOD, "printable"),
        ("x" * 41, GOOD, "1 to 40"),
        ("ada", "short", "10 to 200"),
        ("ada", "x" * 201, "10 to 200"),
        ("long-name-here", "long-name-here1", "easily guessed"),
        ("ada", "aaaaaaaaaaaa", "few different"),
    ],
)
def test_names_and_passwords_that_will_not_do(
    accounts: Accounts, name: str, password: str, told: str
) -> None:
    token = accounts.invite("viewer", "Ada")
    with pytest.raises(DataError, match=told):
        accounts.join(token, name, password)
    assert accounts.invited(token) == "viewer"  # nothing is used up


def test_a_name_is_taken_however_it_is_written(accounts: Accounts) -> None:
    token = accounts.invite("viewer", "Ada", uses=3)
    accounts.join(token, "Ada", GOOD)
    for same in ("ADA", "ada", "\uff21da"):
        with pytest.raises(DataError, match="taken"):
            accounts.join(token, same, GOOD)


def test_hashes_are_argon2id_and_no_secret_is_kept(accounts: Accounts, store: LabelStore) -> None:
    token = accounts.invite("admin", "cli")
    session = accounts.enter(accounts.join(token, "Ada", GOOD))
    with store.reading() as reading:
        kept = " ".join(
            str(row)
            for table in ("accounts", "invitations", "sessions")
            for row in reading.connection().exec_driver_sql(f"SELECT * FROM {table}")
        )
    assert "$argon2id$" in kept
    for secret in (GOOD, token, session):
        assert secret not in kept


def test_wrong_names_and_wrong_passwords_are_told_apart_by_nobody(accounts: Accounts) -> None:
    ada = accounts.join(accounts.invite("admin", "cli"), "Ada", GOOD)
    bob = accounts.join(accounts.invite("admin", "cli"), "Bob", GOOD)
    accounts.change(bob.name, state="disabled")
    assert accounts.check("aDA", GOOD) == ada
    told = set()
    for name, password in (("Ada", "wrong password"), ("nobody", GOOD), ("Bob", GOOD), ("", "")):
        with pytest.raises(Denied) as refused:
            accounts.check(name, password)
        told.add(str(refused.value))
    assert len(told) == 1


def test_sessions_end_with_time_leaving_and_a_closed_account(accounts: Accounts, clock: Clock) -> None:
    accounts.join(accounts.invite("admin", "cli"), "Root", GOOD)
    ada = accounts.join(accounts.invite("viewer", "cli"), "Ada", GOOD)
    first = accounts.enter(ada)
    second = accounts.enter(ada, leaving=first)  # nobody can wait with a session of theirs
    assert accounts.who(first) is None
    assert accounts.who(second) == ada
    accounts.leave(second)
    assert accounts.who(second) is None
    third = accounts.enter(ada)
    accounts.change("Ada", state="disabled")
    assert accounts.who(third) is None
    accounts.change("Ada", state="active")
    assert accounts.who(third) is None
    fourth = accounts.enter(ada)
    clock.now += SESSION + 1
    assert accounts.who(fourth) is None
    assert accounts.who("") is None


def test_somebody_stays_to_administer(accounts: Accounts) -> None:
    accounts.join(accounts.invite("admin", "cli"), "Ada", GOOD)
    for change in ({"role": "viewer"}, {"state": "disabled"}, {"state": "held"}):
        with pytest.raises(DataError, match="active admin"):
            accounts.change("Ada", **change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there is no account"):
        accounts.change("Bob", role="viewer")
    assert accounts.everybody()[0].role == "admin"


def test_an_admin_who_is_one_no_more_loses_open_invitations(accounts: Accounts) -> None:
    accounts.join(accounts.invite("admin", "cli"), "Ada", GOOD)
    accounts.join(accounts.invite("admin", "Ada"), "Ben", GOOD)
    kept, lost = accounts.invite("admin", "Ada"), accounts.invite("admin", "Ben")
    accounts.change("Ben", role="viewer")
    with pytest.raises(Denied, match="is not valid"):
        accounts.join(lost, "Cy", GOOD)
    accounts.join(kept, "Dee", GOOD)


def test_a_signature_belongs_to_one_secret_and_survives_a_restart(store: LabelStore) -> None:
    first = Accounts(store)
    signed = first.signature("token")
    again = Accounts(store)
    assert again.signed("token", signed)
    assert not again.signed("other", signed)
    assert not again.signed("token", signed[:-1] + "é")
