//! The last step before the agent's command: a process of our own that becomes it.
//!
//! It makes a session, takes the configured user's rights and no others, dies with the daemon, waits until the
//! daemon has written down who it is, closes every inherited descriptor, and is replaced by the command. It runs
//! before any other thread exists, so what the kernel sets per thread holds for the whole process.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::Mode;
use rustix::process::{Gid, Pid, Signal, Uid};

use crate::accounts::Account;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "__exec";
/// Exit code when the command could not be started.
pub const EXIT_NOT_STARTED: u8 = 127;
/// The agent's process is ended before the daemon when the machine has no memory left.
const OOM_SCORE_ADJ: &str = "300";
/// The byte by which the daemon lets the command start.
pub const GO: u8 = b'g';

/// The arguments for [`run`]: they name the parent, the account to take on, and the command.
pub fn arguments(parent: u32, account: Option<&Account>, command: &[String]) -> Vec<String> {
    let join = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let account = account.map_or_else(
        || "-".to_owned(),
        |account| format!("{}:{}:{}", account.uid, account.gid, join(&account.groups)),
    );
    let mut arguments = vec![SUBCOMMAND.to_owned(), parent.to_string(), account];
    arguments.extend_from_slice(command);
    arguments
}

/// Becomes the command; returns only when that fails.
pub fn run(arguments: &[String]) -> ExitCode {
    let error = match become_command(arguments) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = writeln!(std::io::stderr(), "otonix-agent: failed to start the agent's command: {error}");
    ExitCode::from(EXIT_NOT_STARTED)
}

fn become_command(arguments: &[String]) -> Result<std::convert::Infallible, String> {
    let [parent, account, program, rest @ ..] = arguments else {
        return Err("this subcommand is not for people".to_owned());
    };
    let parent: i32 = parent.parse().map_err(|_| "malformed parent".to_owned())?;
    let step = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");

    rustix::process::setsid().map_err(step("new session"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    take_account(account)?;
    let _ = rustix::thread::clear_ambient_capability_set();
    // After the change of user, which clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("death signal"))?;
    if rustix::process::getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(parent) {
        return Err("the daemon has ended".to_owned());
    }
    let mut go = [0_u8];
    let told = std::io::stdin().lock().read(&mut go).map_err(|error| error.to_string())?;
    if told != 1 || go != [GO] {
        return Err("the daemon has ended".to_owned());
    }
    close_fds::set_fds_cloexec(3, &[]);
    let error = Command::new(program).args(rest).stdin(Stdio::null()).exec();
    Err(format!("{program}: {error}"))
}

fn take_account(account: &str) -> Result<(), String> {
    if account == "-" {
        return Ok(());
    }
    let malformed = || "malformed account".to_owned();
    let mut parts = account.split(':');
    let mut id = || parts.next()?.parse::<u32>().ok();
    let uid = Uid::from_raw(id().ok_or_else(malformed)?);
    let gid = Gid::from_raw(id().ok_or_else(malformed)?);
    let groups: Vec<Gid> = parts
        .next()
        .unwrap_or_default()
        .split(',')
        .filter_map(|group| group.parse().ok().map(Gid::from_raw))
        .collect();
    let denied =
        |error: rustix::io::Errno| format!("the daemon may not change to user id {}: {error}", uid.as_raw());
    rustix::thread::set_thread_groups(&groups).map_err(denied)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(denied)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(denied)?;
    Ok(())
}
