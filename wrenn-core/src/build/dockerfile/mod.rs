//! Dockerfiles: read into stages, whose instructions are expanded when their place in the build is reached.
//!
//! ```text
//!  text ── lines::read ──▶ Written ── parse ──▶ Dockerfile ── resolve (build arguments) ──▶ stages
//!                             └───────── instruction (environment so far) ──▶ Instruction
//! ```

pub(super) mod instruction;
pub(super) mod lines;
pub(super) mod words;

use std::collections::BTreeMap;

use crate::build::dockerfile::instruction::KNOWN;
use crate::build::dockerfile::lines::{Fault, Written, read};
use crate::build::dockerfile::words::{expand, split};

/// A Dockerfile that is well-formed.
#[derive(Debug, Clone)]
pub(super) struct Dockerfile {
    /// The build arguments before the first stage.
    arguments: Vec<Written>,
    stages: Vec<Section>,
}

#[derive(Debug, Clone)]
struct Section {
    from: Written,
    name: Option<String>,
    /// With variables.
    base: String,
    lines: Vec<Written>,
}

/// A stage with its base.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) name: Option<String>,
    pub(super) base: BaseOf,
    pub(super) lines: Vec<Written>,
}

/// What a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BaseOf {
    /// A reference, and the line that has it.
    Reference(String, Option<usize>),
    Stage(usize),
}

/// The stages of a Dockerfile. Those at the end that have no line are what copies come from and no stage is.
#[derive(Debug, Clone)]
pub(super) struct Resolution {
    pub(super) stages: Vec<Resolved>,
    /// The last stage that the file itself has.
    pub(super) last: usize,
    /// For the instructions of each stage, the stages by name.
    pub(super) names: Vec<BTreeMap<String, usize>>,
    /// The build arguments before the first stage, with their values.
    pub(super) globals: BTreeMap<String, String>,
}

impl Dockerfile {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let (mut arguments, mut stages) = (Vec::new(), Vec::<Section>::new());
        for written in read(text)? {
            if !KNOWN.contains(&written.keyword.as_str()) {
                return Err(written.fault("is not supported"));
            }
            if written.keyword == "FROM" {
                stages.push(Section::new(written)?);
            } else if let Some(stage) = stages.last_mut() {
                stage.lines.push(written);
            } else if written.keyword == "ARG" {
                arguments.push(written);
            } else {
                return Err(written.fault("comes before the first FROM"));
            }
        }
        if stages.is_empty() {
            return Err(Fault::new(1, "there is no FROM"));
        }
        Ok(Self { arguments, stages })
    }

    /// The stages, with the build arguments that the caller gives.
    pub(super) fn resolve(&self, given: &BTreeMap<String, String>) -> Result<Resolution, Fault> {
        let mut globals: BTreeMap<String, String> = PLATFORM.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        for written in &self.arguments {
            let (name, default) = written.rest.split_once('=').unwrap_or((&written.rest, ""));
            let default = expand(default, written.escape, &globals).map_err(|problem| written.fault(problem))?;
            globals.insert(name.trim().to_owned(), given.get(name.trim()).cloned().unwrap_or(default));
        }
        let (mut known, mut names) = (BTreeMap::new(), Vec::<BTreeMap<String, usize>>::new());
        let mut stages: Vec<Resolved> = Vec::new();
        for (number, section) in self.stages.iter().enumerate() {
            let expanded = expand(&section.base, section.from.escape, &globals);
            let base = expanded.map_err(|problem| section.from.fault(problem))?;
            if base.is_empty() {
                return Err(section.from.fault("the reference is empty"));
            }
            let base = match known.get(&base.to_ascii_lowercase()) {
                Some(stage) => BaseOf::Stage(*stage),
                None => BaseOf::Reference(base, Some(section.from.line)),
            };
            names.push(known.clone());
            known.insert(number.to_string(), number);
            if let Some(name) = &section.name {
                known.insert(name.clone(), number);
            }
            stages.push(Resolved { name: section.name.clone(), base, lines: section.lines.clone() });
        }
        let last = stages.len() - 1;
        for (number, names) in names.iter_mut().enumerate() {
            let copies = stages[number].lines.iter().filter(|written| written.keyword == "COPY");
            let sources = copies.filter_map(|written| Some((written.copies_from()?, written.line)));
            for (from, line) in sources.collect::<Vec<_>>() {
                if names.contains_key(&from.to_ascii_lowercase()) || names.contains_key(&from) {
                    continue;
                }
                names.insert(from.clone(), stages.len());
                stages.push(Resolved { name: None, base: BaseOf::Reference(from, Some(line)), lines: Vec::new() });
            }
        }
        Ok(Resolution { stages, last, names, globals })
    }
}

