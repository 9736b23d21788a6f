"""Who may do what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import errors
from serving import access, state

TEXT = access.token_text("0123456789abcdef", "A" * 43)
ADMIN = access.token_hash("bootstrap!token")


def directory(
    grants: dict[tuple[str, str], str] | None = None, expires_ms: int | None = None
) -> state.Snapshot:
    token = state.TokenView("ann", access.token_hash(TEXT), expires_ms)
    return state.Snapshot((), {"0123456789abcdef": token}, grants or {}, frozenset({"admin"}))


def who(header: str | None, now_ms: int = 5, expires_ms: int | None = None) -> access.Caller:
    return access.identify(header, directory(None, expires_ms), ADMIN, None, now_ms)


def test_a_token_tells_its_user() -> None:
    assert who(f"Bearer {TEXT}") == access.Caller("ann", False, False, "0123456789abcdef")
    assert who(f"bearer  {TEXT}").user == "ann"


def test_the_bootstrap_token_is_the_administrator() -> None:
    assert who("Bearer bootstrap!token") == access.Caller("admin", True, False)


def test_the_service_token_is_the_service() -> None:
    found = access.identify("Bearer svc", directory(), ADMIN, access.token_hash("svc"), 0)
    assert found == access.Caller("service", True, True)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", TEXT])
def test_no_token_is_unauthenticated(header: str | None) -> None:
    with pytest.raises(errors.Unauthenticated, match="Authorization: Bearer"):
        who(header)


@pytest.mark.parametrize(
    "text", [TEXT[:-1], TEXT + "A", TEXT.replace("A", "B", 1), TEXT.upper(), "il_x", "' or 1=1 --"]
)
def test_a_wrong_or_cut_token_is_refused(text: str) -> None:
    with pytest.raises(errors.PermissionDenied, match="not valid"):
        who(f"Bearer {text}")


def test_without_bootstrap_tokens_no_text_is_one() -> None:
    with pytest.raises(errors.PermissionDenied):
        access.identify("Bearer x", directory(), None, None, 0)


def test_an_expired_token_is_refused() -> None:
    assert who(f"Bearer {TEXT}", now_ms=9, expires_ms=10).user == "ann"
    with pytest.raises(errors.PermissionDenied):
        who(f"Bearer {TEXT}", now_ms=10, expires_ms=10)


@given(st.text())
def test_no_header_is_more_than_a_refusal(header: str) -> None:
    with pytest.raises((errors.Unauthenticated, errors.PermissionDenied)):
        who(header)


ANN = access.Caller("ann", False, False)


def test_the_highest_grant_counts_and_everybody_is_a_group() -> None:
    assert access.level(ANN, "e", directory()) is None
    both = {("e", "ann"): "CAN_VIEW", ("e", "group:users"): "CAN_QUERY", ("f", "ann"): "CAN_MANAGE"}
    assert access.level(ANN, "e", directory(both)) == "CAN_QUERY"
    assert access.level(access.Caller("bob", False, False), "f", directory(both)) is None
    assert access.level(access.Caller("admin", True, False), "f", directory()) == "CAN_MANAGE"


def test_an_endpoint_without_a_grant_does_not_exist() -> None:
    with pytest.raises(errors.DoesNotExist, match="Endpoint 'x' does not exist"):
        access.require(ANN, "e", "x", "CAN_VIEW", directory())


def test_too_small_a_grant_says_which_is_needed() -> None:
    some = directory({("e", "ann"): "CAN_VIEW"})
    assert access.require(ANN, "e", "x", "CAN_VIEW", some) == "CAN_VIEW"
    with pytest.raises(errors.PermissionDenied, match="CAN_QUERY on endpoint 'x' is needed; you"):
        access.require(ANN, "e", "x", "CAN_QUERY", some)


def test_twenty_wrong_tokens_a_minute_and_address() -> None:
    door = access.Door("bootstrap!token", None, 20)

    def knock(text: str, address: str, now: float) -> access.Caller:
        return door.caller(f"Bearer {text}", address, directory(), 0, now)

    for _ in range(20):
        with pytest.raises(errors.PermissionDenied):
            knock("wrong", "1.1.1.1", 100.0)
    with pytest.raises(errors.RequestLimitExceeded, match="20 wrong tokens") as refused:
        knock("wrong", "1.1.1.1", 100.0)
    assert refused.value.retry_after == 3
    assert knock("bootstrap!token", "1.1.1.1", 100.0).is_admin
    with pytest.raises(errors.PermissionDenied):
        knock("wrong", "2.2.2.2", 100.0)
    with pytest.raises(errors.PermissionDenied):
        knock("wrong", "1.1.1.1", 103.5)


def test_a_missing_token_is_not_a_wrong_one() -> None:
    door = access.Door("bootstrap!token", None, 1)
    for _ in range(5):
        with pytest.raises(errors.Unauthenticated):
            door.caller(None, "1.1.1.1", directory(), 0, 0.0)


@given(st.integers(1, 50), st.lists(st.floats(0, 10), max_size=300))
def test_over_any_span_the_limit_holds(per_minute: int, gaps: list[float]) -> None:
    failed, now, passed = access.FailedLogins(per_minute), 0.0, 0
    for gap in gaps:
        now += gap
        try:
            failed.count("a", now)
            passed += 1
        except errors.RequestLimitExceeded:
            pass
    assert passed <= per_minute * (1 + now / 60) + 1e-6


def test_many_addresses_cost_bounded_memory() -> None:
    failed = access.FailedLogins(1)
    failed.count("first", 0.0)
    for i in range(access.MOST_ADDRESSES):
        failed.count(str(i), 0.0)
    failed.count("first", 0.0)


def test_of_too_many_addresses_the_one_unseen_for_longest_goes() -> None:
    failed = access.FailedLogins(1)
    for address in ("kept", "gone"):
        failed.count(address, 0.0)
    for i in range(access.MOST_ADDRESSES - 2):
        failed.count(str(i), 0.0)
    with pytest.raises(errors.RequestLimitExceeded):
        failed.count("kept", 0.0)
    failed.count("one too many", 0.0)
    with pytest.raises(errors.RequestLimitExceeded):
        failed.count("kept", 0.0)
    failed.count("gone", 0.0)
