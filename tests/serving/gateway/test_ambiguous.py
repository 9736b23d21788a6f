"""HTTP messages that two readers could read in two ways, on fresh connections and on known ones."""

import json

import pytest

from tests import benchmarked

GOOD = b'{"dataframe_records": [{"c0": 4, "c1": 0}]}'

with pytest.MonkeyPatch.context() as _patch:
    fuzz_messages = benchmarked.load(_patch, "serving", "fuzz_messages")

TARGET, TOKEN = "/serving-endpoints/wild/invocations", "bootstrap-admin-token"
MESSAGES = dict(fuzz_messages.messages(TARGET, TOKEN, GOOD))


@pytest.mark.parametrize("name", MESSAGES)
def test_an_ambiguous_message_is_refused_and_nothing_behind_it_is_answered(shared, name):
    good = fuzz_messages.good(TARGET, TOKEN, GOOD)
    for before in (0, 2):
        with shared.connect() as bare:
            for _ in range(before):
                bare.send(good)
                assert bare.receive()[0] == 200
            bare.send(MESSAGES[name] + fuzz_messages.AFTER)
            status, _, body = bare.receive()
            assert status == 400
            assert json.loads(body)["error_code"] == "BAD_REQUEST"
            assert bare.closed()
