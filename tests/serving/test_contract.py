"""Requests become what they mean, or a sentence that names the field."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import errors
from serving import attributes, contract, fields

ENTITY = {"entity_name": "main.flights.delay", "entity_version": "1"}
OPENAI = {
    "name": "gpt",
    "external_model": {
        "provider": "openai",
        "name": "gpt-4.1",
        "task": "llm/v1/chat",
        "openai_config": {"openai_api_key": "{{secrets/s/k}}"},
    },
}


def create(config: Any = None, **extra: Any) -> contract.CreateRequest:
    return contract.create_request({"name": "x", "config": config, **extra})


def entities(*items: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {"served_entities": list(items), **config}


def refusal(body: Any) -> str:
    with pytest.raises(errors.InvalidParameter) as refused:
        contract.create_request(body)
    return refused.value.message


def test_a_served_entity_gets_its_defaults() -> None:
    config = create(entities(ENTITY)).config
    assert config is not None and config.entities is not None
    only = config.entities[0]
    assert (only.model, only.version, only.kind) == ("main.flights.delay", "1", "custom")
    assert only.settings == {
        "workload_type": "CPU",
        "workload_size": "Small",
        "scale_to_zero_enabled": False,
    }


@pytest.mark.parametrize(
    ("name", "version", "meant"),
    [
        ("m", 3, ("m", "3")),
        ("models:/m", "3", ("m", "3")),
        ("models:/a.b.m/7", None, ("a.b.m", "7")),
        ("models:/m@champion", None, ("m", "@champion")),
        ("m", "@champion", ("m", "@champion")),
    ],
)
def test_models_may_be_named_as_mlflow_names_them(
    name: str, version: Any, meant: tuple[str, str]
) -> None:
    config = create(entities({"entity_name": name, "entity_version": version})).config
    assert config is not None and config.entities is not None
    assert (config.entities[0].model, config.entities[0].version) == meant


def test_served_models_are_the_old_spelling() -> None:
    old = {"model_name": "m", "model_version": "2", "scale_to_zero_enabled": True}
    config = create({"served_models": [old]}).config
    assert config is not None and config.entities is not None
    assert config.entities[0].model == "m"
    assert config.entities[0].settings["scale_to_zero_enabled"] is True


def test_what_a_server_answered_may_be_sent_back() -> None:
    answered = {
        **ENTITY,
        "id": "0f",
        "creator": "ann",
        "creation_timestamp": 5,
        "state": {"deployment": "DEPLOYMENT_READY"},
        "min_provisioned_concurrency": 0,
        "max_provisioned_concurrency": 8,
    }
    config = create({"served_entities": [answered], "served_models": [{"model_name": 5}]}).config
    assert config is not None and config.entities is not None
    assert config.entities[0].settings["max_provisioned_concurrency"] == 8


ROUTES = {"routes": [{"served_model_name": "a", "traffic_percentage": 100}]}


def routes(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    listed = [{"served_model_name": n, "traffic_percentage": p} for n, p in pairs]
    return {"name": "x", "config": entities(ENTITY, traffic_config={"routes": listed})}


def one(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "config": entities({**ENTITY, **changes})}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "body: expected an object, found a list."),
        ({}, "name: a value is needed, found none."),
        ({"name": "a b"}, "name: expected 1 to 63 letters, digits, '_' or '-', found the string"),
        ({"name": "é"}, "name: expected 1 to 63 letters"),
        ({"name": "chat"}, "name: expected a name other than chat"),
        ({"name": 5}, "name: expected 1 to 63 letters, digits, '_' or '-', found 5."),
        (
            routes(("a", 0), ("b", 99.5)),
            "config.traffic_config.routes[1].traffic_percentage: "
            "expected an integer 0..100, found 99.5.",
        ),
        (routes(("a", True)), "routes[0].traffic_percentage: expected an integer 0..100, found tr"),
        (routes(("a", "100")), "traffic_percentage: expected an integer 0..100, found the string"),
        (routes(("a", -1)), "expected an integer 0..100, found -1."),
        (routes(("a", 50), ("b", 40)), "config.traffic_config.routes: expected percentages that"),
        (routes(("a", 50), ("a", 50)), "routes[1].served_model_name: 'a' has a route already."),
        (one(entity_name=None), "config.served_entities[0].entity_name: a value is needed"),
        (one(entity_version=None), "config.served_entities[0].entity_version: a value is needed"),
        (one(entity_version="one"), "entity_version: expected a version number or @alias"),
        (one(entity_version=1.5), "entity_version: expected a version number or @alias, found 1.5"),
        (one(entity_name="../../etc"), "entity_name: expected the name of a registered model"),
        (one(name="a/b"), "config.served_entities[0].name: expected 1 to 63 letters"),
        (one(workload_size="Huge"), "workload_size: expected one of Small, Medium, Large, found"),
        (one(workload_type="TPU"), "workload_type: expected one of CPU, CPU_MEDIUM"),
        (one(scale_to_zero_enabled="yes"), "scale_to_zero_enabled: expected true or false"),
        (one(max_provisioned_concurrency=1025), "expected an integer 0..1024, found 1025."),
        (
            one(min_provisioned_concurrency=8, max_provisioned_concurrency=4),
            "min_provisioned_concurrency: expected at most max_provisioned_concurrency, 4, found 8",
        ),
        (one(environment_vars={"A": 1}), "environment_vars.A: expected a string."),
        (one(environment_vars={"A=B": "x"}), "'A=B' is no name of an environment variable."),
        (
            one(environment_vars={f"V{i}": "x" for i in range(51)}),
            "config.served_entities[0].environment_vars: expected at most 50 entries, found 51.",
        ),
        (
            {"name": "x", "config": entities(*[ENTITY] * 11)},
            "config.served_entities: expected at most 10 items, found 11.",
        ),
        ({"name": "x", "config": {"served_entities": []}}, "expected at least one entity"),
        ({"name": "x", "tags": [{"key": "a"}, {"key": "a"}]}, "tags[1].key: 'a' comes twice."),
        ({"name": "x", "tags": [{"key": ""}]}, "tags[0].key: expected 1 to 128 characters"),
        ({"name": "x", "tags": [{"key": "k" * 129}]}, "tags[0].key: expected 1 to 128 characters"),
        ({"name": "x", "description": "d" * 4097}, "description: expected 0 to 4096 characters"),
        (
            {"name": "x", "rate_limits": [{"calls": -1, "renewal_period": "minute"}]},
            "rate_limits[0].calls: expected an integer from 0 on, found -1.",
        ),
        (
            {"name": "x", "rate_limits": [{"calls": 1, "renewal_period": "hour"}]},
            "rate_limits[0].renewal_period: expected one of minute",
        ),
        (
            {"name": "x", "config": entities(ENTITY, auto_capture_config={"catalog_name": ".."})},
            "config.auto_capture_config.catalog_name: expected 1 to 128 letters",
        ),
        (
            {
                "name": "x",
                "config": entities(ENTITY, traffic_config={"sticky": {"key": "cookie"}}),
            },
            "config.traffic_config.sticky.key: expected client_request_id, caller, header:NAME",
        ),
        (
            {"name": "x", "config": entities(ENTITY, OPENAI)},
            "config.served_entities: expected entities of one kind, found custom and external.",
        ),
        (
            {"name": "x", "config": entities(OPENAI, traffic_config=ROUTES)},
            "routes[0].served_model_name: 'a' is no served entity; there are gpt.",
        ),
    ],
)
def test_a_bad_field_is_named_with_what_was_found(body: Any, message: str) -> None:
    assert message in refusal(body)


def external(provider: str, **config: Any) -> dict[str, Any]:
    key = {
        "openai": "openai_config",
        "amazon-bedrock": "amazon_bedrock_config",
        "custom": "custom_provider_config",
        "anthropic": "anthropic_config",
    }[provider]
    model = {"provider": provider, "name": "m", "task": "llm/v1/chat", key: config}
    return {"name": "x", "config": entities({"external_model": model})}


AZURE = {"openai_api_type": "azure", "openai_api_key": "{{secrets/s/k}}"}


@pytest.mark.parametrize(
    "body",
    [
        external("openai", openai_api_key="{{secrets/s/k}}"),
        external("openai", openai_api_key_plaintext="sk"),
        external("anthropic", anthropic_api_key_plaintext="sk"),
        external(
            "custom",
            custom_provider_url="http://h/v1",
            bearer_token_auth={"token": "{{secrets/s/k}}"},
        ),
        {"name": "x", "config": entities({"entity_name": "system.ai.llama"})},
        {"name": "x", "config": entities({**ENTITY, "max_provisioned_throughput": 10})},
        {"name": "x", "ai_gateway": {"guardrails": {"input": {"safety": True}}}},
        {"name": "x", "ai_gateway": {"rate_limits": [{"tokens": 5, "renewal_period": "minute"}]}},
    ],
)
def test_what_is_known_but_not_offered_is_told_as_such(body: Any) -> None:
    with pytest.raises(errors.NotImplementedHere, match="not offered"):
        contract.create_request(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (external("openai"), "openai_config.openai_api_key: a value is needed"),
        (external("openai", openai_api_key="sk-in-the-clear"), "expected a reference {{secrets/"),
        (
            external("openai", openai_api_key="{{secrets/s/k}}", openai_api_key_plaintext="sk"),
            "give it or openai_api_key_plaintext, found both",
        ),
        (external("openai", **AZURE), "openai_api_base: a value is needed"),
        (
            external("openai", openai_api_key_plaintext="s", openai_api_base="ftp://h"),
            "openai_api_base: expected an address http(s)://host",
        ),
        *(
            (
                external("openai", openai_api_key_plaintext="s", openai_api_base=f"http://{host}/"),
                "addresses are never called",
            )
            for host in ("169.254.169.254", "0xa9fea9fe", "2852039166", "[::ffff:a9fe:a9fe]", "0")
        ),
        (external("amazon-bedrock", aws_region="r"), "bedrock_provider: a value is needed"),
        (
            external(
                "amazon-bedrock",
                aws_region="r",
                bedrock_provider="amazon",
                instance_profile_arn="arn",
                aws_access_key_id="in the clear",
            ),
            "aws_access_key_id: expected a reference",
        ),
        (
            external("openai", openai_api_key_plaintext="s", microsoft_entra_client_secret=7),
            "microsoft_entra_client_secret: expected a reference",
        ),
        (
            {"name": "x", "config": entities({**OPENAI, "workload_size": "Small"})},
            "workload_size: expected nothing beside external_model",
        ),
        (external("custom", custom_provider_url="http://h"), "exactly one of bearer_token_auth"),
        ({"name": "x", "config": entities({"external_model": {}})}, "provider: a value is needed"),
        (
            {"name": "x", "ai_gateway": {"guardrails": {"input": {"pii": {"behavior": "HIDE"}}}}},
            "ai_gateway.guardrails.input.pii.behavior: expected one of NONE, BLOCK, MASK",
        ),
        (
            {**external("openai", openai_api_key_plaintext="s"), "tags": [{"value": "v"}]},
            "tags[0].key: a value is needed",
        ),
    ],
)
def test_every_field_is_validated_before_501(body: Any, message: str) -> None:
    assert message in refusal(body)


def test_a_key_sent_in_the_clear_by_mistake_is_not_repeated() -> None:
    assert "sk-in-the-clear" not in refusal(external("openai", openai_api_key="sk-in-the-clear"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FULL = {
    "name": "x",
    "description": "d",
    "tags": [{"key": "a", "value": "b"}],
    "route_optimized": False,
    "rate_limits": [{"calls": 1, "renewal_period": "minute", "key": "user"}],
    "email_notifications": {"on_update_success": ["a@b"]},
    "telemetry_config": {"inference_table_config": {"name": "a.b.c", "sampling_fraction": 0.5}},
    "ai_gateway": {
        "inference_table_config": {"catalog_name": "c", "schema_name": "s", "enabled": True},
        "rate_limits": [{"calls": 1, "renewal_period": "minute"}],
        "usage_tracking_config": {"enabled": True},
        "fallback_config": {"enabled": False},
    },
    "config": {
        "served_entities": [{**ENTITY, "name": "a", "environment_vars": {"A": "b"}}],
        "traffic_config": {**ROUTES, "sticky": {"key": "caller", "salt": "s"}},
        "auto_capture_config": {"enabled": True, "table_name_prefix": "p"},
    },
}


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at] * bool(at) + [p for key, each in inner for p in paths(each, (*at, key))]


def test_the_full_body_is_accepted() -> None:
    assert contract.create_request(FULL).telemetry_config is not None


@given(st.sampled_from(paths(FULL)), json_values)
def test_no_value_anywhere_is_worse_than_a_refusal(path: tuple[Any, ...], value: Any) -> None:
    body = copy.deepcopy(FULL)
    place: Any = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    try:
        contract.create_request(body)
    except (errors.InvalidParameter, errors.NotImplementedHere) as error:
        assert error.message.endswith(".")


def test_tags_are_deleted_then_added() -> None:
    present = [{"key": "a", "value": "1"}, {"key": "b"}]
    body = {"add_tags": [{"key": "a", "value": "2"}, {"key": "c"}], "delete_tags": ["b", "a"]}
    assert attributes.patched_tags(body, present) == [{"key": "a", "value": "2"}, {"key": "c"}]


def test_an_endpoint_has_at_most_twenty_tags() -> None:
    present = [{"key": str(i)} for i in range(20)]
    with pytest.raises(errors.InvalidParameter, match="at most 20 tags, found 21"):
        attributes.patched_tags({"add_tags": [{"key": "new"}]}, present)


@pytest.mark.parametrize(
    ("asked", "bounds"),
    [
        ({}, (4, 4)),
        ({"workload_size": "Large"}, (16, 64)),
        ({"workload_size": "Large", "scale_to_zero_enabled": True}, (0, 64)),
        ({"max_provisioned_concurrency": 12}, (0, 12)),
        ({"min_provisioned_concurrency": 8}, (8, 8)),
    ],
)
def test_sizes_mean_concurrency(asked: dict[str, Any], bounds: tuple[int, int]) -> None:
    config = create(entities({**ENTITY, **asked})).config
    assert config is not None and config.entities is not None
    assert contract.concurrency(config.entities[0].settings) == bounds


TABLE = {"catalog_name": "c", "schema_name": "s", "table_name_prefix": "p", "enabled": True}


@pytest.mark.parametrize(
    ("config", "gateway", "telemetry", "meant"),
    [
        ({}, None, None, None),
        ({"auto_capture_config": {"enabled": True}}, None, None, "main.default.x_payload"),
        ({"auto_capture_config": TABLE}, None, None, "c.s.p_payload"),
        ({"auto_capture_config": {**TABLE, "enabled": False}}, None, None, None),
        (
            {"auto_capture_config": TABLE},
            {"inference_table_config": {**TABLE, "table_name_prefix": "g"}},
            None,
            "c.s.g_payload",
        ),
        ({}, None, {"inference_table_config": {"name": "a.b.t_payload"}}, "a.b.t_payload"),
        ({}, None, {"inference_table_config": {"name": "b.t"}}, "main.b.t_payload"),
        ({}, None, {"inference_table_config": {"name": "t"}}, "main.default.t_payload"),
        (
            {},
            None,
            {"inference_table_config": {"name": "t"}, "enabled_telemetry_features": []},
            None,
        ),
    ],
)
def test_each_generation_of_inference_tables_names_its_payload_table(
    config: Any, gateway: Any, telemetry: Any, meant: str | None
) -> None:
    found = contract.capture("x", config, gateway, telemetry)
    assert (found[0] if found else None) == meant


def test_recording_takes_a_fraction_and_an_acknowledgement() -> None:
    asked = fields.Field({"sampling_fraction": 0.25, "acknowledgement": "power"}, "t")
    table = attributes.inference_table(asked)
    assert contract.capture("x", {"auto_capture_config": table}, None, None) == (
        "main.default.x_payload",
        0.25,
        "power",
    )


FOUNDATION = {"entity_name": "system.ai.llama", "provisioned_model_units": 50}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "x"}, "config: a value is needed"),
        ({"config": entities(FOUNDATION)}, "name: a value is needed"),
        ({"name": "x", "config": entities({})}, "entities[0].entity_name: a value is needed"),
        ({"name": "x", "config": {"served_entities": []}}, "expected at least one entity"),
        ({"name": "x", "config": entities(FOUNDATION, FOUNDATION)}, "is taken by another entity"),
        (
            {"name": "x", "config": entities(FOUNDATION, traffic_config=ROUTES)},
            "'a' is no served entity",
        ),
        (
            {"name": "x", "config": entities(FOUNDATION), "tags": [{}]},
            "tags[0].key: a value is needed",
        ),
        (
            {"name": "x", "config": entities({**FOUNDATION, "burst_scaling_enabled": 1})},
            "burst_scaling_enabled: expected true or false",
        ),
    ],
)
def test_provisioned_throughput_is_validated_before_501(body: Any, message: str) -> None:
    with pytest.raises(errors.InvalidParameter) as refused:
        contract.provisioned_throughput(body)
    assert message in refused.value.message


def test_provisioned_throughput_is_not_offered() -> None:
    body = {"name": "x", "config": entities(FOUNDATION)}
    assert "not offered" in contract.provisioned_throughput(body).message
    assert "not offered" in contract.provisioned_throughput(body, "x").message


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("task", "body", "message"),
    [
        ("chat/completions", {**CHAT, "model": None}, "model: a value is needed"),
        ("chat/completions", {"model": "m"}, "messages: a value is needed"),
        ("chat/completions", {**CHAT, "messages": [{}]}, "messages[0].role: a value is needed"),
        ("chat/completions", {**CHAT, "temperature": 3}, "temperature: expected a number 0..2"),
        ("chat/completions", {**CHAT, "n": 6}, "n: expected an integer 1..5"),
        ("chat/completions", {**CHAT, "stream": "yes"}, "stream: expected true or false"),
        ("completions", {"model": "m", "prompt": 1}, "prompt: expected a string or a list"),
        ("embeddings", {"model": "m", "input": {}}, "input: expected a string or a list"),
        ("embeddings", [], "body: expected an object"),
    ],
)
def test_a_query_of_a_language_model_is_validated_before_501(
    task: str, body: Any, message: str
) -> None:
    with pytest.raises(errors.InvalidParameter) as refused:
        contract.language_model(body, task)
    assert message in refused.value.message


def test_language_models_and_connections_are_not_offered() -> None:
    assert "not offered" in contract.language_model(CHAT, "chat/completions").message
    call = {"connection_name": "c", "method": "GET", "path": "/", "headers": "{}"}
    assert "not offered" in contract.external_function(call).message
    with pytest.raises(errors.InvalidParameter, match="method: expected one of GET"):
        contract.external_function({**call, "method": "STEAL"})
