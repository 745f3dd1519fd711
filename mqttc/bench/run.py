"""Drives a plan: connect, warm up, measure, drain, tidy up; and makes a ``Result`` of what was seen."""

from __future__ import annotations

import contextlib
import math
import resource
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from mqttc.bench.client import Probe
from mqttc.bench.process import Usage, Watch, own_run_delay_ns
from mqttc.bench.profile import Profile, RunError
from mqttc.bench.result import Result, Sample, percentiles
from mqttc.bench.road import Road
from mqttc.bench.scenarios import Plan, build

SAMPLE_S = 0.5
_POLL_S = 0.002
_SETTLE_S = 0.2  # for what comes late: repeats, acknowledgements
_TIDY_S = 30.0
_BUSY = 0.9
_SPARE_DESCRIPTORS = 64


class Observer(Protocol):
    """Who wants to see a run while it goes on."""

    def phase(self, name: str) -> None: ...
    def sample(self, sample: Sample, before: Sample | None, latency_ms: dict[str, float]) -> None: ...


class Silent:
    """An observer that does not care."""

    def phase(self, name: str) -> None:
        pass

    def sample(self, sample: Sample, before: Sample | None, latency_ms: dict[str, float]) -> None:
        pass


def run(name: str, profile: Profile, *, pid: int | None = None, observer: Observer | None = None) -> Result:
    """Make the run. Raises ``RunError`` when it cannot be made; what went wrong with messages is in the result."""
    watch = None if pid is None else Watch(pid)
    with Road(profile) as road:
        return _run(name, profile, road, watch, observer or Silent())


def _run(name: str, profile: Profile, road: Road, watch: Watch | None, observer: Observer) -> Result:
    with Probe(profile, f"bench-probe-{secrets.token_hex(4)}", road) as probe:
        receive_maximum = probe.connack.properties.receive_maximum or 65535
    plan = build(profile, road, receive_maximum)
    _raise_descriptor_limit(plan.clients, road.descriptors(plan.clients))
    result = Result(name, profile.record(), notes=road.remarks())
    if watch is not None:
        result.broker = {"pid": watch.pid, "command": watch.command}
    if plan.publishers and plan.window < profile.window:
        why = "what the broker's receive maximum or the number of publishers allows"
        result.notes.append(f"window {plan.window} instead of {profile.window}: {why}")
    try:
        plan.load.start()
        _Run(profile, plan, road, watch, result, observer).go()
    except BaseException:
        plan.load.close()
        with contextlib.suppress(RunError):  # the first failure is the one to tell
            _tidy(profile, plan, road)
        raise
    plan.load.close()
    try:
        _tidy(profile, plan, road)
    except RunError as error:
        result.notes.append(f"sessions or retained messages of this run may be left at the broker: {error}")
    return result


