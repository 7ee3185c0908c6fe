"""A model of vLLM's V1 scheduler over time. Pure: the caller passes the time.

A step writes one token of each running sequence, and reads as much of the prompts of new sequences
as the step's budget allows (chunked prefill). Before a step, each sequence that has filled its
blocks of KV memory takes another block. If none is free, the sequence that was admitted last is
preempted: it gives up all its blocks and waits at the head of the queue, and its prompt and the
text it has written must be computed again. Then waiting sequences are admitted in order, while
there are slots and free blocks for everything they have to read. A block that no sequence uses
keeps its content until it is taken, the least recently used first; a sequence that begins with
that content does not compute it.

Not modelled: slower steps of long contexts, speculative decoding, adapters, images.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from itertools import count

from domyn_swarm.engines.sim_options import VllmOptions

_POSITIVE = (1 << 62) - 1


def block_names(text: str, block_chars: int) -> list[int]:
    """A hash of each full block of a text, which also covers everything before the block.

    As with vLLM's hashes, equal beginnings have equal names within one process.
    """
    names, before = [], 0
    for end in range(block_chars, len(text) + 1, block_chars):
        before = hash((before, text[end - block_chars : end])) & _POSITIVE
        names.append(before)
    return names


class KvMemory:
    """Blocks of KV memory. A block whose content is known has its content's name, any other has a
    negative number.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._numbers = count(-1, -1)
        # least recently used first
        self._idle: OrderedDict[int, None] = OrderedDict()
        for _ in range(blocks):
            self._idle[next(self._numbers)] = None
        self._users: dict[int, int] = {}

    @property
    def free(self) -> int:
        """The number of unused blocks, with and without content."""
        return len(self._idle)

    def known(self, names: list[int]) -> int:
        """The length of the longest beginning of `names` that is in memory."""
        for place, name in enumerate(names):
            if name not in self._users and name not in self._idle:
                return place
        return len(names)

    def left_by(self, names: list[int]) -> int:
        """How many blocks would be free if `names`, which are in memory, were in use."""
        return len(self._idle) - sum(name in self._idle for name in names)

    def share(self, names: list[int]) -> None:
        """Use blocks that are in memory."""
        for name in names:
            self._idle.pop(name, None)
            self._users[name] = self._users.get(name, 0) + 1

    def take(self, blocks: int) -> list[int]:
        """Use free blocks, the least recently used first; their content is dropped.

        Raises:
            KeyError: fewer are free.
        """
        taken = []
        for _ in range(blocks):
            self._idle.popitem(last=False)
            taken.append(next(self._numbers))
            self._users[taken[-1]] = 1
        return taken

    def name(self, block: int, name: int) -> int:
        """Name a block by its content, unless another block has that name; the block's name now."""
        if name in self._users or name in self._idle:
            return block
        self._users[name] = self._users.pop(block)
        return name

    def release(self, blocks: list[int]) -> None:
        """Stop using blocks of a sequence. Those without known content go first, then the last."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                del self._users[block]
                self._idle[block] = None
                self._idle.move_to_end(block, last=block >= 0)  # as vLLM: BlockPool.free_blocks


class Sequence:
    """One answer: waiting, running or done."""

    def __init__(self, prompt_tokens: int, write_tokens: int, names: list[int]) -> None:
        self.prompt_tokens = prompt_tokens
        self.write_tokens = write_tokens  # 0: the prompt is only read
        self.names = names  # of the full blocks of prompt and answer
        self.blocks: list[int] = []
        self.admitted = 0  # sequence number of its admission; 0: it waits
        self.computed = 0  # tokens in KV memory, while it reads
        self.written = 0  # tokens written before its last admission
        self.writes_from: int | None = None  # the step that wrote the first token after those
        self.preempted = False
        self.done = False

    @property
    def read_tokens(self) -> int:
        """The tokens that must be computed before it can write."""
        return self.prompt_tokens + self.written

    def written_before(self, step: int) -> int:
        """The number of tokens written before a step begins."""
        since = 0 if self.writes_from is None else step - self.writes_from
        return min(self.write_tokens, self.written + since)


class VllmModel:
    """One engine. Times are seconds of a monotonic clock.

    Call `advance` before any other method at a later time.
    """

    def __init__(self, options: VllmOptions, slots: int, speed: float) -> None:
        self._options = options
        self._slots = slots
        self._speed = speed
        self.memory = KvMemory(options.kv_tokens // options.block_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}  # in the order of their admission
        self._reading: list[Sequence] = []  # the running sequences that do not write yet
        self._admissions = count(1)
        # the next events of writing sequences: step, whether a block is needed, admission
        self._due: list[tuple[int, bool, int, Sequence]] = []
        self._step = 0
        self._began_s = 0.0
        self._step_s = 0.0
        self._planned = 0  # equal steps until the next event; 0: no sequence runs
        self._generated = 0
        self.prompt_tokens = 0
        self.queried_tokens = 0  # looked up in the prefix cache
        self.hit_tokens = 0
        self.preemptions = 0

    # -- requests and state --------------------------------------------------------------------

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence (prompt and answer) that fits into memory."""
        return self.memory.blocks * self._options.block_tokens

    @property
    def running(self) -> int:
        """The number of sequences with a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """The number of sequences without a slot, preempted ones included."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that running sequences use, 0 to 1."""
        return 1 - self.memory.free / self.memory.blocks

    @property
    def next_s(self) -> float | None:
        """The time of the next event, if nothing is submitted before; None: nothing runs."""
        return self._began_s + self._planned * self._step_s if self._planned else None

    def generated(self, now_s: float) -> int:
        """The number of tokens written by all sequences."""
        return self._generated + self._writing * self._steps_by(now_s)

    def written(self, sequence: Sequence, now_s: float) -> int:
        """The number of tokens that a sequence has written."""
        if sequence.done:
            return sequence.write_tokens
        return sequence.written_before(self._step + self._steps_by(now_s))

    def submit(self, now_s: float, text: str, prompt_tokens: int, write_tokens: int) -> Sequence:
        """Queue a sequence. `text` is the prompt followed by its answer.

        Raises:
            ValueError: the sequence is longer than `capacity_tokens`.
        """
        if prompt_tokens + write_tokens > self.capacity_tokens:
            raise ValueError(f"more than {self.capacity_tokens} tokens")
        names: list[int] = []
        if self._options.prefix_cache:
            per_block = self._options.block_tokens * self._options.characters_per_token
            names = block_names(text, per_block)
        sequence = Sequence(prompt_tokens, write_tokens, names)
        self._waiting.append(sequence)
        self._replan(now_s)
        return sequence

    def abort(self, now_s: float, sequence: Sequence) -> None:
        """Remove a sequence and free its blocks."""
        if sequence.admitted:
            del self._running[sequence]
            self._give_up(sequence)
        elif not sequence.done:
            self._waiting.remove(sequence)
        self._replan(now_s)

    def advance(self, now_s: float) -> list[Sequence]:
        """Advance the time; the sequences that were completed meanwhile."""
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
        """How many of the planned steps are over."""
        if not self._planned:
            return 0
        return max(0, min(self._planned - 1, int((now_s - self._began_s) / self._step_s)))

    def _replan(self, now_s: float) -> None:
        """Plan again after a change: the step under way is finished as planned."""
        if self._planned:
            self._planned = self._steps_by(now_s) + 1
        else:
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        """Plan the next step, and all equal steps that follow it."""
        budget = self._options.batched_tokens - self._writing
        read, preempted = self._continue_running(budget)
        if not preempted:
            read += self._admit(budget - read)
        if not self._running:
            self._planned = 0
            return
        alone = self._options.step_s + self._options.sequence_step_s * self._writing
        self._step_s = (alone + read / self._options.prefill_tokens_per_s) / self._speed
        self._began_s = now_s
        equal = not self._reading and not preempted
        self._planned = self._next_due() - self._step if equal else 1

    def _next_due(self) -> int:
        while self._due[0][2] != self._due[0][3].admitted:
            heapq.heappop(self._due)
        return self._due[0][0]

    def _continue_running(self, budget: int) -> tuple[int, bool]:
        """Grant blocks and tokens to running sequences: tokens read, whether any was preempted."""
        needing = [(sequence.admitted, sequence) for sequence in self._reading]
        while self._due and self._due[0][0] <= self._step:
            _, _, admitted, sequence = heapq.heappop(self._due)
            if sequence.admitted == admitted:
                needing.append((admitted, sequence))
        needing.sort(key=lambda entry: entry[0])
        read, preempted = 0, False
        for admitted, sequence in needing:
            if sequence.admitted != admitted:
                continue  # preempted for an earlier sequence
            tokens = 0
            if sequence.writes_from is None:
                tokens = min(sequence.read_tokens - sequence.computed, budget - read)
            blocks = self._blocks_needed(sequence, tokens)
            preempted = self._make_room(blocks, sequence) or preempted
            if sequence.admitted:
                self._grant(sequence, blocks, tokens)
                read += tokens
        return read, preempted

    def _blocks_needed(self, sequence: Sequence, tokens: int) -> int:
        if sequence.writes_from is not None:
            return 1
        return _blocks(sequence.computed + tokens, self._options.block_tokens) - len(
            sequence.blocks
        )

    def _make_room(self, blocks: int, sequence: Sequence) -> bool:
        """Preempt the sequence admitted last until enough blocks are free, or `sequence` itself is
        preempted; whether any was.
        """
        preempted = False
        while self.memory.free < blocks and sequence.admitted:
            last, _ = self._running.popitem()
            last.preempted = preempted = True
            self._give_up(last)
            self._waiting.appendleft(last)
            self.preemptions += 1
        return preempted

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
        """Admit waiting sequences in order; the tokens that they read in this step."""
        size, read = self._options.block_tokens, 0
        while self._waiting and read < budget and len(self._running) < self._slots:
            sequence = self._waiting[0]
            whole = sequence.read_tokens
            names = sequence.names[: (whole - 1) // size]  # the last token is always computed
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
            self._grant(sequence, self._blocks_needed(sequence, tokens), tokens)
            read += tokens
        return read

    def _start_writing(self) -> None:
        """Count the first token of each sequence that finished reading in the step that is over."""
        size = self._options.block_tokens
        for sequence in [read for read in self._reading if read.computed >= read.read_tokens]:
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
        """The sequences that are complete after the step that is over; their slots are freed."""
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
        """Free the blocks of a sequence that no longer runs."""
        if sequence.writes_from is None:
            self._reading.remove(sequence)
        else:
            sequence.written = sequence.written_before(self._step)
            computed = sequence.read_tokens - 1  # the last token is computed in the next step
            self._name(sequence, computed // self._options.block_tokens)
        self.memory.release(sequence.blocks)
        sequence.blocks, sequence.admitted, sequence.writes_from = [], 0, None

    def _name(self, sequence: Sequence, full: int) -> None:
        """Name the first `full` blocks of a sequence by their content, so that others share it."""
        blocks = sequence.blocks
        for place in range(min(full, len(sequence.names)) - 1, -1, -1):
            if blocks[place] >= 0:
                break
            blocks[place] = self.memory.name(blocks[place], sequence.names[place])


def _blocks(tokens: int, size: int) -> int:
    return -(-tokens // size)
