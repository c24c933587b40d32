"""Who may enter a page: accounts by invitation, sessions, a log of what was done by whom.

Passwords are kept as Argon2id hashes (RFC 9106), links and sessions as SHA-256 of 256 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from burnish.data.store import LabelStore
from burnish.data.tables import AccountRow, AuditRow, InvitationRow, SessionRow, SettingRow
from burnish.errors import DataError

Role = Literal["admin", "annotator", "viewer"]
State = Literal["active", "held", "disabled"]
ROLES: tuple[Role, ...] = get_args(Role)
SHORTEST, LONGEST = 10, 200  # letters of a password
LONGEST_NAME = 40
SESSION = 14 * 86400.0  # seconds
INVITATION = 7 * 86400.0
WRONG = "name or password is wrong"


@dataclass(frozen=True)
class Account:
    """Somebody who may enter; `held` annotators may look, and are asked nothing."""

    name: str
    role: Role
    state: State
    created: str

    @property
    def annotator(self) -> str:
        """The name under which their labels are kept."""
        return f"person:{self.name}"


class Denied(Exception):
    """Somebody who may not; the message is for them and says no more than they knew."""


class Accounts:
    """The accounts of a page, in the database of its store."""

    def __init__(self, store: LabelStore, clock: Callable[[], float] = time.time) -> None:
        self.store, self.clock = store, clock
        with store.writing() as session:
            kept = session.get(SettingRow, "secret")
            if kept is None:
                kept = SettingRow(id="secret", value=secrets.token_hex(32))
                session.add(kept)
            self._secret = bytes.fromhex(kept.value)

    # Invitations

    def invite(self, role: Role, by: str, uses: int = 1, seconds: float = INVITATION) -> str:
        """The secret part of a link that makes an account, so many times and so long."""
        token = secrets.token_urlsafe(32)
        with self.store.writing() as session:
            row = InvitationRow(id=_hash(token), role=role, by=by, uses=uses, expires=self.clock() + seconds)
            session.add(row)
        return token

    def invited(self, token: str) -> Role | None:
        """The role that a link gives; None where it gives none (any more)."""
        with self.store.reading() as session:
            row = session.get(InvitationRow, _hash(token))
        return None if row is None or not self._holds(row) else _role(row.role)

    def _holds(self, row: InvitationRow) -> bool:
        return row.uses > 0 and row.expires > self.clock()

    def join(self, token: str, name: str, password: str) -> Account:
        """A new account. Raises Denied for a link that does not hold, DataError for a name or password that will not
        do."""
        name = _clean(name)
        _check_password(password, name)
        hashed = _hasher().hash(password)
        with self.store.writing() as session:
            row = session.get(InvitationRow, _hash(token))
            if row is None or not self._holds(row):
                raise Denied("this invitation does not hold, or not any more; ask for another")
            if any(_folded(other) == _folded(name) for other in session.scalars(select(AccountRow.id))):
                raise DataError(f"the name {name!r} is taken; choose another")
            row.uses -= 1
            created = datetime.now(UTC).isoformat(timespec="seconds")
            session.add(AccountRow(id=name, role=row.role, password=hashed, state="active", created=created))
            return Account(name, _role(row.role), "active", created)

    # Sessions

    def check(self, name: str, password: str) -> Account:
        """The account. Raises Denied, after as long a time and with the same words, for a name that is not known, a
        wrong password and an account that is closed."""
        with self.store.reading() as session:
            wanted = _folded(_clean(name, check=False))
            names = [n for n in session.scalars(select(AccountRow.id)) if _folded(n) == wanted]
            row = session.scalar(select(AccountRow).where(AccountRow.id == names[0])) if names else None
        try:
            _hasher().verify(row.password if row is not None else _nobodys_hash(), password[: LONGEST + 1])
        except (VerificationError, InvalidHashError):
            raise Denied(WRONG) from None
        if row is None or row.state == "disabled":
            raise Denied(WRONG)
        return _account(row)

    def enter(self, account: Account, leaving: str | None = None) -> str:
        """A new session's secret; the one that the browser had ends, whoever's it was."""
        token = secrets.token_urlsafe(32)
        with self.store.writing() as session:
            gone = SessionRow.expires < self.clock()
            if leaving:
                gone = gone | (SessionRow.id == _hash(leaving))
            session.execute(delete(SessionRow).where(gone))
            session.add(SessionRow(id=_hash(token), account=account.name, expires=self.clock() + SESSION))
        return token

    def leave(self, token: str) -> None:
        with self.store.writing() as session:
            session.execute(delete(SessionRow).where(SessionRow.id == _hash(token)))

    def who(self, token: str | None) -> Account | None:
        """Whose session it is; None where it is nobody's (any more)."""
        if not token:
            return None
        query = (
            select(AccountRow, SessionRow.expires)
            .join(SessionRow, SessionRow.account == AccountRow.id)
            .where(SessionRow.id == _hash(token))
        )
        with self.store.reading() as session:
            found = session.execute(query).first()
        if found is None or found[1] < self.clock() or found[0].state == "disabled":
            return None
        return _account(found[0])

    def signature(self, token: str) -> str:
        """What forms of whoever holds this secret carry, and nobody else can know."""
        return hmac.new(self._secret, token.encode(), hashlib.sha256).hexdigest()

    def signed(self, token: str, signature: str) -> bool:
        return hmac.compare_digest(self.signature(token).encode(), signature.encode())

    # People

    def everybody(self) -> list[Account]:
        with self.store.reading() as session:
            return [_account(row) for row in session.scalars(select(AccountRow).order_by(AccountRow.number))]

    def has_admin(self) -> bool:
        with self.store.reading() as session:
            admins = AccountRow.role == "admin", AccountRow.state == "active"
            return bool(session.scalar(select(func.count()).select_from(AccountRow).where(*admins)))

    def change(self, name: str, *, role: Role | None = None, state: State | None = None) -> Account:
        """Another role or state; who is disabled is out at once. Raises DataError where nobody has the name, or
        nobody would be left to administer."""
        with self.store.writing() as session:
            row = session.scalar(select(AccountRow).where(AccountRow.id == name))
            if row is None:
                raise DataError(f"nobody is called {name!r}")
            admins = AccountRow.role == "admin", AccountRow.state == "active"
            was = (row.role, row.state) == ("admin", "active")
            row.role, row.state = role or row.role, state or row.state
            session.flush()
            if was and not session.scalar(select(func.count()).select_from(AccountRow).where(*admins)):
                raise DataError("somebody must stay an active admin; make another one first")
            if row.state == "disabled":
                session.execute(delete(SessionRow).where(SessionRow.account == name))
            return _account(row)

    def note(self, who: str, address: str, action: str, detail: str = "") -> None:
        """A line of the log."""
        with self.store.writing() as session:
            _note(session, who, address, action, detail)

    def log(self, most: int = 200) -> list[dict[str, Any]]:
        """Its newest lines, the newest first."""
        query = select(AuditRow).order_by(AuditRow.number.desc()).limit(most)
        names = ("at", "who", "address", "action", "detail")
        with self.store.reading() as session:
            return [{name: getattr(row, name) for name in names} for row in session.scalars(query)]


