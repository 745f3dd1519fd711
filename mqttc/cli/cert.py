"""``mqttc-broker cert``: a small CA for tests and closed networks.

Exit codes: 0 made, 1 not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mqttc import certs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttc-broker cert",
        description="Makes a CA, and certificates signed by it. Keys are written with mode 0600 and never replaced by 'ca'.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    authority = commands.add_parser("ca", help="make a CA: ca.pem, ca.key")
    authority.add_argument("--name", default="mqttc test CA", help="its common name")
    server = commands.add_parser("server", help="make a server's certificate: NAME.pem, NAME.key")
    server.add_argument("--host", action="append", required=True, help="name or address of the server; may be repeated")
    server.add_argument("--name", default="server", help="of the files (server)")
    client = commands.add_parser("client", help="make a client's certificate: NAME.pem, NAME.key")
    client.add_argument("--name", required=True, help="common name, and name of the files")
    revoke = commands.add_parser("revoke", help="make or extend the CA's revocation list, crl.pem")
    revoke.add_argument("certificates", nargs="*", type=Path, metavar="CERTIFICATE", help="PEM file; none: an empty list")
    for command, days in ((authority, 3650), (server, 825), (client, 825), (revoke, 365)):
        command.add_argument("--dir", type=Path, default=Path("."), help="directory of the CA and of what is made (.)")
        command.add_argument("--days", type=float, default=days, help=f"days that it is valid ({days})")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        for path in _make(options):
            print(path)
    except ImportError:
        print("mqttc-broker cert: needs the cryptography package", file=sys.stderr)
        return 1
    except (OSError, certs.CertificateError) as error:
        print(f"mqttc-broker cert: {error}", file=sys.stderr)
        return 1
    return 0


def _make(options: argparse.Namespace) -> list[Path]:
    match options.command:
        case "ca":
            pair = certs.make_authority(options.dir, options.name, options.days)
        case "server":
            pair = certs.make_server(options.dir, options.host, options.name, options.days)
        case "client":
            pair = certs.make_client(options.dir, options.name, options.days)
        case _:
            return [certs.make_revocations(options.dir, options.certificates, options.days)]
    return [pair.certificate, pair.key]
