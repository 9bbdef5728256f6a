//! What an instruction of a Dockerfile asks for, with the values that variables have there.

use std::collections::BTreeMap;
use std::path::Path;

use wrenn_net::NetworkPolicy;

use crate::build::dockerfile::lines::{Fault, Written};
use crate::build::dockerfile::words::{Values, array, expand, expand_document, split};
use crate::build::step::{Archives, CopyStep, Instruction, RunStep, Source, Words};

/// What is known where an instruction stands.
pub(in crate::build) struct Place<'a> {
    pub(in crate::build) values: &'a dyn Values,
    pub(in crate::build) shell: &'a [String],
    /// The stages by their names.
    pub(in crate::build) stages: &'a BTreeMap<String, usize>,
    /// The values of secrets by their ids.
    pub(in crate::build) secrets: &'a BTreeMap<String, String>,
}

/// The instructions that have an effect, or are known to need none.
pub(super) const KNOWN: [&str; 16] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "WORKDIR",
];

/// A flag as `--chown=app`; one without a value has an empty one.
type Flags = Vec<(String, String)>;

impl Written {
    /// The flags, and what comes after them.
    pub(super) fn flags(&self) -> (Flags, &str) {
        let (mut flags, mut rest) = (Vec::new(), self.rest.as_str());
        while let Some(flag) = rest.strip_prefix("--") {
            let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
            let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
            flags.push((name.to_owned(), value.to_owned()));
            rest = after.trim_start();
        }
        (flags, rest)
    }

    pub(in crate::build) fn text(&self) -> String {
        format!("{} {}", self.keyword, self.rest)
    }

    pub(super) fn fault(&self, problem: impl AsRef<str>) -> Fault {
        Fault::new(self.line, format!("{}: {}", self.keyword, problem.as_ref()))
    }

    /// What the instruction asks for.
    pub(in crate::build) fn instruction(&self, place: &Place<'_>) -> Result<Instruction, Fault> {
        let expanded = || self.expand(&self.rest, place);
        let words = || array(&self.rest);
        match self.keyword.as_str() {
            "RUN" => self.run(place).map(|step| Instruction::Run(Box::new(step))),
            "COPY" | "ADD" => self.copy(place).map(Instruction::Copy),
            "ENV" => self.pairs(place).map(Instruction::Env),
            "ARG" => self.arg(place),
            "USER" => Ok(Instruction::User(self.required(expanded()?)?)),
            "WORKDIR" => Ok(Instruction::Workdir(self.required(expanded()?)?)),
            "STOPSIGNAL" => Ok(Instruction::StopSignal(self.required(expanded()?)?)),
            "EXPOSE" => {
                let words = split(&self.rest, self.escape);
                let ports: Result<Vec<String>, Fault> = words.iter().map(|word| self.expand(word, place)).collect();
                Ok(Instruction::Expose(self.ports(&ports?)?))
            }
            "ENTRYPOINT" => Ok(Instruction::Entrypoint(words().unwrap_or_else(|| self.in_shell(place)))),
            "CMD" => Ok(Instruction::Cmd(words().unwrap_or_else(|| self.in_shell(place)))),
            "SHELL" => words()
                .filter(|words| !words.is_empty())
                .map(Instruction::Shell)
                .ok_or_else(|| self.fault("takes a JSON array, as [\"/bin/bash\", \"-c\"]")),
            "LABEL" | "MAINTAINER" => Ok(Instruction::Nothing(None)),
            "HEALTHCHECK" => {
                Ok(Instruction::Nothing(Some("HEALTHCHECK has no effect: nothing asks for it".to_owned())))
            }
            _ => Err(self.fault("is not supported")),
        }
    }

    fn expand(&self, text: &str, place: &Place<'_>) -> Result<String, Fault> {
        expand(text, self.escape, place.values).map_err(|problem| self.fault(problem))
    }

    fn required(&self, text: String) -> Result<String, Fault> {
        if text.is_empty() { Err(self.fault("needs an argument")) } else { Ok(text) }
    }

    fn in_shell(&self, place: &Place<'_>) -> Vec<String> {
        place.shell.iter().cloned().chain([self.rest.clone()]).collect()
    }

