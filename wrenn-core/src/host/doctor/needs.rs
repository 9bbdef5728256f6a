//! What no sandbox can run without. The doctor tells of each, and the opening of a host is refused with all that fail.

use std::path::Path;

use crate::error::{Error, Result, chain};
use crate::host::doctor::finding::Finding;
use crate::host::doctor::memory;
use crate::vmm::rehearsal::{Network, Rehearsal};

/// One thing that no sandbox can run without, as it was found on this machine.
#[derive(Debug)]
pub(crate) struct Need {
    pub(crate) subject: &'static str,
    /// What is good about it; else what is wrong, with its remedy.
    pub(crate) found: Result<String>,
}

/// The rights and the memory that the start of a VMM takes.
pub(crate) fn of_a_start(rehearsal: Rehearsal) -> Vec<Need> {
    let Rehearsal { network, start, .. } = rehearsal;
    let good_start = if nix::unistd::geteuid().is_root() {
        "a VMM can be started as a user of its own, and killed"
    } else {
        "a VMM can be started as this user, and killed"
    };
    let is = |subject, found: Result<()>, good: &str| Need { subject, found: found.map(|()| good.to_owned()) };
    vec![
        Need { subject: "network", found: network.map(|Network { ipv6 }| of_network(ipv6).to_owned()) },
        is("rights", start, good_start),
        Need { subject: "memory", found: memory::suffices(Path::new("/")) },
    ]
}

fn of_network(ipv6: bool) -> &'static str {
    if ipv6 {
        "a namespace with a tap can be made, and guests have IPv4 and IPv6"
    } else {
        "a namespace with a tap can be made, and guests have IPv4 alone: for IPv6 the kernel needs NF_TPROXY_IPV6 and \
         IPV6_MULTIPLE_TABLES, and no `ipv6.disable=1`"
    }
}

impl From<Need> for Finding {
    fn from(Need { subject, found }: Need) -> Self {
        match found {
            Ok(found) => Self::good(subject, found),
            Err(Error::Host { problem, remedy, source }) => {
                let cause = source.map(|source| format!(" ({})", chain(&*source))).unwrap_or_default();
                Self::missing(subject, format!("{problem}{cause}"), remedy)
            }
            Err(error) => Self::missing(subject, chain(&error), "the text above has the cause"),
        }
    }
}

/// Both results, where nothing is missing; else one error for everything that is.
///
/// # Errors
/// The error itself where there is only one, else [`Error::Host`], whose remedy lists them.
pub(crate) fn all<A, B>(a: Result<A>, b: Result<B>, needs: Vec<Need>) -> Result<(A, B)> {
    let lacks: Vec<Error> = needs.into_iter().filter_map(|need| need.found.err()).collect();
    match (a, b) {
        (Ok(a), Ok(b)) if lacks.is_empty() => Ok((a, b)),
        (a, b) => Err(one_of(a.err().into_iter().chain(b.err()).chain(lacks))),
    }
}

fn one_of(errors: impl Iterator<Item = Error>) -> Error {
    // What keeps one thing from being tried may keep another: it is told once.
    let mut lacks: Vec<Error> = Vec::new();
    for error in errors {
        if lacks.iter().all(|lack| lack.to_string() != error.to_string()) {
            lacks.push(error);
        }
    }
    match lacks.pop() {
        Some(only) if lacks.is_empty() => only,
        last => {
            lacks.extend(last);
            let listed: Vec<String> = (1..).zip(&lacks).map(|(at, error)| format!("({at}) {}", line(error))).collect();
            Error::Host {
                problem: format!("this machine lacks {} things that sandboxes need", lacks.len()),
                remedy: listed.join("; "),
                source: None,
            }
        }
    }
}

/// An error with its cause before its remedy, so that the line ends with what to do.
fn line(error: &Error) -> String {
    match error {
        Error::Host { problem, remedy, source: Some(source) } => format!("{problem} ({}): {remedy}", chain(&**source)),
        error => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lack(problem: &str, remedy: &str) -> Error {
        Error::Host { problem: problem.to_owned(), remedy: remedy.to_owned(), source: None }
    }

    #[test]
    fn one_lack_is_its_own_error_and_several_are_one() {
        let need = |found| Need { subject: "it", found };
        let good = || need(Ok("good".to_owned()));
        assert_eq!(all(Ok(1), Ok(2), vec![good()]).unwrap(), (1, 2));
        let one = all::<(), _>(Err(Error::invalid("only this")), Ok(2), vec![good()]).unwrap_err();
        assert!(matches!(one, Error::InvalidInput { .. }), "{one:?}");
        let source = Some(std::io::Error::other("EPERM").into());
        let tap = Error::Host { problem: "no tap".to_owned(), remedy: "modprobe".to_owned(), source };
        let twice = [need(Err(lack("no QEMU", "apt-get"))), need(Err(tap))].into_iter().collect();
        let all = all::<(), ()>(Ok(()), Err(lack("no QEMU", "apt-get")), twice).unwrap_err();
        let text =
            "this machine lacks 2 things that sandboxes need: (1) no QEMU: apt-get; (2) no tap (EPERM): modprobe";
        assert_eq!((all.to_string().as_str(), all.code()), (text, "host_lacks"));
    }
}
