"""Every call of databricks-sdk's serving_endpoints and secrets, each field, each class of error."""

import base64
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import calls
from databricks.sdk import WorkspaceClient
from databricks.sdk import errors as sdk_errors
from databricks.sdk.core import Config
from databricks.sdk.service import serving
from databricks.sdk.service.serving import (
    EndpointCoreConfigInput,
    EndpointTag,
    Route,
    ServedEntityInput,
    TrafficConfig,
)

WAIT = timedelta(seconds=240)
MOST_BODY_BYTES = 16 << 20


class Sdk:
    """One client and what it made so far."""

    def __init__(self, url: str, token: str, prefix: str) -> None:
        # Two seconds of retries: what is told once is told.
        config = Config(host=url, token=token, auth_type="pat", retry_timeout_seconds=2)
        self.w = WorkspaceClient(config=config)
        self.api = self.w.serving_endpoints
        self.url, self.token = url, token
        self.main, self.wild, self.scope = f"{prefix}-main", f"{prefix}-wild", f"{prefix}-scope"
        self.prefix = prefix
        self.sent: dict[str, Any] = {}

    def calls(self) -> list[Any]:
        names = [name for name in vars(Sdk) if name.startswith(("do_", "fails_"))]
        return [
            (name.replace("do_", "").replace("fails_", "error: "), getattr(self, name))
            for name in names
        ]

    # -- the life of an endpoint

    def do_create_and_wait(self) -> None:
        entity = ServedEntityInput(
            name="one",
            entity_name=calls.SUM,
            entity_version="1",
            workload_size="Small",
            workload_type=serving.ServingModelWorkloadType.CPU,
            scale_to_zero_enabled=False,
            environment_vars={"LEVEL": "1", "KEY": f"{{{{secrets/{self.scope}/key}}}}"},
            instance_profile_arn="arn:aws:iam::1:instance-profile/p",
        )
        table = serving.AutoCaptureConfigInput(
            catalog_name="main",
            schema_name="clients",
            table_name_prefix=self.main.replace("-", "_"),
            enabled=True,
        )
        self.w.secrets.create_scope(self.scope)
        self.w.secrets.put_secret(self.scope, "key", string_value="hidden")
        traffic = TrafficConfig(routes=[Route(served_model_name="one", traffic_percentage=100)])
        config = _config(self.main, [entity], traffic_config=traffic, auto_capture_config=table)
        limit = serving.RateLimit(
            calls=1000,
            renewal_period=serving.RateLimitRenewalPeriod.MINUTE,
            key=serving.RateLimitKey.USER,
        )
        self.sent = {
            "config": config.as_dict(),
            "tags": [{"key": "team", "value": "ops"}, {"key": "bare"}],
            "budget_policy_id": "policy-1",
            "route_optimized": True,
            "rate_limits": None,
        }
        made = self.api.create_and_wait(
            self.main,
            config=config,
            tags=[EndpointTag("team", "ops"), EndpointTag("bare")],
            budget_policy_id="policy-1",
            route_optimized=True,
            rate_limits=[limit],
            timeout=WAIT,
        )
        calls.check(made.state and made.state.ready, serving.EndpointStateReady.READY)

    def do_get_every_field(self) -> None:
        found = self.api.get(self.main).as_dict()
        config = {**self.sent["config"]}
        config.pop("name", None)
        calls.holds(found["config"], config)
        for key in ("tags", "budget_policy_id", "route_optimized"):
            calls.holds(found[key], self.sent[key], key)
        calls.check(found["permission_level"], "CAN_MANAGE")
        calls.check(found["config"]["config_version"], 1)
        calls.check(found["state"], {"ready": "READY", "config_update": "NOT_UPDATING"})
        entity = found["config"]["served_entities"][0]
        calls.check(entity["state"]["deployment"], "DEPLOYMENT_READY")
        for key in ("creator", "creation_timestamp"):
            assert entity[key] and found[key], key
        assert found["endpoint_url"].endswith(f"/serving-endpoints/{self.main}/invocations")
        assert found["data_plane_info"]["query_info"]["authorization_details"]
        table = found["config"]["auto_capture_config"]["state"]["payload_table"]
        assert table["name"].endswith("_payload") and table["status"], table
        mirror = found["config"]["served_models"][0]
        calls.check((mirror["model_name"], mirror["model_version"]), (calls.SUM, "1"))
        raw = self.w.api_client.do("GET", f"/api/2.0/serving-endpoints/{self.main}")
        assert "hidden" not in str(raw), "the secret came back"
        assert int(raw["id"], 16) >= 0

    def do_list_every_field(self) -> None:
        (found,) = [each for each in self.api.list() if each.name == self.main]
        shown = found.as_dict()
        for key in ("tags", "budget_policy_id"):
            calls.holds(shown[key], self.sent[key], key)
        calls.check(shown["config"]["served_entities"][0]["entity_name"], calls.SUM)
        assert shown["state"]["ready"] == "READY" and shown["creator"] and shown["id"]

    def do_query_records(self) -> None:
        found = self.api.query(self.main, dataframe_records=[calls.ROW])
        calls.check((found.predictions, found.served_model_name), ([3.0], "one"))

    def do_query_split(self) -> None:
        split = serving.DataframeSplitInput(columns=["a", "b"], data=[[1, 2], [3, 4]], index=[0, 1])
        calls.check(_round(self.api.query(self.main, dataframe_split=split)), [3.0, 7.0])

    def do_query_instances(self) -> None:
        calls.check(_round(self.api.query(self.main, instances=[calls.ROW])), [3.0])

    def do_query_inputs(self) -> None:
        inputs = {"a": [1.0, 5.0], "b": [2.0, 5.0]}
        calls.check(_round(self.api.query(self.main, inputs=inputs)), [3.0, 10.0])

    def do_query_side_fields(self) -> None:
        try:
            found = self.api.query(
                self.main,
                dataframe_records=[calls.ROW],
                client_request_id="order-1",
                usage_context={"team": "ops"},
            )
        except TypeError:
            raise calls.Absent from None
        calls.check(_round(found), [3.0])

    def do_update_config_and_wait(self) -> None:
        routes = [Route(served_model_name="one", traffic_percentage=0), _whole("two")]
        self.api.update_config_and_wait(
            self.main,
            served_entities=[_entity("one", "1"), _entity("two", "2")],
            traffic_config=TrafficConfig(routes=routes),
            timeout=WAIT,
        )
        found = self.api.query(self.main, dataframe_records=[calls.ROW])
        calls.check((_round(found), found.served_model_name), ([30.0], "two"))
        shown = self.api.get(self.main)
        calls.check((shown.config and shown.config.config_version, shown.pending_config), (2, None))

    def do_update_traffic_alone(self) -> None:
        routes = [_whole("one"), Route(served_model_name="two", traffic_percentage=0)]
        self.api.update_config_and_wait(
            self.main, traffic_config=TrafficConfig(routes=routes), timeout=WAIT
        )
        found = self.api.query(self.main, dataframe_records=[calls.ROW])
        calls.check((found.served_model_name, _round(found)), ("one", [3.0]))

    def do_update_served_models_old_spelling(self) -> None:
        model = serving.ServedModelInput(
            scale_to_zero_enabled=False,
            model_name=calls.SUM,
            model_version="2",
            name="old",
            workload_size="Small",
        )
        self.api.update_config_and_wait(self.main, served_models=[model], timeout=WAIT)
        calls.check(_round(self.api.query(self.main, dataframe_records=[calls.ROW])), [30.0])

    def do_pending_config(self) -> None:
        self.api.update_config(self.main, served_entities=[_entity("slow", "1", calls.SLOW)])
        pending = self.api.get(self.main).as_dict()["pending_config"]
        assert pending["start_time"] and pending["served_entities"][0]["name"] == "slow", pending
        calls.check(self.api.query(self.main, dataframe_records=[calls.ROW]).predictions, [30.0])

    def fails_409_update_in_progress(self) -> None:
        _fails(
            sdk_errors.ResourceConflict,
            lambda: self.api.update_config(self.main, served_entities=[_entity("x", "1")]),
        )
        self.api.wait_get_serving_endpoint_not_updating(self.main, timeout=WAIT)

    def fails_update_failed(self) -> None:
        broken = [_entity("bad", "1", calls.BROKEN)]
        _fails(
            sdk_errors.OperationFailed,
            lambda: self.api.update_config_and_wait(
                self.main, served_entities=broken, timeout=WAIT
            ),
        )
        shown = self.api.get(self.main).as_dict()
        calls.check(shown["state"], {"ready": "READY", "config_update": "UPDATE_FAILED"})

    # -- attributes

    def do_patch_tags(self) -> None:
        found = self.api.patch(
            self.main, add_tags=[EndpointTag("new", "1")], delete_tags=["team", "bare"]
        )
        calls.check([tag.as_dict() for tag in found.tags or []], [{"key": "new", "value": "1"}])

    def do_put_rate_limits(self) -> None:
        limit = serving.RateLimit(
            calls=900,
            renewal_period=serving.RateLimitRenewalPeriod.MINUTE,
            key=serving.RateLimitKey.ENDPOINT,
        )
        found = self.api.put(self.main, rate_limits=[limit])
        calls.check([each.as_dict() for each in found.rate_limits or []], [limit.as_dict()])

    def do_put_ai_gateway(self) -> None:
        period = serving.AiGatewayRateLimitRenewalPeriod.MINUTE
        asked = {
            "usage_tracking_config": serving.AiGatewayUsageTrackingConfig(enabled=True),
            "fallback_config": _made("FallbackConfig", enabled=False),
            "rate_limits": [
                serving.AiGatewayRateLimit(
                    calls=800, renewal_period=period, key=serving.AiGatewayRateLimitKey.USER
                )
            ],
            "inference_table_config": serving.AiGatewayInferenceTableConfig(
                catalog_name="main",
                schema_name="clients",
                table_name_prefix=f"{self.prefix}_gateway".replace("-", "_"),
                enabled=True,
            ),
        }
        asked = {key: value for key, value in asked.items() if value is not None}
        found = self.api.put_ai_gateway(self.main, **asked).as_dict()
        wanted = {
            key: [each.as_dict() for each in value] if isinstance(value, list) else value.as_dict()
            for key, value in asked.items()
        }
        calls.holds(found, wanted)
        calls.holds(self.api.get(self.main).as_dict()["ai_gateway"], wanted)

    def do_update_notifications(self) -> None:
        if not hasattr(self.api, "update_notifications"):
            raise calls.Absent
        asked = serving.EmailNotifications(
            on_update_success=["a@example.com"], on_update_failure=["b@example.com"]
        )
        found = self.api.update_notifications(self.main, email_notifications=asked)
        calls.check(found.as_dict(), {"name": self.main, "email_notifications": asked.as_dict()})
        raw = self.w.api_client.do("GET", f"/api/2.0/serving-endpoints/{self.main}")
        calls.check(raw["email_notifications"], asked.as_dict())

    def do_patch_telemetry_config(self) -> None:
        if not hasattr(self.api, "patch_telemetry_config"):
            raise calls.Absent
        table = serving.TelemetryInferenceTableConfig(name="main.clients.t", sampling_fraction=0.5)
        asked = serving.TelemetryConfig(inference_table_config=table)
        found = self.api.patch_telemetry_config(self.main, telemetry_config=asked).as_dict()
        calls.holds(found["telemetry_config"], asked.as_dict())
        found = self.api.patch_telemetry_config(self.main).as_dict()
        assert "telemetry_config" not in found, found["telemetry_config"]

    # -- documents

    def do_get_open_api(self) -> None:
        text = _read(self.api.get_open_api(self.main))
        assert f"/serving-endpoints/{self.main}/invocations" in text and '"a"' in text, text[:300]

    def do_export_metrics(self) -> None:
        text = _read(self.api.export_metrics(self.main))
        for name in ("request_count_total", "request_latency_ms_bucket", "cpu_usage_percentage"):
            assert name in text, name

    def do_build_logs(self) -> None:
        assert isinstance(self.api.build_logs(self.main, "slow").logs, str)

    def do_logs(self) -> None:
        assert isinstance(self.api.logs(self.main, "slow").logs, str)

    # -- permissions

    def do_get_permission_levels(self) -> None:
        found = self.api.get_permission_levels(self._id()).permission_levels or []
        levels = {each.permission_level.value for each in found if each.permission_level}
        calls.check(levels, {"CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"})

    def do_update_permissions(self) -> None:
        calls.check(self._granted("update_permissions", "ann", "CAN_VIEW")["ann"], "CAN_VIEW")

    def do_set_permissions(self) -> None:
        found = self._granted("set_permissions", "bob", "CAN_QUERY")
        calls.check((found.get("ann"), found["bob"]), (None, "CAN_QUERY"))

    def do_get_permissions(self) -> None:
        found = self.api.get_permissions(self._id())
        calls.check(found.object_id, f"/serving-endpoints/{self._id()}")
        calls.check(found.object_type, "serving-endpoint")
        calls.check(_levels(found)["bob"], "CAN_QUERY")

    # -- secrets

    def do_secrets_put_bytes(self) -> None:
        text = base64.b64encode(b"\x00\x01").decode()
        self.w.secrets.put_secret(self.scope, "bytes", bytes_value=text)
        calls.check(self.w.secrets.get_secret(self.scope, "bytes").value, text)

    def do_secrets_list(self) -> None:
        assert self.scope in [each.name for each in self.w.secrets.list_scopes()]
        found = sorted(str(each.key) for each in self.w.secrets.list_secrets(self.scope))
        calls.check(found, ["bytes", "key"])

    def do_secrets_delete(self) -> None:
        self.w.secrets.delete_secret(self.scope, "bytes")
        self.w.secrets.delete_scope(self.scope)
        _fails(
            sdk_errors.ResourceDoesNotExist, lambda: list(self.w.secrets.list_secrets(self.scope))
        )

    # -- errors, a class each

    def fails_400_invalid_parameter(self) -> None:
        _fails(sdk_errors.InvalidParameterValue, lambda: self.api.create("a b"))

    def fails_400_bad_request(self) -> None:
        _fails(
            sdk_errors.BadRequest,
            lambda: self.api.query(self.main, dataframe_records=[{"a": "much", "b": 1.0}]),
            "Column 'a' expects double",
        )

    def fails_400_two_formats(self) -> None:
        _fails(
            sdk_errors.BadRequest,
            lambda: self.api.query(self.main, inputs=[1], instances=[1]),
            "exactly one of",
        )

    def fails_400_body_too_large(self) -> None:
        body = {"inputs": "x" * MOST_BODY_BYTES}
        path = f"/serving-endpoints/{self.main}/invocations"
        _fails(sdk_errors.BadRequest, lambda: self.w.api_client.do("POST", path, body=body))

    def fails_400_already_exists(self) -> None:
        _fails(sdk_errors.ResourceAlreadyExists, lambda: self.api.create(self.main))

    def fails_401_no_token(self) -> None:
        self._with_header("", sdk_errors.Unauthenticated)

    def fails_403_wrong_token(self) -> None:
        self._with_header("Bearer il_wrong", sdk_errors.PermissionDenied)

    def fails_403_no_grant(self) -> None:
        stranger = WorkspaceClient(host=self.url, token=self._token("bob"), auth_type="pat")
        api = stranger.serving_endpoints
        _fails(sdk_errors.PermissionDenied, lambda: api.delete(self.main), "CAN_MANAGE on endpoint")

    def fails_404_without_any_grant(self) -> None:
        nobody = WorkspaceClient(host=self.url, token=self._token("eve"), auth_type="pat")
        _fails(sdk_errors.ResourceDoesNotExist, lambda: nobody.serving_endpoints.get(self.main))

    def fails_404_endpoint(self) -> None:
        gone = sdk_errors.ResourceDoesNotExist
        _fails(gone, lambda: self.api.get("nobody"))
        _fails(gone, lambda: self.api.query("nobody", inputs=[1]))
        _fails(gone, lambda: self.api.delete("nobody"))

    def fails_404_model_version_entity_id(self) -> None:
        gone = sdk_errors.ResourceDoesNotExist
        config = _config("x", [_entity("x", "1", "main.clients.none")])
        _fails(gone, lambda: self.api.create("x", config=config))
        config = _config("x", [_entity("x", "99")])
        _fails(gone, lambda: self.api.create("x", config=config))
        _fails(gone, lambda: self.api.logs(self.main, "nobody"))
        _fails(gone, lambda: self.api.get_permissions("0" * 32))

    def fails_404_unknown_route(self) -> None:
        _fails(sdk_errors.NotFound, lambda: self.w.api_client.do("GET", "/api/2.0/nothing"))

    def fails_501_external_model(self) -> None:
        key = serving.OpenAiConfig(openai_api_key_plaintext="not-a-key")
        model = serving.ExternalModel(
            provider=serving.ExternalModelProvider.OPENAI,
            name="gpt",
            task="llm/v1/chat",
            openai_config=key,
        )
        config = _config("x", [ServedEntityInput(name="gpt", external_model=model)])
        refused = lambda: self.api.create("x", config=config)  # noqa: E731
        _fails(sdk_errors.NotImplemented, refused, "not offered")
        key.openai_api_key_plaintext = None
        _fails(sdk_errors.InvalidParameterValue, refused, "openai_api_key: a value is needed")

    def fails_501_provisioned_throughput(self) -> None:
        entity = serving.PtServedModel(entity_name="system.ai.m", provisioned_model_units=50)
        config = serving.PtEndpointCoreConfig(served_entities=[entity])
        _fails(
            sdk_errors.NotImplemented,
            lambda: self.api.create_provisioned_throughput_endpoint("x", config),
        )
        _fails(
            sdk_errors.NotImplemented,
            lambda: self.api.update_provisioned_throughput_endpoint_config(self.main, config),
        )

    def fails_501_http_request(self) -> None:
        method = serving.ExternalFunctionRequestHttpMethod.GET
        _fails(sdk_errors.NotImplemented, lambda: self.api.http_request("c", method, "/"))

    def fails_400_of_the_model(self) -> None:
        entity = _entity("wild", "1", calls.WILD, size=1)
        self.api.create_and_wait(self.wild, config=_config(self.wild, [entity]), timeout=WAIT)
        _fails(sdk_errors.BadRequest, lambda: self._wild(calls.RAISE), "The model raised")

    def fails_400_with_words_that_clients_retry(self) -> None:
        begun = time.monotonic()
        _fails(sdk_errors.BadRequest, lambda: self._wild(calls.RAISE_ODDLY), "unexpected error")
        assert time.monotonic() - begun < 2, "it was retried"

    def fails_500_answer_not_json(self) -> None:
        _fails(sdk_errors.InternalError, lambda: self._wild(calls.ODD_ANSWER), "cannot be encoded")

    def fails_503_queue(self) -> None:
        busy = threading.Thread(target=self._wild, args=(calls.PAUSE,))
        busy.start()
        time.sleep(0.3)
        _fails(sdk_errors.TemporarilyUnavailable, lambda: self._wild(calls.ROW))
        busy.join()

    def fails_504_model_timeout(self) -> None:
        _fails(sdk_errors.DeadlineExceeded, lambda: self._wild(calls.HANG))

    def fails_429_rate_limit(self) -> None:
        limit = serving.AiGatewayRateLimit(
            calls=0, renewal_period=serving.AiGatewayRateLimitRenewalPeriod.MINUTE
        )
        self.api.put_ai_gateway(self.main, rate_limits=[limit])
        _fails(
            sdk_errors.platform.RequestLimitExceeded,
            lambda: self.api.query(self.main, dataframe_records=[calls.ROW]),
        )

    def do_delete(self) -> None:
        self.api.delete(self.main)
        self.api.delete(self.wild)
        _fails(sdk_errors.ResourceDoesNotExist, lambda: self.api.get(self.main))
        assert self.main not in [each.name for each in self.api.list()]

    # -- shared

    def _id(self) -> str:
        return str(self.api.get(self.main).id)

    def _granted(self, call: str, user: str, level: str) -> dict[str, str]:
        grant = serving.ServingEndpointAccessControlRequest(
            user_name=user, permission_level=serving.ServingEndpointPermissionLevel(level)
        )
        return _levels(getattr(self.api, call)(self._id(), access_control_list=[grant]))

    def _token(self, user: str) -> str:
        made = self.w.api_client.do("POST", "/api/1.0/tokens", body={"user": user})
        return str(made["token"])

    def _wild(self, row: dict[str, float]) -> Any:
        return self.api.query(self.wild, dataframe_records=[row])

    def _with_header(self, header: str, wanted: type[Exception]) -> None:
        from databricks.sdk.credentials_provider import CredentialsStrategy

        class Own(CredentialsStrategy):
            def auth_type(self) -> str:
                return "own"

            def __call__(self, config: Config) -> Any:
                return lambda: {"Authorization": header} if header else {}

        config = Config(host=self.url, credentials_strategy=Own())
        client = WorkspaceClient(config=config)
        _fails(wanted, lambda: list(client.serving_endpoints.list()))


