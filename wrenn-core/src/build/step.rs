//! The steps of a recipe.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use wrenn_net::NetworkPolicy;

/// A command that a build runs in its guest. A text is a line of shell, which `bash` runs; [`exec`](Self::exec) takes the
/// words of a program.
///
/// ```
/// use wrenn_core::{NetworkPolicy, RunStep, Template};
///
/// let fetch = RunStep::new("pip install --index-url https://$TOKEN@pypi.example.org/simple private")
///     .user("root")
///     .secret("TOKEN", "s3cret")
///     .network(NetworkPolicy::closed().allow(["pypi.example.org:443"])?);
/// let template = Template::builder("base").run(fetch).run("python3 -c 'import private'");
/// # Ok::<_, wrenn_core::PolicyError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RunStep {
    pub(super) words: Words,
    pub(super) user: Option<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) network: Option<NetworkPolicy>,
    pub(super) limit: Duration,
}

/// A line for the shell, or a program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Words {
    Shell(String),
    Exec(Vec<String>),
}

/// Files that a build puts into its guest.
///
/// A directory brings what is in it, without its own name; a file is copied to the destination itself, or into it where the
/// destination ends with `/` or is a directory. Missing directories are made. Modes, symbolic links and the times of the last
/// changes are kept, and everything belongs to `root`, unless [`owner`](Self::owner) names somebody else.
///
/// ```
/// use wrenn_core::{CopyStep, Template};
///
/// let app = CopyStep::new("app", "/srv/app").exclude("**/__pycache__").owner("user");
/// let template = Template::builder("base").copy_step(app).copy("run.sh", "/usr/local/bin/");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    pub(super) sources: Vec<Source>,
    pub(super) to: String,
    pub(super) excludes: Vec<String>,
    pub(super) mode: Option<u32>,
    pub(super) owner: Option<String>,
    /// The stage whose files are copied; `None` for the host's.
    pub(super) from: Option<usize>,
    pub(super) archives: Archives,
    /// The directory that no path of it leads out of; `None` for the build's context.
    pub(super) within: Option<PathBuf>,
}

/// What becomes of a source that is an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Archives {
    Copied,
    Unpacked,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A path, which may have patterns.
    Path(String),
    /// A file that the recipe has within itself.
    Inline { name: String, content: String },
}

/// What a line of a recipe asks for, with nothing left to expand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instruction {
    Run(Box<RunStep>),
    Copy(CopyStep),
    Env(Vec<(String, String)>),
    Arg(String, Option<String>),
    User(String),
    Workdir(String),
    Expose(Vec<String>),
    Entrypoint(Vec<String>),
    Cmd(Vec<String>),
    StopSignal(String),
    Shell(Vec<String>),
    /// Something without an effect, and why, where somebody might expect one.
    Nothing(Option<String>),
}

impl RunStep {
    /// A line of shell.
    #[must_use]
    pub fn new(line: impl Into<String>) -> Self {
        Self::of(Words::Shell(line.into()))
    }

    /// A program and its arguments, without a shell.
    #[must_use]
    pub fn exec(words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of(Words::Exec(words.into_iter().map(Into::into).collect()))
    }

    pub(super) fn of(words: Words) -> Self {
        Self { words, user: None, env: BTreeMap::new(), secrets: BTreeMap::new(), network: None, limit: LIMIT }
    }

    /// The guest's user to run this step as. Default: that of the recipe so far.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets a variable for this step alone.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets a variable for this step alone whose value no event, no error and no record has: `***` stands for it. Another value
    /// is another step, which is done anew.
    ///
    /// What the command itself keeps of it, in a file for instance, is in the template. So may be a page of the guest's
    /// memory that the command had and that nothing has overwritten since.
    #[must_use]
    pub fn secret(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.secrets.insert(name.into(), value.into());
        self
    }

    /// What the guest may reach during this step. Default: what the build says, see
    /// [`TemplateBuilder::network`](crate::TemplateBuilder::network).
    #[must_use]
    pub fn network(mut self, policy: NetworkPolicy) -> Self {
        self.network = Some(policy);
        self
    }

    /// The longest time that the step may take. Then it is killed, and fails. Default: one hour.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The step as a line for people.
    pub(super) fn text(&self) -> String {
        match &self.words {
            Words::Shell(line) => format!("RUN {line}"),
            Words::Exec(words) => format!("RUN {words:?}"),
        }
    }
}

impl<T: Into<String>> From<T> for RunStep {
    fn from(line: T) -> Self {
        Self::new(line)
    }
}

impl std::fmt::Debug for RunStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The values of secrets are left out.
        let secrets: Vec<_> = self.secrets.keys().collect();
        let mut text = f.debug_struct("RunStep");
        text.field("words", &self.words).field("user", &self.user).field("env", &self.env);
        text.field("secrets", &secrets).field("network", &self.network).field("limit", &self.limit).finish()
    }
}

impl CopyStep {
    /// A copy of one file or directory of the host, or of each that the patterns in `from` match. A relative path is relative
    /// to [`context`](crate::TemplateBuilder::context), a relative destination to the working directory of the recipe so far.
    #[must_use]
    pub fn new(from: impl Into<String>, to: impl Into<String>) -> Self {
        Self::of(vec![Source::Path(from.into())], to.into())
    }

    pub(super) fn of(sources: Vec<Source>, to: String) -> Self {
        Self {
            sources,
            to,
            excludes: Vec::new(),
            mode: None,
            owner: None,
            from: None,
            archives: Archives::Copied,
            within: None,
        }
    }

    /// Adds another source. The destination is a directory then.
    #[must_use]
    pub fn and(mut self, from: impl Into<String>) -> Self {
        self.sources.push(Source::Path(from.into()));
        self
    }

    /// Leaves out what matches a pattern of `.dockerignore`, relative to the directory that is copied.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> Self {
        self.excludes.push(pattern.into());
        self
    }

    /// The mode of every file and directory, as in chmod(2). Default: that of the source.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// The owner of every file and directory: a user of the guest by name or number, perhaps with a group (`user:group`).
    /// Default: `root`.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// The directory that the sources are in: their paths are relative to it, and neither `..` nor a symbolic link leads out of
    /// it. Such a directory may be a stranger's. Default: that of the build.
    #[must_use]
    pub fn within(mut self, directory: impl Into<PathBuf>) -> Self {
        self.within = Some(directory.into());
        self
    }

    /// The sources that are paths.
    pub(super) fn paths(&self) -> Vec<String> {
        let path = |source: &Source| match source {
            Source::Path(path) => Some(path.clone()),
            Source::Inline { .. } => None,
        };
        self.sources.iter().filter_map(path).collect()
    }

    /// The step as a line for people.
    pub(super) fn text(&self) -> String {
        let name = |source: &Source| match source {
            Source::Path(path) => path.clone(),
            Source::Inline { name, .. } => format!("<<{name}"),
        };
        let sources: Vec<String> = self.sources.iter().map(name).collect();
        format!("COPY {} {}", sources.join(" "), self.to)
    }
}

const LIMIT: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_step_has_a_secret() {
        let step = RunStep::new("curl -H $TOKEN x").secret("TOKEN", "s3cret");
        assert_eq!(step.text(), "RUN curl -H $TOKEN x");
        assert!(!format!("{step:?}").contains("s3cret"));
        assert!(format!("{step:?}").contains("TOKEN"));
    }
}
