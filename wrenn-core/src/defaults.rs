//! What a template says of the processes of its sandboxes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a template says of the processes of its sandboxes. Each call may name something else.
///
/// An OCI image says the same of its containers: see the [image specification], "Image Configuration". An empty user or
/// working directory, in the specification, is no user or working directory here.
///
/// [image specification]: https://github.com/opencontainers/image-spec/blob/main/config.md
///
/// ```
/// let none = wrenn_core::Defaults::default();
/// assert!(none.env.is_empty() && none.user.is_none() && none.entrypoint.is_empty());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Defaults {
    /// The environment of every process. A variable that a create or a command names has its value from there.
    pub env: BTreeMap<String, String>,
    /// The user that processes run as, by name or number, perhaps with a group (`user:group`). `None`: `root`.
    pub user: Option<String>,
    /// The directory that processes start in, an absolute path. `None`: the user's home.
    pub workdir: Option<String>,
    /// The words that a container of the image begins its command with. No sandbox runs them by itself.
    pub entrypoint: Vec<String>,
    /// The words that a container of the image ends its command with. No sandbox runs them by itself.
    pub cmd: Vec<String>,
    /// The ports that a container of the image serves, as `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// The signal that asks a container of the image to end, by name or number.
    pub stop_signal: Option<String>,
}

impl Defaults {
    /// The environment, with `envs` in place of what they name too.
    pub(crate) fn env_with(&self, envs: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut all = self.env.clone();
        all.extend(envs);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_create_names_comes_first() {
        let variables = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
        };
        let defaults = Defaults { env: variables(&[("PATH", "/opt"), ("LANG", "C")]), ..Defaults::default() };
        let all = defaults.env_with(variables(&[("LANG", "de"), ("A", "1")]));
        assert_eq!(all, variables(&[("A", "1"), ("LANG", "de"), ("PATH", "/opt")]));
    }
}
