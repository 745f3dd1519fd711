"""A directory that checks passwords: OpenLDAP's slapd, started here in a directory of its own where it is installed."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mqttc import certs
from mqttc.auth.directory import LdapSource
from mqttc.auth.source import Answer, Outcome
from mqttc.config import ConfigError
from mqttc.config_auth import Ldap
from tests.auth.conftest import Make, ask, attempt

SLAPD = shutil.which("slapd") or shutil.which("/usr/sbin/slapd")
SLAPADD = shutil.which("slapadd") or shutil.which("/usr/sbin/slapadd")
SCHEMAS = Path("/etc/ldap/schema")
pytestmark = pytest.mark.skipif(
    SLAPD is None or SLAPADD is None or not SCHEMAS.exists(), reason="needs OpenLDAP's server programs (Debian: slapd)"
)

CONFIGURATION = """
include {schemas}/core.schema
include {schemas}/cosine.schema
include {schemas}/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/pid
argsfile {folder}/args
TLSCertificateFile {folder}/server.pem
TLSCertificateKeyFile {folder}/server.key
TLSCACertificateFile {folder}/ca.pem
sizelimit 100
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="cn=broker,dc=example,dc=org" read by self read by * none
database mdb
suffix "dc=example,dc=org"
directory {folder}/db
"""
ENTRIES = """
dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
o: example
dc: example

dn: cn=broker,dc=example,dc=org
objectClass: person
cn: broker
sn: broker
userPassword: searching

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: ou=others,dc=example,dc=org
objectClass: organizationalUnit
ou: others

dn: uid=alice,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: A
seeAlso: cn=operators,ou=groups,dc=example,dc=org
seeAlso: cn=night\\2C shift \\C3\\A9,ou=groups,dc=example,dc=org
employeeType: interns
employeeType: night, shift
mail: alice@example.org
userPassword: wonderland

dn: uid=a\\2Cb,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: a,b
cn: Comma
sn: B
userPassword: comma

dn: uid=twice,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: twice
cn: One
sn: T
userPassword: twice

dn: uid=twice,ou=others,dc=example,dc=org
objectClass: inetOrgPerson
uid: twice
cn: Two
sn: T
userPassword: twice

dn: ou=groups,dc=example,dc=org
objectClass: organizationalUnit
ou: groups

dn: cn=operators,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: operators
cn: others
member: uid=alice,ou=people,dc=example,dc=org
member: uid=a\\2Cb,ou=people,dc=example,dc=org

dn: cn=everybody,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: everybody
member: uid=alice,ou=people,dc=example,dc=org

dn: cn=nobody,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: nobody
member: cn=broker,dc=example,dc=org

