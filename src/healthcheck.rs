//! `--healthcheck`: checks the running process, prints one line, and returns the exit code.
//!
//! Container engines and probes start it inside the container, so it needs no shell and no tools. It reads the same
//! options as the service, and starts no threads. Called by `gateway::run` and `worker::run`.

use crate::config::{GatewayConfig, HealthCheck, WorkerConfig};
use crate::gateway::is_for_operators;
use crate::supervisor::RUNNING;
use program::exit::ExitCode;
use program::http::Client;
use program::logging::escape;
use program::stop::Stop;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A worker whose health file is older than this hangs: it refreshes the file every second.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// How long a gateway may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Checks whether the worker that refreshes the configured health file is live, or takes tasks.
pub(crate) fn worker(config: &WorkerConfig, check: &HealthCheck) -> ExitCode {
    match &config.health_file {
        Some(path) => say(&file(path, check, SystemTime::now())),
        None => {
            let fault = "HEALTH_FILE: not set; expected the file that the worker was started with, for --healthcheck";
            let _ = writeln!(io::stderr(), "{fault}");
            ExitCode::Usage
        }
    }
}

/// Checks whether the gateway at the configured address is live, or ready.
pub(crate) fn gateway(config: &GatewayConfig, check: &HealthCheck) -> ExitCode {
    let mut address = reachable(config.http_addr);
    let (path, word) = match check {
        HealthCheck::Live => ("/livez", "live"),
        HealthCheck::Ready => ("/readyz", "ready"),
        HealthCheck::Path(path) => {
            if let Some(admin) = config.admin_addr.filter(|_| is_for_operators(path)) {
                address = reachable(admin);
            }
            return say(&body(address, path));
        }
    };
    let state = match Client::new(address, Stop::new()).get(path, ANSWER_LIMIT).map(|response| response.status) {
        Ok(200) => Ok(format!("{word}: {address}")),
        Ok(status) => Err(format!("not {word}: GET {path} at {address} answers {status}")),
        Err(failure) => Err(format!("not {word}: nothing answers at {address} ({failure})")),
    };
    say(&state)
}

fn say(state: &Result<String, String>) -> ExitCode {
    let (line, code) = match state {
        Ok(line) => (line, ExitCode::Drained),
        Err(line) => (line, ExitCode::Fatal),
    };
    // This fails if stdout is closed; the exit code is the same.
    let _ = writeln!(io::stdout(), "{line}");
    code
}

fn file(path: &Path, check: &HealthCheck, now: SystemTime) -> Result<String, String> {
    let name = escape(&path.to_string_lossy()).to_string();
    let (written, word) = std::fs::metadata(path)
        .and_then(|file| Ok((file.modified()?, std::fs::read_to_string(path)?)))
        .map_err(|error| format!("not live: {name} cannot be read ({error})"))?;
    // A time in the future: the clock was set back. The next refresh is at most a second away.
    let age = now.duration_since(written).unwrap_or_default();
    if age > LONGEST_SILENCE {
        return Err(format!("not live: {name} was last refreshed {} s ago", age.as_secs()));
    }
    let state = format!("{}, refreshed {} s ago", escape(word.trim()), age.as_secs());
    match check {
        HealthCheck::Live => Ok(format!("live: {state}")),
        _ if word.trim() == RUNNING => Ok(format!("ready: {state}")),
        _ => Err(format!("not ready: {state}")),
    }
}

/// Returns the body of the response to `GET path`.
///
/// # Errors
/// The body, if the status is not 200; or why there is no response.
fn body(address: SocketAddr, path: &str) -> Result<String, String> {
    let response = Client::new(address, Stop::new()).get(path, ANSWER_LIMIT);
    let response = response.map_err(|failure| format!("nothing answers at {address} ({failure})"))?;
    let body = String::from_utf8_lossy(&response.body).trim_end().to_owned();
    if response.status == 200 { Ok(body) } else { Err(body) }
}

/// The local address of a listener on all addresses.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn listener_on_all_addresses_is_reached_at_the_local_address() {
        assert_eq!(reachable(SocketAddr::from(([0, 0, 0, 0], 80))), SocketAddr::from(([127, 0, 0, 1], 80)));
        assert_eq!(reachable(SocketAddr::from(([10, 1, 2, 3], 80))), SocketAddr::from(([10, 1, 2, 3], 80)));
    }

    #[test]
    fn health_file_counts_as_live_for_ten_seconds() {
        let path = std::env::temp_dir().join(format!("lastcall-health-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, "draining\n").expect("a new file");
        let written = std::fs::metadata(&path).and_then(|file| file.modified()).expect("readable");
        let at = |seconds| file(&path, &HealthCheck::Live, written + Duration::from_secs(seconds));
        assert!(file(&path, &HealthCheck::Ready, written).expect_err("it drains").starts_with("not ready: draining"));
        assert_eq!(at(0).expect("fresh"), "live: draining, refreshed 0 s ago");
        assert_eq!(at(10).expect("just in time"), "live: draining, refreshed 10 s ago");
        assert!(at(11).expect_err("too old").ends_with("was last refreshed 11 s ago"));
        assert!(
            file(&path, &HealthCheck::Live, written - Duration::from_secs(60)).is_ok(),
            "a clock that was set back does not fail the check"
        );
        std::fs::remove_file(&path).expect("ours");
        assert!(at(0).expect_err("gone").contains("cannot be read (No such file"));
    }

    #[test]
    fn body_is_printed_with_any_status_and_only_200_passes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for status in ["200 OK", "503 Service Unavailable"] {
                    let (mut stream, _) = listener.accept().expect("a connection");
                    stream.read_exact(&mut [0; 16]).expect("a request");
                    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\n{{}}\n").expect("it is there");
                }
            });
            assert_eq!(body(address, "/health"), Ok("{}".to_owned()));
            assert_eq!(body(address, "/health"), Err("{}".to_owned()));
        });
    }
}
