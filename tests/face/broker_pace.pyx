"""Face of the journal's pace."""

from mqttc.broker.pace cimport COMPANY_MOST_NS, GATHER_MANY, GATHER_MOST_NS, pace_company, pace_gather

MANY = GATHER_MANY
GATHER_MOST = GATHER_MOST_NS
COMPANY_MOST = COMPANY_MOST_NS


def gather(ns: int, commit_ns: int, begun: int, ended: int) -> int:
    return pace_gather(ns, commit_ns, begun, ended)


def company(ns: int, commit_ns: int, chains: int, more: bool) -> int:
    return pace_company(ns, commit_ns, chains, more)
