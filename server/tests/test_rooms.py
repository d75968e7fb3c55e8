"""Room for what runs at once: no part exceeds its limit, none is forgotten, and parts take turns."""

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from wabery_server.rooms import Room


class Line(Room):
    """An innermost part with things to start."""

    def __init__(self, most: int, wider: Room, key: str, waiting: int) -> None:
        super().__init__(most, wider, key)
        wider.inner[key] = self
        self.waiting = [None] * waiting
        self.work = self.waiting


def start_all(everything: Room) -> list[Line]:
    """Starts what may start, as the worker does; returns whose they are, in order."""
    started = []
    while everything.line and everything.under_way < everything.most:
        its = everything.take_turn()
        assert isinstance(its, Line)
        its.waiting.pop()
        its.enter()
        its.stand_in_line()
        started.append(its)
    return started


def lines(everything: Room, sizes: dict[tuple[str, str, str], int], each: int = 2) -> list[Line]:
    made = []
    for (root, project, endpoint), waiting in sizes.items():
        part = everything.part(root, 5).part(project, 3)
        made.append(Line(each, part, endpoint, waiting))
        made[-1].stand_in_line()
    return made


SOME = st.dictionaries(
    st.tuples(st.sampled_from("ab"), st.sampled_from("cde"), st.sampled_from("fgh")),
    st.integers(0, 8),
    max_size=18,
)


@given(SOME, st.data())
def test_limits_hold_and_everything_is_started_once(
    sizes: dict[tuple[str, str, str], int], data: st.DataObject
) -> None:
    everything = Room(8)
    made = lines(everything, sizes)
    running: list[Line] = start_all(everything)
    started = len(running)

    while running:
        for one in made:
            assert all(room.under_way <= room.most for room in one.all)
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        ended.leave()
        ended.stand_in_line()
        more = start_all(everything)
        started += len(more)
        running += more

    assert started == sum(sizes.values())
    assert everything.under_way == 0
    for one in made:
        one.close()
    assert everything.inner == {}


def test_parts_of_each_size_take_turns() -> None:
    everything = Room(6)
    lines(
        everything, {("a", "c", "f"): 9, ("a", "c", "g"): 9, ("a", "d", "f"): 9, ("b", "c", "f"): 9}, each=9
    )

    started = start_all(everything)

    roots = Counter(its.wider.wider.key for its in started if its.wider and its.wider.wider)
    assert roots == {"a": 3, "b": 3}


def test_a_part_at_its_limit_costs_the_others_nothing() -> None:
    everything = Room(8)
    many = {("a", "c", f"{number}"): 1 for number in range(1000)}
    lines(everything, {**many, ("b", "c", "f"): 1})

    started = start_all(everything)

    assert [its.wider.wider.key for its in started if its.wider and its.wider.wider].count("b") == 1
    assert len(started) == 4  # the limit of a project, and the other one
    assert everything.line == deque()
