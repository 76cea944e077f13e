//! A time of day that a test moves, for programs that it starts: `clock.c` beside this, given to them by the linker.
//! Included with `#[path]`; nothing but the standard library and a C compiler.
#![allow(clippy::allow_attributes, dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// One clock; every program that is started with its variables is ahead as far as it says.
#[derive(Debug)]
pub struct MovedClock {
    file: PathBuf,
    ahead: AtomicI64,
}

impl MovedClock {
    /// One that has not been moved yet.
    ///
    /// # Panics
    /// Without a C compiler.
    pub fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ahead-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let file = library().with_file_name(name);
        fs::write(&file, 0_i64.to_ne_bytes()).expect("the directory of the build");
        Self { file, ahead: AtomicI64::new(0) }
    }

    /// The variables that give it to a program.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", library().display().to_string()), ("TEST_CLOCK", self.file.display().to_string())]
    }

    /// Moves it for all of them, seconds.
    pub fn advance(&self, secs: i64) {
        let ahead = self.ahead.fetch_add(secs, Ordering::SeqCst) + secs;
        let file = fs::OpenOptions::new().write(true).open(&self.file).expect("our file");
        file.write_all_at(&ahead.to_ne_bytes(), 0).expect("our file");
    }

    /// How far it was moved, seconds.
    pub fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::SeqCst)
    }
}

impl Drop for MovedClock {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.file);
    }
}

/// The library, built once in a run.
fn library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
            let (path, own) = (dir.join("clock.so"), dir.join(format!("clock-{}.so", std::process::id())));
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clock/clock.c");
            let built = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .arg(&own)
                .arg(source)
                .status()
                .expect("there is a C compiler");
            assert!(built.success(), "{source} does not compile");
            // Another test program may do the same at this moment.
            fs::rename(own, &path).expect("the directory of the build");
            path
        })
        .clone()
}
