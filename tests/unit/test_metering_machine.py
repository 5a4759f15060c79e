"""Whatever happens to front door, store and journal: what was noted is in the ledger once, or waits for it."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from cloudfarm.domain.served import Account, Note, Used
from cloudfarm.domain.tenant import UNLIMITED, CredentialKind, Limits, Tenant
from cloudfarm.errors import CloudfarmError, UnavailableError
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.factories import add, keep, look, make_credential, make_service
from cloudfarm.testing.memory_journal import JournalFolder, MemoryJournal
from cloudfarm.testing.memory_store import MemoryStore, MemoryUnitOfWork
from cloudfarm.usecases.metering import Meter
from cloudfarm.usecases.routes import Route
from cloudfarm.usecases.use import Use

KEYS = {"k1": "kaist", "k2": "kaist", "k3": "snu"}
SERVICES = {name: make_service(name, name=name, tenant="kaist") for name in ("s1", "s2")}


class FlakyStore(MemoryStore):
    """A store whose commits fail: before they are done, or, as when a connection is lost, after that."""

    fault = ""

    def begin(self, *, write=True):
        return FlakyUnit(self, write=write)


class FlakyUnit(MemoryUnitOfWork):
    async def commit(self):
        if self._store.fault == "before":
            raise UnavailableError
        await super().commit()
        if self._store.fault == "after":
            raise UnavailableError


@dataclass
class Running:
    """What is known of a use beside the meter."""

    use: Use
    key_id: str
    noted_ms: int
    used: Counter = field(default_factory=lambda: Counter(requests=1))

    def note(self, now_ms):
        self.used["busy_ms"] += now_ms - self.noted_ms
        self.noted_ms = now_ms
        used, self.used = self.used, Counter()
        return used


class MeteringMachine(RuleBasedStateMachine):
    """Requests run, the store and the journal fail, and the front door is killed and started again."""

    uses = Bundle("uses")

    @initialize()
    def open_farm(self):
        self.runner = asyncio.Runner()
        self.store, self.clock, self.folder = FlakyStore(), ManualClock(), JournalFolder()
        keys = [
            make_credential(key_id, tenant, kind=CredentialKind.KEY, tokens_per_month=10**12)
            for key_id, tenant in KEYS.items()
        ]
        self.runner.run(
            add(
                self.store,
                tenants=[Tenant("kaist", "", 1, limit_tokens_per_month=10**12), Tenant("snu", "", 1)],
                credentials=keys,
            )
        )
        self.noted = {key_id: Counter() for key_id in KEYS}
        """What the journal has taken."""
        self.kept = {key_id: Counter() for key_id in KEYS}
        """What it has refused so far."""
        self.open()

    def open(self):
        self.running: list[Running] = []
        self.told = False
        self.journal = MemoryJournal(self.folder)
        self.meter = Meter(self.store, self.clock, self.journal)
        self.try_step()

    def try_step(self):
        try:
            self.runner.run(self.meter.step())
        except CloudfarmError:
            assert self.store.fault or self.journal.full
            self.told |= not self.store.fault  # it did all else
        else:
            self.told = True
        self.write([(each.key_id, each.note(self.clock.now_ms())) for each in self.running])

    def write(self, notes):
        for key_id, used in notes:
            self.kept[key_id].update(used)
        if not self.journal.full:
            for key_id, used in self.kept.items():
                self.noted[key_id].update(used)
                used.clear()

    @rule(target=uses, key_id=st.sampled_from(sorted(KEYS)), service=st.sampled_from(sorted(SERVICES)))
    def begin(self, key_id, service):
        try:
            to = route(key_id, SERVICES[service])
            use = self.meter.begin(to, self.meter.admit(to))
        except UnavailableError:
            assert not self.told, "the limits were read, and are not known"
            return None
        each = Running(use, key_id, self.clock.now_ms())
        self.running.append(each)
        return each

    @rule(each=uses, prompt=st.integers(0, 5000), completion=st.integers(0, 50))
    def count(self, each, prompt, completion):
        if each in self.running:
            each.use.count(prompt_tokens=prompt, completion_tokens=completion)
            each.used.update(prompt_tokens=prompt, completion_tokens=completion)

    @rule(each=consumes(uses), twice=st.booleans())
    def end(self, each, twice):
        if each in self.running:
            each.use.end()
            if twice:
                each.use.end()
            self.running.remove(each)
            self.write([(each.key_id, each.note(self.clock.now_ms()))])

    @rule(ms=st.sampled_from([0, 1, 400, 1000, 59_999, 3_600_000]))
    def time_passes(self, ms):
        self.clock.advance(ms)

    @rule()
    def step(self):
        self.try_step()

    @rule(fault=st.sampled_from(["", "before", "after"]))
    def store_fault(self, fault):
        self.store.fault = fault

    @rule(full=st.booleans())
    def disk_full(self, full):
        self.journal.full = full

    @rule()
    def the_front_door_is_killed(self):
        """What requests under way used since they were last noted is lost, and what the journal refused."""
        self.journal.close()
        for used in self.kept.values():
            used.clear()
        self.open()

    @precondition(lambda self: not self.store.fault)
    @rule()
    def the_front_door_ends(self):
        self.try_step()
        self.the_front_door_is_killed()

    @rule(key_id=st.sampled_from(sorted(KEYS)), tokens=st.integers(1, 100))
    def another_front_door_that_was_still_there_is_killed(self, key_id, tokens):
        """It leaves what it noted since this one began."""
        other = MemoryJournal(self.folder)
        account = Account(KEYS[key_id], key_id, "s1", "kaist", "s1", "", "chat")
        now_ms = self.clock.now_ms()
        other.append([Note(account, now_ms, now_ms, Used(requests=1, prompt_tokens=tokens))])
        other.close()
        self.noted[key_id].update(requests=1, prompt_tokens=tokens)

    @precondition(lambda self: not self.store.fault)
    @rule(key_id=st.sampled_from(sorted(KEYS)))
    def a_limit_is_lifted_and_set_again(self, key_id):
        for limits in (UNLIMITED, Limits(tokens_per_month=10**12)):
            self.runner.run(
                keep(self.store, lambda uow, limits=limits: uow.credentials.limit(key_id, limits))
            )
            self.runner.run(self.meter.refresh())
            self.try_step()

    def ledger(self):
        return self.runner.run(look(self.store, lambda uow: uow.served.days()))

    @invariant()
    def all_that_was_noted_is_in_the_ledger_or_waits_once(self):
        there = {key_id: Used() for key_id in KEYS}
        waiting = [
            note
            for batch, notes in self.folder.batches.items()
            if batch not in self.store.state.served  # else only its removal is left to do
            for note in notes
        ]
        for each in (*self.ledger(), *waiting):
            there[each.account.key_id] += each.used
        for key_id, used in there.items():
            for name in ("requests", "prompt_tokens", "completion_tokens", "busy_ms"):
                assert getattr(used, name) == self.noted[key_id][name], (key_id, name)

    @invariant()
    def a_months_budget_counts_everything(self):
        left = [batch for batch in self.folder.batches if not self.journal.is_own(batch)]
        if not self.meter._ready or self.meter._recount or left:
            return
        wanted = {key_id: tokens(self.noted[key_id]) + tokens(self.kept[key_id]) for key_id in KEYS}
        for each in self.running:
            wanted[each.key_id] += tokens(each.used)

        def used(tenant, key_id):
            return self.meter._allowances.used(tenant, key_id, self.clock.now_ms())

        assert {key_id: used(KEYS[key_id], key_id) for key_id in KEYS} == wanted
        assert used("kaist", None) == wanted["k1"] + wanted["k2"]
        assert used("snu", None) is None

    def teardown(self):
        if hasattr(self, "meter"):
            self.store.fault, self.journal.full = "", False
            for _ in range(3):
                self.try_step()
            assert self.folder.batches == {}, "everything is handed over when nothing fails any more"
            self.all_that_was_noted_is_in_the_ledger_or_waits_once()
            self.runner.close()


def route(key_id, service):
    return Route(
        tenant=KEYS[key_id],
        key_id=key_id,
        service=service,
        app_name="",
        model="chat",
        kind="causal-lm",
        milli_gpus=1000,
    )


def tokens(used):
    return used["prompt_tokens"] + used["completion_tokens"]


TestMeteringMachine = MeteringMachine.TestCase
TestMeteringMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
