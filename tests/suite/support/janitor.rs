//! Tells `janitor.sh` which processes, brokers and folders to remove when the test process ends. `Drop` alone is not
//! enough: statics are never dropped, and a process that is killed or aborts drops nothing.

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
        // In its own process group, Ctrl-C ends the tests but not the janitor.
        .process_group(0)
        .spawn()
        .expect("bash starts");
    Mutex::new(child)
});

/// The folder of this run, for data and logs of its brokers; the janitor removes it.
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

/// `process` was started; the janitor kills it if it still runs at the end.
pub fn process_started(process: u32) {
    tell("process", process);
}

/// `process` has been waited for; another process may get its number.
pub fn process_ended(process: u32) {
    tell("ended", process);
}

/// A broker is about to start in the folder `data`.
pub fn broker_starts(data: &Path) {
    tell("broker", data.display());
}

fn tell(verb: &str, what: impl std::fmt::Display) {
    let mut janitor = JANITOR.lock();
    let stdin = janitor.stdin.as_mut().expect("stdin is a pipe");
    writeln!(stdin, "{verb} {what}").expect("the janitor reads its stdin");
}
