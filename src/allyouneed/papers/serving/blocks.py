"""Who owns which block of the cache: block tables, reference counts, copy-on-write, and blocks found again by content.

No tensors here. A block has room for the keys and values of a fixed number of tokens; a sequence's table lists its
blocks in order. What a block holds is known by a digest of all tokens up to its end.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

# Of what is kept for later cache hits, the share that is evicted when room is wanted. Several at once, so that
# sequences that begin then find blocks that lie side by side.
_EVICTED_SHARE = 8


class OutOfBlocksError(RuntimeError):
    """No block is free: whoever asked must wait, or another must be preempted."""


class BlockPool:
    """All blocks of a cache, numbered from 0, and how many tables hold each.

    A block that no table holds is free. If its content is known by a digest it is kept as it is for as long as there
    are others, and evicted in the order of last use.

    Args:
        blocks: how many there are.
        size: tokens of a block.
        sharing: whether the content of full blocks is kept and found again.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, blocks: int, size: int = 16, *, sharing: bool = True):
        if blocks < 1 or size < 1:
            raise ValueError(f"a pool of {blocks} blocks of {size} tokens is empty: both must be at least 1")
        self.blocks = blocks
        self.size = size
        self.sharing = sharing
        self._holders = [0] * blocks
        self._empty = set(range(blocks))
        # Held by no table, content known; the one that was used longest ago comes first.
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """How many blocks no table holds."""
        return len(self._empty) + len(self._kept)

    def holders(self, block: int) -> int:
        """Count the tables that hold a block."""
        return self._holders[block]

    def allocate(self, after: int | None = None) -> int:
        """Give a free block to one table.

        Args:
            after: allocate the one after this where it is empty: what lies side by side is read without being copied.

        Raises:
            OutOfBlocksError: every block is held.
        """
        if not self._empty:
            self._evict()
        if after is not None and after + 1 in self._empty:
            block = after + 1
        else:
            block = self._widest_gap()
        self._empty.remove(block)
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Count one more table that holds a block; it may have been free, and kept."""
        self._kept.pop(block, None)
        self._holders[block] += 1

    def free(self, block: int) -> None:
        """Count one table less.

        Raises:
            ValueError: no table holds it.
        """
        if self._holders[block] < 1:
            raise ValueError(f"block {block} is freed, but no table holds it")
        self._holders[block] -= 1
        if self._holders[block] == 0:
            if block in self._digest_of:
                self._kept[block] = None
            else:
                self._empty.add(block)

    def find_cached(self, digest: bytes) -> int | None:
        """Find the block with this content."""
        return self._block_of.get(digest)

    def register(self, block: int, digest: bytes) -> None:
        """Say what a full block holds. Where another block is known for the same, that one stays the known one."""
        if self.sharing and digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def check(self, tables: Iterable["BlockTable"]) -> None:
        """Make sure that no block leaks: each is held by as many tables as are counted, or is free, and none twice.

        Args:
            tables: all that there are.

        Raises:
            RuntimeError: blocks are lost or held in secret; they are named.
        """
        counted = Counter(block for table in tables for block in table.blocks)
        wrong = {block: held for block, held in enumerate(self._holders) if held != counted[block]}
        if wrong:
            raise RuntimeError(f"blocks are held {wrong} times, by block, but the tables hold {dict(counted)}")
        free = {block for block, held in enumerate(self._holders) if held == 0}
        if self._empty | self._kept.keys() != free or self._empty & self._kept.keys():
            raise RuntimeError(f"empty {self._empty} and kept {list(self._kept)} are not the free blocks {free}")
        if {block: digest for digest, block in self._block_of.items()} != self._digest_of:
            raise RuntimeError("what blocks hold and where content lies do not agree")
        if not self._kept.keys() <= self._digest_of.keys() or self._empty & self._digest_of.keys():
            raise RuntimeError("a block is kept whose content is not known, or is empty and has some")

    def _evict(self) -> None:
        if not self._kept:
            raise OutOfBlocksError(f"all {self.blocks} blocks are held")
        for _ in range(-(-len(self._kept) // _EVICTED_SHARE)):
            block, _ = self._kept.popitem(last=False)
            del self._block_of[self._digest_of.pop(block)]
            self._empty.add(block)

    def _widest_gap(self) -> int:
        """Give the middle of the widest run of empty blocks, so that whoever is before it has room to grow as well."""
        start = length = widest = place = 0
        previous = -2
        for block in sorted(self._empty):
            start, length = (start, length + 1) if block == previous + 1 else (block, 1)
            if length > widest:
                widest, place = length, start
            previous = block
        # What begins at the pool's first block has nobody before it.
        return place if place == 0 else place + widest // 2


class BlockTable:
    """Where the keys and values of one sequence lie: its blocks in order, and how many tokens are in them.

    Args:
        pool: owns the blocks.
    """

    def __init__(self, pool: BlockPool):
        self.pool = pool
        self.blocks: list[int] = []
        self.length = 0
        self._digests: list[bytes] = []

    def reuse_cached(self, tokens: Sequence[int]) -> int:
        """Begin with blocks that others have filled with the same first tokens, and say how many tokens that are.

        The last token is never among them: it must be computed for the logits of what follows it. Blocks that were
        filled by a sequence that still goes on are shared with it.

        Raises:
            ValueError: the table has blocks already.
        """
        if self.blocks:
            raise ValueError(
                f"the table has {len(self.blocks)} blocks already: only an empty one can begin with cached ones"
            )
        if not self.pool.sharing:
            return 0
        size = self.pool.size
        for start in range(0, len(tokens) - size, size):
            digest = self._next_digest(tokens[start : start + size])
            block = self.pool.find_cached(digest)
            if block is None:
                break
            self.pool.share(block)
            self.blocks.append(block)
            self._digests.append(digest)
            self.length += size
        return self.length

    def blocks_needed(self, tokens: int) -> int:
        """Count the blocks that must be allocated before so many further tokens can be written."""
        missing = -(-(self.length + tokens) // self.pool.size) - len(self.blocks)
        return max(0, missing) + self._writes_into_shared(tokens)

    def allocate(self, tokens: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Make room for further tokens, which may then be written after those that there are.

        Returns:
            The blocks that were allocated, and pairs of blocks of which the first must be copied into the second before
            anything is written: a block that others hold too is not written into.

        Raises:
            OutOfBlocksError: not enough blocks are free; nothing has changed then.
        """
        if (wanted := self.blocks_needed(tokens)) > self.pool.available:
            raise OutOfBlocksError(f"{wanted} blocks are wanted and {self.pool.available} are free")
        copies = []
        if self._writes_into_shared(tokens):
            place = self.length // self.pool.size
            shared = self.blocks[place]
            self.blocks[place] = self.pool.allocate(self.blocks[place - 1] if place else None)
            self.pool.free(shared)
            copies.append((shared, self.blocks[place]))
        allocated = []
        while len(self.blocks) * self.pool.size < self.length + tokens:
            allocated.append(self.pool.allocate(self.blocks[-1] if self.blocks else None))
            self.blocks.append(allocated[-1])
        return allocated, copies

    def advance(self, tokens: Sequence[int], count: int) -> None:
        """Count tokens as written, and let blocks that are full now be found by others.

        Args:
            tokens: of the whole sequence, at least as far as they are written then.
            count: how many were written.

        Raises:
            ValueError: there is no room for them.
        """
        if self.length + count > len(self.blocks) * self.pool.size:
            raise ValueError(f"{count} tokens after {self.length} do not fit into {len(self.blocks)} blocks")
        self.length += count
        if not self.pool.sharing:
            return
        size = self.pool.size
        while (len(self._digests) + 1) * size <= self.length:
            place = len(self._digests)
            self._digests.append(self._next_digest(tokens[place * size : (place + 1) * size]))
            self.pool.register(self.blocks[place], self._digests[-1])

    def trim(self) -> None:
        """Give back the blocks after the last token that is counted."""
        keep = -(-self.length // self.pool.size)
        while len(self.blocks) > keep:
            self.pool.free(self.blocks.pop())

    def fork(self) -> "BlockTable":
        """Make a table of another sequence that begins alike; all blocks are shared until one is written into."""
        self.trim()
        other = BlockTable(self.pool)
        for block in self.blocks:
            self.pool.share(block)
        other.blocks, other.length, other._digests = list(self.blocks), self.length, list(self._digests)
        return other

    def free(self) -> None:
        """Give back all blocks, the last first: a beginning is more often wanted again than an end."""
        while self.blocks:
            self.pool.free(self.blocks.pop())
        self.length, self._digests = 0, []

    def _writes_into_shared(self, tokens: int) -> bool:
        place, within = divmod(self.length, self.pool.size)
        return bool(tokens and within and self.pool.holders(self.blocks[place]) > 1)

    def _next_digest(self, tokens: Sequence[int]) -> bytes:
        """Name a block's content by all tokens up to its end."""
        before = self._digests[-1] if self._digests else b""
        return hashlib.sha256(before + array("q", tokens).tobytes()).digest()
