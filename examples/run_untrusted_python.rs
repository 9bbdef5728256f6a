//! Runs untrusted code with limits of time, output and memory, and without a network.
//!
//! ```sh
//! cargo run --example run_untrusted_python
//! cargo run --example run_untrusted_python -- 'while True: pass'
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example")]

use std::time::Duration;

use wrenn_core::{Error, Host, Sandbox};

const PROGRAM: &str = "
import os, sys
print('I am', os.popen('whoami').read().strip(), 'on', os.uname().nodename)
try:
    open('/etc/shadow').read()
except PermissionError as error:
    print('refused:', error)
sys.exit(3)
";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let program = std::env::args().nth(1).unwrap_or_else(|| PROGRAM.to_owned());
    let host = Host::builder().open().await?;
    host.ensure_image("base").on_step(|step| eprintln!("{step}")).await?;

    // Whatever happens to this program, the sandbox is gone after a minute.
    let sandbox = Sandbox::builder(&host, "base").ttl(Duration::from_secs(60)).create().await?;
    sandbox.write_file("/home/user/program.py", program).await?;

    let run = sandbox.command("python3").arg("/home/user/program.py");
    match run.timeout(Duration::from_secs(10)).output_limit(1 << 20).output().await {
        Ok(output) => {
            print!("{}{}", output.stdout_utf8(), output.stderr_utf8());
            println!("it ended with {}, after {:?}", output.status, output.duration);
        }
        Err(Error::CommandTimedOut { after, .. }) => println!("it ran for {after:?} and was killed"),
        Err(Error::OutputTooLong { limit_bytes, .. }) => {
            println!("it wrote more than {limit_bytes} bytes and was killed")
        }
        Err(error) => return Err(error.into()),
    }

    sandbox.kill().await?;
    Ok(())
}
