"""How vLLM serves: a model of its V1 scheduler over time. Pure; the caller has the clock.

A step gives each running sequence one more token, and lets others read as much of their prompts as
the step's budget allows (chunked prefill). Before it, sequences that have filled their blocks of KV
memory take another one. Where none is left, the sequence that was admitted last gives all of its
own up and waits again, at the head of the queue: its prompt and what it has written will have to be
computed once more. Then those that wait are admitted in order, while there are slots, and room for
the whole of what they have to read. Blocks that nobody uses keep their content until they are
wanted, the least recently used first; a sequence that begins with what they hold does not compute
that.

Left out: that long contexts make steps slower, speculative decoding, adapters, images.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from itertools import count

from domyn_swarm.engines.sim_options import VllmOptions

_POSITIVE = (1 << 62) - 1


def block_names(text: str, block_chars: int) -> list[int]:
    """A name of each full block of a text, which also depends on everything before the block.

    Equal for equal beginnings within one process, as vLLM's hashes are.
    """
    names, before = [], 0
    for end in range(block_chars, len(text) + 1, block_chars):
        before = hash((before, text[end - block_chars : end])) & _POSITIVE
        names.append(before)
    return names


class KvMemory:
    """Blocks of KV memory. A block with known content is called by the name of that, any other by a
    negative number.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._numbers = count(-1, -1)
        # by when they were last used
        self._idle: OrderedDict[int, None] = OrderedDict()
        for _ in range(blocks):
            self._idle[next(self._numbers)] = None
        self._users: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody uses, with and without content."""
        return len(self._idle)

    def known(self, names: list[int]) -> int:
        """How many of these, from the first on, are there."""
        for place, name in enumerate(names):
            if name not in self._users and name not in self._idle:
                return place
        return len(names)

    def left_by(self, names: list[int]) -> int:
        """How many would be free if these, which are there, were in use."""
        return len(self._idle) - sum(name in self._idle for name in names)

    def share(self, names: list[int]) -> None:
        """Use blocks that are there."""
        for name in names:
            self._idle.pop(name, None)
            self._users[name] = self._users.get(name, 0) + 1

    def take(self, blocks: int) -> list[int]:
        """Use so many free ones; what they held is forgotten, the least recently used first.

        Raises:
            KeyError: there are fewer.
        """
        taken = []
        for _ in range(blocks):
            self._idle.popitem(last=False)
            taken.append(next(self._numbers))
            self._users[taken[-1]] = 1
        return taken

    def name(self, block: int, name: int) -> int:
        """Say what a block holds; what it is called now. Of two with one content, one is known."""
        if name in self._users or name in self._idle:
            return block
        self._users[name] = self._users.pop(block)
        return name

    def release(self, blocks: list[int]) -> None:
        """Use these no longer. Of a sequence the end is forgotten before the beginning."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                del self._users[block]
                self._idle[block] = None


class Sequence:
    """One answer on its way."""

    def __init__(self, prompt_tokens: int, write_tokens: int, names: list[int]) -> None:
        self.prompt_tokens = prompt_tokens
        self.write_tokens = write_tokens  # 0: the prompt is read, and that is all
        self.names = names  # of the full blocks of prompt and answer
        self.blocks: list[int] = []
        self.admitted = 0  # when, as a number in a row; 0: it waits
        self.computed = 0  # tokens in KV memory, while it reads
        self.written = 0  # tokens, when it last began to write
        self.writes_from: int | None = None  # the step that gave the first token after those
        self.preempted = False
        self.done = False

    @property
    def read_tokens(self) -> int:
        """What it has to compute before it can go on writing."""
        return self.prompt_tokens + self.written

    def written_before(self, step: int) -> int:
        """Tokens written before a step begins."""
        since = 0 if self.writes_from is None else step - self.writes_from
        return min(self.write_tokens, self.written + since)


