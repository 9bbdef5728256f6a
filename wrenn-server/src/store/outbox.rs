//! The events that are still to be brought to webhooks, in both databases.

/// Makes an `Outbox` of a type whose first field is a pool, as `store_by_sql` makes a `Store` of it.
macro_rules! outbox_by_sql {
    ($store:ty, $row:ty) => {
        impl $store {
            /// Adds a delivery of an event to each webhook that wants it. Returns those that so many wait for already.
            async fn add_deliveries(
                transaction: &mut sqlx::Transaction<'_, <$row as sqlx::Row>::Database>,
                event: &EventRecord,
                waiting_max: u32,
            ) -> Result<Vec<String>, StoreError> {
                let query = sqlx::query(
                    "SELECT webhooks.*, (SELECT COUNT(*) FROM deliveries WHERE webhook_id = webhooks.id) AS waiting \
                     FROM webhooks WHERE owner = $1 AND is_enabled",
                );
                let rows = query.bind(&event.owner).fetch_all(&mut **transaction).await.map_err(reading)?;
                let mut full = Vec::new();
                for row in &rows {
                    let webhook = webhook_of(row).map_err(reading)?;
                    let waiting: i64 = row.try_get("waiting").map_err(reading)?;
                    if !webhook.wants(&event.kind) {
                        continue;
                    }
                    if waiting >= i64::from(waiting_max) {
                        full.push(webhook.id);
                        continue;
                    }
                    let query = sqlx::query(
                        "INSERT INTO deliveries (id, webhook_id, event_id, attempts, due_at_ms, created_at_ms) \
                         VALUES ($1, $2, $3, 0, $4, $4)",
                    );
                    let query = query.bind(format!("dl{:032x}", rand::random::<u128>())).bind(webhook.id);
                    let query = query.bind(&event.id).bind(event.at_ms);
                    query.execute(&mut **transaction).await.map_err(writing)?;
                }
                Ok(full)
            }
        }

        #[async_trait::async_trait]
        impl $crate::store::contract::Outbox for $store {
            async fn deliveries(&self, event: Option<&str>) -> Result<Vec<DeliveryRecord>, StoreError> {
                let query = sqlx::query(
                    "SELECT events.*, deliveries.id AS delivery_id, webhook_id, attempts, due_at_ms \
                     FROM deliveries JOIN events ON events.id = deliveries.event_id \
                     WHERE CAST($1 AS TEXT) IS NULL OR event_id = $1 ORDER BY events.seq, deliveries.id",
                );
                let rows = query.bind(event).fetch_all(&self.0).await.map_err(reading)?;
                rows.iter().map(delivery_of).collect::<Result<_, _>>().map_err(reading)
            }

            async fn note_delivery(&self, id: &str, attempts: u32, due_at_ms: i64) -> Result<(), StoreError> {
                let query = sqlx::query("UPDATE deliveries SET attempts = $2, due_at_ms = $3 WHERE id = $1");
                let query = query.bind(id).bind(i64::from(attempts)).bind(due_at_ms);
                query.execute(&self.0).await.map(drop).map_err(writing)
            }

            async fn remove_delivery(&self, id: &str) -> Result<(), StoreError> {
                let query = sqlx::query("DELETE FROM deliveries WHERE id = $1").bind(id);
                query.execute(&self.0).await.map(drop).map_err(writing)
            }
        }
    };
}

pub(super) use outbox_by_sql;
