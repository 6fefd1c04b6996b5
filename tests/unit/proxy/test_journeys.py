"""The router's books, request by request: each is counted at the engines that have it now and nowhere else, in whatever order things happen."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st
from support.costs import COSTS
from support.engines import engine

from pd_contracts.names import Connector, Role
from pd_proxy.engines.pairing import Late, Pair, Route, Solo
from pd_proxy.engines.registry import Instance
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.request.trace import Trace
from pd_proxy.router import Journey, Router
from pd_routing.books import Books
from pd_routing.names import Reject, Routing
from pd_routing.reject import Prediction
from pd_routing.view import Objectives

PREDICTION = Prediction(ttft=1.0, tpot=1.0)
ENGINES = [engine(Role.COMBINED, number, connector=Connector.P2P) for number in range(1, 5)]
engines = st.sampled_from(ENGINES)
routes = st.one_of(engines.map(Solo), engines.map(Late), st.tuples(engines, engines).map(lambda two: Pair(*two)))


class Crowd:
    """Some requests whose streams move between engines, and what the books should say."""

    def __init__(self) -> None:
        self.books = Books(COSTS, Objectives(ttft=inf, tpot=inf))
        self.router = Router(self.books, lambda *_: True, routing=Routing.ADAPTIVE, reject=Reject.OFF)
        self.traces: list[Trace] = []
        self.journeys: list[tuple[Journey, Instance]] = []
        self.writes: dict[int, int] = {}  # the engine that writes the answer, by the place in `traces`
        self.now = 0.0

    def begin(self, route: Route) -> None:
        trace = Trace(Endpoint.COMPLETIONS, stream=True)
        trace.journey = self.router.begin(route, 100, PREDICTION, self.now, sequences=1, streamed=True)
        self.traces.append(trace)
        self._entered(len(self.traces) - 1, trace.journey, route)

    def break_off(self, at: int) -> None:
        self.traces[at].broken_off()
        self.writes.pop(at, None)

    def move(self, at: int, route: Route) -> None:
        """As `Migration`: the stream has been broken off, and other engines have been found."""
        trace = self.traces[at]
        if trace.journey is None:
            return
        self.break_off(at)
        trace.migrations += 1
        trace.journey = self.router.resume(trace.journey, route, 120, self.now)
        self._entered(at, trace.journey, route)

    def compute(self, number: int) -> None:
        """An engine reports that a prompt is computed: that of now, or one of a request that has left it."""
        journey, decode = self.journeys[number]
        at = next((i for i, trace in enumerate(self.traces) if trace.journey is journey), None)
        journey.computed(self.now, decode)
        if at is not None and not journey.over:
            self.writes.setdefault(at, decode.incarnation)

    def end(self, at: int) -> None:
        self.traces[at].over = self.traces[at].first_byte = self.now
        self.traces[at].end_journey()
        self.writes.pop(at, None)

    def _entered(self, at: int, journey: Journey, route: Route) -> None:
        if isinstance(route, Solo):
            self.writes[at] = route.engine.incarnation
        writer = route.engine if isinstance(route, Solo) else route.prefill if isinstance(route, Late) else route.decode
        self.journeys.append((journey, writer))

    def check(self) -> None:
        view = self.books.view(1e3 * self.now)
        expected = {one.incarnation: list(self.writes.values()).count(one.incarnation) for one in ENGINES}
        assert {number: view.of(number).sequences for number in expected} == expected


@given(st.data())
def test_a_stream_is_counted_where_it_is_however_often_it_moves(data: st.DataObject) -> None:
    crowd = Crowd()
    for _ in range(data.draw(st.integers(1, 25))):
        crowd.now += data.draw(st.sampled_from([0.0, 0.01, 1.0]))
        count = len(crowd.traces)
        step = data.draw(st.sampled_from(["begin", "break off", "move", "move", "compute", "compute", "end"]))
        if step == "begin" or not count:
            crowd.begin(data.draw(routes))
        elif step == "break off":
            crowd.break_off(data.draw(st.integers(0, count - 1)))
        elif step == "move":
            crowd.move(data.draw(st.integers(0, count - 1)), data.draw(routes))
        elif step == "compute":
            crowd.compute(data.draw(st.integers(0, len(crowd.journeys) - 1)))
        else:
            crowd.end(data.draw(st.integers(0, count - 1)))
        crowd.check()
    for at in range(len(crowd.traces)):
        crowd.end(at)
    crowd.check()
    view = crowd.books.view(1e3 * crowd.now)
    assert all(not view.of(one.incarnation).context for one in ENGINES)
    crowd.books.know({})  # engines with nothing at them are forgotten
    assert not crowd.books.view(1e3 * crowd.now).engines


def test_a_stream_that_moved_says_nothing_about_the_length_or_the_speed_of_answers() -> None:
    crowd = Crowd()
    crowd.begin(Solo(ENGINES[0]))
    before = crowd.books.traffic(0).answer
    crowd.move(0, Solo(ENGINES[1]))
    crowd.traces[0].tokens = 3
    crowd.end(0)
    assert crowd.books.traffic(0).answer == before