    fn ports(&self, words: &[String]) -> Result<Vec<String>, Fault> {
        let port = |word: &String| {
            let (number, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
            let (low, high) = number.split_once('-').unwrap_or((number, number));
            let is_number = |text: &str| text.parse::<u16>().is_ok_and(|number| number > 0);
            let is_port = is_number(low) && is_number(high) && ["tcp", "udp"].contains(&protocol);
            is_port.then(|| format!("{number}/{protocol}")).ok_or_else(|| self.fault(format!("{word:?} is no port")))
        };
        words.iter().map(port).collect()
    }

    /// `A=1 B="2 3"`, or `A 1` of old.
    fn pairs(&self, place: &Place<'_>) -> Result<Vec<(String, String)>, Fault> {
        let words = split(&self.rest, self.escape);
        let first = words.first().ok_or_else(|| self.fault("needs an argument"))?;
        let name = |name: &str| {
            let name = self.expand(name, place)?;
            if name.is_empty() { Err(self.fault("a name is empty")) } else { Ok(name) }
        };
        if !first.contains('=') {
            let value = self.rest[first.len()..].trim_start();
            if value.is_empty() {
                return Err(self.fault(format!("{first} has no value")));
            }
            return Ok(vec![(name(first)?, self.expand(value, place)?)]);
        }
        let pair = |word: &String| {
            let (key, value) = word.split_once('=').ok_or_else(|| self.fault(format!("{word} has no `=`")))?;
            Ok((name(key)?, self.expand(value, place)?))
        };
        words.iter().map(pair).collect()
    }

    fn arg(&self, place: &Place<'_>) -> Result<Instruction, Fault> {
        let (name, default) = match self.rest.split_once('=') {
            Some((name, default)) => (name, Some(self.expand(default, place)?)),
            None => (self.rest.as_str(), None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(self.fault("takes one name, perhaps with `=` and a default"));
        }
        Ok(Instruction::Arg(name.to_owned(), default))
    }

    fn run(&self, place: &Place<'_>) -> Result<RunStep, Fault> {
        let (flags, rest) = self.flags();
        let words = match (array(rest), &*self.documents) {
            (Some(words), []) if words.is_empty() => return Err(self.fault("needs a command")),
            (Some(words), []) => Words::Exec(words),
            (_, []) if rest.is_empty() => return Err(self.fault("needs a command")),
            (_, []) => Words::Shell(rest.to_owned()),
            (_, [script]) if script.word == rest => {
                if script.content.starts_with("#!") {
                    return Err(self.fault(
                        "a script with #! is not supported: give it to its interpreter, as `RUN python3 <<EOF`",
                    ));
                }
                Words::Shell(script.content.clone())
            }
            // The shell reads them, as it would in a script.
            (_, documents) => {
                let body: String =
                    documents.iter().map(|document| format!("{}{}\n", document.content, document.name)).collect();
                Words::Shell(format!("{rest}\n{body}"))
            }
        };
        let words = match words {
            Words::Shell(line) => Words::Exec(place.shell.iter().cloned().chain([line]).collect()),
            exec @ Words::Exec(_) => exec,
        };
        let mut step = RunStep::of(words);
        for (name, value) in flags {
            step = match (name.as_str(), value.as_str()) {
                ("network", "none") => step.network(NetworkPolicy::closed()),
                ("network", "default") => step,
                ("mount", value) => self.mount(step, value, place)?,
                _ => return Err(self.fault(format!("--{name}={value} is not supported"))),
            };
        }
        Ok(step)
    }

    /// Of mounts, secrets that are variables are known. A cache is a directory like any other: it is empty at the beginning.
    fn mount(&self, step: RunStep, value: &str, place: &Place<'_>) -> Result<RunStep, Fault> {
        let field = |name: &str| {
            value
                .split(',')
                .find_map(|field| field.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
        };
        match (field("type"), field("id"), field("env")) {
            (Some("cache" | "tmpfs"), ..) => Ok(step),
            (Some("secret"), Some(id), Some(env)) => match place.secrets.get(id) {
                Some(secret) => Ok(step.secret(env, secret.as_str())),
                None if field("required") == Some("true") => Err(self.fault(format!("there is no secret {id}"))),
                None => Ok(step),
            },
            _ => Err(self.fault(format!("--mount={value} is not supported: type=secret,id=ID,env=NAME is"))),
        }
    }

    fn copy(&self, place: &Place<'_>) -> Result<CopyStep, Fault> {
        let (flags, rest) = self.flags();
        let words = match array(rest) {
            Some(words) => words,
            None => split(rest, self.escape),
        };
        let is_document = |word: &String| self.documents.iter().find(|document| document.word == **word);
        let Some((to, sources)) = words.split_last().filter(|(_, sources)| !sources.is_empty()) else {
            return Err(self.fault("needs a source and a destination"));
        };
        let source = |word: &String| match is_document(word) {
            Some(document) => {
                let content = if document.is_expanded {
                    expand_document(&document.content, self.escape, place.values).map_err(|p| self.fault(p))?
                } else {
                    document.content.clone()
                };
                Ok(Source::Inline { name: document.name.clone(), content })
            }
            None => {
                let path = self.expand(word, place)?;
                if path.contains("://") || path.starts_with("git@") {
                    return Err(self.fault(format!("{path} is remote, which is not supported: fetch it with RUN curl")));
                }
                Ok(Source::Path(path))
            }
        };
        let sources = sources.iter().map(source).collect::<Result<Vec<_>, _>>()?;
        let mut step = CopyStep::of(sources, self.required(self.expand(to, place)?)?);
        if self.keyword == "ADD" {
            step.archives = Archives::Unpacked;
        }
        for (name, value) in flags {
            let value = self.expand(&value, place)?;
            match name.as_str() {
                "chown" => step.owner = Some(value),
                "chmod" => step.mode = Some(self.mode(&value)?),
                "exclude" => step.excludes.push(value),
                "link" => {}
                "from" if self.keyword == "COPY" => step.from = Some(self.stage(&value, place)?),
                _ => return Err(self.fault(format!("--{name} is not supported"))),
            }
        }
        Ok(step)
    }

    fn stage(&self, name: &str, place: &Place<'_>) -> Result<usize, Fault> {
        let found = place.stages.get(&name.to_ascii_lowercase()).or_else(|| place.stages.get(name));
        found.copied().ok_or_else(|| self.fault(format!("there is no stage {name} before")))
    }

    fn mode(&self, text: &str) -> Result<u32, Fault> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| self.fault(format!("{text:?} is no mode: use octal digits, as 755")))
    }
}

/// An absolute path of the guest: `path` as seen from `directory`, without `.` and `..`.
pub(in crate::build) fn absolute(directory: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let whole = Path::new(directory).join(path);
    for part in whole.to_str().unwrap_or(path).split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
