"""Room for what runs at once: a whole, and parts of it within one another, which take turns.

    everything --> a customer's projects --> a project --> an endpoint

Each part has a limit of its own, and what runs in a part runs in all the wider ones too. A part that has reached its limit
does not stand in any line, so it costs the others nothing.
"""

from collections import deque
from collections.abc import Sized


class Room:
    """Room for attempts: all there is, or a root project's, a project's or an endpoint's part of it.

    A room with something to start stands in line within the wider room, as long as it has room itself. The rooms in one
    line take turns, so that a starting attempt costs the same however many endpoints wait.
    """

    __slots__ = ("all", "inner", "key", "line", "listed", "most", "under_way", "wider", "work")

    def __init__(self, most: int, wider: "Room | None" = None, key: str = "") -> None:
        self.most = most
        self.wider = wider
        self.key = key
        self.inner: dict[str, Room] = {}
        self.line: deque[Room] = deque()
        """The inner rooms that may start something, in turn."""
        self.work: Sized = self.line
        """What could be started here; an innermost room has its own."""
        self.listed = False
        """Whether it stands in the line of the wider room."""
        self.under_way = 0
        self.all: tuple[Room, ...] = (self, *wider.all) if wider is not None else (self,)
        """Itself and the wider ones, the narrowest first."""

    def part(self, key: str, most: int) -> "Room":
        return self.inner.get(key) or self.inner.setdefault(key, Room(most, self, key))

    def take_turn(self) -> "Room":
        """The innermost room whose turn it is; the line is not empty. Afterwards it is to `stand_in_line` again."""
        room = self
        while room.line:
            room = room.line.popleft()
            room.listed = False
        return room

    def has_room(self) -> bool:
        return all(room.under_way < room.most for room in self.all)

    def enter(self) -> None:
        for room in self.all:
            room.under_way += 1

    def leave(self) -> None:
        for room in self.all:
            room.under_way -= 1

    def stand_in_line(self) -> None:
        """To be called after its work or its room has changed."""
        for room in self.all:
            if not room.listed and room.under_way < room.most and room.work and room.wider is not None:
                room.listed = True
                room.wider.line.append(room)

    def close(self) -> None:
        """Removes it, and the wider ones, if nothing is under way and nothing waits there."""
        room = self
        while (wider := room.wider) is not None and not (room.inner or room.listed or room.under_way):
            if wider.inner.get(room.key) is room:
                del wider.inner[room.key]
            room = wider
