"""The broker's counters in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

GAUGES: Final = frozenset(
    (
        *("messages_queued", "messages_queued_bytes", "messages_inflight", "group_backlog", "subscriptions", "connections_open"),
        *("sessions", "retained", "retained_bytes", "tree_nodes", "uptime_seconds", "http_connections", "control_connections"),
        *("journal_last_commit_us", "journal_longest_commit_us", "journal_backlog_bytes", "journal_failing"),
        *("auth_failures_entries", "auth_hashing_most_kib", "auth_hashing_waiting", "auth_remembered_entries"),
        *("hooks_waiting", "quic_connections", "quic_half_open", "quic_streams", "quic_tickets"),
        *("wills", "will_bytes", "connections_pending", "tls_handshakes_open", "unauthenticated_bytes", "memory_bytes", "overload_stage"),
        *("turn_last_us", "turn_longest_us", "turn_p50_us", "turn_p99_us"),
    )
)
"""What goes down too; everything else that a broker counts only grows."""

_FAMILIES: Final = (
    ("packets_received_", "packets_received", "type", "Packets received from clients, by control packet type."),
    ("packets_sent_", "packets_sent", "type", "Packets sent to clients, by control packet type."),
    ("dropped_", "messages_dropped", "reason", "Messages that were not delivered, by reason."),
    ("denied_", "denied", "action", "What the rules did not allow, by what it was."),
)
"""Prefix of the counters, name of the metric that they are together, its label, its help."""

HELP: Final[Mapping[str, str]] = {
    "accept_errors": "Connections that could not be accepted.",
    "accepted": "Connections accepted.",
    "addresses_forgotten": "Addresses whose connect rate was forgotten to make room for others.",
    "auth_admitted": "Decisions of authenticators that admitted a client.",
    "auth_expired": "Connections ended because their authentication ran out.",
    "auth_failures_entries": "Addresses and user names whose failures are counted.",
    "auth_failures_evicted": "Addresses and user names that gave way to others that failed later.",
    "auth_hashing_most_kib": "KiB that checking passwords has taken at the same time at most.",
    "auth_hashing_refused": "Passwords that were not checked because too many waited.",
    "auth_hashing_waiting": "Passwords that wait to be checked.",
    "auth_http_failures": "Questions to the web service without a usable answer.",
    "auth_http_requests": "Questions to the web service.",
    "auth_jwks_failures": "Times that the key set of tokens could not be fetched.",
    "auth_jwks_loads": "Times that the key set of tokens was fetched.",
    "auth_ldap_binds": "Binds of clients to the directory.",
    "auth_ldap_failures": "Questions to the directory without a usable answer.",
    "auth_limited": "Clients turned away unasked because their address or user name had failed too often.",
    "auth_password_file_loads": "Times that the password file was read.",
    "auth_refused": "Decisions of authenticators that refused a client.",
    "auth_remembered": "Decisions that the control thread remembered.",
    "auth_remembered_entries": "Decisions that the control thread remembers.",
    "auth_remembered_evicted": "Remembered decisions that gave way to later ones.",
    "auth_sql_failures": "Questions to the database without a usable answer.",
    "auth_sql_queries": "Questions to the database.",
    "auth_unavailable": "Clients turned away because nobody could decide about them.",
    "bytes_received": "Bytes received from clients.",
    "bytes_sent": "Bytes sent to clients.",
    "clients_ended_overload": "Clients dropped to give memory back.",
    "clients_ended_rate": "Clients disconnected because they went on sending more than their rates.",
    "clients_slowed": "Times that a client was not read for a while because of its rates.",
    "clients_throttled": "Times that a client was not written to for a while because of its rates.",
    "connect_timeouts": "Connections that sent no whole CONNECT in time.",
    "connections_open": "Connections of clients that are open, streams of HTTP/2 and QUIC among them.",
    "connections_pending": "Connections whose CONNECT is not accepted yet.",
    "connections_refused_address": "Connections beyond the number of their address.",
    "connections_refused_handshakes": "Connections refused because too many TLS handshakes were under way.",
    "connections_refused_limit": "Connections beyond max_connections.",
    "connections_refused_overload": "Connections refused because the broker is overloaded.",
    "connections_refused_pending": "Connections refused because too many were not accepted yet.",
    "connections_refused_rate": "Connections that came too fast.",
    "connections_refused_user": "Connections beyond the number of their user.",
    "connects_accepted": "CONNECT packets accepted.",
    "connects_refused": "CONNECT packets refused.",
    "disconnects_abrupt": "Connections that ended without DISCONNECT.",
    "disconnects_clean": "Connections that ended with DISCONNECT.",
    "gate_questions": "Decisions about clients that were asked for.",
    "gate_timeouts": "Decisions about clients that did not come in time.",
    "grants_expired": "Clients whose grant came to its end.",
    "grants_renewed": "Grants that hooks have given to clients that were connected.",
    "group_backlog": "Messages that wait for shared subscriptions without a ready member.",
    "hook_questions": "Messages and SUBSCRIBE packets that hooks were asked about.",
    "hooks_abandoned": "Messages and SUBSCRIBE packets whose connection ended before hooks had answered.",
    "hooks_asked": "Calls of hooks that were wanted.",
    "hooks_changed": "Messages and subscriptions that hooks have changed.",
    "hooks_failed": "Calls of hooks that ended with an exception, or with an answer that is none.",
    "hooks_late": "Calls of hooks without an answer in time.",
    "hooks_overflowed": "Calls of hooks that were not made because too many were not over.",
    "hooks_refused": "Clients, messages and subscriptions that hooks have refused.",
    "hooks_unasked": "Messages and SUBSCRIBE packets that hooks could not be asked about because too many questions were open.",
    "hooks_waiting": "Calls of hooks that are not over.",
    "control_accepted": "Connections to the control socket.",
    "control_connections": "Connections to the control socket that are open.",
    "control_errors": "Requests at the control socket that were answered with an error.",
    "control_refused": "Connections to the control socket that were refused: another user's, or one too many.",
    "control_requests": "Requests at the control socket.",
    "http_connections_spliced": "Connections of ws and wss listeners that were handed to the HTTP server.",
    "http_requests_refused": "First requests of ws and wss listeners that are none, or were answered with an error.",
    "verdicts_kept": "Decisions about clients that worker threads have noted.",
    "verdicts_reused": "CONNECT packets decided by worker threads from such notes.",
    "websockets_upgraded": "Connections of ws and wss listeners that became WebSockets.",
    "http_adopt_errors": "WebSocket streams of HTTP/2 that found no room in the broker.",
    "http_app_errors": "HTTP requests that the server failed to answer.",
    "http_connections": "HTTP connections that are open.",
    "http_connections_refused": "HTTP connections beyond their limit.",
    "http_floods": "HTTP/2 connections ended because they sent too many useless frames.",
    "http_protocol_errors": "HTTP/2 connections ended because they broke the protocol.",
    "http_refused": "HTTP requests refused before the application saw them.",
    "http_requests": "HTTP requests that reached the application.",
    "http_streams_refused": "HTTP/2 streams beyond their limit.",
    "http_timeouts": "HTTP requests and responses that took too long.",
    "http_websockets": "WebSocket connections over HTTP/2.",
    "journal_backlog_bytes": "Bytes that wait to be written to the store.",
    "journal_cancelled": "Records that were done before their commit and were never written.",
    "journal_logged": "Deliveries that went to the log of what is soon over.",
    "journal_folded": "Deliveries of the log that became rows after all.",
    "journal_commit_us": "Microseconds that commits of the store took.",
    "journal_commits": "Commits of the store.",
    "journal_failing": "1 while the store cannot be written.",
    "journal_failures": "Commits that failed and were tried again.",
    "journal_gathers": "Batches that were let grow for a moment before they were written.",
    "journal_rests": "Batches after a quiet time that waited a moment for others.",
    "journal_last_commit_us": "Microseconds that the last commit took.",
    "journal_longest_commit_us": "Microseconds that the longest commit took.",
    "journal_notes_lost": "Changes that could not be noted for the store for want of memory.",
    "journal_reads": "Messages that were read back from the store.",
    "journal_records": "Records that were written to the store.",
    "journal_refused": "Messages that were refused because they could not be noted for the store.",
    "journal_syncs": "Commits of the store that waited for the disk.",
    "keep_alive_timeouts": "Clients that were silent for longer than their keep alive.",
    "log_records_dropped": "Log records that found no room.",
    "events_lost": "Events for the program around the broker that found no room.",
    "mail_sent": "Batches that worker threads sent each other.",
    "memory_bytes": "Bytes that the broker takes, as it counts them.",
    "messages_inflight": "Messages sent and not yet acknowledged.",
    "messages_queued": "Messages that wait for their clients.",
    "messages_queued_bytes": "Bytes of the messages that wait for their clients.",
    "messages_received": "Messages that clients have published.",
    "messages_resent": "Messages sent again after a reconnect.",
    "messages_sent": "Messages sent to clients.",
    "overload_stage": "0: none; 1: nothing new is taken; 2: QoS 0 is given up; 3: clients are dropped.",
    "protocol_errors": "Clients disconnected because they broke the protocol.",
    "publishers_braked": "Times that a publisher was slowed down for slow receivers.",
    "reads": "System calls that read from connections.",
    "rejected_by_client": "Messages that clients have answered with a failure.",
    "retained": "Retained messages.",
    "retained_bytes": "Bytes of the retained messages.",
    "retained_handed_out": "Retained messages sent to new subscriptions.",
    "route_hits": "Look-ups of receivers answered by the route cache.",
    "route_misses": "Look-ups of receivers answered by the subscription tree.",
    "sessions": "Sessions, connected or not.",
    "sessions_expired": "Sessions that have expired.",
    "sessions_resumed": "Sessions that clients have come back to.",
    "short_writes": "Writes that a connection did not take whole.",
    "subscriptions_refused": "Topic filters refused by a limit.",
    "subscriptions": "Subscriptions of all sessions.",
    "takeovers": "Connections ended because their client connected again.",
    "tls_handshakes": "TLS handshakes finished.",
    "tls_handshakes_failed": "TLS handshakes failed.",
    "tls_handshakes_open": "TLS handshakes under way.",
    "tls_handshakes_resumed": "TLS handshakes that resumed a session.",
    "tls_loads": "Times that certificates were loaded.",
    "tree_lock_waits": "Times that a thread waited for the subscription tree.",
    "tree_nodes": "Nodes of the subscription tree.",
    "turn_last_us": "Microseconds of the last turn, of the worker that took longest.",
    "turn_longest_us": "Microseconds of the longest turn.",
    "turn_p50_us": "Microseconds that half of the turns of the last 10 to 20 seconds did not exceed.",
    "turn_p99_us": "Microseconds that 99 % of the turns of the last 10 to 20 seconds did not exceed.",
    "turn_us": "Microseconds of all turns.",
    "turns_cut": "Times that a client's input was left for the next turn because this one was long.",
    "turns_over_100ms": "Turns that took 100 ms or more.",
    "turns_over_10ms": "Turns that took 10 ms or more.",
    "turns_over_1s": "Turns that took a second or more.",
    "turns": "Turns of the worker threads' event loops.",
    "unsafe_name_denials": "Denials because a client id or user name must not stand in a filter.",
    "uptime_seconds": "Seconds since the broker was started.",
    "unauthenticated_bytes": "Bytes of connections that are not accepted yet.",
    "will_bytes": "Bytes of the wills.",
    "wills": "Wills of sessions.",
    "wills_published": "Will messages published.",
    "writes": "System calls that write to connections.",
}


def exposition(stats: Mapping[str, int]) -> str:
    """All counters and gauges; a name that is not known here is a counter with a help text made of its name."""
    return "".join(line + "\n" for line in _lines(stats))


def _lines(stats: Mapping[str, int]) -> Iterator[str]:
    left = dict(stats)
    for prefix, metric, label, text in _FAMILIES:
        members = [name for name in stats if name.startswith(prefix)]
        if members:
            yield from _head(f"mqttc_{metric}_total", "counter", text)
        for name in members:
            yield f'mqttc_{metric}_total{{{label}="{name.removeprefix(prefix)}"}} {left.pop(name)}'
    for name, value in left.items():
        gauge = name in GAUGES
        metric = f"mqttc_{name}" if gauge else f"mqttc_{name}_total"
        yield from _head(metric, "gauge" if gauge else "counter", HELP.get(name, name.replace("_", " ").capitalize() + "."))
        yield f"{metric} {value}"


def _head(metric: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {metric} {text}"
    yield f"# TYPE {metric} {kind}"
