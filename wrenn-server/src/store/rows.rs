//! Records out of the rows of both databases, whose types sqlx has apart.

use wrenn_core::SandboxId;

use crate::store::records::Status;

/// Makes the functions that read each record out of a row, which is of the type `$row`.
macro_rules! records_of_rows {
    ($row:ty) => {
        fn key_of(row: &$row) -> Result<KeyRecord, sqlx::Error> {
            Ok(KeyRecord {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                hash: row.try_get("hash")?,
                created_at_ms: row.try_get("created_at_ms")?,
                revoked_at_ms: row.try_get("revoked_at_ms")?,
                terms: rows::of_json(row.try_get("terms")?)?,
            })
        }

        fn sandbox_of(row: &$row) -> Result<SandboxRecord, sqlx::Error> {
            Ok(SandboxRecord {
                id: rows::id(row.try_get("id")?)?,
                owner: row.try_get("owner")?,
                template: row.try_get("template")?,
                vcpus: rows::number(row.try_get("vcpus")?)?,
                memory_mib: rows::number(row.try_get("memory_mib")?)?,
                timeout_sec: rows::number(row.try_get("timeout_sec")?)?,
                pauses_at_timeout: row.try_get("pauses_at_timeout")?,
                status: rows::status(row.try_get("status")?)?,
                why: row.try_get("why")?,
                created_at_ms: row.try_get("created_at_ms")?,
                started_at_ms: row.try_get("started_at_ms")?,
                updated_at_ms: row.try_get("updated_at_ms")?,
                asked: rows::of_json(row.try_get("asked")?)?,
            })
        }

        fn snapshot_of(row: &$row) -> Result<SnapshotRecord, sqlx::Error> {
            Ok(SnapshotRecord {
                name: row.try_get("name")?,
                owner: row.try_get("owner")?,
                vcpus: rows::number(row.try_get("vcpus")?)?,
                memory_mib: rows::number(row.try_get("memory_mib")?)?,
                disk_mib: rows::number(row.try_get("disk_mib")?)?,
                source: row.try_get("sandbox_id")?,
                created_at_ms: row.try_get("created_at_ms")?,
            })
        }

        fn tag_of(row: &$row) -> Result<TagRecord, sqlx::Error> {
            Ok(TagRecord {
                owner: row.try_get("owner")?,
                name: row.try_get("name")?,
                tag: row.try_get("tag")?,
                template: row.try_get("template")?,
                created_at_ms: row.try_get("created_at_ms")?,
            })
        }

        fn build_of(row: &$row) -> Result<BuildRecord, sqlx::Error> {
            Ok(BuildRecord {
                id: row.try_get("id")?,
                owner: row.try_get("owner")?,
                created_at_ms: row.try_get("created_at_ms")?,
                changed_at_ms: row.try_get("changed_at_ms")?,
                told: rows::of_json(row.try_get("told")?)?,
            })
        }

        fn request_of(row: &$row) -> Result<RequestRecord, sqlx::Error> {
            let sandbox: Option<&str> = row.try_get("sandbox_id")?;
            Ok(RequestRecord {
                digest: row.try_get("digest")?,
                sandbox: sandbox.map(rows::id).transpose()?,
                created_at_ms: row.try_get("created_at_ms")?,
            })
        }

        fn event_of(row: &$row) -> Result<EventRecord, sqlx::Error> {
            let subject = match row.try_get("build_id")? {
                Some(build) => Subject::Build(build),
                None => Subject::Sandbox(rows::id(row.try_get("sandbox_id")?)?),
            };
            Ok(EventRecord {
                id: row.try_get("id")?,
                owner: row.try_get("owner")?,
                subject,
                template: row.try_get("template")?,
                kind: row.try_get("kind")?,
                why: row.try_get("why")?,
                at_ms: row.try_get("at_ms")?,
            })
        }

        fn delivery_of(row: &$row) -> Result<DeliveryRecord, sqlx::Error> {
            Ok(DeliveryRecord {
                id: row.try_get("delivery_id")?,
                webhook: row.try_get("webhook_id")?,
                event: event_of(row)?,
                attempts: rows::number(row.try_get("attempts")?)?,
                due_at_ms: row.try_get("due_at_ms")?,
            })
        }

        fn webhook_of(row: &$row) -> Result<WebhookRecord, sqlx::Error> {
            Ok(WebhookRecord {
                id: row.try_get("id")?,
                owner: row.try_get("owner")?,
                name: row.try_get("name")?,
                url: row.try_get("url")?,
                is_enabled: row.try_get("is_enabled")?,
                kinds: rows::of_json(row.try_get("kinds")?)?,
                secret: Hidden(row.try_get("secret")?),
                failing_since_ms: row.try_get("failing_since_ms")?,
                why: row.try_get("why")?,
                created_at_ms: row.try_get("created_at_ms")?,
            })
        }
    };
}

pub(super) use records_of_rows;

pub(super) fn of_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// The databases have no numbers without a sign.
pub(super) fn number(number: i64) -> Result<u32, sqlx::Error> {
    u32::try_from(number).map_err(|error| sqlx::Error::Decode(error.into()))
}

pub(super) fn id(text: &str) -> Result<SandboxId, sqlx::Error> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

pub(super) fn status(name: &str) -> Result<Status, sqlx::Error> {
    Status::named(name).ok_or_else(|| sqlx::Error::Decode(format!("{name:?} is an unknown status").into()))
}
