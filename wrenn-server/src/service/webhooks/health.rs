//! How a webhook fares: since when it fails, and when that is enough.

use crate::store::records::WebhookRecord;

/// What a webhook's record says from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) is_enabled: bool,
    pub(super) failing_since_ms: Option<i64>,
    pub(super) why: Option<String>,
}

/// How one fares after an attempt; `None` where nothing is to be noted.
pub(super) fn after(webhook: &WebhookRecord, failed: Option<&str>, now_ms: i64) -> Option<Health> {
    let Some(why) = failed else {
        let is_noted = webhook.failing_since_ms.is_some() || webhook.why.is_some();
        return is_noted.then_some(Health { is_enabled: true, failing_since_ms: None, why: None });
    };
    let since_ms = webhook.failing_since_ms.unwrap_or(now_ms);
    let is_over = now_ms.saturating_sub(since_ms) >= FAILING_MAX_MS;
    let why = if is_over { format!("it was disabled, since it failed for a day: {why}") } else { why.to_owned() };
    let health = Health { is_enabled: !is_over, failing_since_ms: Some(since_ms), why: Some(why) };
    let is_new = webhook.failing_since_ms.is_none() || webhook.why != health.why || is_over;
    is_new.then_some(health)
}

const FAILING_MAX_MS: i64 = 24 * 3600 * 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::Hidden;

    #[test]
    fn a_day_of_failures_disables_and_one_success_forgets_them() {
        let mut webhook = WebhookRecord {
            id: "wh1".to_owned(),
            owner: "ada".to_owned(),
            name: String::new(),
            url: String::new(),
            is_enabled: true,
            kinds: Vec::new(),
            secret: Hidden("hush".to_owned()),
            failing_since_ms: None,
            why: None,
            created_at_ms: 0,
        };
        assert!(!format!("{webhook:?}").contains("hush"));
        assert_eq!(after(&webhook, None, 5), None);
        let first = Health { is_enabled: true, failing_since_ms: Some(5), why: Some("refused".to_owned()) };
        assert_eq!(after(&webhook, Some("refused"), 5), Some(first));
        (webhook.failing_since_ms, webhook.why) = (Some(5), Some("refused".to_owned()));
        assert_eq!(after(&webhook, Some("refused"), 6), None, "it is noted");
        assert_eq!(after(&webhook, Some("500"), 6).and_then(|health| health.failing_since_ms), Some(5));
        let last = after(&webhook, Some("500"), 5 + FAILING_MAX_MS).expect("it is over");
        assert!(!last.is_enabled && last.why.is_some_and(|why| why.ends_with("failed for a day: 500")));
        let well = Health { is_enabled: true, failing_since_ms: None, why: None };
        assert_eq!(after(&webhook, None, 7), Some(well));
    }
}
