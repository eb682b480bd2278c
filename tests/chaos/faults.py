"""What is done to a world: step boundaries, random kills, cut networks, full disks; and a supervisor.

In: a world under load, a seed, how many random kills.  Out: it all happened, and what of it is counted.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from pipelines.failpoints import REACHED
from tests.chaos.disk import Noticed
from tests.chaos.load import Load
from tests.chaos.world import NodeVictim, Victim, World

#: boundaries that wait for a process to come by, at once
ARMED = 8
LOOK_SECONDS = 0.1
#: a node stays away for so long, now and then, so that others take over from it
AWAY_SECONDS, AWAY_SHARE = 20.0, 0.06
#: of so many kills, the next one comes only when all nodes are up again, or after so long
SOUND_SHARE, SOUND_SECONDS = 0.6, 40.0
CUT_SECONDS = (1.0, 6.0)
#: the disk stays full until receiving and a run noticed it, or so long
FULL_SECONDS = (5.0, 25.0)


@dataclass
class Done:
    """What happened so far. kills: by what was killed.  reached: boundaries at which a process ended."""

    kills: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    ended_by_itself: int = 0
    times_full: int = 0

    @property
    def total(self) -> int:
        return self.kills.total() + self.reached.total()


class Faults:
    """Used by one thread."""

    def __init__(
        self,
        world: World,
        load: Load,
        rng: random.Random,
        boundaries: Collection[str],
        *,
        say: Callable[[str], object],
        retry: Callable[[], object],
        is_working: Callable[[], bool],
    ) -> None:
        """retry: ask for a job again, as ops would.  is_working: whether some job runs."""
        self._is_working = is_working
        self._world, self._load, self._rng, self._say, self._retry = world, load, rng, say, retry
        self.noticed = Noticed(world.folder)
        self._boundaries = frozenset(boundaries)
        self._to_reach = sorted(boundaries)
        rng.shuffle(self._to_reach)
        self._away: list[tuple[float, Victim]] = []
        self.done = Done()

    @property
    def missed(self) -> list[str]:
        """Boundaries that nobody has reached yet."""
        return sorted(self._boundaries - set(self.done.reached))

    def run(self, kills: int, *, seconds_between: float, full_disks: int, give_up_at: float) -> None:
        """Until every boundary was reached, and random kills were done; or until ``give_up_at``."""
        full_at = set(self._rng.sample(range(1, kills + 1), min(full_disks, kills)))
        random_kills = 0
        while (random_kills < kills or self.missed) and time.monotonic() < give_up_at:
            self._arm()
            if self._rng.random() < SOUND_SHARE:
                self._wait_until(self._is_sound, SOUND_SECONDS)
            self.wait(self._rng.uniform(0.3, seconds_between))
            if random_kills >= kills:
                continue
            random_kills += 1
            self._kill()
            if random_kills in full_at and self._world.disk.is_small:
                self._fill_the_disk()
            if self._rng.random() < 0.15:
                self._cut()
            if self._rng.random() < 0.1:
                self._retry()

    def end(self) -> None:
        """Nothing more happens; what isn't running is started."""
        for name in self._armed():
            (self._world.armed / name).unlink(missing_ok=True)
        self._world.network.calm()
        self.look()
        for _at, victim in self._away:
            victim.start()
        self._away.clear()
        for service in self._world.others:
            service.wait()

    def lose_one_worker(self) -> None:
        """For good."""
        victim = self._rng.choice(self._world.workers)
        self._say(f"{victim.name} is gone for good")
        victim.node.kill()
        self.done.kills[f"{victim.name}: for good"] += 1
        self._world.workers.remove(victim)

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            self.look()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(LOOK_SECONDS, left))

    def look(self) -> None:
        """As a supervisor: start what ended; and note which boundaries were reached."""
        self._note_reached()
        now = time.monotonic()
        for at, victim in [each for each in self._away if each[0] <= now]:
            self._away.remove((at, victim))
            victim.start()
        away = [victim for _at, victim in self._away]
        for victim in self._world.victims:
            if victim not in away and victim.look():
                self.done.ended_by_itself += 1

    def _note_reached(self) -> None:
        for path in (self._world.armed / REACHED).iterdir():
            path.unlink()
            self.done.reached[path.name] += 1
            self._say(f"kill {self.done.total}: at {path.name}, {len(self.missed)} to go")

    def _armed(self) -> list[str]:
        return [path.name for path in self._world.armed.iterdir() if path.name != REACHED]

    def _arm(self) -> None:
        """Boundaries that wait for long give way to others, and come again later."""
        armed = self._armed()
        self._note_reached()
        missed = set(self.missed)
        self._to_reach = [name for name in self._to_reach if name in missed]
        if len(armed) >= ARMED and len(self._to_reach) > len(armed) and self._rng.random() < 0.15:
            given_up = self._rng.choice(armed)
            (self._world.armed / given_up).unlink(missing_ok=True)
            self._to_reach = [name for name in self._to_reach if name != given_up] + [given_up]
            armed.remove(given_up)
        for name in self._to_reach:
            if len(armed) >= ARMED:
                return
            if name not in armed:
                (self._world.armed / name).touch()
                armed.append(name)

    def _kill(self) -> None:
        away = [victim for _at, victim in self._away]
        candidates = [v for v in self._world.victims if v not in away and not v.is_starting]
        if not candidates:
            return
        victim = self._rng.choice(candidates)
        what = victim.kill(self._rng)
        self.done.kills[what] += 1
        self._say(f"kill {self.done.total}: {what}")
        long = self._world.setup.shared and isinstance(victim, NodeVictim) and what == victim.name
        if long and self._rng.random() < AWAY_SHARE:
            self._away.append((time.monotonic() + AWAY_SECONDS, victim))
            return
        self.wait_without(victim, self._rng.uniform(0.0, 1.5))
        victim.start()

    def _wait_until(self, true: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not true():
            self.wait(0.5)

    def _is_sound(self) -> bool:
        """Whether all nodes that are to run answer."""
        away = [victim for _at, victim in self._away]
        return all(victim.answers() for victim in self._world.nodes if victim not in away)

    def wait_without(self, victim: Victim, seconds: float) -> None:
        """As ``wait``, while one isn't started again."""
        entry = (time.monotonic() + 3600.0, victim)
        self._away.append(entry)
        self.wait(seconds)
        self._away.remove(entry)

    def _cut(self) -> None:
        proxy = self._rng.choice(self._world.network.proxies)
        self._say(f"the network of {proxy.name} is cut")
        self._world.network.cut(proxy)
        self.wait(self._rng.uniform(*CUT_SECONDS))
        self._world.network.mend(proxy)

    def _fill_the_disk(self) -> None:
        self._wait_until(self._is_sound, SOUND_SECONDS)
        self._wait_until(self._is_working, SOUND_SECONDS)
        self._say(f"the disk is full, {shutil.disk_usage(self._world.data_dir).used >> 20} MiB were used")
        before = self.noticed.so_far()
        self._load.hurry = True
        self._world.disk.fill()
        self.done.times_full += 1
        until = time.monotonic() + self._rng.uniform(*FULL_SECONDS)
        while time.monotonic() < until:
            self.wait(1.0)
            news = {name for name, count in self.noticed.so_far().items() if count > before[name]}
            if "runs_failed" in news and len(news) > 1:
                break
        self._world.disk.empty()
        self._load.hurry = False
