"""Accounts by invitation, sessions and the audit log of the web pages.

Passwords are kept as Argon2id hashes (RFC 9106), links and sessions as SHA-256 of 256 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from burnish.data.store import LabelStore, Place, beside, is_url, own_schema
from burnish.data.tables import AccountRow, AuditRow, InvitationRow, SessionRow, SettingRow
from burnish.errors import DataError

Role = Literal["admin", "annotator", "viewer"]
State = Literal["active", "held", "disabled"]
ROLES: tuple[Role, ...] = get_args(Role)
SHORTEST, LONGEST = 10, 200  # characters of a password
LONGEST_NAME = 40
SESSION = 14 * 86400.0  # seconds
INVITATION = 7 * 86400.0
WRONG = "name or password is wrong"


@dataclass(frozen=True)
class Account:
    """Account of a user; a `held` annotator may read pages but gets no questions."""

    name: str
    role: Role
    state: State
    created: str

    @property
    def annotator(self) -> str:
        """Annotator name under which the labels of this account are stored."""
        return f"person:{self.name}"


class Denied(Exception):
    """Refused access; the message is for the user and reveals nothing that they did not know."""


SCHEMA = "burnish_accounts"
TABLES = (AccountRow, InvitationRow, SessionRow, AuditRow)


def open_accounts(place: Place) -> LabelStore:
    """Open the accounts of the pages that serve a label store.

    They are in a file beside the store that only its user may read, or in their own schema of its
    database. Accounts that an older version kept in the label store are moved there.
    """
    if is_url(place) and not str(place).startswith("sqlite"):
        store = LabelStore(own_schema(str(place), SCHEMA))
    else:
        file = beside(place, ".accounts.sqlite")
        keep_private(file)
        store = LabelStore(file)
    if is_url(place) or Path(place).exists():
        with LabelStore(place) as old:
            _move(old, store)
    return store


def keep_private(file: Path) -> None:
    """Create a file if it does not exist, and let only its user read or write it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    file.chmod(0o600)


def _move(old: LabelStore, new: LabelStore) -> None:
    """Move accounts from the label store to the new store; it is safe to repeat when interrupted."""
    with old.reading() as session:
        found = [(t, [_values(row) for row in session.scalars(select(t))]) for t in TABLES]
    if not any(rows for _, rows in found):
        return
    with new.writing() as session:
        for table, rows in found:
            key = "number" if table is AuditRow else "id"
            there = set(session.scalars(select(getattr(table, key))))
            session.add_all(table(**_unnumbered(table, row)) for row in rows if row[key] not in there)
            session.flush()
    with old.writing() as session:
        if old.engine.dialect.name == "sqlite":  # overwrite the deleted rows on disk
            session.execute(text("PRAGMA secure_delete = ON"))
        for table in reversed(TABLES):
            session.execute(delete(table))
        session.execute(delete(SettingRow).where(SettingRow.id == "secret"))


def _unnumbered(table: type[Any], row: dict[str, Any]) -> dict[str, Any]:
    """Drop the number of a row, which the new store assigns; the audit log keeps its numbers."""
    return row if table is AuditRow else {name: value for name, value in row.items() if name != "number"}


def _values(row: Any) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


