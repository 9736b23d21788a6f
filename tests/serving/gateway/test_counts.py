from hypothesis import given
from hypothesis import strategies as st

from serving.gateway import counts

KEY = counts.Key("e", "v1")


def samples(text):
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_requests_are_counted_by_endpoint_entity_and_code():
    found = counts.Counts()
    for status in (200, 200, 503):
        found.record(*KEY, status, 0, 1500)
    told = samples(found.text({}))
    labels = 'endpoint_name="e",served_entity_name="v1"'
    assert told[f'inferlake_requests_total{{{labels},code="200"}}'] == 2
    assert told[f'inferlake_requests_total{{{labels},code="503"}}'] == 1
    assert told[f"inferlake_request_seconds_count{{{labels}}}"] == 3
    assert told[f'inferlake_request_seconds_bucket{{{labels},le="0.001"}}'] == 0
    assert told[f'inferlake_request_seconds_bucket{{{labels},le="0.0025"}}'] == 3


def test_one_endpoint_is_told_in_the_names_of_the_contract():
    found = counts.Counts()
    found.record(*KEY, 200, 100, 2000, 300, 1500)
    found.record(*KEY, 404, 100, 100)
    found.record("other", "v", 500, 100, 100)
    told = samples(found.export("e", {KEY: 4}, 130))
    labels = 'endpoint_name="e",served_entity_name="v1"'
    assert told[f"provisioned_concurrent_requests_total{{{labels}}}"] == 4
    assert told[f"request_count_total{{{labels}}}"] == 2
    assert told[f"request_4xx_count_total{{{labels}}}"] == 1
    assert told[f"model_prediction_latency_ms_sum{{{labels}}}"] == 1.5
    assert not any("other" in name for name in told)
    assert samples(found.export("e", {}, 200))[f"request_count_total{{{labels}}}"] == 0


@given(seconds=st.lists(st.integers(0, 200), max_size=50).map(sorted))
def test_the_last_minute_holds_what_happened_in_it(seconds):
    minute = counts.LastMinute()
    for second in seconds:
        minute.add(second)
    now = max(seconds, default=0)
    assert minute.total(now) == len([one for one in seconds if now - 60 < one])