dn: uid=locked,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: locked
cn: Locked
sn: L
"""
DN = "uid=%u,ou=people,dc=example,dc=org"
SEARCH = {"base": "dc=example,dc=org", "bind_dn": "cn=broker,dc=example,dc=org", "bind_password": "searching"}


@dataclass
class Directory:
    folder: Path
    port: int
    tls_port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert SLAPD is not None
        urls = f"ldap://127.0.0.1:{self.port}/ ldaps://127.0.0.1:{self.tls_port}/"
        self.process = subprocess.Popen(
            [SLAPD, "-f", str(self.folder / "slapd.conf"), "-h", urls, "-d", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        for port in (self.port, self.tls_port):
            while True:
                assert self.process.poll() is None and time.monotonic() < deadline, "slapd did not start"
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def section(self, **keys: Any) -> Ldap:
        return Ldap(**{"url": f"ldap://localhost:{self.port}", **keys})


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    assert SLAPADD is not None
    folder = tmp_path_factory.mktemp("ldap")
    certs.make_authority(folder)
    certs.make_server(folder, ["localhost"])
    (folder / "db").mkdir()
    (folder / "slapd.conf").write_text(CONFIGURATION.format(folder=folder, schemas=SCHEMAS))
    (folder / "entries").write_text(ENTRIES)
    subprocess.run([SLAPADD, "-f", folder / "slapd.conf", "-l", folder / "entries"], check=True, capture_output=True)
    made = Directory(folder, free_port(), free_port())
    made.start()
    yield made
    made.stop()


def decide(section: Ldap, *asked: tuple[str | None, bytes | None]) -> list[Answer]:
    async def run() -> list[Answer]:
        source = LdapSource(section)
        await source.start()
        try:
            return [(await source.decide(ask(username, password), {})).answer for username, password in asked]
        finally:
            await source.close()

    return asyncio.run(run())


def test_bind_as_the_user(directory: Directory) -> None:
    got = decide(
        directory.section(user_dn=DN),
        ("alice", b"wonderland"), ("alice", b"wrong"), ("ALICE", b"wonderland"), ("carol", b"wonderland"), ("a,b", b"comma"),
        ("alice,ou=people,dc=example,dc=org+uid=x", b"wonderland"), ("locked", b"x"), ("alice", b"\xff"),
    )  # fmt: skip
    assert got == [Answer.ALLOW, Answer.DENY, Answer.ALLOW, *[Answer.DENY], Answer.ALLOW, *[Answer.DENY] * 3]


def test_search_and_bind(directory: Directory) -> None:
    got = decide(
        directory.section(**SEARCH),
        ("alice", b"wonderland"), ("alice", b"wrong"), ("carol", b"wonderland"), ("a,b", b"comma"), ("*", b"wonderland"),
        ("al*", b"wonderland"), ("alice)(uid=*", b"wonderland"), ("twice", b"twice"), ("broker", b"searching"),
    )  # fmt: skip
    assert got == [Answer.ALLOW, Answer.DENY, Answer.IGNORE, Answer.ALLOW, *[Answer.IGNORE] * 5]
    by_mail = directory.section(**SEARCH, filter="(&(objectClass=inetOrgPerson)(mail=%u))")
    assert decide(by_mail, ("alice@example.org", b"wonderland"), ("alice", b"wonderland")) == [Answer.ALLOW, Answer.IGNORE]


def outcomes(section: Ldap, *asked: tuple[str, bytes]) -> list[Outcome]:
    async def run() -> list[Outcome]:
        source = LdapSource(section)
        await source.start()
        try:
            return [await source.decide(ask(username, password), {}) for username, password in asked]
        finally:
            await source.close()

    return asyncio.run(run())


def groups(section: Ldap, *asked: tuple[str, bytes]) -> list[set[str] | Answer]:
    """Of each that is admitted."""
    found = outcomes(section, *asked)
    return [set(one.grant.groups) if one.grant else set() if one.answer is Answer.ALLOW else one.answer for one in found]


@pytest.mark.parametrize("keys", [{"user_dn": DN}, SEARCH], ids=["bind", "search"])
def test_groups_of_the_users_entry(directory: Directory, keys: dict[str, Any]) -> None:
    """Of a name the first value counts, unescaped; what is no name stands for itself; attributes' names have no case."""
    asked = (("alice", b"wonderland"), ("a,b", b"comma"), ("alice", b"wrong"))
    named = groups(directory.section(**keys, groups_attribute="SEEALSO"), *asked)
    assert named == [{"operators", "night, shift é"}, set(), Answer.DENY]
    plain = groups(directory.section(**keys, groups_attribute="employeeType"), asked[0])
    assert plain == [{"interns", "night, shift"}]


def test_groups_that_list_the_user(directory: Directory) -> None:
    keys = {**SEARCH, "groups_base": "ou=groups,dc=example,dc=org"}
    asked = (("alice", b"wonderland"), ("a,b", b"comma"), ("carol", b"x"))
    assert groups(directory.section(**keys), *asked) == [{"operators", "everybody"}, {"operators"}, Answer.IGNORE]
    by_name = directory.section(**keys, groups_filter="(member=uid=%u,ou=people,dc=example,dc=org)", groups_name="objectClass")
    assert groups(by_name, asked[0]) == [{"groupOfNames"}]


def test_groups_that_cannot_be_read_admit_nobody(directory: Directory) -> None:
    """The user may not see them: it might be in one that is denied something."""
    section = directory.section(user_dn=DN, groups_base="ou=groups,dc=example,dc=org")
    assert groups(section, ("alice", b"wonderland"), ("alice", b"wrong")) == [Answer.UNAVAILABLE, Answer.DENY]


