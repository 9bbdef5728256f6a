//! Records in a file of the data directory.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use wrenn_core::SandboxId;

use crate::store::contract::{KeyRecord, SandboxRecord, SnapshotRecord, Status, Store, StoreError};

/// A store that is one file, which one server has open.
#[derive(Debug)]
pub struct Sqlite(SqlitePool);

impl Sqlite {
    /// Opens the file, which is made if it is not there, for its owner alone, and brings it to this version's tables.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be written, is no such file, or has tables of a later version.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        make_for_owner_alone(path).map_err(|error| opening(error.into()))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // What was answered survives a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_MAX);
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(BUSY_MAX);
        let pool = pool.connect_with(options).await.map_err(|error| opening(error.into()))?;
        MIGRATIONS.run(&pool).await.map_err(|error| opening(error.into()))?;
        Ok(Self(pool))
    }
}

/// SQLite gives the files beside it the same mode.
fn make_for_owner_alone(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

#[async_trait]
impl Store for Sqlite {
    async fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO api_keys (id, name, hash, created_at_ms, revoked_at_ms) VALUES (?, ?, ?, ?, ?)")
            .bind(&key.id)
            .bind(&key.name)
            .bind(&key.hash)
            .bind(key.created_at_ms)
            .bind(key.revoked_at_ms)
            .execute(&self.0)
            .await
            .map(drop)
            .map_err(writing)
    }

    async fn key(&self, id: &str) -> Result<Option<KeyRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM api_keys WHERE id = ?").bind(id).fetch_optional(&self.0).await;
        row.map_err(reading)?.map(|row| key_of(&row)).transpose().map_err(reading)
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM api_keys ORDER BY created_at_ms DESC, id").fetch_all(&self.0).await;
        rows.map_err(reading)?.iter().map(key_of).collect::<Result<_, _>>().map_err(reading)
    }

    async fn revoke_key(&self, id: &str, at_ms: i64) -> Result<bool, StoreError> {
        sqlx::query("UPDATE api_keys SET revoked_at_ms = ? WHERE id = ? AND revoked_at_ms IS NULL")
            .bind(at_ms)
            .bind(id)
            .execute(&self.0)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(writing)
    }

    async fn add_sandbox(&self, sandbox: &SandboxRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO sandboxes (id, owner, template, vcpus, memory_mib, timeout_sec, pauses_at_timeout, status, why, \
             created_at_ms, started_at_ms, updated_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(sandbox.id.as_str())
        .bind(&sandbox.owner)
        .bind(&sandbox.template)
        .bind(sandbox.vcpus)
        .bind(sandbox.memory_mib)
        .bind(sandbox.timeout_sec)
        .bind(sandbox.pauses_at_timeout)
        .bind(sandbox.status.name())
        .bind(&sandbox.why)
        .bind(sandbox.created_at_ms)
        .bind(sandbox.started_at_ms)
        .bind(sandbox.updated_at_ms)
        .execute(&self.0)
        .await
        .map(drop)
        .map_err(writing)
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM sandboxes WHERE id = ?").bind(id.as_str()).fetch_optional(&self.0).await;
        row.map_err(reading)?.map(|row| sandbox_of(&row)).transpose().map_err(reading)
    }

    async fn sandboxes_of(&self, owner: &str) -> Result<Vec<SandboxRecord>, StoreError> {
        let query = sqlx::query("SELECT * FROM sandboxes WHERE owner = ? ORDER BY created_at_ms DESC, id").bind(owner);
        let rows = query.fetch_all(&self.0).await.map_err(reading)?;
        rows.iter().map(sandbox_of).collect::<Result<_, _>>().map_err(reading)
    }

    async fn sandboxes_with(&self, status: Status) -> Result<Vec<SandboxRecord>, StoreError> {
        let query = sqlx::query("SELECT * FROM sandboxes WHERE status = ? ORDER BY created_at_ms, id");
        let rows = query.bind(status.name()).fetch_all(&self.0).await.map_err(reading)?;
        rows.iter().map(sandbox_of).collect::<Result<_, _>>().map_err(reading)
    }

    async fn set_status(
        &self,
        id: &SandboxId,
        status: Status,
        why: Option<&str>,
        started: bool,
        at_ms: i64,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE sandboxes SET status = ?1, why = ?2, updated_at_ms = ?3, \
             started_at_ms = CASE WHEN ?4 THEN ?3 ELSE started_at_ms END WHERE id = ?5",
        );
        let query = query.bind(status.name()).bind(why).bind(at_ms).bind(started).bind(id.as_str());
        query.execute(&self.0).await.map(drop).map_err(writing)
    }

    async fn add_snapshot(&self, snapshot: &SnapshotRecord) -> Result<bool, StoreError> {
        let insert = "INSERT INTO snapshots (name, owner, created_at_ms) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
        let query = sqlx::query(insert).bind(&snapshot.name).bind(&snapshot.owner).bind(snapshot.created_at_ms);
        query.execute(&self.0).await.map(|done| done.rows_affected() > 0).map_err(writing)
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM snapshots ORDER BY name").fetch_all(&self.0).await.map_err(reading)?;
        rows.iter().map(snapshot_of).collect::<Result<_, _>>().map_err(reading)
    }

    async fn remove_snapshot(&self, name: &str) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM snapshots WHERE name = ?").bind(name);
        query.execute(&self.0).await.map(drop).map_err(writing)
    }
}

fn snapshot_of(row: &SqliteRow) -> Result<SnapshotRecord, sqlx::Error> {
    Ok(SnapshotRecord {
        name: row.try_get("name")?,
        owner: row.try_get("owner")?,
        created_at_ms: row.try_get("created_at_ms")?,
    })
}

fn key_of(row: &SqliteRow) -> Result<KeyRecord, sqlx::Error> {
    Ok(KeyRecord {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        hash: row.try_get("hash")?,
        created_at_ms: row.try_get("created_at_ms")?,
        revoked_at_ms: row.try_get("revoked_at_ms")?,
    })
}

fn sandbox_of(row: &SqliteRow) -> Result<SandboxRecord, sqlx::Error> {
    let unreadable = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
    let id: SandboxId = row.try_get::<&str, _>("id")?.parse().map_err(|error| unreadable(Box::new(error)))?;
    let status = Status::named(row.try_get("status")?).ok_or_else(|| unreadable("an unknown status".into()))?;
    Ok(SandboxRecord {
        id,
        owner: row.try_get("owner")?,
        template: row.try_get("template")?,
        vcpus: row.try_get("vcpus")?,
        memory_mib: row.try_get("memory_mib")?,
        timeout_sec: row.try_get("timeout_sec")?,
        pauses_at_timeout: row.try_get("pauses_at_timeout")?,
        status,
        why: row.try_get("why")?,
        created_at_ms: row.try_get("created_at_ms")?,
        started_at_ms: row.try_get("started_at_ms")?,
        updated_at_ms: row.try_get("updated_at_ms")?,
    })
}

fn opening(source: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
    let remedy =
        "look at `records.sqlite` in the data directory: it has to be writable, and of this version or an older one";
    StoreError { what: "opened", remedy, source }
}

fn reading(error: sqlx::Error) -> StoreError {
    StoreError { what: "read", remedy: "look at the data directory's disk, and try again", source: error.into() }
}

fn writing(error: sqlx::Error) -> StoreError {
    StoreError { what: "written", remedy: "look at the data directory's disk, and try again", source: error.into() }
}

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
/// Readers beside the one writer that there can be.
const CONNECTIONS: u32 = 4;
const BUSY_MAX: Duration = Duration::from_secs(10);