class Accounts:
    """Accounts, invitations, sessions and audit log of the pages, in their own store."""

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
        """Return the secret part of an invitation link for `uses` accounts, valid for `seconds`."""
        token = secrets.token_urlsafe(32)
        with self.store.writing() as session:
            row = InvitationRow(id=_hash(token), role=role, by=by, uses=uses, expires=self.clock() + seconds)
            session.add(row)
        return token

    def invitations(self) -> list[dict[str, Any]]:
        """Return the valid invitations: `id`, role, inviter, uses left, expiry (seconds since 1970)."""
        query = select(InvitationRow).order_by(InvitationRow.expires)
        with self.store.reading() as session:
            rows = [row for row in session.scalars(query) if self._holds(row)]
        return [{n: getattr(r, n) for n in ("id", "role", "by", "uses", "expires")} for r in rows]

    def revoke(self, invitation: str) -> bool:
        """Revoke an invitation and return whether it existed."""
        with self.store.writing() as session:
            found = session.get(InvitationRow, invitation)
            if found is not None:
                session.delete(found)
        return found is not None

    def invited(self, token: str) -> Role | None:
        """Return the role that an invitation link gives, or None if the link is not valid."""
        with self.store.reading() as session:
            row = session.get(InvitationRow, _hash(token))
        return None if row is None or not self._holds(row) else _role(row.role)

    def _holds(self, row: InvitationRow) -> bool:
        return row.uses > 0 and row.expires > self.clock()

    def join(self, token: str, name: str, password: str) -> Account:
        """Create an account with an invitation.

        Raises Denied for an invalid link, and DataError for a name or password that is not allowed.
        """
        name = _clean(name)
        _check_password(password, name)
        hashed = _hasher().hash(password)
        with self.store.writing() as session:
            row = session.get(InvitationRow, _hash(token))
            if row is None or not self._holds(row):
                raise Denied("this invitation is not valid or has expired; ask for another")
            looks = skeleton(name)
            if any(skeleton(other) == looks for other in session.scalars(select(AccountRow.id))):
                raise DataError(
                    f"the name {name!r} is taken or looks like a name that is taken; choose another"
                )
            row.uses -= 1
            created = datetime.now(UTC).isoformat(timespec="seconds")
            session.add(AccountRow(id=name, role=row.role, password=hashed, state="active", created=created))
            return Account(name, _role(row.role), "active", created)

    # Sessions

    def check(self, name: str, password: str) -> Account:
        """Return the account with this name and password.

        Raises Denied for an unknown name, a wrong password and a disabled account, always after the same
        time and with the same message.
        """
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
        """Start a session and return its secret; the browser's previous session ends."""
        token = secrets.token_urlsafe(32)
        with self.store.writing() as session:
            gone = SessionRow.expires < self.clock()
            if leaving:
                gone = gone | (SessionRow.id == _hash(leaving))
            session.execute(delete(SessionRow).where(gone))
            session.add(SessionRow(id=_hash(token), account=account.name, expires=self.clock() + SESSION))
        return token

    def leave(self, token: str) -> None:
        """End the session with this secret."""
        with self.store.writing() as session:
            session.execute(delete(SessionRow).where(SessionRow.id == _hash(token)))

    def who(self, token: str | None) -> Account | None:
        """Return the account of a session, or None for an unknown or ended session."""
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
        """Return the CSRF token of the session with this secret."""
        return hmac.new(self._secret, token.encode(), hashlib.sha256).hexdigest()

    def signed(self, token: str, signature: str) -> bool:
        """Check whether `signature` is the CSRF token of the session with this secret."""
        return hmac.compare_digest(self.signature(token).encode(), signature.encode())

    # People

    def everybody(self) -> list[Account]:
        """Return all accounts, the oldest first."""
        with self.store.reading() as session:
            return [_account(row) for row in session.scalars(select(AccountRow).order_by(AccountRow.number))]

    def has_admin(self) -> bool:
        """Check whether there is an active admin."""
        with self.store.reading() as session:
            admins = AccountRow.role == "admin", AccountRow.state == "active"
            return bool(session.scalar(select(func.count()).select_from(AccountRow).where(*admins)))

    def change(self, name: str, *, role: Role | None = None, state: State | None = None) -> Account:
        """Change the role or state of an account.

        Disabling an account ends its sessions. An account that is not an active admin any more loses its
        invitations. Raises DataError for an unknown
        name, and if no active admin would be left.
        """
        with self.store.writing() as session:
            row = session.scalar(select(AccountRow).where(AccountRow.id == name))
            if row is None:
                raise DataError(f"there is no account {name!r}")
            admins = AccountRow.role == "admin", AccountRow.state == "active"
            was = (row.role, row.state) == ("admin", "active")
            row.role, row.state = role or row.role, state or row.state
            session.flush()
            if was and not session.scalar(select(func.count()).select_from(AccountRow).where(*admins)):
                raise DataError("one active admin must remain; make another account an admin first")
            if row.state == "disabled":
                session.execute(delete(SessionRow).where(SessionRow.account == name))
            if (row.role, row.state) != ("admin", "active"):
                session.execute(delete(InvitationRow).where(InvitationRow.by == name))
            return _account(row)

    def note(self, who: str, address: str, action: str, detail: str = "") -> None:
        """Append an entry to the audit log."""
        with self.store.writing() as session:
            _note(session, who, address, action, detail)

    def log(self, most: int = 200) -> list[dict[str, Any]]:
        """Return the latest `most` entries of the audit log, the newest first."""
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


