"""``mqttc-broker``: the broker as a program.

Exit codes: 0 ended by SIGTERM or SIGINT (or ``--check`` found nothing wrong), 1 it could not run (an address in
use, no permission, no memory), 2 wrong usage or configuration, 128 + the signal's number if a second signal
cut the ending short.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from mqttc import __version__, logs
from mqttc.cli.terminal import printable
from mqttc.config import Config, ConfigError, Problem, schema
from mqttc.systemd import Notifier, become, inherited_sockets, keep_watch

if TYPE_CHECKING:
    from mqttc.server import Broker

_EXIT_OK = 0
_EXIT_RUNTIME = 1
_EXIT_USAGE = 2
_WATCH_S = 2.0

_Identity = tuple[int, int, int, int]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttc-broker",
        description="An MQTT 3.1, 3.1.1 and 5.0 broker.",
        epilog="Every key of the configuration file is also a variable (MQTTC_LIMITS__MAX_PACKET_SIZE=65536) and an "
        "option (--set limits.max_packet_size=65536). SIGTERM and SIGINT end the broker, SIGHUP reads the "
        "configuration again. mqttc-broker cert makes certificates; mqttc-broker passwd keeps a password file; "
        "mqttc-broker store and mqttc-broker backup look after what is kept in data_dir; "
        "mqttc-broker explain says which rule decides and who would receive a message; mqttc-broker clients, client, disconnect "
        "and retained ask the running broker. Exit codes: 0 ended, 1 cannot run, 2 wrong usage or configuration.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file to read")
    parser.add_argument(
        "--listen",
        metavar="URL",
        action="append",
        default=[],
        help="listen here (tcp://host:port, tls://host:port, ws://host:port/path, wss://host:port/path, quic://host:port, unix:///path) "
        "instead of at the configured listeners; may be repeated",
    )
    parser.add_argument(
        "--set",
        metavar="section.key=value",
        action="append",
        default=[],
        dest="settings",
        help="set one key of the configuration; may be repeated",
    )
    parser.add_argument(
        "--tls-self-signed",
        action="store_true",
        help="make a self-signed certificate in data_dir for tls://, wss:// and quic:// listeners without one (--set tls.self_signed=true)",
    )
    parser.add_argument(
        "--tls-host",
        metavar="HOST",
        action="append",
        default=[],
        help="name or address in the self-signed certificate, instead of this machine's; may be repeated",
    )
    parser.add_argument(
        "--recover",
        action="store_true",
        help="read the whole store in data_dir before serving; if it is damaged, keep what is sound and move the damaged file aside",
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the configuration and exit")
    parser.add_argument("--version", action="version", version=f"mqttc-broker {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["cert"]:
        from mqttc.cli.cert import main as cert

        return cert(given[1:])
    if given[:1] == ["store"]:
        from mqttc.cli.store import main as store

        return store(given[1:])
    if given[:1] == ["passwd"]:
        from mqttc.cli.passwd import main as passwd

        return passwd(given[1:])
    if given[:1] == ["backup"]:
        from mqttc.cli.store import main_backup

        return main_backup(given[1:])
    if given[:1] == ["explain"]:
        from mqttc.cli.explain import main as explain

        return explain(given[1:])
    if given[:1] and given[0] in ("clients", "client", "disconnect", "retained"):
        from mqttc.cli.control import main as control

        return control(given)
    options = _parser().parse_args(given)
    if options.schema:
        print(schema())
        return _EXIT_OK
    known = _identity(options.config)  # before it is read, so that no later change is missed
    try:
        config = _load(options)
    except ConfigError as error:
        _complain(error)
        return error.exit_code
    if options.check:
        try:
            _check(config)
        except ConfigError as error:
            _complain(error)
            return error.exit_code
        print("mqttc-broker: the configuration is valid", file=sys.stderr)
        return _EXIT_OK
    if options.recover and (code := _recover(config)) != _EXIT_OK:
        return code
    return _serve(options, config, known)


def _check(config: Config) -> None:
    """``--check``: the files that the configuration names."""
    if any(listener.is_tls for listener in config.listeners):
        from mqttc.tls import check_files

        check_files(config)
    if config.auth.acl_file:
        from mqttc.auth.acl import AclTable, listener_ids

        AclTable.load(config.auth.acl_file).compile(listener_ids(config))
    if config.auth.sources:
        from mqttc.auth.chain import ChainAuthenticator

        ChainAuthenticator(config)


def _recover(config: Config) -> int:
    """``--recover``; the broker then starts with the store as any other."""
    from mqttc.cli.store import recover

    if not config.stores:
        print("mqttc-broker: --recover: nothing is kept, durability.mode is off", file=sys.stderr)
        return _EXIT_USAGE
    return recover(config.data_dir)


def _load(options: argparse.Namespace) -> Config:
    settings = list(options.settings)
    if options.tls_self_signed:
        settings.append("tls.self_signed=true")
    if options.tls_host:
        settings.append(f"tls.hosts={json.dumps(options.tls_host)}")
    config = Config.load(options.config, os.environ, options.listen, settings)
    problems = [
        Problem(listener.url, "asgi:// is for a broker inside a web application (docs/embedding.md); this program has none")
        for listener in config.listeners
        if listener.scheme == "asgi"
    ]
    if problems:
        raise ConfigError(problems)
    return config


def _complain(error: ConfigError) -> None:
    for problem in error.problems:
        print(f"mqttc-broker: {printable(str(problem))}", file=sys.stderr)


def _hints(config: Config, options: argparse.Namespace) -> list[str]:
    """What somebody who wonders why nobody can connect should know."""
    if options.config is None and config.listeners == Config().listeners:
        return [
            "no configuration: only programs on this machine can connect; to open it to others: "
            "--listen tcp://0.0.0.0:1883 --set auth.anonymous=true"
        ]
    return [
        f'{listener.name or listener.address.url()}: behind a proxy anonymous = "loopback" admits nobody; '
        "set the listener's anonymous to true, or auth.allow"
        for listener in config.listeners
        if listener.behind_proxy
        and (config.auth.anonymous if listener.anonymous is None else listener.anonymous) == "loopback"
        and not config.auth.allow
        and not config.auth.sources
    ]


class _Signals:
    """Signals as bytes in a pipe: they wake ``wait`` whichever thread the system delivers them to."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ignore)

    @staticmethod
    def _ignore(number: int, frame: FrameType | None) -> None:
        """The byte in the pipe is all that is needed; with SIG_IGN there would be none."""

    def wake(self) -> None:
        """Let ``wait`` return a 0, from any thread."""
        os.write(self._writer, b"\0")

    def wait(self, timeout_s: float | None) -> bytes:
        """The signal numbers that came; empty after the timeout."""
        ready, _, _ = select.select([self._reader], [], [], timeout_s)
        return os.read(self._reader, 64) if ready else b""


