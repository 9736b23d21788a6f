"""Settings of every process: read from the environment once, in `__main__`, then handed down."""

from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


class Settings(BaseSettings):
    """One frozen object per process. Each field is `INFERLAKE_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="INFERLAKE_", frozen=True, populate_by_name=True)

    # where things are
    data_dir: Path = Field(
        default=Path("inferlake-data"), description="Everything inferlake keeps."
    )
    url: str = Field(
        default="http://127.0.0.1:8000", description="Server that the commands talk to."
    )
    token: SecretStr | None = Field(
        default=None, description="Bearer token that the commands send."
    )
    admin_token: SecretStr | None = Field(
        default=None, description="Bootstrap administrator's token; without it `up` makes one."
    )
    service_token: SecretStr | None = Field(
        default=None, description="Token of inferlake's own processes; made by `up` at every start."
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description="Key that seals secrets (base64, 32 bytes); default: `secret-key` in the data "
        "directory, made when first needed.",
    )
    secret_key_before: SecretStr | None = Field(
        default=None,
        description="The key before that one: what it sealed is opened, and sealed anew by `up`.",
    )
    host: str = Field(default="127.0.0.1", description="Address that the servers bind.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port of the API.")
    dashboard_port: int = Field(default=8501, ge=0, le=65535, description="Port of the dashboard.")
    tls_certificate: Path | None = Field(
        default=None,
        description="Certificate (PEM, with its chain): the servers speak HTTPS. Clients that have "
        "this setting trust that certificate alone, by any name.",
    )
    tls_key: Path | None = Field(default=None, description="Private key of the certificate (PEM).")
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the state; default: SQLite in the data directory.",
    )
    tables_uri: str | None = Field(
        default=None,
        description="Where Delta tables live; default: `tables` in the data directory.",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias=AliasChoices("MLFLOW_TRACKING_URI", "mlflow_tracking_uri"),
        description="MLflow server; default: SQLite and files in the data directory.",
    )
    backend: str = Field(
        default="local",
        pattern="^(local|ray)$",
        description="Where replicas run: `local`, on this machine; `ray` is not offered yet.",
    )

    # limits of requests
    max_body_bytes: int = Field(
        default=16 * MIB, gt=0, description="Largest body of a custom model."
    )
    max_answer_bytes: int = Field(
        default=64 * MIB,
        gt=0,
        le=250 * MIB,  # a frame of serving/wire.py holds little more
        description="Largest answer of a model; at most 250 MiB.",
    )
    max_headers_bytes: int = Field(default=65_536, gt=0, description="All headers together.")
    header_timeout_seconds: float = Field(default=10, gt=0, description="Time to send the headers.")
    body_timeout_seconds: float = Field(default=60, gt=0, description="Time to send the body.")
    keep_alive_seconds: float = Field(default=75, gt=0, description="Life of an idle connection.")
    model_timeout_seconds: float = Field(
        default=297, gt=0, description="Time for the model; then 504."
    )
    queue_timeout_seconds: float = Field(
        default=30, gt=0, description="Longest wait in line; then 503."
    )
    queue_length: int = Field(
        default=0,
        ge=0,
        description="Waiting requests per entity; 0: 32 x concurrency, at least 256.",
    )
    drain_seconds: float = Field(default=310, gt=0, description="Longest drain at SIGTERM.")
    failed_logins_per_minute: int = Field(default=20, ge=1, description="Wrong tokens per address.")
    plain_asgi: bool = Field(default=False, description="Send all requests through plain ASGI.")

    # replicas
    worker_memory_bytes: int = Field(
        default=0, ge=0, description="0: by workload_type, 4/8/16 GiB."
    )
    template_memory_bytes: int = Field(
        default=1024 * MIB,
        ge=0,
        description="Memory that loaded models of entities at zero may hold together, so that they "
        "wake sooner; 0: none is kept.",
    )
    scale_to_zero_after_seconds: float = Field(default=1800, gt=0, description="Idle time to zero.")
    deployment_timeout_seconds: float = Field(
        default=1800, gt=0, description="Longest time for a new entity to become ready."
    )

    # the record
    wal_seal_bytes: int = Field(
        default=16 * MIB, gt=0, description="Seal a log segment at this size."
    )
    wal_seal_seconds: float = Field(
        default=0.25, gt=0, description="... or this long after its start."
    )
    wal_backlog_bytes: int = Field(
        default=4096 * MIB, gt=0, description="Most uncommitted log bytes."
    )
    wal_full_policy: str = Field(
        default="refuse",
        pattern="^(refuse|serve)$",
        description="What a full log does to requests.",
    )
    payload_cap_bytes: int = Field(
        default=MIB, gt=0, description="Longer payloads are logged as null."
    )
    unpack_chunk_rows: int = Field(default=128_000, gt=0, description="Rows unpacked at once.")

    # the way out
    keep_deliveries_days: int = Field(
        default=30,
        ge=1,
        description="Delivered events stay so long; those given up on three times as long.",
    )
    allow_private_upstreams: str = Field(
        default="loopback",
        pattern="^(none|loopback|private)$",
        description="Private addresses that webhooks and providers may have.",
    )

    @property
    def sqlalchemy_url(self) -> str:
        """URL of the state database."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'inferlake.db'}"

    @property
    def tables_root(self) -> str:
        """Folder or object-store prefix below which `<catalog>/<schema>/<table>` lie."""
        return self.tables_uri or str(self.data_dir.absolute() / "tables")

    @property
    def mlflow_uri(self) -> str:
        """Tracking and registry URI of MLflow."""
        if self.mlflow_tracking_uri:
            return self.mlflow_tracking_uri
        return f"sqlite:///{self.data_dir.absolute() / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_artifacts_dir(self) -> Path:
        """Folder of the embedded MLflow's artifacts."""
        return self.data_dir.absolute() / "mlflow" / "artifacts"

    @property
    def wal_dir(self) -> Path:
        return self.data_dir.absolute() / "wal"

    @property
    def run_dir(self) -> Path:
        """Sockets and `<process>.ready` files; short, since socket paths end at 107 bytes."""
        return self.data_dir.absolute() / "run"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir.absolute() / "logs"

    @property
    def snapshots_dir(self) -> Path:
        """Memory-mapped feature snapshots, one folder per feature table."""
        return self.data_dir.absolute() / "snapshots"

    @property
    def environments_dir(self) -> Path:
        return self.data_dir.absolute() / "environments"
