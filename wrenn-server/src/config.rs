//! The configuration file: what the flags say, by the same names, for a server that is started by a service manager.
//!
//! What the file says becomes the default of its flag. So a flag beats the environment, which beats the file, and each value
//! is read as that of the flag.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command};
use toml::{Table, Value};

/// The command with what the configuration file says, as far as there is one. `matches` are what the command makes of the
/// command line without it.
///
/// # Errors
/// The file cannot be read, or has something that is no setting.
pub(crate) fn with_file(command: Command, matches: &ArgMatches) -> anyhow::Result<Command> {
    let named = matches.get_one::<PathBuf>(CONFIG);
    let path = named.map_or_else(|| Path::new(PATH), PathBuf::as_path);
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => return Ok(command),
        read => read.with_context(|| {
            format!("{} cannot be read: name another file with --config, or make it readable", path.display())
        })?,
    };
    with_text(command, &text).with_context(|| format!("{} cannot be used", path.display()))
}

/// The settings that there are: the flags that belong to all commands, and those of `serve`.
pub(crate) fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    let serve = command.find_subcommand(SERVE).into_iter().flat_map(Command::get_arguments);
    let all = command.get_arguments().chain(serve);
    all.filter(|arg| !["help", "version", CONFIG].contains(&arg.get_id().as_str()))
}

fn with_text(mut command: Command, text: &str) -> anyhow::Result<Command> {
    let table: Table = text.parse()?;
    // Whether each belongs to all commands.
    let known: BTreeMap<String, bool> =
        settings(&command).map(|arg| (arg.get_id().to_string(), arg.is_global_set())).collect();
    for (key, value) in table {
        let Some(is_global) = known.get(&key) else {
            let known: Vec<_> = known.into_keys().collect();
            bail!("{key} is no setting: there are {}", known.join(", "));
        };
        // It is read once, and clap wants it until the end.
        let value: &'static str = text_of(&key, value)?.leak();
        let set = |arg: Arg| arg.default_value(value);
        command = if *is_global {
            command.mut_arg(key, set)
        } else {
            command.mut_subcommand(SERVE, |serve| serve.mut_arg(key, set))
        };
    }
    Ok(command)
}

fn text_of(key: &str, value: Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(is_so) => Ok(is_so.to_string()),
        Value::Array(_) | Value::Table(_) | Value::Datetime(_) => {
            bail!("{key} is no text, number, true or false: write it as one")
        }
    }
}

/// Where it is looked for if it is not named.
pub(crate) const PATH: &str = "/etc/wrenn/server.toml";
const SERVE: &str = "serve";
const CONFIG: &str = "config";
