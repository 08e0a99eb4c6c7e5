//! What is left running when the test process ends, is killed: see `janitor.sh`. `Drop` alone would not do, as statics are
//! never dropped and a process that is killed or aborts drops nothing.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use parking_lot::Mutex;

static JANITOR: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/support/janitor.sh");
    let child = Command::new("bash")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // A Ctrl-C ends the tests, not the one who cleans up after them.
        .process_group(0)
        .spawn()
        .expect("bash starts");
    Mutex::new(child)
});

/// The folder of this run: data and logs of its brokers. Removed with everything else.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(std::process::id().to_string());
    std::fs::create_dir_all(&folder).expect("a folder for the run");
    tell("folder", folder.display());
    folder
});

/// The folder of this run.
pub fn folder() -> &'static Path {
    &FOLDER
}

/// `process` was started and is to be killed if it is still there at the end.
pub fn process_started(process: u32) {
    tell("process", process);
}

/// `process` has been waited for: its number may belong to somebody else from now on.
pub fn process_ended(process: u32) {
    tell("ended", process);
}

/// A broker is about to start in the folder `data`.
pub fn broker_starts(data: &Path) {
    tell("broker", data.display());
}

fn tell(verb: &str, what: impl std::fmt::Display) {
    let mut janitor = JANITOR.lock();
    let ear = janitor.stdin.as_mut().expect("stdin is a pipe");
    writeln!(ear, "{verb} {what}").expect("the janitor listens");
}
