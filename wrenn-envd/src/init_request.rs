use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{guest_event::GuestEventKind, timestamp::Timestamp};

/// The body of `POST /init`: what a guest must be told after it was booted or restored, before user code runs.
///
/// A field that is absent leaves what the agent has. The fields after `volume_mounts` are wrenn's own.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitRequest {
    /// Environment of every process that is started from now on; replaces the former one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// The token that later calls must carry. Empty: none is needed any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// The host's time. One that is older than the last one accepted is ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// The user of calls that name none; `root` until it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// The working directory of processes that name none; the user's home until it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// Certificates in PEM that the guest's TLS clients trust from now on, besides those of its image, and in place of those
    /// of an earlier request. Empty: those of the earlier request stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// Volumes to mount. A request that names any is refused: the guest's kernel has no NFS client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// The sandbox's id, for its processes' `E2B_SANDBOX_ID`. A metadata service's word comes first.
    #[serde(rename = "instanceID", skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The template's id, for `E2B_TEMPLATE_ID`.
    #[serde(rename = "envID", skip_serializing_if = "Option::is_none")]
    pub env_id: Option<String>,
    /// Random bytes from the host, 32 to 64 of them, that the guest's kernel reseeds its generator from. Also says that
    /// the guest was restored: connections older than this request are closed.
    #[serde(skip_serializing_if = "Option::is_none", with = "base64_bytes")]
    pub entropy: Option<Vec<u8>>,
    /// How the guest came to be where it is; together with `entropy`. Clients and hooks are told. Absent:
    /// [`GuestEventKind::Resumed`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<GuestEventKind>,
    /// The guest's host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Whom the guest asks for names, for its `/etc/resolv.conf`. Empty: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nameservers: Option<Vec<IpAddr>>,
    /// 32 lower-case hexadecimal digits for `/etc/machine-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
}

/// A network file system, as E2B's orchestrator names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The NFS server and its directory: `10.0.0.1:/volume`.
    pub nfs_target: String,
    /// Where the guest would see it.
    pub path: String,
}

impl fmt::Debug for InitRequest {
    /// Leaves out the token, the entropy and the environment's values, which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InitRequest")
            .field("env_vars", &self.env_vars.as_ref().map(|vars| vars.keys().collect::<Vec<_>>()))
            .field("access_token", &self.access_token.as_ref().map(|_| ".."))
            .field("timestamp", &self.timestamp)
            .field("default_user", &self.default_user)
            .field("default_workdir", &self.default_workdir)
            .field("ca_bundle", &self.ca_bundle.as_ref().map(String::len))
            .field("volume_mounts", &self.volume_mounts)
            .field("instance_id", &self.instance_id)
            .field("env_id", &self.env_id)
            .field("entropy", &self.entropy.as_ref().map(Vec::len))
            .field("event", &self.event)
            .field("hostname", &self.hostname)
            .field("nameservers", &self.nameservers)
            .field("machine_id", &self.machine_id)
            .finish()
    }
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| STANDARD.decode(text).map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e2b_fields_and_wrenns_own_round_trip() {
        let text = r#"{"envVars":{"A":"1"},"accessToken":"t","timestamp":"2024-05-06T07:08:09.5Z","defaultUser":"user",
            "volumeMounts":[],"entropy":"AAEC","machineId":"00112233445566778899aabbccddeeff"}"#;
        let request: InitRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.entropy.as_deref(), Some(&[0, 1, 2][..]));
        assert_eq!(request.timestamp.unwrap().unix_nanos(), 1_714_979_289_500_000_000);
        let again: InitRequest = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        assert_eq!(again, request);
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut request = InitRequest { access_token: Some("hush".into()), ..Default::default() };
        request.env_vars = Some([("KEY".to_owned(), "secret".to_owned())].into());
        let shown = format!("{request:?}");
        assert!(!shown.contains("hush") && !shown.contains("secret") && shown.contains("KEY"));
    }
}
