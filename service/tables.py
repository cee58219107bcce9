"""The database's tables. Times are seconds since 1970 (UTC), as floats: no time zone can get lost.

``service/migrations`` makes them; a test holds the two against each other.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
# SQLite numbers rows only where the type is exactly INTEGER.
_Number = BigInteger().with_variant(Integer(), "sqlite")
_Json = JSON(none_as_null=True)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)


class Job(Base):
    """One compression job with its lease.

    Attributes:
        seq: order of creation; pages are cut by it.
        attempt: number of the newest attempt, 0 before the first. It is the fencing token: whoever
            writes names its attempt, and only the newest one's writes are taken.
        lease_owner: who runs that attempt; None when nobody does.
        lease_expires: from then on a new attempt may be started.
        events: id of the last event.
    """

    __tablename__ = "jobs"

    seq: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    created: Mapped[float] = mapped_column(Double)
    started: Mapped[float | None] = mapped_column(Double)
    finished: Mapped[float | None] = mapped_column(Double)
    idempotency_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    body_digest: Mapped[str] = mapped_column(String(64))
    stage: Mapped[str] = mapped_column(String(100), default="")
    message: Mapped[str] = mapped_column(Text, default="")
    done: Mapped[int] = mapped_column(Integer, default=0)
    total: Mapped[int] = mapped_column(Integer, default=0)
    best: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    report: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires: Mapped[float | None] = mapped_column(Double)
    cancelled_at: Mapped[float | None] = mapped_column(Double)
    events: Mapped[int] = mapped_column(Integer, default=0)
    trials: Mapped[int] = mapped_column(Integer, default=0)


class Attempt(Base):
    """One run of a job's driver.

    Attributes:
        outcome: None while it runs.
        claimed: since when its driver works; None when none ever did.
        renewed: the driver's last sign of life.
    """

    __tablename__ = "attempts"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    owner: Mapped[str | None] = mapped_column(String(200))
    created: Mapped[float] = mapped_column(Double)
    claimed: Mapped[float | None] = mapped_column(Double)
    renewed: Mapped[float | None] = mapped_column(Double)
    ended: Mapped[float | None] = mapped_column(Double)
    outcome: Mapped[str | None] = mapped_column(String(16))
    trials: Mapped[int] = mapped_column(Integer, default=0)


class Trial(Base):
    """One recorded trial; see ``service.context.TrialRecord``."""

    __tablename__ = "trials"
    __table_args__ = (UniqueConstraint("job", "told", name="uq_trials_told"),)

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    told: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    asked_after: Mapped[int] = mapped_column(Integer)
    policy: Mapped[dict[str, Any]] = mapped_column(JSON)
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    failure: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    cached: Mapped[bool] = mapped_column()
    created: Mapped[float] = mapped_column(Double)


class Pin(Base):
    """Something the first attempt fixed for all that follow, such as the table's snapshot."""

    __tablename__ = "pins"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    value: Mapped[dict[str, Any]] = mapped_column(JSON)


class EventRow(Base):
    """Something that happened to a job; ids ascend without gaps within the job."""

    __tablename__ = "events"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    time: Mapped[float] = mapped_column(Double)


class Artifact(Base):
    """A file a job left; ``path`` is relative to the blobs' root."""

    __tablename__ = "artifacts"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(400), primary_key=True)
    path: Mapped[str] = mapped_column(String(500))
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class Weights(Base):
    """An uploaded safetensors file; ``id`` is its SHA-256."""

    __tablename__ = "weights"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[str] = mapped_column(String(500))
    tensors: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Double)


Index("ix_jobs_lease", Job.state, Job.lease_expires)
