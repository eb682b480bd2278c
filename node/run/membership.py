"""The nodes that share a database: who lives, who is gone, and whose work may be written.

In: PostgreSQL's session locks.  Out: what a node that is gone was doing, handed on; and, before anything that
a job made becomes visible, whether its run is still this node's to finish.

A node holds the lock of its id on a connection of its own, so a node that is only slow or stopped is alive.
When the lock has been free for ``GRACE_SECONDS``, another node raises the ``epoch`` of the one that is gone
and hands its jobs on. A node that had only lost its connection finds a higher epoch than its runs began with:
those runs change nothing any more, whatever they still do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.exc import SQLAlchemyError

from node.database import insert_if_new, nodes, write_transaction
from node.errors import ConfigError
from node.postgres import SessionLock, held_names
from node.watch import Watch

log = structlog.get_logger(__name__)

#: how long a node's lock is free before it counts as gone: a restart of PostgreSQL frees all of them at once
GRACE_SECONDS = 15.0
LOOK_SECONDS = 3.0
#: a node of the same id may be about to end, or be taken over right now
START_SECONDS = 15.0


def _lock_name(node_id: str) -> str:
    return f"node {node_id}"


class Membership:
    """This node among the others, between ``start`` and ``stop``."""

    def __init__(self, engine: Engine, node_id: str, role: str, workflow_version: str | None) -> None:
        """workflow_version: of the jobs that this node runs, None when it runs none."""
        self._engine = engine
        self.node_id = node_id
        self._role = role
        self._workflow_version = workflow_version
        self._lock = SessionLock(engine, _lock_name(node_id))
        self._epoch = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)

    @property
    def epoch(self) -> int:
        """What a run that begins now begins with."""
        return self._epoch

    def start(self) -> None:
        """Hold the lock of our id. Raises ConfigError when another node has it."""
        deadline = time.monotonic() + START_SECONDS
        while not self._lock.hold():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"node_id: {self.node_id!r} is in use by another node on the same database",
                    hint="give each node an id of its own, by node_id or `pacsnode run --node-id`",
                )
            time.sleep(0.2)
        values = {"role": self._role, "workflow_version": self._workflow_version, "started_at": time.time()}
        ours = nodes.c.node_id == self.node_id
        with write_transaction(self._engine) as connection:
            insert_if_new(connection, nodes, {"node_id": self.node_id, "epoch": 0, **values})
            connection.execute(update(nodes).where(ours).values(epoch=nodes.c.epoch + 1, **values))
            self._epoch = self._read(connection)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._lock.release()

    def is_current(self, connection: Connection, epoch: int) -> bool:
        """Whether a run that began with this epoch is ours, which it stays until the transaction ends."""
        ours = select(nodes.c.epoch).where(nodes.c.node_id == self.node_id)
        return bool(connection.execute(ours.with_for_update(read=True)).scalar_one() == epoch)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS / 2):
            try:
                if self._lock.hold():
                    self._see()
                else:
                    log.warning("node_lock_taken", node_id=self.node_id, hint="another takes over our jobs")
            except SQLAlchemyError as error:
                log.warning("node_lock_lost", node_id=self.node_id, error=type(error).__name__)

    def _see(self) -> None:
        with self._engine.connect() as connection:
            epoch = self._read(connection)
        if epoch != self._epoch:
            log.error(
                "node_taken_over", node_id=self.node_id, hint="others go on with our jobs; new ones run"
            )
            self._epoch = epoch

    def _read(self, connection: Connection) -> int:
        return int(
            connection.execute(select(nodes.c.epoch).where(nodes.c.node_id == self.node_id)).scalar_one()
        )


class Takeover(Watch):
    """Hands on the jobs of nodes that are gone."""

    def __init__(
        self,
        engine: Engine,
        node_id: str,
        hand_on: Callable[[str], int],
        *,
        has_work: Callable[[str], bool] = lambda _node_id: True,
        on_versions: Callable[[set[str]], object] = lambda _alive: None,
        on_gone: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """hand_on(node_id): let others run what the node was running; returns how many workflows that are.

        has_work(node_id): whether there is anything to hand on.
        on_versions: called with the workflow versions of the nodes that live.
        on_gone: called once some node is gone: it may have written jobs down that it didn't enqueue any more.
        """
        super().__init__("takeover", LOOK_SECONDS)
        self._engine = engine
        self._node_id = node_id
        self._hand_on = hand_on
        self._has_work = has_work
        self._on_versions = on_versions
        self._on_gone = on_gone
        self._known_gone: set[str] = set()
        self._clock = clock
        self._free_since: dict[str, float] = {}

    def look(self) -> list[str]:
        """Take over from those that are gone for long enough; returns their ids."""
        now = self._clock()
        with self._engine.connect() as connection:
            rows = connection.execute(select(nodes)).all()
            names = {row.node_id: _lock_name(row.node_id) for row in rows}
            held = held_names(connection, names.values())
        alive = {node_id for node_id, name in names.items() if name in held}
        gone = set(names) - alive - {self._node_id}
        self._free_since = {node_id: self._free_since.get(node_id, now) for node_id in gone}
        # those about whom we aren't sure count as alive
        sure = {node_id for node_id, since in self._free_since.items() if now - since >= GRACE_SECONDS}
        self._on_versions({r.workflow_version for r in rows if r.node_id not in sure and r.workflow_version})
        if sure - self._known_gone:
            self._on_gone()
        self._known_gone = sure
        return [node_id for node_id in sorted(sure) if self._take_over(node_id)]

    def _take_over(self, node_id: str) -> bool:
        if not self._has_work(node_id):
            return False
        theirs = SessionLock(self._engine, _lock_name(node_id))
        if not theirs.hold():  # it is back, or another is at it
            return False
        try:
            with write_transaction(self._engine) as connection:
                raised = {"epoch": nodes.c.epoch + 1}
                connection.execute(update(nodes).where(nodes.c.node_id == node_id).values(raised))
            handed_on = self._hand_on(node_id)
        finally:
            theirs.release()
        if handed_on:
            log.warning("node_gone", node_id=node_id, workflows=handed_on, hint="others go on with its jobs")
        return handed_on > 0
