//! Records in a PostgreSQL database.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use wrenn_core::SandboxId;

use crate::store::contract::StoreError;
use crate::store::outbox::outbox_by_sql;
use crate::store::records::{
    Asked, BuildRecord, DeliveryRecord, EventRecord, EventsOf, Hidden, KeyRecord, Order, Page, RequestRecord,
    SandboxRecord, SnapshotRecord, Status, Subject, TagRecord, Usage, WebhookRecord,
};
use crate::store::rows;
use crate::store::sql::{self, store_by_sql};

/// A store that is a database of a PostgreSQL server. It has one `wrenn-server`: the sandboxes are of one host.
#[derive(Debug)]
pub struct Postgres(PgPool);

impl Postgres {
    /// Connects to the database that a URL names, such as `postgres://wrenn:PASSWORD@db.example/wrenn`, and brings it to this
    /// version's tables.
    ///
    /// # Errors
    /// [`StoreError`] where the URL is none, the server does not answer or refuses, or the tables are of a later version.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| opening(error.into()))?;
        let options = options.application_name("wrenn-server").options([("statement_timeout", STATEMENT_MAX_MS)]);
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_MAX);
        let pool = pool.connect_with(options).await.map_err(|error| opening(error.into()))?;
        MIGRATIONS.run(&pool).await.map_err(|error| opening(error.into()))?;
        Ok(Self(pool))
    }
}

store_by_sql!(Postgres, PgRow);
outbox_by_sql!(Postgres, PgRow);

fn opening(source: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
    let remedy = "look at DATABASE_URL, and whether that server runs, lets this user in, and has the database";
    StoreError { what: "opened", remedy, source }
}

fn reading(error: sqlx::Error) -> StoreError {
    StoreError { what: "read", remedy: REMEDY, source: error.into() }
}

fn writing(error: sqlx::Error) -> StoreError {
    StoreError { what: "written", remedy: REMEDY, source: error.into() }
}

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");
const REMEDY: &str = "look at the database of DATABASE_URL, and try again";
const CONNECTIONS: u32 = 16;
/// A request whose records do not come within that is answered without them.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const STATEMENT_MAX_MS: &str = "10000";
