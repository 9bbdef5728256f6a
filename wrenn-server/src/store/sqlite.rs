//! Records in a file of the data directory.

use std::path::Path;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use wrenn_core::SandboxId;

use crate::store::contract::StoreError;
use crate::store::outbox::outbox_by_sql;
use crate::store::records::{
    Asked, BuildRecord, DeliveryRecord, EventRecord, EventsOf, Hidden, KeyRecord, Order, Page, RequestRecord,
    SandboxRecord, SnapshotRecord, Status, Subject, TagRecord, Usage, WebhookRecord,
};
use crate::store::rows;
use crate::store::sql::{self, store_by_sql};

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

store_by_sql!(Sqlite, SqliteRow);
outbox_by_sql!(Sqlite, SqliteRow);

/// SQLite gives the files beside it the same mode.
fn make_for_owner_alone(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
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