def _entity(name: str, version: str, model: str = calls.SUM, size: int = 0) -> ServedEntityInput:
    made = ServedEntityInput(
        name=name, entity_name=model, entity_version=version, scale_to_zero_enabled=False
    )
    if size:
        made.min_provisioned_concurrency = made.max_provisioned_concurrency = size
    else:
        made.workload_size = "Small"
    return made


def _whole(name: str) -> Route:
    return Route(served_model_name=name, traffic_percentage=100)


def _config(name: str, entities: list[ServedEntityInput], **more: Any) -> EndpointCoreConfigInput:
    return EndpointCoreConfigInput(name=name, served_entities=entities, **more)


def _made(kind: str, **values: Any) -> Any:
    made = getattr(serving, kind, None)
    return None if made is None else made(**values)


def _round(found: serving.QueryEndpointResponse) -> list[float]:
    return [round(each, 6) for each in found.predictions or []]


def _read(found: Any) -> str:
    text: str = found.contents.read().decode()
    return text


def _levels(found: Any) -> dict[str, str]:
    return {
        each.user_name: each.all_permissions[0].permission_level.value
        for each in found.access_control_list
        if each.user_name
    }


def _fails(wanted: type[Exception], call: Any, text: str = "") -> None:
    """Raises AssertionError if the call does not fail with this class: exactly, since a base class
    stands for a code that the SDK does not know. What it retried in vain counts by its cause."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - its class is what is checked
        known = error.__cause__ if isinstance(error, TimeoutError) else error
        calls.check(type(known).__name__, wanted.__name__, str(error)[:200])
        assert text in str(known), f"'{text}' is not in: {known}"
        return
    raise AssertionError(f"expected {wanted.__name__}, found an answer")


if __name__ == "__main__":
    sys.exit(calls.run(Sdk(*calls.arguments()).calls()))
