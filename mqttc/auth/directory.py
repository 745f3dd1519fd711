"""A directory (LDAP, RFC 4511) that checks passwords: the client's bind is the proof. By ldap3, on a bounded number of threads."""

from __future__ import annotations

import logging
import math
import os
import re
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from mqttc import logs
from mqttc.auth import Request
from mqttc.auth.grant import MAXIMUM_GROUPS, with_groups
from mqttc.auth.hashing import Busy, Pool
from mqttc.auth.source import BUSY, DENY, FAILED, IGNORE, UNAVAILABLE, Answer, Outcome, Source, missing_extra, problem, secret_text
from mqttc.auth.web import tls_context
from mqttc.config_auth import Ldap

if TYPE_CHECKING:
    import ldap3

_WHERE: Final = "auth.ldap"
_WRONG: Final = frozenset({"invalidCredentials", "noSuchObject", "invalidDNSyntax", "inappropriateAuthentication", "unwillingToPerform"})
"""Results of a bind that speak about the client and not about the directory."""
T = TypeVar("T")
_logger: Final = logging.getLogger(logs.LOGGER_NAME)


class _Unavailable(Exception):
    """The directory cannot be asked, or does not answer as it should."""


class LdapSource(Source):
    name = "ldap"
    takes_passwords = True

    def __init__(self, section: Ldap) -> None:
        self._section = section
        try:
            import ldap3
        except ImportError as error:
            raise missing_extra(_WHERE, "auth-ldap", error) from None
        self._password = secret_text(_WHERE, section.bind_password_file, section.bind_password)
        tls_context(_WHERE, section.ca)  # so that the file is looked at now
        try:
            self._server()
        except (ldap3.core.exceptions.LDAPException, ValueError) as error:
            raise problem(_WHERE, f"url: {error}") from None
        self._own = threading.local()
        self._connections: set[ldap3.Connection] = set()
        self._pool: Pool | None = None
        self._binds = 0
        self._failures = 0

    def _server(self) -> ldap3.Server:
        """A new one for each connection: the library notes in it for minutes which addresses did not answer, and locks nothing."""
        import ldap3

        section = self._section
        parts = urlsplit(section.url)
        tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, version=ssl.PROTOCOL_TLS_CLIENT, ca_certs_file=section.ca or None, sni=parts.hostname)
        return ldap3.Server(
            parts.hostname,
            port=parts.port or (636 if parts.scheme == "ldaps" else 389),
            use_ssl=parts.scheme == "ldaps",
            tls=tls,
            get_info=ldap3.NONE,
            connect_timeout=section.timeout,
        )

    async def start(self) -> None:
        self._pool = Pool(self._section.pool_size, self._section.max_waiting, 0, "mqttc-ldap")

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        for connection in self._connections:
            _end(connection)
        self._connections.clear()

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        # A bind without a password succeeds as nobody (RFC 4513 section 5.1.2): it proves nothing.
        if request.username is None or not request.password or request.auth_method is not None:
            return IGNORE
        try:
            password = request.password.decode("utf-8")
        except UnicodeDecodeError:
            return DENY
        username = request.username
        assert self._pool is not None
        try:
            return await self._pool.run(lambda: self._check(username, password))
        except Busy:
            return BUSY
        except _Unavailable as error:
            self._failures += 1
            logs.emit(_logger, logging.ERROR, "auth_ldap_failed", {"problem": str(error)[:300]})
            return FAILED if self._section.on_failure == "deny" else UNAVAILABLE

    # ------------------------------------------------------------------------------------ on the pool's threads

    def _check(self, username: str, password: str) -> Outcome:
        try:
            if self._section.user_dn:
                return self._admit(self._user_dn(username), username, password)
            name = self._as_service(lambda connection: self._search(connection, username))
            if name is not None:
                return self._admit(name, username, password)
            self._bind(f"cn={os.urandom(8).hex()},{self._section.base}", password)  # as long as for a user who is there
            return IGNORE
        except _Unavailable:
            raise
        except Exception as error:  # the library hands on whatever sockets, TLS and ASN.1 have raised
            raise _Unavailable(f"{type(error).__name__}: {error}") from error

    def _admit(self, name: str, username: str, password: str) -> Outcome:
        """By a bind as that entry. Its groups are looked up as who searches for users, else as the user."""
        groups: tuple[str, ...] = ()

        def look(connection: ldap3.Connection) -> None:
            nonlocal groups
            groups = self._groups(connection, name, username)

        wanted = bool(self._section.groups_attribute or self._section.groups_base)
        if not self._bind(name, password, look if wanted and self._section.user_dn else None):
            return DENY
        if wanted and not self._section.user_dn:
            self._as_service(look)
        return Outcome(Answer.ALLOW, grant=with_groups(None, groups))

    def _user_dn(self, username: str) -> str:
        from ldap3.utils.dn import escape_rdn

        return self._section.user_dn.replace("%u", escape_rdn(username))

    def _connection(self, user: str | None, password: str | None) -> ldap3.Connection:
        import ldap3

        connection = ldap3.Connection(
            self._server(),
            user,
            password,
            auto_bind=ldap3.AUTO_BIND_NONE,
            receive_timeout=math.ceil(self._section.timeout),
            read_only=True,
            auto_referrals=False,
            raise_exceptions=False,
        )
        connection.open()
        if self._section.start_tls and not connection.start_tls():
            _end(connection)
            raise _Unavailable("StartTLS was refused")
        return connection

    def _bind(self, name: str, password: str, then: Callable[[ldap3.Connection], None] | None = None) -> bool:
        """On a connection of its own, which ends: what a bind has made of one is nobody else's. ``then`` is done on it before."""
        self._binds += 1
        connection = self._connection(name, password)
        try:
            if connection.bind():
                if then is not None:
                    then(connection)
                return True
            result = connection.result["description"]
            if result in _WRONG:
                return False
            raise _Unavailable(f"bind: {result}")
        finally:
            _end(connection)

    def _as_service(self, call: Callable[[ldap3.Connection], T]) -> T:
        """On this thread's connection, bound as who searches. One that has broken is made once more."""
        if getattr(self._own, "connection", None) is not None:
            try:
                return call(self._own.connection)
            except Exception:  # see _check
                self._drop()
        connection = self._connection(self._section.bind_dn or None, self._password or None)
        if not connection.bind():
            result = connection.result["description"]
            _end(connection)
            raise _Unavailable(f"bind as {self._section.bind_dn or 'nobody'}: {result}")
        self._own.connection = connection
        self._connections.add(connection)
        try:
            return call(connection)
        except BaseException:
            self._drop()
            raise

    def _search(self, connection: ldap3.Connection, username: str) -> str | None:
        """The name of the one entry; None: there is none, or more than one."""
        import ldap3
        from ldap3.utils.conv import escape_filter_chars

        text = self._section.filter.replace("%u", escape_filter_chars(username))
        connection.search(self._section.base, text, ldap3.SUBTREE, attributes=[ldap3.NO_ATTRIBUTES], size_limit=2, time_limit=0)
        if connection.result["description"] not in ("success", "sizeLimitExceeded"):
            raise _Unavailable(f"search: {connection.result['description']}")
        names = [entry["dn"] for entry in _entries(connection)]
        return names[0] if len(names) == 1 else None

    def _groups(self, connection: ldap3.Connection, name: str, username: str) -> tuple[str, ...]:
        """All of them, or ``_Unavailable``: one that were missing might be one that is denied something."""
        import ldap3
        from ldap3.utils.conv import escape_filter_chars

        section = self._section
        if section.groups_attribute:
            connection.search(name, "(objectClass=*)", ldap3.BASE, attributes=[section.groups_attribute], size_limit=1)
        else:
            pairs = {"d": escape_filter_chars(name), "u": escape_filter_chars(username)}
            text = re.sub("%([du])", lambda match: pairs[match[1]], section.groups_filter)
            most = MAXIMUM_GROUPS + 1
            connection.search(section.groups_base, text, ldap3.SUBTREE, attributes=[section.groups_name], size_limit=most)
        if connection.result["description"] != "success":
            raise _Unavailable(f"groups of {name}: {connection.result['description']}")
        if section.groups_attribute:
            return tuple(_group_name(value) for entry in _entries(connection) for value in _values(entry, section.groups_attribute))
        return tuple(value for entry in _entries(connection) for value in _values(entry, section.groups_name)[:1])

    def _drop(self) -> None:
        connection, self._own.connection = self._own.connection, None
        self._connections.discard(connection)
        _end(connection)

    def stats(self) -> dict[str, int]:
        return {"auth_ldap_binds": self._binds, "auth_ldap_failures": self._failures}


def _entries(connection: ldap3.Connection) -> list[dict[str, Any]]:
    return [entry for entry in connection.response or () if entry.get("type") == "searchResEntry"]


def _values(entry: dict[str, Any], attribute: str) -> list[str]:
    """Attributes' names have no case (RFC 4512 section 2.5)."""
    for name, values in entry["raw_attributes"].items():
        if name.lower() == attribute.lower():
            return [value.decode("utf-8") for value in values]
    return []


def _group_name(value: str) -> str:
    """The first value of a distinguished name (RFC 4514 section 3); what is none stands for itself."""
    from ldap3.core.exceptions import LDAPInvalidDnError
    from ldap3.utils.dn import parse_dn

    try:
        first: str = parse_dn(value)[0][1]
    except (LDAPInvalidDnError, IndexError):
        return value
    escaped = re.sub(rb"\\([0-9A-Fa-f]{2})|\\(.)", lambda found: bytes.fromhex(found[1].decode()) if found[1] else found[2], first.encode())
    return escaped.decode("utf-8")


def _end(connection: ldap3.Connection) -> None:
    try:
        connection.unbind()
    except Exception:  # of a connection that is gone anyway; the library raises whatever the socket did
        pass