def _serve(options: argparse.Namespace, config: Config, known: _Identity | None) -> int:
    from mqttc.listen import bind_all  # late, so that --check needs no compiled engine
    from mqttc.server import Broker

    signals = _Signals()
    handler = logs.BackgroundHandler()
    handler.setFormatter(logs.formatter(config.log.format))
    logger = logging.getLogger(logs.LOGGER_NAME)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)  # the broker filters by log.level itself
    logger.propagate = False
    # That the service manager cannot be told is worth a line, and nothing else.
    notifier = Notifier(on_error=lambda error: handler.put(f"mqttc-broker: {printable(str(error))}"))
    broker = Broker(config)
    try:
        bound = bind_all(config.listeners, inherited_sockets())
        if config.user:
            become(config.user, config.group)
        broker.start(bound)
    except ConfigError as error:
        handler.close()
        _complain(error)
        return error.exit_code
    except (OSError, KeyError) as error:
        handler.put(f"mqttc-broker: {printable(str(error.args[0]) if isinstance(error, KeyError) else str(error))}")
        handler.close()
        return _EXIT_RUNTIME
    for hint in _hints(config, options):
        handler.put(f"mqttc-broker: {printable(hint)}")
    for url in broker.urls:
        handler.put(f"listening on {url}")
    handler.put("ready")
    manager = _Manager(notifier, broker)
    manager.ready()
    _wait(broker, options, known, signals, handler, manager)
    manager.stopping()
    return _end(broker, signals, handler)