def folded(name: str) -> str:
    """Return the normalised form of a name, for comparisons in rate limits and accounts."""
    return _folded(_clean(name, check=False))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


# Letters of other scripts, and digits, that look like Latin letters: Unicode's commonest confusables.
LIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u043a\u043c\u0442\u0432\u043d"
    "\u03b1\u03bf\u03c1\u03c5\u03bd\u03b9\u03ba\u03c4\u03c7\u03b5\u0131" + "01|",
    "aeopcyxijshdqkmtbh" + "aopuviktxei" + "oll",
)


def skeleton(name: str) -> str:
    """Return the shape of a name; names with the same skeleton are easily confused."""
    plain = unicodedata.normalize("NFKD", _folded(name))
    like = "".join(c for c in plain if not unicodedata.combining(c)).translate(LIKE)
    kept = "".join(c for c in like if c.isalnum()) or like
    return kept.replace("rn", "m").replace("vv", "w").replace("i", "l")


def _clean(name: str, *, check: bool = True) -> str:
    name = unicodedata.normalize("NFKC", name).strip()
    if check and (not 1 <= len(name) <= LONGEST_NAME or ":" in name or not name.isprintable()):
        raise DataError(f"a name has 1 to {LONGEST_NAME} printable letters, and no colon; choose another")
    return name


COMMON = {
    *(
        "password",
        "passwort",
        "motdepasse",
        "contrasena",
        "letmein",
        "welcome",
        "iloveyou",
        "sunshine",
        "princess",
    ),
    *(
        "football",
        "baseball",
        "superman",
        "starwars",
        "trustno",
        "whatever",
        "computer",
        "internet",
        "changeme",
    ),
    *(
        "administrator",
        "qwerty",
        "qwertz",
        "azerty",
        "qwertyuiop",
        "asdfghjkl",
        "zxcvbnm",
        "abcdefghij",
        "master",
    ),
    *(
        "dragon",
        "monkey",
        "michael",
        "shadow",
        "charlie",
        "jennifer",
        "jordan",
        "secret",
        "default",
        "burnish",
    ),
}
ROWS = (
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890123456789",
    "qwertyuiopasdfghjklzxcvbnm",
    "1qaz2wsx3edc4rfv5tgb",
)
LEET = str.maketrans("0134578@$!", "oieastbasi")


def is_common(password: str) -> bool:
    """Check whether a password is easily guessed.

    That is a common word with digits or marks around it, a row of the keyboard, or a repeated piece.
    """
    low = password.casefold()
    word = low.translate(LEET).strip("0123456789!?.#*_- ")
    bare = low.strip("0123456789!?.#*_- ").translate(LEET)
    if {word, bare, low.strip("0123456789!?.#*_- ")} & COMMON:
        return True
    if any(low in row or low in row[::-1] for row in ROWS):
        return True
    pieces = {low[:n] for n in range(1, len(low) // 2 + 1)}
    return any((piece * len(low))[: len(low)] == low for piece in pieces)


def _check_password(password: str, name: str) -> None:
    if not SHORTEST <= len(password) <= LONGEST:
        raise DataError(f"a password has {SHORTEST} to {LONGEST} letters; choose another")
    if _folded(name) in password.casefold() and len(password) < len(name) + SHORTEST:
        raise DataError("a password that is little more than the name is easily guessed; choose another")
    if len(set(password)) < 4:
        raise DataError("a password of so few different letters is easily guessed; choose another")
    if is_common(password):
        raise DataError("this password is too common; choose another")
