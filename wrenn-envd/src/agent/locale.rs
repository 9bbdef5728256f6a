//! The language of programs that are told none: UTF-8, or what the guest's `/etc/default/locale` says.

use std::path::Path;

use crate::agent::disk::opened::short_text;

/// `LANG`, and the other variables of the kind that the guest has settled on.
pub(super) fn variables() -> Vec<(String, String)> {
    variables_in(Path::new("/etc/default/locale"))
}

fn variables_in(file: &Path) -> Vec<(String, String)> {
    let variables = parse(&short_text(file, BYTES_MAX).unwrap_or_default());
    if variables.is_empty() { vec![("LANG".to_owned(), FALLBACK.to_owned())] } else { variables }
}

/// `NAME=value` or `NAME="value"`, one a line, of what belongs to a locale.
fn parse(text: &str) -> Vec<(String, String)> {
    let variable = |line: &str| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        let is_meant = matches!(name, "LANG" | "LANGUAGE") || name.starts_with("LC_");
        (is_meant && !value.is_empty() && !value.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(variable).collect()
}

/// What every C library of today has built in.
const FALLBACK: &str = "C.UTF-8";

const BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(variables: &[(String, String)]) -> Vec<String> {
        variables.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_guest_without_a_word_of_its_own_gets_utf8() {
        let etc = tempfile::tempdir().unwrap();
        let file = etc.path().join("locale");
        assert_eq!(texts(&variables_in(&file)), ["LANG=C.UTF-8"]);
        std::fs::write(&file, "# nothing\nPATH=/x\nLC_ALL=\n").unwrap();
        assert_eq!(texts(&variables_in(&file)), ["LANG=C.UTF-8"]);
        std::fs::write(&file, "LANG=\"de_DE.UTF-8\"\nLANGUAGE=de:en\nexport LC_TIME='C'\n").unwrap();
        assert_eq!(texts(&variables_in(&file)), ["LANG=de_DE.UTF-8", "LANGUAGE=de:en", "LC_TIME=C"]);
    }

    #[test]
    fn what_never_ends_is_not_read() {
        let etc = tempfile::tempdir().unwrap();
        let pipe = etc.path().join("locale");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(texts(&variables_in(&pipe)), ["LANG=C.UTF-8"]);
        assert_eq!(texts(&variables_in(Path::new("/dev/zero"))), ["LANG=C.UTF-8"]);
    }
}
