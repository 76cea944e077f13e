//! The files of a state directory that no daemon runs on: what would keep it from starting, what is damaged.

use std::path::Path;

use otonix_sdk::link::faults;
use otonix_sdk::pay::Records;
use rustix::fs::Access;
use serde::de::DeserializeOwned;

use super::Report;
use crate::shared::{Parts, Settings};
use crate::supervise::leftover;
use crate::{app, files, local_api, payments};

const MOVE_AWAY: &str = "the daemon cannot start; move it away, or restore it";

pub(super) fn check(report: &mut Report, state_dir: &Path, socket: &Path) {
    let before = report.problems;
    // As the daemon does: the socket's path is the directory's real one.
    let state_dir = state_dir.canonicalize().unwrap_or_else(|_| state_dir.to_owned());
    let name = socket.file_name().unwrap_or_default();
    if let Err(error) = local_api::check_path(&state_dir.join(name)) {
        report.problem(format!("{error:#}"), "the daemon cannot start until that is mended");
    }
    check_room(report, &state_dir);
    json::<Settings>(report, &Parts::settings_path(&state_dir), MOVE_AWAY);
    let leftover = "what an earlier daemon left running is not ended; look for it, and delete the file";
    json::<leftover::Record>(report, &state_dir.join(app::PROCESS_RECORD), leftover);
    for fault in faults::faults(&state_dir) {
        let what = format!("{}: {}", fault.path.display(), fault.what);
        report.problem(what, if fault.stops { MOVE_AWAY } else { fault.effect });
    }
    check_journal(report, &state_dir.join(payments::FOLDER));
    if report.problems == before {
        report.fine("the files of the state directory");
    }
}

fn check_room(report: &mut Report, state_dir: &Path) {
    if let Err(error) = rustix::fs::access(state_dir, Access::WRITE_OK | Access::EXEC_OK) {
        let what = format!("{} cannot be written: {error}", state_dir.display());
        report.problem(what, "the daemon cannot start; mend the file system or the directory's mode");
    }
    let lock = state_dir.join(app::LOCK);
    match files::Lock::is_held(&lock) {
        Ok(false) => {}
        Ok(true) => report.problem(
            format!("a process holds {}, but does not answer on the socket", lock.display()),
            "it is starting or stopping; if that lasts, end it and look at its log",
        ),
        Err(error) => report.problem(format!("{}: {error}", lock.display()), MOVE_AWAY),
    }
}

fn json<T: DeserializeOwned>(report: &mut Report, path: &Path, advice: &str) {
    if let Err(error) = files::read_json::<T>(path) {
        report.problem(format!("{} is damaged: {error}", path.display()), advice);
    }
}

fn check_journal(report: &mut Report, dir: &Path) {
    let advice = "nothing is paid until `otonix-agent journal reconcile`";
    match Records::damage(dir) {
        Ok(0) => {}
        Ok(bytes) => report.problem(
            format!("{bytes} bytes of the payment journal in {} are damaged", dir.display()),
            advice,
        ),
        Err(error) => {
            let what = format!("{}: {:#}", dir.display(), anyhow::Error::from(error));
            report.problem(what, "nothing is paid meanwhile; restore it");
        }
    }
}