def _note(session: Session, who: str, address: str, action: str, detail: str) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    session.add(AuditRow(at=at, who=who[:100], address=address[:100], action=action, detail=detail[:500]))


def _account(row: AccountRow) -> Account:
    state: State = "disabled" if row.state not in ("active", "held") else row.state  # type: ignore[assignment]
    return Account(row.id, _role(row.role), state, row.created)


def _role(name: str) -> Role:
    return next(role for role in ROLES if role == name)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher()


@cache
def _nobodys_hash() -> str:
    return _hasher().hash(secrets.token_urlsafe(16))


def _folded(name: str) -> str:
    return name.casefold()


def _clean(name: str, *, check: bool = True) -> str:
    name = unicodedata.normalize("NFKC", name).strip()
    if check and (not 1 <= len(name) <= LONGEST_NAME or ":" in name or not name.isprintable()):
        raise DataError(f"a name has 1 to {LONGEST_NAME} printable letters, and no colon; choose another")
    return name


def _check_password(password: str, name: str) -> None:
    if not SHORTEST <= len(password) <= LONGEST:
        raise DataError(f"a password has {SHORTEST} to {LONGEST} letters; choose another")
    if _folded(name) in password.casefold() and len(password) < len(name) + SHORTEST:
        raise DataError("a password that is little more than the name is easily guessed; choose another")
    if len(set(password)) < 4:
        raise DataError("a password of so few different letters is easily guessed; choose another")