impl Section {
    fn new(from: Written) -> Result<Self, Fault> {
        let (flags, rest) = from.flags();
        for (name, value) in flags {
            let fits = value.starts_with('$') || ["linux/amd64", "linux/x86_64", "linux"].contains(&value.as_str());
            if name != "platform" || !fits {
                return Err(from.fault(format!("--{name}={value} is not supported: guests are linux/amd64")));
            }
        }
        let words = split(rest, from.escape);
        let (base, name) = match words.as_slice() {
            [base] => (base.clone(), None),
            [base, r#as, name] if r#as.eq_ignore_ascii_case("as") => (base.clone(), Some(name.to_ascii_lowercase())),
            _ => return Err(from.fault("takes a reference, perhaps with `AS name`")),
        };
        if name.as_ref().is_some_and(|name| !name.starts_with(|c: char| c.is_ascii_alphabetic())) {
            return Err(from.fault("the name of a stage begins with a letter"));
        }
        Ok(Self { from, name, base, lines: Vec::new() })
    }
}

impl Written {
    /// The stage or the reference that a copy is from.
    pub(super) fn copies_from(&self) -> Option<String> {
        let (flags, _) = self.flags();
        flags.into_iter().find_map(|(name, value)| (name == "from").then_some(value))
    }
}

/// What a Dockerfile may ask for of the platform; those of stages too.
const PLATFORM: [(&str, &str); 6] = [
    ("TARGETPLATFORM", "linux/amd64"),
    ("TARGETOS", "linux"),
    ("TARGETARCH", "amd64"),
    ("BUILDPLATFORM", "linux/amd64"),
    ("BUILDOS", "linux"),
    ("BUILDARCH", "amd64"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::dockerfile::instruction::{Place, absolute};
    use crate::build::step::{Instruction, Source, Words};

    fn instruction(text: &str) -> Result<Instruction, Fault> {
        let file = Dockerfile::parse(&format!("FROM base AS one\nFROM base\n{text}"))?;
        let resolution = file.resolve(&BTreeMap::new())?;
        let stages = &resolution.names[1];
        let values: BTreeMap<String, String> = [("A".to_owned(), "1".to_owned())].into();
        let secrets = [("token".to_owned(), "s3cret".to_owned())].into();
        let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
        resolution.stages[1].lines[0].instruction(&Place { values: &values, shell: &shell, stages, secrets: &secrets })
    }

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn each_instruction_is_understood() {
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let table = [
            ("ENV A=2 B=\"x $A\" C=y\\ z", Instruction::Env(pairs(&[("A", "2"), ("B", "x 1"), ("C", "y z")]))),
            ("ENV A some words $A", Instruction::Env(pairs(&[("A", "some words 1")]))),
            ("ARG X=${A}2", Instruction::Arg("X".to_owned(), Some("12".to_owned()))),
            ("USER app:${NONE:-app}", Instruction::User("app:app".to_owned())),
            ("WORKDIR /a b", Instruction::Workdir("/a b".to_owned())),
            ("EXPOSE 80 53/udp", Instruction::Expose(texts(&["80/tcp", "53/udp"]))),
            ("CMD [\"a\", \"$A\"]", Instruction::Cmd(texts(&["a", "$A"]))),
            ("ENTRYPOINT a b", Instruction::Entrypoint(texts(&["/bin/sh", "-c", "a b"]))),
            ("SHELL [\"/bin/bash\", \"-c\"]", Instruction::Shell(texts(&["/bin/bash", "-c"]))),
            ("STOPSIGNAL SIGINT", Instruction::StopSignal("SIGINT".to_owned())),
            ("LABEL a=b", Instruction::Nothing(None)),
        ];
        for (text, expected) in table {
            assert_eq!(instruction(text), Ok(expected), "{text}");
        }
        let Ok(Instruction::Run(run)) = instruction("RUN --mount=type=secret,id=token,env=T --network=none echo $A")
        else {
            panic!("no run");
        };
        assert_eq!(run.words, Words::Exec(texts(&["/bin/sh", "-c", "echo $A"])));
        assert!(run.secrets["T"] == "s3cret" && run.network.is_some());
        let Ok(Instruction::Run(run)) = instruction("RUN <<EOF\na\nb\nEOF\n") else { panic!("no run") };
        assert_eq!(run.words, Words::Exec(texts(&["/bin/sh", "-c", "a\nb\n"])));
        let Ok(Instruction::Copy(copy)) = instruction("COPY --from=one --chown=a:b --chmod=755 x$A [y] /d/") else {
            panic!("no copy");
        };
        assert_eq!((copy.from, copy.mode, copy.owner.as_deref()), (Some(0), Some(0o755), Some("a:b")));
        assert_eq!(copy.sources, [Source::Path("x1".to_owned()), Source::Path("[y]".to_owned())]);
    }

    #[test]
    fn what_is_not_supported_is_named_with_its_line() {
        let table = [
            ("ONBUILD RUN x", "ONBUILD"),
            ("VOLUME /x", "VOLUME"),
            ("FROB x", "FROB"),
            ("ADD https://example.org/x /x", "remote"),
            ("RUN --security=insecure x", "--security"),
            ("RUN --mount=type=bind,source=x y", "--mount"),
            ("RUN", "command"),
            ("COPY x", "destination"),
            ("COPY --parents x y", "--parents"),
            ("COPY --chmod=9 x y", "mode"),
            ("EXPOSE http", "port"),
            ("ENV A", "value"),
            ("ENV A=1 B", "`=`"),
            ("ENV A=${", "variable"),
            ("SHELL /bin/sh", "JSON"),
            ("USER", "argument"),
        ];
        for (text, said) in table {
            let fault = instruction(text).unwrap_err();
            assert_eq!(fault.line, 3, "{text}");
            assert!(fault.problem.contains(said), "{text}: {}", fault.problem);
        }
        for (text, line) in [("RUN x\nFROM a", 1), ("", 1), ("FROM a b c", 1), ("FROM --platform=linux/arm64 a", 1)] {
            assert_eq!(Dockerfile::parse(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn stages_are_found_by_name_and_by_number_and_other_sources_are_references() {
        let text = "ARG V=1\nFROM base-$V AS Build\nFROM build\nFROM base\nCOPY --from=0 a b\nCOPY --from=BUILD a b\nCOPY --from=tools a b";
        let resolution = Dockerfile::parse(text).unwrap().resolve(&[("V".to_owned(), "2".to_owned())].into()).unwrap();
        let bases: Vec<_> = resolution.stages.iter().map(|stage| stage.base.clone()).collect();
        let reference = |text: &str, line| BaseOf::Reference(text.to_owned(), Some(line));
        assert_eq!(bases, [reference("base-2", 2), BaseOf::Stage(0), reference("base", 4), reference("tools", 7)]);
        assert_eq!((resolution.last, resolution.names[2]["tools"], resolution.names[2]["build"]), (2, 3, 0));
    }

    #[test]
    fn paths_of_the_guest_are_made_absolute() {
        for (directory, path, expected) in
            [("/a", "b", "/a/b"), ("/a", "/c/", "/c"), ("/a/b", "../c", "/a/c"), ("/", "../..", "/"), ("/a", ".", "/a")]
        {
            assert_eq!(absolute(directory, path), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_dockerfile_or_refused(
            text in "FROM a\n((RUN|COPY|ENV|ARG|EXPOSE|USER|CMD|ADD|FROM) ?([a-z=\\[\\]\"',$<{}:/ -]{0,20})\n){0,5}",
        ) {
            if let Ok(file) = Dockerfile::parse(&text) {
                let values = BTreeMap::new();
                if let Ok(resolution) = file.resolve(&values) {
                    for (stage, stages) in resolution.stages.iter().zip(&resolution.names) {
                        for line in &stage.lines {
                            let _ = line.instruction(&Place { values: &values, shell: &[], stages, secrets: &values });
                        }
                    }
                }
            }
        }
    }
}
