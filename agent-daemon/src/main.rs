//! `otonix-agent`: arguments in, exit code out.

use std::process::ExitCode;

use otonix_agent_daemon::{cli, supervise::exec};

fn main() -> ExitCode {
    let arguments: Vec<String> = match std::env::args_os().map(std::ffi::OsString::into_string).collect() {
        Ok(arguments) => arguments,
        Err(argument) => return cli::refuse(&format!("argument {} is not UTF-8", argument.display())),
    };
    // The step before the agent's command: nothing else may happen in that process.
    if let [_, subcommand, rest @ ..] = &arguments[..]
        && subcommand == exec::SUBCOMMAND
    {
        return exec::run(rest);
    }
    cli::run(arguments)
}
