"""External models: which provider needs which fields. Pure; validates, keeps nothing."""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from capture import errors, outbound
from serving import fields

TASKS = ("llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings")
SECRET = re.compile(r"\{\{secrets/([A-Za-z0-9_.@-]{1,128})/([A-Za-z0-9_.@-]{1,128})\}\}", re.ASCII)

MODEL = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}", re.ASCII)
HEADER = re.compile(r"[!#$%&'*+.^`|~\w-]{1,128}", re.ASCII)

# provider -> (its configuration object, secrets that are needed, texts that are needed, others)
# A secret `k` comes as `k: "{{secrets/scope/key}}"` or as `k_plaintext`; exactly one of the two.
_OPENAI = (
    "openai_organization",
    "openai_api_base",
    "openai_api_version",
    "openai_deployment_name",
    "microsoft_entra_tenant_id",
    "microsoft_entra_client_id",
)
_BEDROCK = ("instance_profile_arn", "uc_service_credential_name")
PROVIDERS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "openai": ("openai_config", (), (), _OPENAI),
    "anthropic": ("anthropic_config", ("anthropic_api_key",), (), ()),
    "cohere": ("cohere_config", ("cohere_api_key",), (), ("cohere_api_base",)),
    "amazon-bedrock": ("amazon_bedrock_config", (), ("aws_region",), _BEDROCK),
    "google-cloud-vertex-ai": (
        "google_cloud_vertex_ai_config",
        ("private_key",),
        ("project_id", "region"),
        (),
    ),
    "databricks-model-serving": (
        "databricks_model_serving_config",
        ("databricks_api_token",),
        ("databricks_workspace_url",),
        (),
    ),
    "ai21labs": ("ai21labs_config", ("ai21labs_api_key",), (), ()),
    "palm": ("palm_config", ("palm_api_key",), (), ()),
    "custom": ("custom_provider_config", (), ("custom_provider_url",), ()),
}
BEDROCK_PROVIDERS = ("anthropic", "cohere", "ai21labs", "amazon")
_URLS = ("openai_api_base", "cohere_api_base", "databricks_workspace_url", "custom_provider_url")


def check(model: fields.Field) -> str:
    """Check an `external_model`; gives its task. Raises InvalidParameter naming the field."""
    provider = model.need("provider").choice(PROVIDERS)
    model.need("name").matching(MODEL, "the name of a model: letters, digits and . _ : / @ + -")
    task = model.need("task").choice(TASKS)
    key, needed_secrets, needed_texts, texts = PROVIDERS[provider]
    config = model.need(key)
    for name in needed_secrets:
        secret(config, name)
    for name in (*needed_texts, *texts):
        found = config.need(name) if name in needed_texts else config.get(name)
        if found is not None:
            found.line(2048)
            if name in _URLS:
                url(found)
    if provider == "openai":
        _openai(config)
    elif provider == "amazon-bedrock":
        _bedrock(config)
    elif provider == "custom":
        _custom(config)
    return task


def secret(config: fields.Field, name: str, needed: bool = True) -> None:
    """Check the two forms of a secret: exactly one of them, the first a reference."""
    reference, plain = config.get(name), config.get(f"{name}_plaintext")
    if reference is not None and plain is not None:
        raise errors.InvalidParameter(
            f"{config.path(name)}: give it or {name}_plaintext, found both."
        )
    if reference is not None:
        # What was found may be a key in the clear by mistake: it is not repeated.
        if not isinstance(reference.value, str) or not SECRET.fullmatch(reference.value):
            raise errors.InvalidParameter(
                f"{reference.where}: expected a reference {{{{secrets/scope/key}}}}; "
                f"the value itself belongs into {name}_plaintext."
            )
    elif plain is not None:
        if not isinstance(plain.value, str) or not plain.value:
            raise errors.InvalidParameter(f"{plain.where}: expected a string that is not empty.")
    elif needed:
        raise errors.InvalidParameter(
            f"{config.path(name)}: a value is needed, or {name}_plaintext; found none."
        )


def url(found: fields.Field) -> None:
    """Check an http or https address with a host and without user or password."""
    try:
        parts = urlsplit(found.value)
        fits = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        )
        fits = (
            fits and found.value.isascii() and found.value.isprintable() and " " not in found.value
        )
        fits = fits and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        raise found.refuse("an address http(s)://host[:port]/...")
    refused = _refused(parts.hostname or "")
    if refused is not None:
        raise errors.InvalidParameter(f"{found.where}: {refused}.")


def _refused(host: str) -> str | None:
    """Why a host that is an address by itself, in whatever notation, is never called. Names, and
    what the server's policy says of private addresses, are looked at when they are called."""
    try:
        address: outbound.Address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    return outbound.refusal(address, "private")


def _openai(config: fields.Field) -> None:
    kind = config.get("openai_api_type")
    chosen = kind.choice(("openai", "azure", "azuread")) if kind else "openai"
    secret(config, "microsoft_entra_client_secret", needed=chosen == "azuread")
    secret(config, "openai_api_key", needed=chosen != "azuread")
    if chosen == "azuread":
        config.need("microsoft_entra_tenant_id")
        config.need("microsoft_entra_client_id")
    if chosen != "openai":
        for name in ("openai_api_base", "openai_api_version", "openai_deployment_name"):
            config.need(name)


def _bedrock(config: fields.Field) -> None:
    config.need("bedrock_provider").choice(BEDROCK_PROVIDERS)
    role = any(config.get(name) for name in ("instance_profile_arn", "uc_service_credential_name"))
    for name in ("aws_access_key_id", "aws_secret_access_key"):
        secret(config, name, needed=not role)


def _custom(config: fields.Field) -> None:
    bearer, key = config.get("bearer_token_auth"), config.get("api_key_auth")
    if bearer is not None:
        secret(bearer, "token")
    if key is not None:
        key.need("key").matching(HEADER, "the name of a header")
        secret(key, "value")
    if (bearer is None) == (key is None):
        raise errors.InvalidParameter(
            f"{config.where}: exactly one of bearer_token_auth, api_key_auth is needed."
        )