class VllmModel:
    """One engine. Times are seconds of any clock that only goes forward; `advance` comes first."""

    def __init__(self, options: VllmOptions, slots: int, speed: float) -> None:
        self._options = options
        self._slots = slots
        self._speed = speed
        self.memory = KvMemory(options.kv_tokens // options.block_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}  # in the order of their admission
        self._reading: list[Sequence] = []  # of those; the others write
        self._admissions = count(1)
        # what is next for those that write: step, whether for a block, admission
        self._due: list[tuple[int, bool, int, Sequence]] = []
        self._step = 0
        self._began_s = 0.0
        self._step_s = 0.0
        self._planned = 0  # steps, all alike, until something is due; 0: it has nothing to do
        self._generated = 0
        self.prompt_tokens = 0
        self.queried_tokens = 0  # of the prefix cache
        self.hit_tokens = 0
        self.preemptions = 0

    # -- what is asked -------------------------------------------------------------------------

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence, prompt and answer, that can ever be served."""
        return self.memory.blocks * self._options.block_tokens

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences without one, the preempted among them."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that running sequences use, 0 to 1."""
        return 1 - self.memory.free / self.memory.blocks

    @property
    def next_s(self) -> float | None:
        """When `advance` has something to do, if nothing is submitted before. None: never."""
        return self._began_s + self._planned * self._step_s if self._planned else None

    def generated(self, now_s: float) -> int:
        """Tokens written by all sequences."""
        return self._generated + self._writing * self._steps_by(now_s)

    def written(self, sequence: Sequence, now_s: float) -> int:
        """Tokens of its answer that a sequence has written."""
        if sequence.done:
            return sequence.write_tokens
        return sequence.written_before(self._step + self._steps_by(now_s))

    def submit(self, now_s: float, text: str, prompt_tokens: int, write_tokens: int) -> Sequence:
        """Ask for an answer. `text` is the prompt, and the answer behind it.

        Raises:
            ValueError: it is longer than `capacity_tokens`.
        """
        if prompt_tokens + write_tokens > self.capacity_tokens:
            raise ValueError(f"more than {self.capacity_tokens} tokens")
        names: list[int] = []
        if self._options.prefix_cache:
            per_block = self._options.block_tokens * self._options.characters_per_token
            names = block_names(text, per_block)
        sequence = Sequence(prompt_tokens, write_tokens, names)
        self._waiting.append(sequence)
        self._look_up(now_s)
        return sequence

    def abort(self, now_s: float, sequence: Sequence) -> None:
        """Forget a sequence, and free what it holds."""
        if sequence.admitted:
            del self._running[sequence]
            self._give_up(sequence)
        elif not sequence.done:
            self._waiting.remove(sequence)
        self._look_up(now_s)

    def advance(self, now_s: float) -> list[Sequence]:
        """Let time pass; the sequences that are done by now."""
        done: list[Sequence] = []
        while self._planned and self.next_s is not None and self.next_s <= now_s:
            at_s = self.next_s
            self._generated += self._writing * self._planned
            self._step += self._planned
            self._start_writing()
            done += self._retire()
            self._begin(at_s)
        return done

    # -- the steps -----------------------------------------------------------------------------

    @property
    def _writing(self) -> int:
        return len(self._running) - len(self._reading)

    def _steps_by(self, now_s: float) -> int:
        """Steps of those planned that are over."""
        if not self._planned:
            return 0
        return max(0, min(self._planned - 1, int((now_s - self._began_s) / self._step_s)))

    def _look_up(self, now_s: float) -> None:
        """Something has changed: the step under way is the last that was planned without it."""
        if self._planned:
            self._planned = self._steps_by(now_s) + 1
        else:
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        """Plan the next step, and as many more as will be like it."""
        budget = self._options.batched_tokens - self._writing
        read, squeezed = self._go_on(budget)
        if not squeezed:
            read += self._admit(budget - read)
        if not self._running:
            self._planned = 0
            return
        alone = self._options.step_s + self._options.sequence_step_s * self._writing
        self._step_s = (alone + read / self._options.prefill_tokens_per_s) / self._speed
        self._began_s = now_s
        alike = not self._reading and not squeezed
        self._planned = self._next_due() - self._step if alike else 1

    def _next_due(self) -> int:
        while self._due[0][2] != self._due[0][3].admitted:
            heapq.heappop(self._due)
        return self._due[0][0]

    def _go_on(self, budget: int) -> tuple[int, bool]:
        """Blocks and tokens for those that run: tokens read, whether any was preempted."""
        wanting = [(one.admitted, one) for one in self._reading]
        while self._due and self._due[0][0] <= self._step:
            _, _, admitted, sequence = heapq.heappop(self._due)
            if sequence.admitted == admitted:
                wanting.append((admitted, sequence))
        wanting.sort(key=lambda one: one[0])
        read, squeezed = 0, False
        for admitted, sequence in wanting:
            if sequence.admitted != admitted:
                continue  # preempted for one before it
            tokens = 0
            if sequence.writes_from is None:
                tokens = min(sequence.read_tokens - sequence.computed, budget - read)
            blocks = self._blocks_wanted(sequence, tokens)
            squeezed = self._make_room(blocks, sequence) or squeezed
            if sequence.admitted:
                self._grant(sequence, blocks, tokens)
                read += tokens
        return read, squeezed

    def _blocks_wanted(self, sequence: Sequence, tokens: int) -> int:
        if sequence.writes_from is not None:
            return 1
        return _blocks(sequence.computed + tokens, self._options.block_tokens) - len(
            sequence.blocks
        )

    def _make_room(self, blocks: int, sequence: Sequence) -> bool:
        """Preempt those admitted last until there are so many free blocks, or it was itself."""
        squeezed = False
        while self.memory.free < blocks and sequence.admitted:
            last, _ = self._running.popitem()
            last.preempted = squeezed = True
            self._give_up(last)
            self._waiting.appendleft(last)
            self.preemptions += 1
        return squeezed

    def _grant(self, sequence: Sequence, blocks: int, tokens: int) -> None:
        size = self._options.block_tokens
        if sequence.writes_from is not None:
            self._name(sequence, len(sequence.blocks))
            heapq.heappush(self._due, (self._step + size, True, sequence.admitted, sequence))
        sequence.blocks += self.memory.take(blocks)
        if sequence.writes_from is None:
            sequence.computed += tokens
            self._name(sequence, sequence.computed // size)

    def _admit(self, budget: int) -> int:
        """Let in who waits, in order; the tokens that they read in this step."""
        size, read = self._options.block_tokens, 0
        while self._waiting and read < budget and len(self._running) < self._slots:
            sequence = self._waiting[0]
            whole = sequence.read_tokens
            names = sequence.names[: (whole - 1) // size]  # the last token gives the next one
            known = names[: self.memory.known(names)]
            if self.memory.left_by(known) < _blocks(whole, size) - len(known):
                break
            self._waiting.popleft()
            sequence.admitted = next(self._admissions)
            self.memory.share(known)
            sequence.blocks, sequence.computed = known, len(known) * size
            if self._options.prefix_cache and not sequence.preempted:
                self.queried_tokens += whole
                self.hit_tokens += sequence.computed
            self._running[sequence] = None
            self._reading.append(sequence)
            tokens = min(whole - sequence.computed, budget - read)
            self._grant(sequence, self._blocks_wanted(sequence, tokens), tokens)
            read += tokens
        return read

    def _start_writing(self) -> None:
        """Who has read everything in the step that is over has its first token by it."""
        size = self._options.block_tokens
        for sequence in [one for one in self._reading if one.computed >= one.read_tokens]:
            self._reading.remove(sequence)
            sequence.writes_from = self._step - 1
            if not sequence.preempted:
                self.prompt_tokens += sequence.prompt_tokens
            left = sequence.write_tokens - sequence.written
            self._generated += min(left, 1)
            over = sequence.writes_from + max(1, left)
            heapq.heappush(self._due, (over, False, sequence.admitted, sequence))
            room = len(sequence.blocks) * size - sequence.read_tokens
            if sequence.writes_from + room + 1 < over:
                block_at = sequence.writes_from + room + 1
                heapq.heappush(self._due, (block_at, True, sequence.admitted, sequence))

    def _retire(self) -> list[Sequence]:
        """Who has written everything, by the step that is over."""
        done = []
        while self._due and self._due[0][0] <= self._step and not self._due[0][1]:
            _, _, admitted, sequence = heapq.heappop(self._due)
            if sequence.admitted == admitted:
                del self._running[sequence]
                self._give_up(sequence)
                sequence.done = True
                done.append(sequence)
        return done

    def _give_up(self, sequence: Sequence) -> None:
        """Free the blocks of one that runs no more."""
        if sequence.writes_from is None:
            self._reading.remove(sequence)
        else:
            sequence.written = sequence.written_before(self._step)
            computed = sequence.read_tokens - 1  # the last token is read with the next one
            self._name(sequence, computed // self._options.block_tokens)
        self.memory.release(sequence.blocks)
        sequence.blocks, sequence.admitted, sequence.writes_from = [], 0, None

    def _name(self, sequence: Sequence, full: int) -> None:
        """Make what its full blocks hold known to others."""
        blocks = sequence.blocks
        for place in range(min(full, len(sequence.names)) - 1, -1, -1):
            if blocks[place] >= 0:
                break
            blocks[place] = self.memory.name(blocks[place], sequence.names[place])


def _blocks(tokens: int, size: int) -> int:
    return -(-tokens // size)
