//! The texts that both databases are asked by. sqlx has a type for the rows and connections of each, so the methods are
//! written once and made for each by a macro.

use sqlx::AssertSqlSafe;

use crate::store::records::{By, Order, Page};

/// Makes a `Store` of a type whose first field is a pool. `$row` is the pool's type of rows. Where this is used there have
/// to be `reading` and `writing`, which make a [`StoreError`](crate::store::contract::StoreError) of sqlx's.
macro_rules! store_by_sql {
    ($store:ty, $row:ty) => {
        #[async_trait::async_trait]
        impl $crate::store::contract::Store for $store {
            async fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
                sqlx::query(
                    "INSERT INTO api_keys (id, name, hash, created_at_ms, revoked_at_ms, terms) \
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(&key.id)
                .bind(&key.name)
                .bind(&key.hash)
                .bind(key.created_at_ms)
                .bind(key.revoked_at_ms)
                .bind(as_json(&key.terms)?)
                .execute(&self.0)
                .await
                .map(drop)
                .map_err(writing)
            }

            async fn key(&self, id: &str) -> Result<Option<KeyRecord>, StoreError> {
                let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1").bind(id).fetch_optional(&self.0).await;
                row.map_err(reading)?.map(|row| key_of(&row)).transpose().map_err(reading)
            }

            async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM api_keys ORDER BY created_at_ms DESC, id");
                let rows = query.fetch_all(&self.0).await.map_err(reading)?;
                rows.iter().map(key_of).collect::<Result<_, _>>().map_err(reading)
            }

            async fn revoke_key(&self, id: &str, at_ms: i64) -> Result<bool, StoreError> {
                sqlx::query("UPDATE api_keys SET revoked_at_ms = $1 WHERE id = $2 AND revoked_at_ms IS NULL")
                    .bind(at_ms)
                    .bind(id)
                    .execute(&self.0)
                    .await
                    .map(|done| done.rows_affected() > 0)
                    .map_err(writing)
            }

            async fn add_sandbox(&self, sandbox: &SandboxRecord) -> Result<(), StoreError> {
                sqlx::query(
                    "INSERT INTO sandboxes (id, owner, template, vcpus, memory_mib, timeout_sec, pauses_at_timeout, \
                     status, why, created_at_ms, started_at_ms, updated_at_ms, asked) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
                )
                .bind(sandbox.id.as_str())
                .bind(&sandbox.owner)
                .bind(&sandbox.template)
                .bind(i64::from(sandbox.vcpus))
                .bind(i64::from(sandbox.memory_mib))
                .bind(i64::from(sandbox.timeout_sec))
                .bind(sandbox.pauses_at_timeout)
                .bind(sandbox.status.name())
                .bind(&sandbox.why)
                .bind(sandbox.created_at_ms)
                .bind(sandbox.started_at_ms)
                .bind(sandbox.updated_at_ms)
                .bind(as_json(&sandbox.asked)?)
                .execute(&self.0)
                .await
                .map(drop)
                .map_err(writing)
            }

            async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM sandboxes WHERE id = $1").bind(id.as_str());
                let row = query.fetch_optional(&self.0).await.map_err(reading)?;
                row.map(|row| sandbox_of(&row)).transpose().map_err(reading)
            }

            async fn page(&self, page: &Page<'_>) -> Result<Vec<SandboxRecord>, StoreError> {
                let (at_ms, id) = sql::bound(page);
                let query = sqlx::query(sql::page(page)).bind(page.owner).bind(at_ms).bind(id);
                let rows = query.bind(i64::from(page.len_max)).fetch_all(&self.0).await.map_err(reading)?;
                rows.iter().map(sandbox_of).collect::<Result<_, _>>().map_err(reading)
            }

            async fn sandboxes_with(&self, status: Status) -> Result<Vec<SandboxRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM sandboxes WHERE status = $1 ORDER BY created_at_ms, id");
                let rows = query.bind(status.name()).fetch_all(&self.0).await.map_err(reading)?;
                rows.iter().map(sandbox_of).collect::<Result<_, _>>().map_err(reading)
            }

            async fn usage(&self, owner: &str) -> Result<Usage, StoreError> {
                let query = sqlx::query(
                    "SELECT COUNT(*) AS sandboxes, CAST(COALESCE(SUM(vcpus), 0) AS BIGINT) AS vcpus, \
                     CAST(COALESCE(SUM(memory_mib), 0) AS BIGINT) AS memory_mib \
                     FROM sandboxes WHERE owner = $1 AND status = 'running'",
                );
                let row = query.bind(owner).fetch_one(&self.0).await.map_err(reading)?;
                let number = |name: &str| {
                    let number: i64 = row.try_get(name)?;
                    Ok::<_, sqlx::Error>(number.unsigned_abs())
                };
                let usage = || {
                    let (vcpus, memory_mib) = (number("vcpus")?, number("memory_mib")?);
                    Ok(Usage { sandboxes: number("sandboxes")?, vcpus, memory_mib })
                };
                usage().map_err(reading)
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
                    "UPDATE sandboxes SET status = $1, why = $2, updated_at_ms = $3, \
                     started_at_ms = CASE WHEN $4 THEN $3 ELSE started_at_ms END WHERE id = $5",
                );
                let query = query.bind(status.name()).bind(why).bind(at_ms).bind(started).bind(id.as_str());
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn set_timeout(&self, id: &SandboxId, timeout_sec: u32, at_ms: i64) -> Result<(), StoreError> {
                let query = sqlx::query("UPDATE sandboxes SET timeout_sec = $1, updated_at_ms = $2 WHERE id = $3");
                let query = query.bind(i64::from(timeout_sec)).bind(at_ms).bind(id.as_str());
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn set_asked(&self, id: &SandboxId, asked: &Asked, at_ms: i64) -> Result<(), StoreError> {
                let query = sqlx::query("UPDATE sandboxes SET asked = $1, updated_at_ms = $2 WHERE id = $3");
                let query = query.bind(as_json(asked)?).bind(at_ms).bind(id.as_str());
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn add_snapshot(&self, snapshot: &SnapshotRecord) -> Result<bool, StoreError> {
                let text =
                    "INSERT INTO snapshots (name, owner, vcpus, memory_mib, disk_mib, sandbox_id, created_at_ms) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7) \
                     ON CONFLICT DO NOTHING";
                self.write_snapshot(text, snapshot).await
            }

            async fn set_snapshot(&self, snapshot: &SnapshotRecord) -> Result<bool, StoreError> {
                let text =
                    "UPDATE snapshots SET vcpus = $3, memory_mib = $4, disk_mib = $5, sandbox_id = $6, created_at_ms = $7 \
                     WHERE name = $1 AND owner = $2";
                self.write_snapshot(text, snapshot).await
            }

            async fn snapshot(&self, name: &str) -> Result<Option<SnapshotRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM snapshots WHERE name = $1").bind(name);
                let row = query.fetch_optional(&self.0).await.map_err(reading)?;
                row.map(|row| snapshot_of(&row)).transpose().map_err(reading)
            }

            async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM snapshots");
                let rows = query.fetch_all(&self.0).await.map_err(reading)?;
                let snapshots: Result<Vec<_>, _> = rows.iter().map(snapshot_of).collect();
                let mut snapshots = snapshots.map_err(reading)?;
                // Each database sorts texts by rules of its own.
                snapshots.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(snapshots)
            }

            async fn remove_snapshot(&self, name: &str) -> Result<(), StoreError> {
                let mut transaction = self.0.begin().await.map_err(writing)?;
                for delete in ["DELETE FROM snapshots WHERE name = $1", "DELETE FROM tags WHERE template = $1"] {
                    sqlx::query(delete).bind(name).execute(&mut *transaction).await.map_err(writing)?;
                }
                transaction.commit().await.map_err(writing)
            }

            async fn set_tags(&self, tags: &[TagRecord]) -> Result<(), StoreError> {
                let mut transaction = self.0.begin().await.map_err(writing)?;
                for tag in tags {
                    let query = sqlx::query(
                        "INSERT INTO tags (owner, name, tag, template, created_at_ms) VALUES ($1, $2, $3, $4, $5) \
                         ON CONFLICT (owner, name, tag) DO UPDATE \
                         SET template = excluded.template, created_at_ms = excluded.created_at_ms",
                    );
                    let query = query.bind(&tag.owner).bind(&tag.name).bind(&tag.tag);
                    let query = query.bind(&tag.template).bind(tag.created_at_ms);
                    query.execute(&mut *transaction).await.map_err(writing)?;
                }
                transaction.commit().await.map_err(writing)
            }

            async fn tag(&self, owner: &str, name: &str, tag: &str) -> Result<Option<TagRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM tags WHERE owner = $1 AND name = $2 AND tag = $3");
                let row = query.bind(owner).bind(name).bind(tag).fetch_optional(&self.0).await.map_err(reading)?;
                row.map(|row| tag_of(&row)).transpose().map_err(reading)
            }

            async fn tags(&self, owner: &str, name: &str) -> Result<Vec<TagRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM tags WHERE owner = $1 AND name = $2").bind(owner).bind(name);
                let rows = query.fetch_all(&self.0).await.map_err(reading)?;
                let mut tags = rows.iter().map(tag_of).collect::<Result<Vec<_>, _>>().map_err(reading)?;
                tags.sort_by(|a, b| a.tag.cmp(&b.tag));
                Ok(tags)
            }

            async fn tags_of(&self, template: &str) -> Result<Vec<TagRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM tags WHERE template = $1").bind(template);
                let rows = query.fetch_all(&self.0).await.map_err(reading)?;
                let mut tags = rows.iter().map(tag_of).collect::<Result<Vec<_>, _>>().map_err(reading)?;
                tags.sort_by(|a, b| (&a.name, &a.tag, &a.owner).cmp(&(&b.name, &b.tag, &b.owner)));
                Ok(tags)
            }

            async fn remove_tag(&self, owner: &str, name: &str, tag: &str) -> Result<(), StoreError> {
                let query = sqlx::query("DELETE FROM tags WHERE owner = $1 AND name = $2 AND tag = $3");
                query.bind(owner).bind(name).bind(tag).execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn set_build(&self, build: &BuildRecord) -> Result<(), StoreError> {
                let query = sqlx::query(
                    "INSERT INTO builds (id, owner, created_at_ms, changed_at_ms, told) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (id) DO UPDATE SET changed_at_ms = excluded.changed_at_ms, told = excluded.told",
                );
                let query = query.bind(&build.id).bind(&build.owner).bind(build.created_at_ms);
                let query = query.bind(build.changed_at_ms).bind(as_json(&build.told)?);
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn builds(&self) -> Result<Vec<BuildRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM builds ORDER BY created_at_ms, id");
                let rows = query.fetch_all(&self.0).await.map_err(reading)?;
                rows.iter().map(build_of).collect::<Result<_, _>>().map_err(reading)
            }

            async fn remove_build(&self, id: &str) -> Result<(), StoreError> {
                let query = sqlx::query("DELETE FROM builds WHERE id = $1").bind(id);
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn begin_request(
                &self,
                owner: &str,
                key: &str,
                digest: &[u8],
                at_ms: i64,
            ) -> Result<Option<RequestRecord>, StoreError> {
                let insert = sqlx::query(
                    "INSERT INTO requests (owner, key, digest, created_at_ms) VALUES ($1, $2, $3, $4) \
                     ON CONFLICT DO NOTHING",
                );
                let done = insert.bind(owner).bind(key).bind(digest).bind(at_ms).execute(&self.0).await;
                if done.map_err(writing)?.rows_affected() > 0 {
                    return Ok(None);
                }
                let query = sqlx::query("SELECT * FROM requests WHERE owner = $1 AND key = $2").bind(owner).bind(key);
                let row = query.fetch_optional(&self.0).await.map_err(reading)?;
                row.map(|row| request_of(&row)).transpose().map_err(reading)
            }

            async fn end_request(&self, owner: &str, key: &str, sandbox: Option<&SandboxId>) -> Result<(), StoreError> {
                let query = match sandbox {
                    Some(sandbox) => sqlx::query("UPDATE requests SET sandbox_id = $3 WHERE owner = $1 AND key = $2")
                        .bind(owner)
                        .bind(key)
                        .bind(sandbox.as_str()),
                    None => sqlx::query("DELETE FROM requests WHERE owner = $1 AND key = $2").bind(owner).bind(key),
                };
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn add_event(&self, event: &EventRecord, waiting_max: u32) -> Result<Vec<String>, StoreError> {
                let mut transaction = self.0.begin().await.map_err(writing)?;
                let query = sqlx::query(
                    "INSERT INTO events (id, owner, sandbox_id, build_id, template, kind, why, at_ms) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                );
                let query = query.bind(&event.id).bind(&event.owner);
                let query = query.bind(event.subject.sandbox().map(SandboxId::as_str).unwrap_or_default());
                let query = query.bind(event.subject.build()).bind(&event.template).bind(&event.kind);
                let query = query.bind(&event.why).bind(event.at_ms);
                query.execute(&mut *transaction).await.map_err(writing)?;
                let full = Self::add_deliveries(&mut transaction, event, waiting_max).await?;
                transaction.commit().await.map_err(writing)?;
                Ok(full)
            }

            async fn events(
                &self,
                owner: &str,
                of: EventsOf<'_>,
                order: Order,
                skipped: u32,
                len_max: u32,
            ) -> Result<Vec<EventRecord>, StoreError> {
                let (sandbox, builds_too) = match of {
                    EventsOf::Everything => (None, true),
                    EventsOf::Sandboxes => (None, false),
                    EventsOf::Sandbox(id) => (Some(id.as_str()), false),
                };
                let query = sqlx::query(sql::events(order, builds_too)).bind(owner).bind(sandbox);
                let query = query.bind(i64::from(len_max)).bind(i64::from(skipped));
                let rows = query.fetch_all(&self.0).await.map_err(reading)?;
                rows.iter().map(event_of).collect::<Result<_, _>>().map_err(reading)
            }

            async fn events_after(
                &self,
                owner: &str,
                id: &str,
                len_max: u32,
            ) -> Result<Option<Vec<EventRecord>>, StoreError> {
                let seq = sqlx::query("SELECT seq FROM events WHERE owner = $1 AND id = $2").bind(owner).bind(id);
                let Some(row) = seq.fetch_optional(&self.0).await.map_err(reading)? else { return Ok(None) };
                let seq: i64 = row.try_get("seq").map_err(reading)?;
                let query = sqlx::query("SELECT * FROM events WHERE owner = $1 AND seq > $2 ORDER BY seq LIMIT $3");
                let rows = query.bind(owner).bind(seq).bind(i64::from(len_max)).fetch_all(&self.0).await;
                let rows = rows.map_err(reading)?;
                rows.iter().map(event_of).collect::<Result<_, _>>().map(Some).map_err(reading)
            }

            async fn add_webhook(&self, webhook: &WebhookRecord) -> Result<(), StoreError> {
                let query = sqlx::query(
                    "INSERT INTO webhooks (id, name, url, is_enabled, kinds, secret, failing_since_ms, why, owner, \
                     created_at_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                );
                let query = query.bind(&webhook.id).bind(&webhook.name).bind(&webhook.url).bind(webhook.is_enabled);
                let query = query.bind(as_json(&webhook.kinds)?).bind(&webhook.secret.0);
                let query = query.bind(webhook.failing_since_ms).bind(&webhook.why);
                let query = query.bind(&webhook.owner).bind(webhook.created_at_ms);
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn webhook(&self, id: &str) -> Result<Option<WebhookRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM webhooks WHERE id = $1").bind(id);
                let row = query.fetch_optional(&self.0).await.map_err(reading)?;
                row.map(|row| webhook_of(&row)).transpose().map_err(reading)
            }

            async fn webhooks(&self, owner: &str) -> Result<Vec<WebhookRecord>, StoreError> {
                let query = sqlx::query("SELECT * FROM webhooks WHERE owner = $1 ORDER BY created_at_ms").bind(owner);
                let rows = query.fetch_all(&self.0).await.map_err(reading)?;
                rows.iter().map(webhook_of).collect::<Result<_, _>>().map_err(reading)
            }

            async fn set_webhook(&self, webhook: &WebhookRecord) -> Result<(), StoreError> {
                let query = sqlx::query(
                    "UPDATE webhooks SET name = $2, url = $3, is_enabled = $4, kinds = $5, secret = $6, \
                     failing_since_ms = $7, why = $8 WHERE id = $1",
                );
                let query = query.bind(&webhook.id).bind(&webhook.name).bind(&webhook.url).bind(webhook.is_enabled);
                let query = query.bind(as_json(&webhook.kinds)?).bind(&webhook.secret.0);
                let query = query.bind(webhook.failing_since_ms).bind(&webhook.why);
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn note_webhook(
                &self,
                id: &str,
                is_enabled: bool,
                failing_since_ms: Option<i64>,
                why: Option<&str>,
            ) -> Result<(), StoreError> {
                let query = sqlx::query(
                    "UPDATE webhooks SET is_enabled = is_enabled AND $2, failing_since_ms = $3, why = $4 WHERE id = $1",
                );
                let query = query.bind(id).bind(is_enabled).bind(failing_since_ms).bind(why);
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn remove_webhook(&self, id: &str) -> Result<(), StoreError> {
                let mut transaction = self.0.begin().await.map_err(writing)?;
                for delete in ["DELETE FROM webhooks WHERE id = $1", "DELETE FROM deliveries WHERE webhook_id = $1"] {
                    sqlx::query(delete).bind(id).execute(&mut *transaction).await.map_err(writing)?;
                }
                transaction.commit().await.map_err(writing)
            }

            async fn forget_before(&self, at_ms: i64) -> Result<(), StoreError> {
                for delete in [
                    "DELETE FROM requests WHERE created_at_ms < $1",
                    "DELETE FROM deliveries WHERE created_at_ms < $1",
                    "DELETE FROM events WHERE at_ms < $1",
                ] {
                    sqlx::query(delete).bind(at_ms).execute(&self.0).await.map_err(writing)?;
                }
                Ok(())
            }

            async fn check(&self) -> Result<(), StoreError> {
                sqlx::query("SELECT 1").execute(&self.0).await.map(drop).map_err(reading)
            }
        }

        impl $store {
            /// Has a text write the seven values of a snapshot's record; `false` if that changes nothing.
            async fn write_snapshot(&self, text: &'static str, snapshot: &SnapshotRecord) -> Result<bool, StoreError> {
                let query = sqlx::query(text).bind(&snapshot.name).bind(&snapshot.owner);
                let query = query.bind(i64::from(snapshot.vcpus)).bind(i64::from(snapshot.memory_mib));
                let query = query.bind(i64::from(snapshot.disk_mib)).bind(&snapshot.source);
                let done = query.bind(snapshot.created_at_ms).execute(&self.0).await.map_err(writing)?;
                Ok(done.rows_affected() > 0)
            }
        }

        $crate::store::rows::records_of_rows!($row);

        fn as_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
            serde_json::to_string(value).map_err(|error| writing(sqlx::Error::Encode(error.into())))
        }
    };
}

pub(super) use store_by_sql;

/// The text for a page of sandboxes: its owner, where it begins, and how long it is, are bound.
pub(super) fn page(page: &Page<'_>) -> AssertSqlSafe<String> {
    let statuses: Vec<_> = page.statuses.iter().map(|status| format!("'{}'", status.name())).collect();
    let column = match page.by {
        By::Created => "created_at_ms",
        By::Started => "started_at_ms",
    };
    let (sorted, beyond) = match page.order {
        Order::NewestFirst => ("DESC", '<'),
        Order::OldestFirst => ("ASC", '>'),
    };
    // Ids have digits and small letters alone, which every rule sorts alike.
    AssertSqlSafe(format!(
        "SELECT * FROM sandboxes WHERE owner = $1 AND status IN ({}) AND ({column} {beyond} $2 OR {column} = $2 AND id > $3) \
         ORDER BY {column} {sorted}, id LIMIT $4",
        if statuses.is_empty() { "''".to_owned() } else { statuses.join(", ") },
    ))
}

/// The last one before the page.
pub(super) fn bound<'a>(page: &'a Page<'_>) -> (i64, &'a str) {
    match (&page.after, page.order) {
        (Some((at_ms, id)), _) => (*at_ms, id),
        (None, Order::NewestFirst) => (i64::MAX, ""),
        (None, Order::OldestFirst) => (i64::MIN, ""),
    }
}

/// The text for a page of events: their owner, their sandbox or NULL, and where the page is, are bound.
pub(super) fn events(order: Order, builds_too: bool) -> AssertSqlSafe<String> {
    let of_sandboxes = if builds_too { "" } else { "AND build_id IS NULL " };
    let sorted = match order {
        Order::NewestFirst => "DESC",
        Order::OldestFirst => "ASC",
    };
    AssertSqlSafe(format!(
        "SELECT * FROM events WHERE owner = $1 AND (CAST($2 AS TEXT) IS NULL OR sandbox_id = $2) {of_sandboxes}\
         ORDER BY seq {sorted} LIMIT $3 OFFSET $4"
    ))
}
