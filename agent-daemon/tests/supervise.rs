//! The agent's process under real conditions: processes that ignore, fork, crash, hang.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use otonix_agent_daemon::process_tree;
use otonix_agent_daemon::supervise::{
    Launch, Output, ProcessState, ProcessStatus, Restart, Supervisor, Wanted, leftover,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

struct Stage {
    dir: TempDir,
    wanted: watch::Sender<Wanted>,
    progress: watch::Sender<Instant>,
    status: watch::Receiver<ProcessStatus>,
    task: JoinHandle<()>,
}

fn launch(dir: &Path, script: &str) -> Launch {
    Launch {
        program: PathBuf::from(env!("CARGO_BIN_EXE_otonix-agent")),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        dir: Some(dir.to_owned()),
        account: None,
        stop_grace: Duration::from_millis(700),
        progress_timeout: None,
        restart: Restart::Always,
        output: Output::Inherit,
        record: dir.join("process.json"),
        owns_descendants: false,
    }
}

impl Stage {
    fn new(script: &str, change: impl FnOnce(&mut Launch)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut launch = launch(dir.path(), script);
        change(&mut launch);
        let (wanted, wants) = watch::channel(Wanted { run: true, ..Wanted::default() });
        let (progress, progresses) = watch::channel(Instant::now());
        let (status_out, status) = watch::channel(ProcessStatus::default());
        let environment = Box::new(|| vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let supervisor = Supervisor::new(launch, environment, wants, progresses, status_out);
        Self { dir, wanted, progress, status, task: tokio::spawn(supervisor.run()) }
    }

    async fn until(&mut self, what: impl FnMut(&ProcessStatus) -> bool) -> ProcessStatus {
        let found = timeout(PATIENCE, self.status.wait_for(what)).await.expect("in time");
        found.expect("the supervisor lives").clone()
    }

    async fn file(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        let began = Instant::now();
        loop {
            match fs::read_to_string(&path) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                _ if began.elapsed() > PATIENCE => panic!("{name} was not written"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn finish(self) -> TempDir {
        self.wanted.send_modify(|wanted| wanted.finish = Some(Duration::from_secs(5)));
        timeout(PATIENCE, self.task).await.expect("in time").expect("no panic");
        self.dir
    }
}

fn alive(pid: &str) -> bool {
    pid.parse().ok().and_then(process_tree::read).is_some_and(|process| !process.zombie)
}

#[tokio::test]
async fn environment_and_descriptors_are_built_from_nothing() {
    // Without close-on-exec, like one that a careless parent leaves open.
    let leaked = fs::File::open("/dev/null").expect("open");
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("inheritable");
    let script = "env | sort > env; ls /proc/self/fd > fds; ps -o sid= -p $$ > sid; umask > mask; echo $$ > pid; sleep 60";
    let stage = Stage::new(script, |_| {});
    let pid = stage.file("pid").await;
    let environment = stage.file("env").await;
    let names: Vec<&str> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    assert!(names.iter().all(|name| ["PATH", "PWD", "SHLVL", "OLDPWD", "_"].contains(name)), "{names:?}");
    // 3 is the listing's own.
    assert_eq!(stage.file("fds").await.lines().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert_eq!(stage.file("sid").await.trim(), pid);
    assert_eq!(stage.file("mask").await, "0022");
    stage.finish().await;
    assert!(!alive(&pid));
}

#[tokio::test]
async fn one_that_ignores_sigterm_is_killed_with_its_grandchildren() {
    let script = "trap '' TERM; (trap '' TERM; sleep 60) & echo $! > grandchild; \
                  setsid sh -c 'echo $$ > escaped; trap \"\" TERM; sleep 60' & echo $$ > pid; wait; sleep 60";
    let mut stage = Stage::new(script, |_| {});
    let (pid, grandchild) = (stage.file("pid").await, stage.file("grandchild").await);
    let escaped = stage.file("escaped").await;
    let began = Instant::now();
    stage.wanted.send_modify(|wanted| wanted.run = false);
    stage.until(|status| status.state == ProcessState::Stopped).await;
    assert!(began.elapsed() >= Duration::from_millis(700), "the grace was given");
    assert!(!alive(&pid) && !alive(&grandchild) && !alive(&escaped));
    // And it starts again when it should.
    stage.wanted.send_modify(|wanted| wanted.run = true);
    stage.until(|status| status.starts == 2 && status.state == ProcessState::Running).await;
    stage.finish().await;
}

#[tokio::test]
async fn what_a_dead_process_leaves_is_ended_before_the_next_start() {
    let script = "sleep 60 & echo $! > child; exit 3";
    let mut stage = Stage::new(script, |_| {});
    let child = stage.file("child").await;
    let status = stage.until(|status| status.state == ProcessState::Backoff).await;
    assert!(status.last_exit.is_some_and(|exit| exit.contains('3')));
    assert!(!alive(&child));
    stage.finish().await;
}

#[tokio::test]
async fn one_that_keeps_dying_is_started_with_growing_pauses() {
    let began = Instant::now();
    let mut stage = Stage::new("exit 1", |_| {});
    let status = stage.until(|status| status.starts == 3).await;
    assert!(began.elapsed() >= Duration::from_secs(3), "pauses of 1 s and 2 s");
    assert_eq!(status.failures, 2);
    // Asked afresh, it does not wait.
    stage.until(|status| status.state == ProcessState::Backoff).await;
    let asked = Instant::now();
    stage.wanted.send_modify(|wanted| wanted.generation += 1);
    stage.until(|status| status.starts == 4).await;
    assert!(asked.elapsed() < Duration::from_millis(3500), "the pause would have been 4 s");
    stage.finish().await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_a_crash() {
    let mut stage = Stage::new("", |launch| launch.command = vec!["/does/not/exist".to_owned()]);
    let status = stage.until(|status| status.state == ProcessState::Backoff).await;
    assert!(status.last_exit.is_some_and(|exit| exit.contains("127")));
    stage.finish().await;
}

#[tokio::test]
async fn restart_modes_are_followed() {
    for (restart, script, again) in [
        (Restart::OnFailure, "exit 0", false),
        (Restart::OnFailure, "exit 1", true),
        (Restart::Never, "exit 1", false),
        (Restart::Always, "exit 0", true),
    ] {
        let mut stage = Stage::new(script, |launch| launch.restart = restart);
        let ended = stage.until(|status| status.last_exit.is_some()).await;
        let expected = if again { ProcessState::Backoff } else { ProcessState::Stopped };
        assert_eq!(ended.state, expected, "{restart:?} {script}");
        stage.finish().await;
    }
}

#[tokio::test]
async fn without_progress_it_is_started_again() {
    let mut stage = Stage::new("echo $$ > pid; sleep 60", |launch| {
        launch.progress_timeout = Some(Duration::from_secs(2));
    });
    let first = stage.file("pid").await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage.progress.send_replace(Instant::now());
    }
    assert_eq!(stage.status.borrow().starts, 1);
    stage.until(|status| status.state == ProcessState::Stalled).await;
    stage.until(|status| status.starts == 2).await;
    assert!(!alive(&first));
    stage.finish().await;
}

#[tokio::test]
async fn a_stopped_process_group_is_ended_too() {
    let stage = Stage::new("echo $$ > pid; kill -STOP $$; sleep 60", |_| {});
    let pid = stage.file("pid").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    stage.finish().await;
    assert!(!alive(&pid));
}

#[tokio::test]
async fn leftovers_of_an_earlier_life_are_found_and_strangers_are_not() {
    let mut stage = Stage::new("(trap '' TERM; sleep 60) & echo $! > child; echo $$ > pid; wait", |_| {});
    stage.until(|status| status.state == ProcessState::Running).await;
    let (pid, child) = (stage.file("pid").await, stage.file("child").await);
    let record = stage.dir.path().join("process.json");
    let text = fs::read_to_string(&record).expect("the record");
    // Recorded with another start time, the pid is somebody else's.
    let mut stranger: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    stranger["start"] = serde_json::json!(1);
    let other = stage.dir.path().join("other.json");
    fs::write(&other, stranger.to_string()).expect("write");
    assert_eq!(leftover::end(&other, Path::new("/nowhere")).await, 0);
    assert!(alive(&pid));
    // The daemon's task ends without a word, as if it had been killed; the group is still there.
    assert_eq!(leftover::end(&record, Path::new("/nowhere")).await, 2, "the shell and its child");
    assert!(!alive(&pid) && !alive(&child));
    stage.finish().await;
}

#[tokio::test]
async fn the_process_dies_with_the_thread_that_started_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_owned();
    let started = tokio::task::spawn_blocking(move || {
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (_wanted, wants) = watch::channel(Wanted { run: true, ..Wanted::default() });
                let (_progress, progresses) = watch::channel(Instant::now());
                let (status, mut statuses) = watch::channel(ProcessStatus::default());
                let launch = launch(&path, "exec sleep 60");
                let supervisor = Supervisor::new(launch, Box::new(Vec::new), wants, progresses, status);
                let task = tokio::spawn(supervisor.run());
                let running = statuses.wait_for(|status| status.state == ProcessState::Running).await;
                let pid = running.expect("runs").pid.expect("a pid");
                // Nothing is told to stop: the thread just ends, with the child not killed by its handle.
                std::mem::forget(task);
                pid
            })
        });
        thread.join().expect("no panic")
    });
    let pid = started.await.expect("started").to_string();
    let began = Instant::now();
    while alive(&pid) {
        assert!(began.elapsed() < PATIENCE, "it lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