class _Manager:
    """The service manager, which is told what goes on."""

    def __init__(self, notifier: Notifier, broker: Broker) -> None:
        self._notifier = notifier
        self._broker = broker
        self._due = time.monotonic()

    @property
    def patience_s(self) -> float | None:
        """Seconds after which ``watch`` is to be called; None: nobody watches."""
        return None if self._notifier.watchdog_s is None else max(0.0, self._due - time.monotonic())

    def ready(self) -> None:
        self._notifier.ready("listening on " + " ".join(self._broker.urls))

    def reloading(self) -> None:
        self._notifier.reloading()

    def stopping(self) -> None:
        self._notifier.stopping()

    def watch(self) -> None:
        self._due = keep_watch(self._notifier, self._broker.responsive, self._due, time.monotonic())


def _wait(
    broker: Broker,
    options: argparse.Namespace,
    known: _Identity | None,
    signals: _Signals,
    handler: logs.BackgroundHandler,
    manager: _Manager,
) -> None:
    """Serve until SIGTERM or SIGINT; read the configuration again at SIGHUP and when its file changes."""
    while True:
        pauses = [pause for pause in (manager.patience_s, None if options.config is None else _WATCH_S) if pause is not None]
        received = signals.wait(min(pauses, default=None))
        manager.watch()
        if signal.SIGTERM in received or signal.SIGINT in received:
            return
        current = _identity(options.config)
        if signal.SIGHUP in received or (current is not None and current != known):
            manager.reloading()
            _reload(broker, options, handler)
            manager.ready()
        known = current or known


def _identity(file: str | None) -> _Identity | None:
    """What changes when the file's content does, or the file that a symbolic link leads to."""
    if file is None:
        return None
    try:
        status = os.stat(file)
    except OSError:
        return None  # in the middle of being replaced, or gone: the configuration in force stays
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _reload(broker: Broker, options: argparse.Namespace, handler: logs.BackgroundHandler) -> None:
    logger = logging.getLogger(logs.LOGGER_NAME)
    try:
        result = broker.reload(_load(options))
    except ConfigError as error:
        for problem in error.problems:
            fields: dict[str, logs.Field] = {"where": problem.where, "problem": problem.message}
            logs.emit(logger, logging.ERROR, "reload_refused", fields)
        return
    handler.setFormatter(logs.formatter(broker.config.log.format))
    logs.emit(logger, logging.INFO, "reloaded", {"applied": ",".join(result.applied)})
    if result.needs_restart:
        logs.emit(logger, logging.WARNING, "restart_needed", {"keys": ",".join(result.needs_restart)})


def _end(broker: Broker, signals: _Signals, handler: logs.BackgroundHandler) -> int:
    """Stop on another thread, so that this one can take the second signal."""
    failures: list[BaseException] = []

    def stop() -> None:
        try:
            broker.stop()
        except BaseException as error:
            failures.append(error)
        finally:
            signals.wake()

    threading.Thread(target=stop, name="mqttc-stop", daemon=True).start()
    while True:
        for number in signals.wait(None):
            if number in (signal.SIGTERM, signal.SIGINT):
                handler.close()
                os._exit(128 + number)
            if number == 0:
                for failure in failures:
                    handler.put(f"mqttc-broker: {printable(repr(failure))}")
                handler.close()
                return _EXIT_RUNTIME if failures else _EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