def _raise_descriptor_limit(clients: int, descriptors: int) -> None:
    wanted = descriptors + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RunError(f"{clients} connections need {wanted} descriptors, the limit is {hard} (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _tidy(profile: Profile, plan: Plan, road: Road) -> None:
    """Ends the sessions and removes the retained messages that a run made."""
    if plan.retained:
        with Probe(profile, f"bench-tidy-{secrets.token_hex(4)}", road) as probe:
            probe.forget_retained(plan.retained)
    if not plan.persistent:
        return
    user, password = profile.credentials()
    load = road.load()
    try:
        for number, client_id in enumerate(plan.persistent):
            source = f"127.0.1.{number // 20000 + 1}" if road.address.startswith("127.") else None
            load.add_client(client_id, username=user, password=password, source=source)
        load.start()
        load.connect()
        _until(lambda: load.counters()["connects"] + load.counters()["refused"] >= len(plan.persistent), _TIDY_S)
        load.disconnect()
        _until(lambda: load.counters()["connected"] == 0, _TIDY_S)
        ended = load.counters()["connects"]
    finally:
        load.close()
    if ended < len(plan.persistent):
        raise RunError(f"only {ended} of {len(plan.persistent)} sessions could be ended")


def _until(done: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True


@dataclass(frozen=True, slots=True)
class _Mark:
    """Everything that is counted, at a moment."""

    time: float
    looked: float
    """When processor times were read; later than ``time`` where what comes after the last message counts too."""
    counters: dict[str, int]
    threads_ns: list[int]
    usage: Usage | None
    waited_ns: int | None


class _Run:
    def __init__(self, profile: Profile, plan: Plan, road: Road, watch: Watch | None, result: Result, observer: Observer) -> None:
        self.profile = profile
        self.road = road
        self.plan = plan
        self.load = plan.load
        self.watch = watch
        self.result = result
        self.observer = observer
        self.begun = time.monotonic()
        self.phase_name = ""
        self.next_sample = self.begun
        self.histogram: dict[int, int] = {}

    def go(self) -> None:
        special = {"conn": self._connections, "hold": self._hold, "retain": self._retain, "offline": self._offline}
        special.get(self.profile.scenario, self._stream)()
        self._account()
        self._disconnect_all()
        if self.road.tls is not None:
            made = self.road.tls.stats()
            self.result.tls_handshakes, self.result.tls_resumed = made["handshakes"], made["resumed"]

    # ---- phases of scenarios

    def _stream(self) -> None:
        """Publishers publish, receivers receive: for a time or a number of messages."""
        self._connect_all()
        if self.profile.messages:
            before = self._mark()
            with self._phase("measure"):
                self.load.publish(messages=self.profile.messages)
                self._wait_for_all()
                after = self._mark()
            self.histogram = self._histogram()
        else:
            self.load.publish()
            with self._phase("warmup"):
                self._sample_for(self.profile.warmup)
            self.load.reset()
            time.sleep(_POLL_S)  # the threads have seen it
            with self._phase("measure"):
                before = self._mark()
                self._sample_for(self.profile.duration)
                after = self._mark()
                self.histogram = self._histogram()
            self.load.stop_publishing()
            with self._phase("drain"):
                time.sleep(_POLL_S)
                self._wait_for_all()
        self._settle()
        if self.plan.receivers:
            self._figures([(before, after)], "received")
        else:
            self._figures([(before, after)], "acknowledged" if self.profile.qos else "published")
        self._latency()

    def _connections(self) -> None:
        """Clients connect, disconnect and connect again."""
        self.load.connect()
        with self._phase("connect"):
            self._wait_progress("connecting", lambda counters: counters["connects"], self.plan.clients)
        with self._phase("warmup"):
            self._sample_for(self.profile.warmup)
        with self._phase("measure"):
            before = self._mark()
            self._sample_for(self.profile.duration)
            after = self._mark()
        self.load.disconnect()
        self._figures([(before, after)], "connects")
        self.result.unit = "connections"

    def _hold(self) -> None:
        """Clients connect and say nothing."""
        before = self._mark()
        self._connect_all()
        connected = self._mark()
        with self._phase("measure"):
            self._sample_for(self.profile.duration)
        after = self._mark()
        self._figures([(before, connected)], "connects")
        self.result.unit = "connections"
        if before.usage and after.usage:
            self.result.broker_rss_bytes = after.usage.rss_bytes
            self.result.rss_per_connection = (after.usage.rss_bytes - before.usage.rss_bytes) / self.plan.clients

    def _retain(self) -> None:
        """Retained messages are published, then subscribers come and get them."""
        filler, receivers = self.plan.publishers[0], self.plan.receivers
        self._connect(filler, 1)
        self._fill(filler)
        each = self.profile.subscribers
        pairs = []
        with self._phase("measure"):
            for turn in range(self.profile.repeats):
                pairs.append(self._receive_all(receivers[turn * each], each, self.profile.messages * each * (turn + 1)))
        self._settle()
        self._figures(pairs, "received")

    def _offline(self) -> None:
        """Subscribers come, leave, and come back when messages wait for them."""
        filler, receivers = self.plan.publishers[0], self.plan.receivers
        each = len(receivers)
        self._connect(receivers[0], each)
        self._wait_progress("subscribing", lambda counters: counters["subscribed"], self.plan.subscriptions)
        self._connect(filler, 1)
        pairs = []
        for turn in range(self.profile.repeats):
            self._leave(receivers[0], each)
            self._fill(filler)
            with self._phase("measure"):
                pairs.append(self._receive_all(receivers[0], each, self.profile.messages * each * (turn + 1)))
            self._settle()
        self._figures(pairs, "received")

    # ---- steps

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Times of the same name add up."""
        start = time.monotonic()
        self.phase_name = name
        self.observer.phase(name)
        yield
        self.result.phases[name] = round(self.result.phases.get(name, 0.0) + time.monotonic() - start, 6)

    def _connect_all(self) -> None:
        with self._phase("connect"):
            self.load.connect()
            self._wait_progress("connecting", lambda counters: counters["connected"], self.plan.clients)
        if self.plan.subscriptions:
            with self._phase("subscribe"):
                self._wait_progress("subscribing", lambda counters: counters["subscribed"] + counters["errors"], self.plan.subscriptions)
                refused = self.load.counters()["errors"]
                if refused:
                    raise RunError(f"the broker refused {refused} of {self.plan.subscriptions} subscriptions")

    def _connect(self, first: int, count: int) -> None:
        before = self.load.counters()["connected"]
        with self._phase("connect"):
            self.load.connect(first, count)
            self._wait_progress("connecting", lambda counters: counters["connected"] - before, count)

    def _leave(self, first: int, count: int) -> None:
        before = self.load.counters()["connected"]
        self.load.disconnect(first, count)
        if not _until(lambda: self.load.counters()["connected"] == before - count, self.profile.patience):
            raise RunError("the subscribers cannot disconnect")
        time.sleep(_SETTLE_S)  # the broker is to see it before messages come

    def _fill(self, filler: int) -> None:
        before = self.load.counters()["acknowledged"]
        with self._phase("fill"):
            self.load.publish(filler, 1, messages=self.profile.messages)
            self._wait_progress("filling", lambda counters: counters["acknowledged"] - before, self.profile.messages)

    def _receive_all(self, first: int, count: int, target: int) -> tuple[_Mark, _Mark]:
        """Connects receivers that messages wait for, until all have arrived; processor time counts until the acks are through."""
        before = self._mark()
        self.load.connect(first, count)
        progress, since = -1, time.monotonic()
        while True:
            counters = self.load.counters()
            now = time.monotonic()
            if counters["received"] >= target:
                break
            self._refused(counters)
            if counters["received"] != progress:
                progress, since = counters["received"], now
            elif now - since > self.profile.drain:
                break  # what is missing is lost
            self._maybe_sample(now)
            time.sleep(_POLL_S / 2)
        arrived = time.monotonic()
        time.sleep(0.1)
        after = self._mark()
        return before, replace(after, time=arrived)

    def _wait_progress(self, what: str, progress: Callable[[dict[str, int]], int], target: int) -> None:
        best, since = -1, time.monotonic()
        while True:
            counters = self.load.counters()
            now = time.monotonic()
            reached = progress(counters)
            if reached >= target:
                return
            self._refused(counters)
            if reached != best:
                best, since = reached, now
            elif now - since > self.profile.patience:
                raise RunError(f"{what}: {reached} of {target}, then nothing for {self.profile.patience:g} s")
            self._maybe_sample(now)
            time.sleep(_POLL_S)

    def _refused(self, counters: dict[str, int]) -> None:
        if counters["refused"]:
            why = self.load.failure() or self.road.failure() or "refused by the broker, or no ports or descriptors left"
            raise RunError(f"{counters['refused']} connections did not come about, {counters['connects']} did: {why}")
        if counters["lost_connections"]:
            lost = self.road.failure()
            ended = f"the broker closed {counters['lost_connections']} connections before the run began"
            raise RunError(ended if lost is None else f"{ended}: {lost}")

    def _wait_for_all(self) -> None:
        """Until everything published is acknowledged and delivered, or nothing has come for ``drain`` seconds."""
        progress, since, complete = (-1, -1), time.monotonic(), 0
        while complete < 3:  # in several looks, for a publisher may be about to go on
            counters = self.load.counters()
            now = time.monotonic()
            there = (counters["received"], counters["acknowledged"])
            if there != progress:
                progress, since = there, now
            elif now - since > self.profile.drain:
                return
            if counters["connected"] == 0:
                return
            complete = complete + 1 if self._complete(counters) else 0
            self._maybe_sample(now)
            time.sleep(_POLL_S / 2)

    def _complete(self, counters: dict[str, int]) -> bool:
        if self.profile.messages and counters["finished"] < len(self.plan.publishers):
            return False
        if self.profile.qos and counters["acknowledged"] < counters["published"]:
            return False
        return counters["received"] >= self._expected(self.load.published())

    def _expected(self, published: list[int]) -> int:
        return round(sum(published[publisher] * copies for publisher, copies in self.plan.copies.items()))

    def _settle(self) -> None:
        time.sleep(_SETTLE_S)

    def _disconnect_all(self) -> None:
        self.load.disconnect()
        _until(lambda: self.load.counters()["connected"] == 0, self.profile.patience)

    # ---- looking

    def _histogram(self) -> dict[int, int]:
        """Of deliveries; of acknowledgements where nobody receives."""
        return self.load.latency() if self.plan.receivers else self.load.acknowledgement_latency()

    def _mark(self) -> _Mark:
        waited = own_run_delay_ns()
        usage = self.watch.usage() if self.watch is not None else None
        now = time.monotonic()
        threads_ns = self.load.thread_cpu_ns() + self.road.thread_cpu_ns()
        return _Mark(now, now, self.load.counters(), threads_ns, usage, waited)

    def _sample_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            self._maybe_sample(now)
            time.sleep(max(0.0, min(self.next_sample, end) - time.monotonic()))

    def _maybe_sample(self, now: float) -> None:
        if now < self.next_sample:
            return
        self.next_sample += SAMPLE_S * (1 + math.floor((now - self.next_sample) / SAMPLE_S))
        counters = self.load.counters()
        usage = self.watch.usage() if self.watch is not None else None
        sample = Sample(
            round(now - self.begun, 3),
            self.phase_name,
            counters["received"],
            counters["published"],
            counters["connects"],
            counters["cpu_ns"],
            None if usage is None else usage.cpu_ns,
            None if usage is None else usage.rss_bytes,
        )
        before = self.result.samples[-1] if self.result.samples else None
        self.result.samples.append(sample)
        self.observer.sample(sample, before, percentiles(self._histogram()))

    # ---- figures

    def _figures(self, pairs: list[tuple[_Mark, _Mark]], counter: str) -> None:
        result = self.result
        seconds = sum(after.time - before.time for before, after in pairs)
        looked_seconds = sum(after.looked - before.looked for before, after in pairs)

        def total(name: str) -> int:
            return sum(after.counters[name] - before.counters[name] for before, after in pairs)

        result.count = total(counter)
        result.seconds = seconds
        result.per_second = result.count / seconds
        result.published_per_second = total("published") / seconds
        result.bytes_per_second = total("bytes_received") / seconds
        shares = [
            sum(after.threads_ns[thread] - before.threads_ns[thread] for before, after in pairs) / 1e9 / looked_seconds
            for thread in range(len(pairs[0][0].threads_ns))
        ]
        result.generator_cpu_share = max(shares)
        waits = [(before.waited_ns, after.waited_ns) for before, after in pairs]
        waited = [end - start for start, end in waits if start is not None and end is not None]
        result.generator_waited_share = sum(waited) / 1e9 / looked_seconds if waited else None
        broker_busiest: float | None = None
        looked = [(before.usage, after.usage) for before, after in pairs if before.usage is not None and after.usage is not None]
        if looked:
            spent = sum(after.cpu_ns - before.cpu_ns for before, after in looked)
            result.broker_cpu_share = spent / 1e9 / looked_seconds
            result.broker_cpu_us = spent / 1e3 / result.count if result.count else None
            result.broker_rss_bytes = looked[-1][1].rss_bytes
            broker_busiest = sum(after.busiest_ns(before) for before, after in looked) / 1e9 / looked_seconds
        self._judge_generator(broker_busiest)

    def _judge_generator(self, broker_busiest: float | None) -> None:
        result = self.result
        if self.profile.rate and self.plan.publishers:
            if result.published_per_second < 0.98 * self.profile.rate:
                result.generator_limited = True
                result.notes.append(
                    f"the rate was not held: {result.published_per_second:.0f} of {self.profile.rate:.0f} messages a second were published"
                )
        elif result.generator_cpu_share > _BUSY:
            if broker_busiest is None:
                result.generator_limited = True
                result.notes.append(
                    f"the generator was busy {result.generator_cpu_share:.0%} of the time and may have been the limit; "
                    "--pid tells whether the broker was busy too, --threads gives the generator more"
                )
            elif broker_busiest < _BUSY:
                result.generator_limited = True
                result.notes.append(
                    f"the generator was the limit: busy {result.generator_cpu_share:.0%} of the time, "
                    f"the broker's busiest thread {broker_busiest:.0%}"
                )
        waited = result.generator_waited_share
        if waited is not None and waited > 0.1:
            result.notes.append(f"the generator waited for a processor {waited:.0%} of the time: the machine was not its own")

    def _latency(self) -> None:
        self.result.latency_ms = percentiles(self.histogram)
        self.result.histogram = {str(bound): count for bound, count in self.histogram.items()}

    def _account(self) -> None:
        """Compares what was published with what arrived, by publisher and, where it is known who gets what, by receiver."""
        result = self.result
        counters = self.load.counters()
        published, delivered, received = self.load.published(), self.load.delivered(), self.load.received()
        lost = surplus = 0
        for publisher, copies in self.plan.copies.items():
            missing = round(published[publisher] * copies) - delivered[publisher] if self.plan.receivers else 0
            lost += max(missing, 0)
            surplus += max(-missing, 0)
        lost_here = surplus_here = 0
        for receiver, publishers in self.plan.hears.items():
            missing = sum(published[publisher] for publisher in publishers) - received[receiver]
            lost_here += max(missing, 0)
            surplus_here += max(-missing, 0)
        result.expected = self._expected(published) if self.plan.receivers else 0
        result.delivered = counters["received"]
        result.lost = max(lost, lost_here)
        if self.profile.qos and not self.plan.receivers:
            result.lost = counters["published"] - counters["acknowledged"]
        result.duplicated = counters["duplicates"] + max(surplus, surplus_here)
        result.reordered = counters["reordered"]
        result.foreign = counters["foreign"]
        result.lost_connections = counters["lost_connections"] + (counters["refused"] if self.profile.scenario == "conn" else 0)
        result.errors = counters["errors"]
        if self.plan.receivers:
            checked = len(self.plan.receivers) if self.profile.verify == 0 else min(self.profile.verify, len(self.plan.receivers))
            result.verified = f"{checked} of {len(self.plan.receivers)} subscribers message by message"
            if checked < len(self.plan.receivers):
                result.verified += ", the others by count and the sequence of one message of each read"
        if self.profile.scenario == "retain":
            result.verified += "; order is not checked, retained messages have none"