@pytest.mark.parametrize("keys", [{"user_dn": DN}, SEARCH], ids=["bind", "search"])
def test_no_password_proves_nothing(directory: Directory, keys: dict[str, Any]) -> None:
    """A bind without a password succeeds as nobody, RFC 4513 section 5.1.2."""
    assert decide(directory.section(**keys), ("alice", b""), ("alice", None), (None, b"x")) == [Answer.IGNORE] * 3


def test_a_password_from_a_file(directory: Directory, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("searching\n")
    keys = {**SEARCH, "bind_password": "", "bind_password_file": str(tmp_path / "secret")}
    assert decide(directory.section(**keys), ("alice", b"wonderland")) == [Answer.ALLOW]


def test_the_broker_is_not_admitted_to_the_directory(directory: Directory) -> None:
    """That is no client's fault: nobody is told that a password is wrong."""
    for keys in ({**SEARCH, "bind_password": "wrong"}, {"base": "dc=example,dc=org"}, {**SEARCH, "base": "dc=example,dc=com"}):
        assert decide(directory.section(**keys), ("alice", b"wonderland"))[0] in (Answer.UNAVAILABLE, Answer.IGNORE)
    assert decide(directory.section(**{**SEARCH, "bind_password": "wrong", "on_failure": "deny"}), ("alice", b"x")) == [Answer.FAILED]


@pytest.mark.parametrize("how", ["start_tls", "ldaps"])
def test_encrypted(directory: Directory, how: str) -> None:
    keys: dict[str, Any] = {"user_dn": DN, "timeout": 3.0}
    keys |= {"start_tls": True} if how == "start_tls" else {"url": f"ldaps://localhost:{directory.tls_port}"}
    ca = str(directory.folder / "ca.pem")
    assert decide(directory.section(**keys, ca=ca), ("alice", b"wonderland"), ("alice", b"x")) == [Answer.ALLOW, Answer.DENY]
    assert decide(directory.section(**keys), ("alice", b"wonderland")) == [Answer.UNAVAILABLE]  # another CA
    other = {**keys, "url": directory.section(**keys).url.replace("localhost", "127.0.0.1")}
    assert decide(directory.section(**other, ca=ca), ("alice", b"wonderland")) == [Answer.UNAVAILABLE]  # another name


def test_nobody_there(tmp_path: Path) -> None:
    section = Ldap(url=f"ldap://127.0.0.1:{free_port()}", user_dn=DN)
    assert decide(section, ("alice", b"wonderland")) == [Answer.UNAVAILABLE]
    with pytest.raises(ConfigError, match="No such file"):
        LdapSource(Ldap(url="ldaps://localhost", user_dn=DN, ca=str(tmp_path / "missing")))


def test_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        section = Ldap(url=f"ldap://127.0.0.1:{silent.getsockname()[1]}", user_dn=DN, timeout=0.2)
        assert decide(section, ("alice", b"wonderland")) == [Answer.UNAVAILABLE]


def test_a_broker_with_it(directory: Directory, make: Make) -> None:
    """While the directory is away clients are told so; when it is back they get in, over a new connection."""
    url = f"ldap://localhost:{directory.port}"
    auth = {"ldap": {"url": url, **SEARCH, "pool_size": 2, "timeout": 2.0}, "cache": {"ttl": 0.0, "negative_ttl": 0.0}}
    bench = make(auth)
    for version, codes in ((5, (0, 0x86)), (4, (0, 4)), (3, (0, 4))):
        assert (attempt(bench, "alice", b"wonderland", version).reason, attempt(bench, "alice", b"x", version).reason) == codes
    directory.stop()
    try:
        assert attempt(bench, "alice", b"wonderland").reason == 0x88
        assert attempt(bench, "alice", b"wonderland", 4).reason == 3
    finally:
        directory.start()
    assert attempt(bench, "alice", b"wonderland").reason == 0
    told = bench.events.wait("auth_ldap_failed")
    assert "wonderland" not in str(told) and "searching" not in str(told)
